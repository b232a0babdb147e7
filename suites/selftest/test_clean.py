"""Stock models are clean: nothing compiles after warm-up, and the logits are eager's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from vlm_ci import building, locations, runner
from vlm_ci.settings import Settings

pytestmark = pytest.mark.slow

# The README's first green, which a test runs by day too, is qwen3-vl-tiny with decoder-layers.
CLEAN = [("llava-tiny", "decoder-layers", "eager")]
CLEAN_NIGHTLY = [
    ("qwen3-vl-tiny", "decoder-layers", "eager"),
    ("qwen3-vl-tiny", "language-model", "eager"),
    ("qwen2.5-vl-tiny", "decoder-layers", "eager"),
    ("qwen2.5-vl-tiny", "language-model", "eager"),
    ("qwen2.5-vl-sliding-tiny", "decoder-layers", "eager"),
    ("llava-tiny", "language-model", "eager"),
    ("qwen3-vl-tiny", "decoder-layers", "aot_eager"),
    ("qwen3-vl-tiny", "decoder-layers", "inductor"),
]
WITH_BASELINE = [*CLEAN, *CLEAN_NIGHTLY[:3]]


def run(tmp_path: Path, **given):
    baselines = str(locations.fixtures() / "baselines")
    settings = Settings.from_mapping(
        {"out": str(tmp_path), "database": "none", "baselines": baselines, **given}
    )
    target = building.build_target(settings)
    try:
        return runner.run(settings, target)
    finally:
        target.close()


@pytest.mark.parametrize(
    ("target", "recipe", "backend"),
    [*CLEAN, *(pytest.param(*case, marks=pytest.mark.nightly) for case in CLEAN_NIGHTLY)],
)
def test_a_stock_model_is_clean(target: str, recipe: str, backend: str, tmp_path: Path):
    result = run(tmp_path, target=target, recipe=recipe, backend=backend, examples=80)
    assert result.failures == []
    assert result.verdict == "clean"
    assert result.strict.batches == result.traffic.batches >= 200
    assert result.strict.compiles == result.strict.refusals == 0
    assert result.strict.regions_per_step.least
    assert result.parity.canary.moved == result.parity.canary.applied > 0
    assert result.parity.worst is not None
    assert result.parity.worst.ratio < (0.9 if backend == "inductor" else 0.1)
    assert result.baseline is not None
    other_versions = any("the baseline was written with" in text for text in result.warnings)
    assert result.baseline.changes == [] or other_versions
    if (target, recipe, backend) in WITH_BASELINE:
        assert result.baseline.path.endswith(f"{target}.json")
    assert min(result.traffic.corners.values()) > 0
    if (target, recipe) == ("qwen3-vl-tiny", "decoder-layers"):
        assert result.strict.forward_seconds / result.strict.seconds >= 0.6


@pytest.mark.nightly
def test_vision_blocks_need_a_graph_for_each_number_of_images(tmp_path: Path):
    result = run(tmp_path, recipe="vision", examples=40)
    assert {failure.kind for failure in result.failures} == {"recompile"}
    assert any("len(" in guard for failure in result.failures for guard in failure.guards)


@pytest.mark.nightly
def test_the_whole_model_reaches_the_limit_and_falls_back(tmp_path: Path):
    result = run(tmp_path, recipe="whole", examples=20)
    kinds = [failure.kind for failure in result.failures]
    assert "limit-hit" in kinds
    assert "wrapper" in result.failures[0].frame


@pytest.mark.nightly
def test_torchs_own_trace_shows_no_compilation_after_warm_up(tmp_path: Path):
    trace = tmp_path / "trace"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vlm_ci.cli",
            "run",
            "--bug",
            "deepstack-kwarg",
            "--examples",
            "40",
            "--out",
            str(tmp_path / "out"),
        ],
        env={**os.environ, "TORCH_TRACE": str(trace)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    result = json.loads((tmp_path / "out/result.json").read_text())
    (failure,) = result["failures"]
    assert failure["kind"] == "recompile"
    started = result["strict"]["started"]
    times = compile_times(trace)
    assert len(times) == result["warmup"]["compiles"] > 0
    assert max(times) < started
    assert result["strict"]["refusals"] > 0


def compile_times(folder: Path) -> list[float]:
    """Read when each compilation started out of the files that TORCH_TRACE writes."""
    year = datetime.now().year
    times = []
    for path in folder.glob("*.log"):
        for line in path.read_text().splitlines():
            if '"dynamo_start"' in line:
                stamp = re.match(r"V(\d{4}) (\d\d:\d\d:\d\d\.\d+)", line)
                assert stamp is not None, line
                moment = datetime.strptime(f"{year}{stamp[1]} {stamp[2]}", "%Y%m%d %H:%M:%S.%f")
                times.append(moment.timestamp())
    return times
