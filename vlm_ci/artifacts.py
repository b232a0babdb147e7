"""What a run leaves on disk: result.json, and a folder for each failure."""

from __future__ import annotations

import re
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

import msgspec

from vlm_ci.errors import UsageError
from vlm_ci.failures import Failure, render
from vlm_ci.traffic.files import pretty

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vlm_ci.result import Result
    from vlm_ci.watch.events import Event

FAILURE_SCHEMA = "vlm-ci/failure/1"


class FailureFile(msgspec.Struct, frozen=True, kw_only=True):
    """One failure with what it takes to run it again."""

    schema: str = FAILURE_SCHEMA
    target: str
    recipe: str
    backend: str
    options: dict[str, Any]
    warmup: str
    failure: Failure


def prepare(out: Path) -> None:
    """Make the folder for results, and remove what an earlier run left in it.

    Raises:
        UsageError: the folder cannot be made or written to, or holds a folder ``failures`` that no
            run of ours left there.
    """
    failures, result = out / "failures", out / "result.json"
    if failures.exists() and not _is_ours(result):
        raise UsageError(
            f"{failures} was not left by an earlier run: name another folder with --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        if failures.exists():
            shutil.rmtree(failures)
        result.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write results to {out}: {error.strerror or error}") from None


def _is_ours(result: Path) -> bool:
    try:
        return b'"vlm-ci/result/' in result.read_bytes()[:200]
    except OSError:
        return False


def write(result: Result, events: Sequence[Event], out: Path) -> None:
    """Write ``out/result.json`` and ``out/failures/NAME/`` for each failure.

    Each failure's ``path`` is set to its folder.
    """
    folder = out / "failures"
    failures = []
    for index, failure in enumerate(result.failures, start=1):
        name = f"{index:02d}-{failure.kind}-{_slug(failure.cause)}"
        placed = msgspec.structs.replace(failure, path=f"failures/{name}")
        _write_failure(folder / name, placed, result, events)
        failures.append(placed)
    result.failures = failures
    (out / "result.json").write_bytes(pretty(result))


def _write_failure(folder: Path, failure: Failure, result: Result, events: Sequence[Event]) -> None:
    folder.mkdir(parents=True)
    (folder / "failure.json").write_bytes(
        pretty(
            FailureFile(
                target=result.target,
                recipe=result.recipe,
                backend=result.backend,
                options=result.options,
                warmup=result.warmup.plan,
                failure=failure,
            )
        )
    )
    if failure.traffic is not None:
        (folder / "traffic.json").write_bytes(pretty(failure.traffic))
    (folder / "environment.json").write_bytes(pretty(result.environment))
    (folder / "events.jsonl").write_bytes(
        b"".join(msgspec.json.encode(event) + b"\n" for event in events)
    )
    (folder / "evidence.txt").write_text(render(failure) + "\n", encoding="utf-8")


def _slug(text: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:40].rstrip("-") or "failure"
