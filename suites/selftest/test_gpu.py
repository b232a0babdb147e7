"""On an NVIDIA GPU: Inductor in bfloat16, with 4B widths too, and a planted bug."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_ci import building, runner
from vlm_ci.settings import Settings

pytestmark = pytest.mark.gpu


def run(tmp_path: Path, **given):
    settings = Settings.from_mapping(
        {
            "out": str(tmp_path),
            "database": "none",
            "device": "cuda",
            "dtype": "bfloat16",
            "backend": "inductor",
            **given,
        }
    )
    target = building.build_target(settings)
    try:
        return runner.run(settings, target)
    finally:
        target.close()


@pytest.mark.parametrize("target", ["qwen3-vl-tiny", "qwen2.5-vl-tiny", "qwen3-vl-4b-8layers"])
def test_decoder_layers_are_clean(target: str, tmp_path: Path):
    result = run(tmp_path, target=target, examples=50)
    assert result.failures == []
    assert result.verdict == "clean"
    assert result.strict.graph_captures == 0
    assert result.environment["hardware"].startswith("NVIDIA")


def test_the_deepstack_bug_is_red(tmp_path: Path):
    result = run(tmp_path, bug="deepstack-kwarg", examples=40)
    (failure,) = result.failures
    assert failure.kind == "recompile"
    assert "input_deepstack_embeds" in failure.cause
    assert result.strict.compiles == 0
