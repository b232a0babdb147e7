"""The records of finished runs, read back for a report. Reads files, writes none; knows no torch.

What is broken is said and left out; the rest is returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from vlm_ci import evidence
from vlm_ci.errors import UsageError
from vlm_ci.result import RESULT_SCHEMA, Result
from vlm_ci.watch.events import EVENTS, Event

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from vlm_ci.failures import Failure

RESULT = "result.json"
LONGEST_SCRIPT = 40_000  # characters of a standalone script that are read


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRecord:
    """One failure with what its folder holds: ``failure`` has its picture where there is one.

    ``file`` is None where the folder has no failure file that can be read; ``script`` is the text
    of the standalone script, ``folder`` the failure's folder as it can be named on the command
    line, empty where there is none.
    """

    failure: Failure
    file: evidence.FailureFile | None = None
    script: str = ""
    folder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run: ``folder`` is where its result lies; ``events`` is empty where none were kept."""

    folder: Path
    result: Result
    failures: tuple[FailureRecord, ...] = ()
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """What was read: ``problems`` say, one line each, what is broken and was left out."""

    runs: tuple[RunRecord, ...]
    problems: tuple[str, ...] = ()


def read(paths: Sequence[Path]) -> Records:
    """Read the runs that lie in some folders, at any depth, or are named by their result files.

    Raises:
        UsageError: a path is not there, or there is no run that can be read.
    """
    runs: list[RunRecord] = []
    problems: list[str] = []
    for file in _result_files(paths):
        run = _run(file, problems)
        if run is not None:
            runs.append(run)
    if not runs:
        raise UsageError("\n".join(problems))
    return Records(runs=tuple(runs), problems=tuple(problems))


def _result_files(paths: Sequence[Path]) -> list[Path]:
    """Return the result files that some paths stand for, each once."""
    files: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            found = sorted(path.rglob(RESULT))
            if not found:
                raise UsageError(
                    f"{path} holds no {RESULT}: name a folder that a run wrote (--out)"
                )
        elif path.exists():
            found = [path]
        else:
            raise UsageError(f"there is no {path}: name folders of results, or {RESULT} files")
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def _run(file: Path, problems: list[str]) -> RunRecord | None:
    folder = file.parent
    result = _result(file, problems)
    if result is None:
        failures = tuple(_orphans(folder, problems))
        if not failures:
            return None
        result = _result_of(failures)
    else:
        failures = tuple(_failure(folder, failure, problems) for failure in result.failures)
    events = tuple(_events(folder / EVENTS, problems))
    return RunRecord(folder=folder, result=result, failures=failures, events=events)


def _result(file: Path, problems: list[str]) -> Result | None:
    try:
        content = msgspec.json.decode(file.read_bytes())
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema != RESULT_SCHEMA:
            problems.append(
                f"{file} is no result of this version: its schema is {schema!r}, "
                f"not {RESULT_SCHEMA!r}"
            )
            return None
        return msgspec.convert(content, Result)
    except OSError as error:
        problems.append(f"cannot read {file}: {error.strerror or error}")
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        problems.append(f"{file} is broken: {error}")
    return None


def _orphans(folder: Path, problems: list[str]) -> Iterator[FailureRecord]:
    """Yield the failures beside a result file that cannot be read."""
    for path in sorted((folder / "failures").glob("*/failure.json")):
        try:
            found = evidence.read(path)
        except UsageError as error:
            problems.append(str(error))
            continue
        failure = found.failure
        if not failure.path:
            failure = msgspec.structs.replace(failure, path=f"failures/{path.parent.name}")
        yield _record(folder, failure, found.file, problems)


def _result_of(failures: Sequence[FailureRecord]) -> Result:
    """Say of a run what its failure files know of it."""
    file = next(one.file for one in failures if one.file is not None)
    return Result(
        command="run",
        target=file.target,
        recipe=file.recipe,
        backend=file.backend,
        options=file.options,
        environment=file.environment,
        seed=file.seed,
        test=file.test,
        warnings=["the result file is broken: what stands here is from the failure files alone"],
        failures=[one.failure for one in failures],
        verdict="failed",
    )


def _failure(folder: Path, failure: Failure, problems: list[str]) -> FailureRecord:
    """Read what the folder of a failure of the result file holds."""
    if not failure.path:
        return FailureRecord(failure=failure)
    path = folder / failure.path / "failure.json"
    if not _is_inside(path, folder):
        problems.append(f"{folder / RESULT} names a failure outside of its folder: {failure.path}")
        return FailureRecord(failure=msgspec.structs.replace(failure, path="", repro=None))
    try:
        found = evidence.read(path)
    except UsageError as error:
        problems.append(str(error))
        return _record(folder, failure, None, problems)
    # The result file is written last: it knows of what was added later, such as a script.
    whole = msgspec.structs.replace(failure, picture=found.failure.picture)
    return _record(folder, whole, found.file, problems)


def _record(
    folder: Path, failure: Failure, file: evidence.FailureFile | None, problems: list[str]
) -> FailureRecord:
    script = ""
    if failure.repro is not None and failure.repro.path:
        path = folder / failure.repro.path
        if not _is_inside(path, folder):
            problems.append(f"{folder} names a script outside of it: {failure.repro.path}")
            failure = msgspec.structs.replace(failure, repro=None)
        else:
            try:
                with path.open(encoding="utf-8", errors="replace") as stream:
                    script = stream.read(LONGEST_SCRIPT)
            except OSError as error:
                problems.append(f"cannot read {path}: {error.strerror or error}")
    return FailureRecord(
        failure=failure, file=file, script=script, folder=str(folder / failure.path)
    )


def _events(path: Path, problems: list[str]) -> Iterator[Event]:
    """Yield the events of a run; a run of an earlier version kept none."""
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        problems.append(f"cannot read {path}: {error.strerror or error}")
        return
    decoder = msgspec.json.Decoder(Event)
    broken: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            yield decoder.decode(line)
        except (msgspec.DecodeError, ValueError) as error:
            broken.append(f"line {number} is broken: {error}")
    if broken:
        more = f" (and {len(broken) - 1} more lines)" if len(broken) > 1 else ""
        problems.append(f"{path}: {broken[0]}{more}")


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
