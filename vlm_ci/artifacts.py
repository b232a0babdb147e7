"""What a run leaves on disk, written as it goes: result.json, and a folder for each failure.

Every file is written beside its place and moved there, so that a run that is killed leaves whole
files: whatever it had found is readable.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from typing import TYPE_CHECKING, Any

import msgspec

from vlm_ci.errors import UsageError
from vlm_ci.evidence import FailureFile
from vlm_ci.failures import ENDED, Failure, identity, render
from vlm_ci.picture import STRIP, strip_svg
from vlm_ci.result import Result
from vlm_ci.traffic.files import pretty
from vlm_ci.watch import events as event_files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vlm_ci.traffic.envelope import Envelope
    from vlm_ci.traffic.spec import Batch, Session
    from vlm_ci.watch.events import Event

RESULT = "result.json"
SERVING = "serving.json"
EVIDENCE = "evidence.txt"
INTERVAL = 1.0  # seconds between two writes of result.json while nothing new is found


def check(out: Path) -> None:
    """Make the folder for results, and leave alone what an earlier run left in it.

    Raises:
        UsageError: the folder cannot be made or written to, or holds a folder ``failures`` that no
            run of ours left there.
    """
    failures, result = out / "failures", out / RESULT
    for path in (failures, result):
        if path.exists() and not _is_ours(result):
            raise UsageError(
                f"{path} was not left by an earlier run: name another folder with --out"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(f"cannot write results to {out}: {error.strerror or error}") from None


def prepare(out: Path) -> None:
    """Make the folder for results, and remove what an earlier run left in it.

    Raises:
        UsageError: see ``check``, or what is there cannot be removed.
    """
    check(out)
    try:
        if (out / "failures").exists():
            shutil.rmtree(out / "failures")
        for name in (RESULT, SERVING, event_files.EVENTS):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write results to {out}: {error.strerror or error}") from None


def _is_ours(result: Path) -> bool:
    try:
        return b'"vlm-ci/result/' in result.read_bytes()[:200]
    except OSError:
        return False


class ResultsFolder:
    """The folder ``out`` of one run: result.json, failures/NAME/, and what is being served.

    ``evidence`` holds what every failure file says of the run: everything but its failure. The
    folder of a failure keeps its name while shrinking makes the failure smaller.
    """

    def __init__(self, out: Path, evidence: FailureFile) -> None:
        self.out = out
        self._evidence = evidence
        self._names: dict[str, str] = {}
        self._evidences: dict[str, FailureFile] = {}
        self._written: dict[str, Failure] = {}
        self._last = float("-inf")

    def save(
        self,
        result: Result,
        failures: Sequence[Failure],
        events: Sequence[Event],
        *,
        final: bool = False,
    ) -> None:
        """Write what is new among the failures, then result.json with all of them.

        Nothing is written where no failure is new and the last write is less than ``INTERVAL``
        seconds old; the final call always writes, and adds the events of the run and of each
        failure.
        """
        placed = [self._place(failure) for failure in failures]
        new = [failure for failure in placed if self._written.get(identity(failure)) != failure]
        now = time.monotonic()
        if not (new or final or now - self._last >= INTERVAL):
            return
        self._last = now
        for failure in placed if final else new:
            self._write_failure(failure, events if final else events[-200:])
        self._write_result(result, placed)
        if final:
            result.failures = placed
            self._remove_others(placed)
            _write(self.out / event_files.EVENTS, event_files.lines(events))
            (self.out / SERVING).unlink(missing_ok=True)

    def _remove_others(self, failures: Sequence[Failure]) -> None:
        """Remove folders of failures that turned out to be no causes of their own."""
        kept = set(map(identity, failures))
        for key in [key for key in self._written if key not in kept]:
            shutil.rmtree(self.out / self._written.pop(key).path, ignore_errors=True)

    def add(self, result: Result, failure: Failure) -> None:
        """Add a failure to a result that was read from this folder, and leave the others alone."""
        for known in result.failures:
            self._names[identity(known)] = known.path.removeprefix("failures/")
            self._written[identity(known)] = known
        result.failures = [*result.failures, self._place(failure)]
        self.save(result, result.failures, [])
        (self.out / SERVING).unlink(missing_ok=True)

    def serving(self, session: Session) -> None:
        """Keep the session that is about to be served: what a process that dies leaves behind."""
        failure = Failure(
            kind="crash",
            cause="the process ended while it served this session",
            advice="replay it; if it ends the process again, the last batch is the one",
            key=ENDED,
            traffic=session,
        )
        content = msgspec.structs.replace(self._evidence, failure=failure)
        # On one line: it is written before every session.
        _write(self.out / SERVING, msgspec.json.encode(content))

    def warmed_by(self, batches: tuple[Batch, ...], *, recompile_limit: int) -> None:
        """From here on failures are found after a warm-up with these batches and this limit."""
        options = {**self._evidence.options, "recompile_limit": recompile_limit}
        self._evidence = msgspec.structs.replace(self._evidence, plan=batches, options=options)

    def _place(self, failure: Failure) -> Failure:
        self._evidences.setdefault(identity(failure), self._evidence)
        name = self._names.setdefault(
            identity(failure),
            f"{len(self._names) + 1:02d}-{failure.kind}-{_slug(failure.cause)}",
        )
        return msgspec.structs.replace(failure, path=f"failures/{name}")

    def update(self, result: Result, failures: Sequence[Failure]) -> None:
        """Write failures that say more than they did, and the result with them."""
        result.failures = list(failures)
        for failure in failures:
            self._write_failure(failure, None)
        self._write_result(result, failures)

    def _write_result(self, result: Result, failures: Sequence[Failure]) -> None:
        """Write result.json, without pictures: those are numbers by the thousand, and each lies in
        its failure's folder."""
        brief = msgspec.structs.replace(
            result,
            failures=[msgspec.structs.replace(one, picture=None) for one in failures],
            tolerated=[
                msgspec.structs.replace(
                    one, failure=msgspec.structs.replace(one.failure, picture=None)
                )
                for one in result.tolerated
            ],
        )
        _write(self.out / RESULT, pretty(brief))

    def file_of(self, failure: Failure) -> FailureFile:
        """Return the failure file of a failure that was saved."""
        return msgspec.structs.replace(self._evidences[identity(failure)], failure=failure)

    def _write_failure(self, failure: Failure, events: Sequence[Event] | None) -> None:
        folder = self.out / failure.path
        folder.mkdir(parents=True, exist_ok=True)
        file = self.file_of(failure)
        _write(folder / "failure.json", pretty(file))
        if failure.traffic is not None:
            _write(folder / "traffic.json", pretty(failure.traffic))
        _write(folder / "environment.json", pretty(file.environment))
        if events is not None:
            _write(
                folder / event_files.EVENTS,
                b"".join(msgspec.json.encode(event) + b"\n" for event in events),
            )
        if failure.picture is not None:
            _write(folder / STRIP, strip_svg(failure.picture).encode())
        geometry = file.envelope.geometry if file.envelope is not None else None
        text = render(failure, out=str(self.out), geometry=geometry, replayable=file.loadable)
        _write(folder / EVIDENCE, (text + "\n").encode())
        self._written[identity(failure)] = failure


