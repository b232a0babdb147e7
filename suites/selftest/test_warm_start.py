"""Inductor from the compile cache: a warm start finds what a cold one finds."""

from __future__ import annotations

import shutil
import types
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import processes
import pytest
import torch
from small_twin import Mlp, small_twin

from vlm_ci.caching.use import INDUCTOR, TRITON, CompileCache
from vlm_ci.checker import Checker, CheckSettings
from vlm_ci.failures import identity
from vlm_ci.listeners import Silent
from vlm_ci.result import Result
from vlm_ci.traffic.spec import Session, Text, batch
from vlm_ci.warmup import Plan


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no folder chosen."""
    for name in (INDUCTOR, TRITON):
        monkeypatch.delenv(name, raising=False)


TWO_ROWS = Plan(name="two", batches=(batch(Text(5), Text(7)),))
THREE_ROWS = Session((batch(Text(5), Text(7), Text(4)),))


def branch_on_three_rows(model: Any) -> None:
    """A planted bug: three rows take another path, which warm-up never ran."""

    def forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        return Mlp.forward(self, hidden * 2 / 2 if hidden.shape[0] == 3 else hidden)

    for layer in model.layers:
        layer.mlp.forward = types.MethodType(forward, layer.mlp)


def one_mlp(parts: Any, compile_module: Any) -> None:
    """A recipe that compiles as little as there is."""
    compile_module(parts.decoder_layers[0].mlp)


def check(folder: Path) -> tuple[CompileCache, Result, Counter[str]]:
    """Find the planted bug with Inductor, from a cache in this folder."""
    cache = CompileCache(folder, scope="trusted")
    target = small_twin(branch_on_three_rows, backend="inductor", recipe="test_warm_start:one_mlp")
    try:
        checker = Checker(target, CheckSettings(plan=TWO_ROWS, reference="none"), Silent())
        checker.keep_in(Silent(), cache)
        checker.replay(THREE_ROWS, lambda step: None)
        events = checker.watcher.counts("warmup")
    finally:
        cache.close()
        target.close()
    for kind in ("cache-hit", "cache-miss"):
        del events[kind]
    return cache, checker.result, events


@pytest.mark.slow
@pytest.mark.nightly
def test_a_warm_start_finds_what_a_cold_one_finds(tmp_path: Path):
    cold_cache, cold, cold_events = check(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")  # another bundle, another folder
    warm_cache, warm, warm_events = check(tmp_path / "two")
    assert (cold_cache.use.state, cold_cache.use.hits) == ("cold", 0)
    assert cold_cache.use.misses
    assert (warm_cache.use.state, warm_cache.use.misses) == ("warm", 0)
    assert warm_cache.use.hits == cold_cache.use.misses
    for name in ("compiles", "graphs", "graph_breaks", "rounds", "converged", "frames"):
        assert getattr(warm.warmup, name) == getattr(cold.warmup, name), name
    assert cold.warmup.compiles > 0
    assert warm_events == cold_events
    assert warm.strict.compiles == cold.strict.compiles == 0
    (failure,), (again,) = cold.failures, warm.failures
    assert failure.kind == "recompile"
    assert identity(again) == identity(failure)


@pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=pytest.mark.nightly), pytest.param("cuda", marks=pytest.mark.gpu)],
)
@pytest.mark.slow
def test_a_fresh_process_begins_warm_and_finds_the_planted_bug(device: str, tmp_path: Path):
    results = []
    for out in ("cold", "warm"):
        done = processes.run(
            *("vlm-ci run --bug deepstack-kwarg --backend inductor --examples 40").split(),
            *(
                "--device",
                device,
                "--cache",
                "cache",
                "--cache-scope",
                "trusted",
                "--out",
                out,
                "--database",
                "none",
            ),
            cwd=tmp_path,
            timeout=550,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        results.append(
            msgspec.json.decode((tmp_path / out / "result.json").read_bytes(), type=Result)
        )
    cold, warm = results
    assert cold.cache is not None
    assert warm.cache is not None
    assert (cold.cache.state, warm.cache.state) == ("cold", "warm")
    assert (warm.cache.hits, warm.cache.misses) == (cold.cache.misses, 0)
    assert (warm.warmup.compiles, warm.warmup.graphs) == (cold.warmup.compiles, cold.warmup.graphs)
    assert list(map(identity, warm.failures)) == list(map(identity, cold.failures))
    assert warm.warmup.seconds < cold.warmup.seconds
