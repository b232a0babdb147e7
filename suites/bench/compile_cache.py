"""What the compile cache saves: the same warm-up cold, and then from the bundle alone.

Two fresh processes check the same target with Inductor, each with an empty folder for Inductor and
Triton, so that only the bundle of the first can help the second. Prints the seconds of both
warm-ups, loading included, and their ratio; exits with 1 where the ratio is below what is required,
or where the two did not compile and find the same. The ratio is what to compare: both runs share
the machine's load only roughly, so run it alone.

    python suites/bench/compile_cache.py --target qwen3-vl-tiny --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from vlm_ci.result import Result


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="qwen3-vl-tiny")
    parser.add_argument("--recipe", default="decoder-layers")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--mode", help="torch.compile's mode")
    parser.add_argument("--required", type=float, default=3.0, help="the least ratio")
    parser.add_argument("--pairs", type=int, default=1, help="cold and warm runs; the sums count")
    return parser.parse_args()


def run(given: argparse.Namespace, cache: Path, out: Path) -> Result:
    """Check the target in a fresh process, with nothing compiled but what the cache holds."""
    left_out = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    command = [
        *(sys.executable, "-m", "vlm_ci.cli", "run", "--backend", "inductor"),
        *("--target", given.target, "--recipe", given.recipe),
        *("--device", given.device, "--dtype", given.dtype),
        *("--examples", "1", "--reference", "none", "--database", "none"),
        *("--cache", str(cache), "--cache-scope", "trusted", "--out", str(out)),
        *(("--mode", given.mode) if given.mode else ()),
    ]
    with tempfile.TemporaryDirectory() as folder:  # where Inductor would look otherwise
        started = time.perf_counter()
        done = subprocess.run(
            command, env={**environment, "TMPDIR": folder}, capture_output=True, text=True
        )
        seconds = time.perf_counter() - started
    if not (out / "result.json").is_file():
        sys.exit(f"the run left no result:\n{done.stdout}\n{done.stderr}")
    result = msgspec.json.decode((out / "result.json").read_bytes(), type=Result)
    if result.cache is None or not result.warmup.converged:
        sys.exit(f"the run did not warm up:\n{done.stdout}\n{done.stderr}")
    print(
        f"{result.cache.state:<8}{result.warmup.seconds:>9.1f}{seconds:>9.1f}"
        f"{result.warmup.compiles:>10}{result.warmup.graphs:>8}"
        f"{result.cache.hits:>6}{result.cache.misses:>8}  {result.cache.note}",
        flush=True,
    )
    return result


def found(result: Result) -> tuple[object, ...]:
    """Return what has to be the same in both runs."""
    kinds = sorted(failure.kind for failure in result.failures)
    return result.warmup.compiles, result.warmup.graphs, result.strict.compiles, kinds


def main() -> int:
    """Measure, and judge the ratio."""
    given = options()
    print(f"{'start':<8}{'warm-up s':>9}{'run s':>9}{'compiles':>10}{'graphs':>8}{'hits':>6}")
    cold = warm = 0.0
    same = True
    for _ in range(given.pairs):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            first = run(given, folder / "cache", folder / "cold")
            second = run(given, folder / "cache", folder / "warm")
        states = [result.cache.state for result in (first, second) if result.cache]
        if states != ["cold", "warm"]:
            sys.exit(f"the runs began {' and '.join(states)}, not cold and warm")
        cold, warm = cold + first.warmup.seconds, warm + second.warmup.seconds
        same &= found(first) == found(second)
    env = second.environment
    print(
        f"{given.target}, {given.recipe}, {given.dtype}, {env['device']} ({env['hardware']}), "
        f"torch {env['torch']}: {cold / warm:.2f} times faster with the cache, "
        f"{given.required:g} required" + ("" if same else "; cold and warm found different things")
    )
    return int(cold / warm < given.required or not same)


if __name__ == "__main__":
    sys.exit(main())
