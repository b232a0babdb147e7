"""Starts the verification's process and reads what it found. Judges nothing itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vlm_ci import building
from vlm_ci.errors import UsageError
from vlm_ci.synthesis.cold import PROGRESS, Job, Outcome

if TYPE_CHECKING:
    from vlm_ci.listeners import Progress
    from vlm_ci.settings import Settings
    from vlm_ci.traffic.envelope import Envelope
    from vlm_ci.traffic.spec import Batch


def verify(
    settings: Settings,
    envelope: Envelope | None,
    plan: tuple[Batch, ...],
    *,
    seeds: list[int],
    examples: int,
    lifted: bool,
    progress: Progress,
) -> Outcome:
    """Warm a plan up cold in a fresh process, in its order, and serve examples there.

    The process imports what this one can. It is killed where this call is interrupted.

    Raises:
        UsageError: the target cannot be built there, or the process died.
    """
    kept = {name: getattr(settings, name) for name in building.TARGET_FIELDS if name != "envelope"}
    job = Job(
        settings=kept,
        envelope=envelope,
        plan=plan,
        seeds=seeds,
        examples=examples,
        lifted=lifted,
    )
    path = [entry or os.getcwd() for entry in sys.path]
    with tempfile.TemporaryDirectory(prefix="vlm-ci-") as folder:
        asked, answered = Path(folder) / "job.json", Path(folder) / "outcome.json"
        asked.write_bytes(msgspec.json.encode(job))
        with (Path(folder) / "errors").open("w+") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "vlm_ci.synthesis.cold", str(asked), str(answered)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            )
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    _hear(line, progress)
                code = process.wait()
            finally:
                process.kill()
                process.wait()
            errors.seek(0)
            tail = errors.read()[-2000:]
        if code or not answered.exists():
            raise UsageError(
                f"the process that verifies the plan ended with code {code}; its last words: {tail}"
            )
        outcome = msgspec.json.decode(answered.read_bytes(), type=Outcome)
    if outcome.error:
        raise UsageError(f"in the fresh process: {outcome.error}")
    return outcome


def _hear(line: str, progress: Progress) -> None:
    words = line.split()
    if not words or words[0] != PROGRESS:
        return
    if words[1] == "warm-up":
        progress.warming(int(words[2]), int(words[3]), int(words[4]))
    elif words[1] == "examples":
        progress.searching(int(words[2]), int(words[3]), int(words[4]), 0)
