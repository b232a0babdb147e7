"""The audit record of a decision, and a decision in words. Records in, text out; no I/O."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from vlm_ci.bot.facts import Facts
from vlm_ci.bot.ledger import Skipped, Step, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One GitHub call that changes something."""

    method: str
    path: str
    body: dict[str, Any] = {}


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One decision and what became of it, one line of the audit file. ``facts`` are all that it
    rests on, so that it can be made again; there are none where nothing had to be read."""

    schema: Literal[1] = 1
    at: datetime
    repository: str
    pull_request: int
    comment: int
    number: int
    by: str
    command: str
    verdict: Verdict
    reason: str
    dry_run: bool
    steps: tuple[Step, ...] = ()
    calls: tuple[Call, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    facts: Facts | None = None


def call(step: Step, repository: str, number: int) -> Call:
    """Return the GitHub call of a step."""
    place = f"/repos/{repository}"
    if step.kind == "label":
        return Call(
            method="POST", path=f"{place}/issues/{number}/labels", body={"labels": [step.name]}
        )
    if step.kind == "approve":
        return Call(
            method="POST",
            path=f"{place}/statuses/{step.sha}",
            body={"state": "success", "context": APPROVAL, "description": step.name},
        )
    if step.kind == "dispatch":
        return Call(
            method="POST",
            path=f"{place}/actions/workflows/{step.name}/dispatches",
            body={"ref": step.ref, "inputs": dict(step.inputs)},
        )
    verb = "rerun" if step.kind == "rerun" else "rerun-failed-jobs"
    return Call(method="POST", path=f"{place}/actions/runs/{step.run}/{verb}")


APPROVAL = "vlm-ci/approved"  # the commit status by which a fork's commit is approved


def text(record: Record) -> Iterator[str]:
    """Yield a decision as lines for a terminal."""
    what = record.command or "no command"
    yield f"{what}: {record.verdict}: {record.reason}"
    for step, made in zip(record.steps, record.calls, strict=True):
        body = f" {msgspec.json.encode(made.body).decode()}" if made.body else ""
        outcome = "would be called" if record.dry_run else step.outcome or "not done"
        yield f"  {made.method} {made.path}{body}: {outcome}"
    for skipped in record.skipped:
        yield f"  left alone: {skipped.name} {skipped.reason}"
    for note in record.notes:
        yield f"  {note}"
