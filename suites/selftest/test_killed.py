"""A run that is killed: whatever it had found is on disk, whole and readable."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from toy import ToyTarget

from vlm_ci import evidence, runner
from vlm_ci.result import Result
from vlm_ci.settings import Settings

MOMENTS = 10


def faulty() -> ToyTarget:
    """Fails in several ways, each with a cause of its own, so that findings come one by one."""

    def serve(call, ids, part):
        if len(part.requests) == 2:
            return call(ids) + float("nan")
        if len(part.requests) == 3:
            raise ArithmeticError("three requests")
        if len(part.requests) == 4:
            raise LookupError("four requests")
        time.sleep(0.002)
        return call(ids) + (1.0 if part.seed % 2 else 0.0)

    return ToyTarget(serve)


class Reporting:
    """Writes the number of causes found so far into a pipe, each time it hears of it."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def warming(self, round_number: int, index: int, total: int) -> None:
        pass

    def searching(self, sessions: int, examples: int, batches: int, failing: int) -> None:
        os.write(self.pipe, bytes([failing]))


def run_in_a_child(out: Path) -> tuple[int, int]:
    """Start a run in a child process; returns its id, and the pipe that tells what it found."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    try:
        # Warm-up has one request in each batch, which does not fail.
        settings = Settings.from_mapping(
            {
                "examples": 200,
                "out": str(out),
                "database": "none",
                "warmup": str(out.parent / "plan.json"),
            }
        )
        runner.run(settings, faulty(), Reporting(write))
    finally:
        os._exit(0)


@pytest.mark.slow
def test_killed_at_ten_moments_nothing_found_is_lost(tmp_path: Path):
    moments = random.Random(7)
    reported, seen = [], 0
    for number in range(MOMENTS):
        out = tmp_path / f"run-{number}/out"
        out.mkdir(parents=True)
        (out.parent / "plan.json").write_text(PLAN)
        child, pipe = run_in_a_child(out)
        first = os.read(pipe, 1)
        assert first, "the run ended before it had found anything"
        time.sleep(moments.uniform(0.0, 1.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        said = first + b"".join(iter(lambda pipe=pipe: os.read(pipe, 4096), b""))
        os.close(pipe)
        result = msgspec.json.decode((out / "result.json").read_bytes(), type=Result)
        reported.append(max(said))
        seen = max(seen, len(result.failures))
        assert len(result.failures) >= max(said)
        for failure in result.failures:
            recorded = evidence.read(out / failure.path / "failure.json")
            assert recorded.failure.key == failure.key
            assert recorded.failure.traffic is not None
            json.loads((out / failure.path / "traffic.json").read_bytes())
            assert (out / failure.path / "evidence.txt").read_text().startswith(failure.kind)
            assert len(list((out / failure.path).iterdir())) in (5, 6)  # the last one half-written
    assert max(reported) >= 2, reported  # or it would prove nothing


PLAN = json.dumps(
    {
        "schema": "vlm-ci/plan/1",
        "batches": [
            {"requests": [{"items": [{"kind": "text", "tokens": tokens}]}], "seed": 0}
            for tokens in (7, 9, 1)
        ],
    }
)


@pytest.mark.slow
def test_sigterm_ends_a_run_as_ctrl_c_does(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-m", "vlm_ci.cli", "run", "--bug", "grad-mode-flip", "--out", "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "vlm-ci: shrinking" in line:
            process.send_signal(signal.SIGTERM)
            break
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 2, shown
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["verdict"] == "interrupted"
    assert len(result["failures"]) == 1
