"""A run that is killed: whatever it had found is on disk, whole and readable."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec
import processes
import pytest
from toy import ToyTarget

from vlm_ci import evidence, runner
from vlm_ci.listeners import Silent
from vlm_ci.result import Result
from vlm_ci.settings import Settings
from vlm_ci.traffic.spec import Batch, Request, Session, Text


def faulty() -> ToyTarget:
    """Fails in several ways, each with a cause of its own."""

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


class Reporting(Silent):
    """Writes the number of causes found so far into a pipe, each time it hears of it."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def searching(self, sessions: int, examples: int, batches: int, failing: int) -> None:
        os.write(self.pipe, bytes([failing]))


def run_and_report(out: Path, pipe: Connection) -> None:
    """Run in a process of its own, and tell what was found."""
    # Warm-up has one request in each batch, which does not fail.
    settings = Settings.from_mapping(
        {
            "examples": 200,
            "corpus": str(out.parent / "corpus"),
            "out": str(out),
            "database": "none",
            "warmup": str(out.parent / "plan.json"),
        }
    )
    runner.run(settings, faulty(), Reporting(pipe.fileno()))


def start(out: Path) -> tuple[BaseProcess, Connection]:
    """Start a run in another process; returns it, and the pipe that tells what it found."""
    out.mkdir(parents=True)
    (out.parent / "plan.json").write_text(PLAN)
    (out.parent / "corpus").mkdir()
    for number, session in enumerate(CORPUS):
        (out.parent / f"corpus/{number}.json").write_bytes(msgspec.json.encode(session))
    read, write = processes.context().Pipe(duplex=False)
    process = processes.context().Process(target=run_and_report, args=(out, write))
    process.start()
    write.close()
    return process, read


def rest(pipe: Connection) -> bytes:
    """Read what comes until the other end is closed."""
    return b"".join(iter(lambda: os.read(pipe.fileno(), 4096), b""))


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, pytest.param(10, marks=pytest.mark.nightly)])
def test_killed_at_any_moment_nothing_found_is_lost(tmp_path: Path, count: int):
    moments = random.Random(count)
    process, pipe = start(tmp_path / "whole/out")
    whole = rest(pipe)
    process.join()
    assert set(whole) == {1, 2, 3}
    for number in range(count):
        out = tmp_path / f"run-{number}/out"
        process, pipe = start(out)
        # Each third of the moments lies in another third of what a run tells.
        after = int((number % 3 + moments.random()) * len(whole) / 3) + 1
        said = b"".join(os.read(pipe.fileno(), 1) for _ in range(after))
        assert len(said) == after, "the run ended early"
        time.sleep(moments.uniform(0.0, 0.03))  # what it writes next is cut anywhere
        process.kill()
        process.join()
        said += rest(pipe)
        pipe.close()
        result = msgspec.json.decode((out / "result.json").read_bytes(), type=Result)
        assert len(result.failures) >= max(said)
        for failure in result.failures:
            recorded = evidence.read(out / failure.path / "failure.json")
            assert recorded.failure.key == failure.key
            assert recorded.failure.traffic is not None
            json.loads((out / failure.path / "traffic.json").read_bytes())
            assert (out / failure.path / "evidence.txt").read_text().startswith(failure.kind)
            assert len(list((out / failure.path).iterdir())) in (5, 6)  # the last one half-written


def session(*requests: int) -> Session:
    """Batches of so many requests."""
    return Session(
        batches=tuple(
            Batch(requests=(Request(items=(Text(tokens=7),)),) * count) for count in requests
        )
    )


# The search stops some seconds after its first failure, on a slow machine with few causes. The
# corpus is always tried as a whole: so findings come one by one. One that passes follows each.
CORPUS = [
    *(session(1, 2, 1), session(1)),
    *(session(1, 3, 1), session(1, 1)),
    *(session(1, 4, 1), session(1, 1, 1)),
]
PLAN = json.dumps(
    {
        "schema": "vlm-ci/plan/1",
        "batches": [
            {"requests": [{"items": [{"kind": "text", "tokens": tokens}]}], "seed": 0}
            for tokens in (7, 9, 1)
        ],
    }
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda one: one.name)
def test_an_interrupt_keeps_what_was_found(tmp_path: Path, number: signal.Signals):
    """Ctrl-C in a terminal; a cancelled CI job sends SIGTERM."""
    (tmp_path / "engine.py").write_text(SLOW)
    logs = tmp_path / "logs"
    logs.mkdir()
    process = processes.start(
        *("vlm-ci", "run", "--target", "engine:slow", "--warmup", "text-only", "--out", "out"),
        cwd=tmp_path,
        logs=logs,
        PYTHONPATH=str(Path(__file__).parent),
    )
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("out/failures/*/failure.json")):
        assert process.is_alive(), processes.wait(process, logs)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, number)
    done = processes.wait(process, logs)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stdout + done.stderr
    assert "interrupted" in done.stdout
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["verdict"] == "interrupted"
    (failure,) = result["failures"]
    assert failure["kind"] == "recompile"
    assert "features" in failure["cause"]
    assert (tmp_path / "out" / failure["path"] / "traffic.json").exists()


SLOW = """
import time
import toy

def slow():
    target = toy.growing()
    serve = target.run_compiled

    def run_compiled(batch):
        time.sleep(0.3)
        return serve(batch)

    target.run_compiled = run_compiled
    return target
"""
