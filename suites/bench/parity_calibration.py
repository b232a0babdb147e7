"""How far clean compiled code goes from the reference, beside eager: what the rule's constants are
set by.

Serves clean traffic to both twins and the reference, and prints for each statistic of
``vlm_ci.parity.oracle.Rule`` its median, its 99.9th percentile and its largest value over all
tokens, and what the rule allows; exits with 1 where a clean batch would fail.

    python suites/bench/parity_calibration.py --target qwen3-vl-tiny --backend aot_eager
"""

from __future__ import annotations

import argparse
import platform
import sys
import time

import torch

from vlm_ci.parity.oracle import RULE, decide, measure
from vlm_ci.synthesis.examples import examples
from vlm_ci.targets.loading import load_target
from vlm_ci.warmup import find_plan

STATISTICS = ("token", "row", "peak", "rank", "kl")


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="qwen3-vl-tiny")
    parser.add_argument("--recipe", default="decoder-layers")
    parser.add_argument("--backend", default="aot_eager")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    """Measure, and print a table."""
    given = options()
    target = load_target(
        given.target,
        recipe=given.recipe,
        backend=given.backend,
        device=given.device,
        dtype=given.dtype,
    )
    for batch in find_plan(None, target.envelope).batches:
        target.warm_up(batch)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in STATISTICS}
    eager, failed, equal, worst, started = [], 0, 0, 0.0, time.perf_counter()
    batches = (b for one in examples(target.envelope, given.seed) for b in one.batches)
    for _, batch in zip(range(given.batches), batches, strict=False):
        answers = target.run_compiled(batch), target.run_eager(batch), target.run_reference(batch)
        equal += torch.equal(answers[0].logits, answers[1].logits)
        found = measure(*answers)
        eager.append(found.eager)
        for name in STATISTICS:
            seen[name].append(getattr(found, name).float().cpu())
        comparison = decide(found, *answers[:2])
        failed += not comparison.passes
        if comparison.ratio > worst:
            worst = comparison.ratio
            print(f"  {worst:.3f} {comparison.statistic} {comparison.at} {batch!r}", flush=True)
    hardware = torch.cuda.get_device_name() if given.device.startswith("cuda") else "CPU"
    print(
        f"{given.target}, {given.recipe}, {given.backend}, {given.dtype}, {hardware} "
        f"({platform.machine()}), torch {torch.__version__}, seed {given.seed}: {given.batches} "
        f"batches, {sum(map(len, seen['token']))} tokens in {time.perf_counter() - started:.0f} s"
    )
    print(
        f"eager's error, relative: median {sorted(eager)[len(eager) // 2]:.3g}, largest "
        f"{max(eager):.3g}; {equal} batches where both twins agree to the bit"
    )
    print(f"{'statistic':<12}{'median':>10}{'99.9 %':>10}{'largest':>10}{'allowed':>10}")
    for name in STATISTICS:
        values = torch.cat(seen[name]).sort().values
        far = values[min(len(values) - 1, int(len(values) * 0.999))]
        print(
            f"{name:<12}{values[len(values) // 2]:>10.3f}{far:>10.3f}{values[-1]:>10.3f}"
            f"{getattr(RULE, name):>10.1f}"
        )
    print(f"{failed} of {given.batches} clean batches would fail")
    target.close()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
