"""What the watch costs: a strict step against the bare compiled forward, step by step.

One model is compiled and warmed up; then blocks of bare and of strict steps take turns on the same
batch, in an order that changes from pair to pair, so that what is measured is the watch and not how
one compilation differs from the next. Bare is torch.compile alone: no stance, no observer, no
wrapper around a call. Strict is a whole strict step without the eager twin and the comparison. The
counter in each compiled region belongs to the compiled code and runs in both; it is timed by itself
and added to the strict side. Prints a table and exits with 1 where the overhead over all batches is
above what is allowed.

    python suites/bench/strict_overhead.py --target qwen3-vl-4b-8layers --device cuda
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import torch

from vlm_ci.checker import Checker, CheckSettings
from vlm_ci.listeners import Silent
from vlm_ci.strict import StrictRunner
from vlm_ci.targets import models
from vlm_ci.targets.loading import load_target
from vlm_ci.targets.transformers_twin import TransformersTwin
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
BLOCK = 3  # steps of one way in a row; the first does not count: caches of the CPU fill again


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="qwen3-vl-tiny")
    parser.add_argument("--recipe", default="decoder-layers")
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pairs", type=int, default=200, help="pairs of blocks for each batch")
    parser.add_argument("--allowed", type=float, default=0.02)
    return parser.parse_args()


def wide(name: str) -> Envelope:
    """Return the envelope of a model, widened to the traffic here."""
    default = models.find(name).envelope()
    return msgspec.structs.replace(
        default, tokens=(1, 512), max_tokens=4096, image_side=(32, 224), video_side=(32, 128)
    )


@contextmanager
def without_watch(target: TransformersTwin) -> Iterator[None]:
    """Take the observers and the wrappers around compiled modules away for a while."""
    target.watcher.stop()
    watched = {m: m._compiled_call_impl for m in target._compiled.modules()}
    for module, call in watched.items():
        while call is not None and "vlm_ci" in call.__code__.co_filename:
            call = call.__wrapped__
        module._compiled_call_impl = call
    try:
        yield
    finally:
        for module, call in watched.items():
            module._compiled_call_impl = call
        target.watcher.start()


def counter_seconds(target: TransformersTwin) -> float:
    """Return what the counter of one region costs: its call around one that does nothing."""
    seen: list[int] = []
    note, nothing = seen.append, (lambda *args: None)
    arguments = (None,) * 20

    def region(*args: object) -> object:
        note(1)
        return nothing(*args)

    def cost(call: Callable[..., object]) -> float:
        return min(timeit.repeat(lambda: call(*arguments), number=2000, repeat=9)) / 2000

    return cost(region) - cost(nothing)


def pairs(target: TransformersTwin, runner: StrictRunner, one: Batch, count: int) -> list[float]:
    """Return the seconds of each bare forward and by how much each strict step took longer."""
    session = Session((one,))

    def block(serve: Callable[[], object]) -> float:
        times = []
        for _ in range(BLOCK):
            started = time.perf_counter()
            serve()
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:])

    def bare() -> float:
        with without_watch(target):
            return block(lambda: target.run_compiled(one))

    def strict() -> float:
        return block(lambda: runner.run_session(session))

    more = []
    order = random.Random(0)
    for _ in range(count):
        if order.random() < 0.5:
            first = bare()
            more.append(strict() - first)
        else:
            first = strict()
            more.append(first - bare())
    return more


def forward_seconds(target: TransformersTwin, one: Batch, count: int) -> float:
    """Return the median seconds of the bare forward alone, without building its inputs."""
    times = []
    with without_watch(target):
        for _ in range(count):
            before = target.stats().forward_seconds
            target.run_compiled(one)
            times.append(target.stats().forward_seconds - before)
    return statistics.median(times[2:])


def main() -> int:
    """Measure each batch, and print its medians."""
    given = options()
    target = load_target(
        given.target,
        recipe=given.recipe,
        backend=given.backend,
        device=given.device,
        dtype=given.dtype,
        envelope=wide(given.target),
    )
    checker = Checker(
        target, CheckSettings(plan=Plan(name="bench", batches=tuple(TRAFFIC.values()))), Silent()
    )
    measured: dict[str, tuple[float, float, float]] = {}

    def serve(runner: StrictRunner) -> None:
        runner.compares = False
        for name, one in TRAFFIC.items():
            for _ in range(4):  # the stall watch repeats a new shape
                runner.run_session(Session((one,)))
            counted = target.watcher.regions
            runner.run_session(Session((one,)))
            counter = (target.watcher.regions - counted) * counter_seconds(target)
            forward = forward_seconds(target, one, 30)
            more = sorted(pairs(target, runner, one, given.pairs))
            spread = (more[len(more) * 3 // 4] - more[len(more) // 4]) / len(more) ** 0.5
            measured[name] = forward, statistics.median(more) + counter, spread

    checker.drive(serve)
    if checker.result.failures or not measured:
        sys.exit(f"the strict steps are not clean: {checker.result.failures}")
    hardware = torch.cuda.get_device_name() if given.device.startswith("cuda") else "CPU"
    print(
        f"{given.target}, {given.recipe}, {given.backend}, {given.dtype}, {hardware}, "
        f"torch {torch.__version__}; {given.pairs} pairs for each batch"
    )
    print(f"{'batch':<12}{'forward ms':>12}{'strict +ms':>12}{'± ms':>8}{'overhead':>10}")
    total = [0.0, 0.0, 0.0]
    for name, (forward, more, spread) in measured.items():
        total = [total[0] + forward, total[1] + more, (total[2] ** 2 + spread**2) ** 0.5]
        print(row(name, forward, more, spread))
    print(row("all", *total))
    target.close()
    return int(total[1] / total[0] > given.allowed)


def row(name: str, forward: float, more: float, spread: float) -> str:
    """Return a line of the table."""
    times = f"{forward * 1e3:>12.3f}{more * 1e3:>12.3f}{spread * 1e3:>8.3f}"
    return f"{name:<12}{times}{more / forward:>10.2%}"


if __name__ == "__main__":
    sys.exit(main())
