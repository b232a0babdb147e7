"""What a second worker brings: examples per second of the strict phase, with one and with two.

The same work is done by pytest with ``-n 1`` and with ``-n 2``: two targets, the same examples for
each. On the CPU they differ by default in their recompile limit alone, which neither reaches, so
that both are the same work. On GPUs they differ in their dtype too: a GPU's libraries build a plan
for each new shape and dtype, once in a process, so that of two equal targets one worker would do
that work once and two workers twice. Each worker has the same number of threads in both: one on the
CPU, half of the cores where each has a GPU (``--device cuda``).

The figure is the examples of both results over the time in which a search went on: the union of the
strict phases, each from its start to its end as result.json says them. Time in which nothing
searches (with one worker, the second target's warm-up) does not count. With two workers, time in
which one searches while the other still warms up, or is done already, counts in full: it makes the
ratio smaller, never larger. How much of the time both searched is printed as "both"; where that is
far below 100 %, take more examples before believing the ratio.

Both are measured several times in turn, and the ratio is that of the fastest of each: what else a
machine does makes a session slower, never faster, and on a virtual machine it may take most of it.

Prints a table and exits with 1 where the ratio is below what is required: 1.6 on the CPU, 1.8 on
GPUs.

    python suites/bench/workers.py --examples 60
    python suites/bench/workers.py --device cuda --repeat 1
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vlm_ci.plugin import capacity, gpus
from vlm_ci.result import Result

REQUIRED = {"cpu": 1.6, "cuda": 1.8}
DTYPES = {"cpu": ["float32", "float32"], "cuda": ["bfloat16", "float16"]}
SUITE = """
import pytest

@pytest.mark.vlm(target={targets[0]!r}, dtype={dtypes[0]!r})
def test_first(vlm_check):
    vlm_check()

@pytest.mark.vlm(target={targets[1]!r}, dtype={dtypes[1]!r}, recompile_limit=16)
def test_second(vlm_check):
    vlm_check()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One session: examples, seconds in which a search went on, and in which two did."""

    examples: int
    seconds: float
    both: float

    @property
    def rate(self) -> float:
        """Examples per second."""
        return self.examples / self.seconds


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs=2, default=["qwen3-vl-tiny", "qwen3-vl-tiny"])
    parser.add_argument("--device", choices=sorted(REQUIRED), default="cpu")
    parser.add_argument("--dtypes", nargs=2, help="one for each target")
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--examples", type=int, default=300, help="for each of the two targets")
    parser.add_argument(
        "--repeat", type=int, default=3, help="sessions with one worker, and with two"
    )
    parser.add_argument("--required", type=float, help="the least ratio")
    given = parser.parse_args()
    if given.required is None:
        given.required = REQUIRED[given.device]
    given.dtypes = given.dtypes or DTYPES[given.device]
    if given.repeat < 1:
        parser.error("--repeat must be at least 1")
    if given.device == "cuda" and len(gpus.visible()) < 2:
        parser.error(f"two GPUs are needed; {len(gpus.visible())} can be seen")
    return given


def measure(results: Sequence[Result]) -> Measured:
    """Return what the strict phases of one session come to."""
    spans = sorted((r.strict.started, r.strict.started + r.strict.seconds) for r in results)
    total = sum(end - start for start, end in spans)
    union, reached = 0.0, 0.0
    for start, end in spans:
        union += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    examples = sum(result.traffic.examples for result in results)
    return Measured(examples=examples, seconds=union, both=total - union)


def run(given: argparse.Namespace, workers: int, folder: Path) -> list[Result]:
    """Do the work with so many workers, in a folder of its own; return its results."""
    suite = folder / "test_work.py"
    suite.write_text(SUITE.format(targets=given.targets, dtypes=given.dtypes))
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-p", "vlm_ci.plugin"),
        *(f"-n{workers}", f"--rootdir={folder}", "-c", os.devnull, str(suite)),
        *(f"--vlm-device={given.device}", f"--vlm-backend={given.backend}"),
        *(f"--vlm-examples={given.examples}", "--vlm-database=none", f"--vlm-out={folder / 'out'}"),
    ]
    threads = 1 if given.device == "cpu" else max(1, capacity.cores() // 2)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # nothing else that happens to be installed
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = [
        msgspec.json.decode(path.read_bytes(), type=Result)
        for path in sorted((folder / "out").rglob("result.json"))
    ]
    if done.returncode != 0 or [result.verdict for result in found] != ["clean", "clean"]:
        sys.exit(f"{done.stdout}{done.stderr}\nthe work itself failed with -n {workers}")
    return found


def main() -> int:
    """Measure with one worker and with two, and print the ratio."""
    given = options()
    fastest = {1: 0.0, 2: 0.0}
    print(
        f"{' and '.join(given.targets)}, {' and '.join(given.dtypes)}, {given.backend}, "
        f"{given.device}, {given.examples} examples each, {capacity.cores()} cores"
    )
    print(
        f"{'workers':>8}{'examples':>10}{'seconds':>10}{'both':>7}{'examples/s':>12}"
        f"{'warm-up':>14}{'search':>16}"
    )
    for workers in (1, 2) * given.repeat:
        with tempfile.TemporaryDirectory() as folder:
            results = run(given, workers, Path(folder))
        one = measure(results)
        fastest[workers] = max(fastest[workers], one.rate)
        warming = " + ".join(f"{result.warmup.seconds:.1f}" for result in results)
        searching = " + ".join(f"{result.strict.seconds:.1f}" for result in results)
        print(
            f"{workers:>8}{one.examples:>10}{one.seconds:>10.1f}{one.both / one.seconds:>7.0%}"
            f"{one.rate:>12.2f}{warming:>12} s{searching:>14} s",
            flush=True,
        )
    ratio = fastest[2] / fastest[1]
    print(f"ratio of the fastest {ratio:.2f}; at least {given.required} required")
    return int(ratio < given.required)


if __name__ == "__main__":
    sys.exit(main())
