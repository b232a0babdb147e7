"""Starts the probing process and reads what it says. Never fails: a dead process is an outcome."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vlm_ci.doctor.outcomes import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MAIN = "import sys; from vlm_ci.doctor import probes; probes.main(sys.argv[1], sys.argv[2:])"
PROBING = (sys.executable, "-c", _MAIN)
TIMEOUT = 120.0  # seconds; loading torch from a cold disk takes most of what is needed


def probe(
    names: Sequence[str],
    *,
    command: Sequence[str] | None = None,
    timeout: float = TIMEOUT,
    fresh_cache: bool = False,
) -> dict[str, Outcome]:
    """Run probes in a process of its own and return what became of each, none left "started".

    ``command`` stands in for ``PROBING``; it gets a file and the names. ``fresh_cache`` gives
    Inductor an empty cache: what it has compiled before would prove nothing.
    """
    try:
        with tempfile.TemporaryDirectory(
            prefix="vlm-ci-doctor-", ignore_cleanup_errors=True
        ) as folder:
            said, errors = Path(folder) / "outcomes.jsonl", Path(folder) / "stderr"
            said.touch()
            full = [*(command or PROBING), str(said), *names]
            cache = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache"} if fresh_cache else {}
            ended = _run(full, errors, timeout, cache)
            return _complete(names, _read(said), ended)
    except OSError as error:
        return _complete(names, [], f"has nowhere to write to: {error.strerror or error}")


def _run(
    command: Sequence[str], errors: Path, timeout: float, environment: Mapping[str, str]
) -> str:
    """Run a command to its end; return how it ended, or nothing if it ended well."""
    with errors.open("wb") as stderr:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        except OSError as error:
            return f"could not be started: {error.strerror or error}"
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"did not end within {timeout:g} s"
        finally:
            _end(process)
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"ended with exit code {code}: {lines[-1] if lines else 'no message'}" if code else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it started (Inductor keeps workers), if they are still there."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()


def _read(file: Path) -> list[Outcome]:
    outcomes = []
    for line in file.read_bytes().splitlines():
        try:
            outcomes.append(msgspec.json.decode(line, type=Outcome))
        except msgspec.DecodeError:
            break  # the process died while it wrote
    return outcomes


def _complete(names: Sequence[str], said: list[Outcome], ended: str) -> dict[str, Outcome]:
    last = {outcome.probe: outcome for outcome in said}
    how = ended or "ended early"
    died = next((name for name, outcome in last.items() if outcome.state == "started"), None)
    complete = {}
    for name in names:
        outcome = last.get(name)
        if outcome is None:
            where = f" in {died}" if died else ""
            words = f"not tried: the process that tries it {how}{where}"
            outcome = Outcome(probe=name, state="fails", found=words)
        elif outcome.state == "started":
            words = f"the process that tries it {how}"
            outcome = Outcome(probe=name, state="fails", found=words)
        complete[name] = outcome
    return complete
