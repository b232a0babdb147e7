"""The failure file: one failure with what it takes to run it again. Reads it; imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from vlm_ci.errors import UsageError
from vlm_ci.failures import Failure
from vlm_ci.traffic.envelope import Envelope
from vlm_ci.traffic.spec import TRAFFIC_SCHEMA, Batch

FAILURE_SCHEMA = "vlm-ci/failure/1"


class FailureFile(msgspec.Struct, frozen=True, kw_only=True):
    """One failure, the run that found it, and the plan and envelope that it ran under.

    ``test`` is the node id of the test, empty outside pytest. ``loadable`` says that ``target`` is
    a name by which the target can be built again. ``failure`` is None only while a run has found
    nothing.
    """

    schema: str = FAILURE_SCHEMA
    test: str = ""
    target: str
    loadable: bool = True
    recipe: str
    backend: str
    options: dict[str, Any]
    environment: dict[str, Any] = {}
    seed: int = 0
    warmup: str
    plan: tuple[Batch, ...] = ()
    envelope: Envelope | None = None
    failure: Failure | None


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """A failure file that was read: where it lies, and what could not be taken as it is."""

    path: Path
    file: FailureFile
    failure: Failure
    notes: tuple[str, ...] = ()


def find(name: str, results: Path) -> list[Recorded]:
    """Read the recorded failures that ``name`` stands for.

    That is a failure's folder or file, a folder of results (every failure in it), or the node id
    of a test, which is looked up in the folder ``results``.

    Raises:
        UsageError: there is none, or a file is broken.
    """
    if "::" in name:
        return _of_test(name, results)
    path = Path(name)
    if path.is_file():
        if path.name == "result.json":
            return _all(path.parent)
        return [read(path)]
    if (path / "failure.json").is_file():
        return [read(path / "failure.json")]
    if path.is_dir():
        return _all(path)
    raise UsageError(
        f"there is no {name}: name a failure's folder (such as {results}/failures/01-…), a folder "
        "of results, or the node id of a test"
    )


def _of_test(name: str, results: Path) -> list[Recorded]:
    """Read the failures of a test's newest run; older runs may lie in other folders."""
    runs: dict[str, list[Path]] = {}
    for path in results.rglob("result.json"):
        try:
            test = msgspec.json.decode(path.read_bytes())["test"]
        except (OSError, msgspec.DecodeError, KeyError, TypeError):
            continue
        runs.setdefault(test, []).append(path)
    if name in runs:
        newest = max(runs[name], key=lambda path: path.stat().st_mtime).parent
        found = sorted((newest / "failures").glob("*/failure.json"))
        if found:
            return [read(path) for path in found]
        raise UsageError(f"the newest run of {name} in {newest} found nothing")
    known = sorted(test for test in runs if test)
    listing = f"it has results of {', '.join(known)}" if known else "it has no results of tests"
    raise UsageError(f"no results of {name} in {results}: {listing}")


def _all(folder: Path) -> list[Recorded]:
    files = _files(folder)
    if not files:
        raise UsageError(f"{folder} holds no failures")
    return [read(path) for path in files]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("failures/*/failure.json"))


def read(path: Path) -> Recorded:
    """Read one failure file; one of another version of its schema is taken as far as it goes.

    Raises:
        UsageError: it is not there, not a failure file, or lacks what a replay needs.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the failure file {path}: {error.strerror}") from None
    return parse(content, path)


def parse(raw: bytes, path: Path) -> Recorded:
    """Return the failure file that was read from a path.

    Raises:
        UsageError: it is no failure file, or lacks what a replay needs.
    """
    try:
        content = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(f"failure file {path}: {error}") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, str) or not schema.startswith("vlm-ci/failure/"):
        raise UsageError(
            f"{path} is no failure file: its schema is {schema!r}, not {FAILURE_SCHEMA!r}"
        )
    notes = []
    if schema != FAILURE_SCHEMA:
        notes.append(f"it was written as {schema}; this version reads {FAILURE_SCHEMA}")
    failure = content.get("failure")
    traffic = failure.get("traffic") if isinstance(failure, dict) else None
    if isinstance(traffic, dict) and traffic.get("schema", TRAFFIC_SCHEMA) != TRAFFIC_SCHEMA:
        notes.append(f"its traffic is {traffic['schema']}; this version reads {TRAFFIC_SCHEMA}")
        traffic["schema"] = TRAFFIC_SCHEMA
    try:
        file = msgspec.convert(content, FailureFile)
    except msgspec.ValidationError as error:
        tail = f" ({'; '.join(notes)})" if notes else ""
        raise UsageError(f"failure file {path}: {error}{tail}") from None
    if file.failure is None:
        raise UsageError(f"failure file {path} holds no failure")
    return Recorded(path=path, file=file, failure=file.failure, notes=tuple(notes))
