"""The files of a synthesis: the plan, and the part of one that an unfinished synthesis leaves."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vlm_ci import artifacts
from vlm_ci.errors import UsageError
from vlm_ci.traffic.files import PlanFile, pretty

if TYPE_CHECKING:
    from pathlib import Path

    from vlm_ci.result import Result, Synthesis
    from vlm_ci.traffic.spec import Batch

PLAN, PARTIAL = "plan.json", "plan.partial.json"
VERSIONS = ("vlm_ci", "torch", "transformers", "python")
UNFINISHED = "unfinished: it was not verified, and may not hold"


def check(out: Path) -> None:
    """Refuse a folder that cannot be written to, or holds a plan that no run of ours left.

    Raises:
        UsageError: see above.
    """
    artifacts.check(out)
    for name in (PLAN, PARTIAL):
        if (out / name).exists() and not _made_a_plan(out / artifacts.RESULT):
            raise UsageError(
                f"{out / name} was not left by an earlier run: name another folder with --out"
            )


def _made_a_plan(result: Path) -> bool:
    try:
        return b'"command": "warmup"' in result.read_bytes()[:400]
    except OSError:
        return False


def prepare(out: Path) -> None:
    """Make the folder, and remove what an earlier run left: an old plan would pass for a new one.

    Raises:
        UsageError: it cannot be made or emptied.
    """
    artifacts.prepare(out)
    for name in (PLAN, PARTIAL):
        (out / name).unlink(missing_ok=True)


def write_plan(
    path: Path,
    result: Result,
    plan: tuple[Batch, ...],
    graphs: tuple[int, ...],
    *,
    note: str,
    holds: bool,
) -> None:
    """Write a plan, whole or not at all, with what it was made for. Nothing for an empty plan."""
    if not plan:
        return
    file = PlanFile(
        target=result.target,
        recipe=result.recipe,
        options={"backend": result.backend, **result.options},
        made_with={name: str(result.environment[name]) for name in VERSIONS},
        graphs=graphs,
        holds=holds,
        note=note,
        batches=plan,
    )
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(pretty(file))
    beside.replace(path)


def partial_note(books: Synthesis) -> str:
    """Say why a plan is only a part."""
    if books.status == "unbounded":
        return f"unbounded: it grows with the {', the '.join(books.growing) or 'traffic'}"
    if books.status == "limit":
        return (
            f"it holds only with a recompile_limit above {books.variants}: {books.limit_frame} "
            f"needs so many variants, and torch keeps {books.limit}"
        )
    if books.status == "not-held":
        return "it did not hold in a fresh process"
    return UNFINISHED
