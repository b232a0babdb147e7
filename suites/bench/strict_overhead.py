"""What the watch costs: a strict step against the bare compiled forward, the same batches.

Two ways to serve take turns, each compiled anew: bare (torch.compile alone: no stance, no observer,
no counting) and strict (a strict step without the eager twin and the comparison). Prints a table
and exits with 1 where the overhead is above what is allowed.

    python suites/bench/strict_overhead.py --target qwen3-vl-4b-8layers --device cuda
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from unittest.mock import patch

import msgspec
import torch

from vlm_ci.checker import Checker, CheckSettings
from vlm_ci.listeners import Silent
from vlm_ci.strict import StrictRunner
from vlm_ci.targets import models
from vlm_ci.targets.backends import CountingBackend
from vlm_ci.targets.loading import load_target
from vlm_ci.traffic.envelope import Envelope
from vlm_ci.traffic.spec import Batch, Image, Session, Text, Video, batch
from vlm_ci.warmup import Plan

TRAFFIC = {
    "text 128": batch(Text(128)),
    "text 512": batch(Text(512)),
    "mixed": batch(
        [Text(64), Image(224, 224), Text(32)], [Text(200)], [Video(6, 128, 128), Text(16)]
    ),
}


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="qwen3-vl-tiny")
    parser.add_argument("--recipe", default="decoder-layers")
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--allowed", type=float, default=0.02)
    return parser.parse_args()


def batches(target) -> dict[str, Batch]:
    """Return the traffic, for an envelope that allows it."""
    refused = {name: target.envelope.violation(one) for name, one in TRAFFIC.items()}
    for name, reason in refused.items():
        if reason:
            sys.exit(f"{name}: {reason}")
    return TRAFFIC


def wide(name: str) -> Envelope:
    """Return the envelope of a model, widened to the traffic here."""
    default = models.find(name).envelope()
    return msgspec.structs.replace(
        default, tokens=(1, 512), max_tokens=4096, image_side=(32, 224), video_side=(32, 128)
    )


def measure(serve, traffic: dict[str, Batch], repeats: int) -> dict[str, float]:
    """Return the median seconds of a step for each batch, after three steps that do not count."""
    medians = {}
    for name, one in traffic.items():
        times = []
        for index in range(repeats + 3):
            started = time.perf_counter()
            serve(one)
            if index >= 3:
                times.append(time.perf_counter() - started)
        medians[name] = statistics.median(times)
    return medians


def bare(target, given: argparse.Namespace) -> dict[str, float]:
    """Compile without anything of ours, and serve."""

    def alone(self, graph, inputs):
        return self._compile(graph, inputs)

    with patch.object(CountingBackend, "__call__", alone):
        target.reset()
        target.watcher.stop()
        for module in target._compiled.modules():
            compiled = module._compiled_call_impl
            while compiled is not None and "vlm_ci" in compiled.__code__.co_filename:
                compiled = compiled.__wrapped__
            module._compiled_call_impl = compiled
        traffic = batches(target)
        for _ in range(3):
            for one in traffic.values():
                target.run_compiled(one)
        return measure(target.run_compiled, traffic, given.repeats)


def strict(target, given: argparse.Namespace) -> dict[str, float]:
    """Warm up under the watch, and serve strictly."""
    target.reset()
    traffic = batches(target)
    plan = Plan(name="bench", batches=tuple(traffic.values()))
    checker = Checker(target, CheckSettings(plan=plan), Silent())
    found: dict[str, float] = {}

    def serve(runner: StrictRunner) -> None:
        runner.compares = False
        found.update(
            measure(lambda one: runner.run_session(Session((one,))), traffic, given.repeats)
        )

    checker.drive(serve)
    if checker.result.failures or checker.result.strict.refusals:
        sys.exit(f"the strict steps are not clean: {checker.result.failures}")
    return found


def main() -> int:
    """Measure in turns, and print the medians of all turns."""
    given = options()
    target = load_target(
        given.target,
        recipe=given.recipe,
        backend=given.backend,
        device=given.device,
        dtype=given.dtype,
        envelope=wide(given.target),
    )
    ways = {"bare": bare, "strict": strict}
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    for _ in range(given.turns):
        for name, way in ways.items():
            for batch_name, median in way(target, given).items():
                seconds[name].setdefault(str(batch_name), []).append(median)
    hardware = torch.cuda.get_device_name() if given.device.startswith("cuda") else "CPU"
    print(
        f"{given.target}, {given.recipe}, {given.backend}, {given.dtype}, {hardware}, "
        f"torch {torch.__version__}; {given.turns} turns of {given.repeats} steps"
    )
    print(f"{'batch':<12}{'bare ms':>10}{'strict ms':>12}{'overhead':>10}")
    totals = dict.fromkeys(ways, 0.0)
    for name in seconds["bare"]:
        pair = {way: statistics.median(seconds[way][name]) for way in ways}
        for way in ways:
            totals[way] += pair[way]
        print(
            f"{name:<12}{pair['bare'] * 1e3:>10.3f}{pair['strict'] * 1e3:>12.3f}"
            f"{pair['strict'] / pair['bare'] - 1:>10.2%}"
        )
    overhead = totals["strict"] / totals["bare"] - 1
    print(
        f"{'all':<12}{totals['bare'] * 1e3:>10.3f}{totals['strict'] * 1e3:>12.3f}{overhead:>10.2%}"
    )
    target.close()
    return int(overhead > given.allowed)


if __name__ == "__main__":
    sys.exit(main())