def salvage(out: Path, test: str, *, since: float = 0.0) -> Result | None:
    """Finish what a process left that died while it ran a test: its last session is a crash.

    Returns None where the folder holds no such run, or one that had ended before ``since`` (seconds
    since the epoch): an earlier one that was killed.
    """
    try:
        if (out / SERVING).stat().st_mtime < since:
            return None
        result = msgspec.json.decode((out / RESULT).read_bytes(), type=Result)
        last = msgspec.json.decode((out / SERVING).read_bytes(), type=FailureFile)
    except (OSError, msgspec.DecodeError):
        return None
    if result.verdict != "incomplete" or result.test != test or last.failure is None:
        return None
    result.verdict = "failed"
    folder = ResultsFolder(out, msgspec.structs.replace(last, failure=None))
    folder.add(result, last.failure)
    return result


def text_of(out: Path, failure: Failure) -> str:
    """Return the text of a failure whose folder was written below ``out``."""
    return (out / failure.path / EVIDENCE).read_text().rstrip("\n")


def evidence_of(
    result: Result, *, plan: tuple[Batch, ...], envelope: Envelope, test: str, loadable: bool
) -> FailureFile:
    """Return what the failure files of a run have in common."""
    options: dict[str, Any] = dict(result.options)
    return FailureFile(
        test=test,
        target=result.target,
        loadable=loadable,
        recipe=result.recipe,
        backend=result.backend,
        options=options,
        environment=result.environment,
        seed=result.seed,
        warmup=result.warmup.plan,
        plan=plan,
        envelope=envelope,
        failure=None,
    )


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(path)


def _slug(text: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:40].rstrip("-") or "failure"
