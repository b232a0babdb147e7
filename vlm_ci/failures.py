"""What can be wrong: one record for each failure, one exception class for each cause.

Hypothesis tells failures apart by exception type and place; without a class of its own for each
cause, one cause would hide the others. ``render`` is the only function that words a failure.
"""

from __future__ import annotations

import textwrap
from typing import Any

import msgspec

from vlm_ci.traffic.spec import Session

KINDS = (
    "recompile",
    "new-frame",
    "limit-hit",
    "eager-fallback",
    "graph-break",
    "graph-capture",
    "graph-skip",
    "triton-compile",
    "stall",
    "mismatch",
    "nonfinite",
    "vacuous",
    "crash",
    "hang",
    "unbounded",
)


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """One root cause and the smallest session that shows it.

    ``key`` identifies the cause whatever the sizes; ``difference`` lists the aspects in which the
    refused call differs from the nearest warm-up call (path, aspect, warm, now); ``location`` is
    the worst request, token and modality of a mismatch; ``path`` is the failure's folder, relative
    to the result file.
    """

    kind: str
    cause: str
    advice: str
    key: str
    frame: str = ""
    guards: tuple[str, ...] = ()
    difference: tuple[dict[str, str], ...] = ()
    location: dict[str, Any] | None = None
    traffic: Session | None = None
    note: str = ""
    path: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown failure kind {self.kind!r}")


class Finding(Exception):
    """A failure on its way through Hypothesis; raised as a subclass made for its cause."""

    failure: Failure


_classes: dict[str, type[Finding]] = {}


def finding(failure: Failure) -> Finding:
    """Wrap a failure in an exception whose class belongs to its cause alone."""
    key = f"{failure.kind}: {failure.key}"
    if key not in _classes:
        _classes[key] = type("Finding", (Finding,), {"__qualname__": f"Finding[{key}]"})
    error = _classes[key](headline(failure))
    error.failure = failure
    return error


def headline(failure: Failure) -> str:
    """Return the failure in one line."""
    return f"{failure.kind}: {failure.cause}"


def render(failure: Failure) -> str:
    """Return the failure as text that stands alone: cause, evidence, traffic, what to do."""
    lines = [headline(failure)]
    if failure.frame:
        lines.append(f"  frame      {failure.frame}")
    if failure.location:
        place = failure.location
        lines.append(
            f"  worst at   request {place['request']}, token {place['token']} ({place['modality']})"
        )
    for guard in failure.guards[:3]:
        lines.append(f"  guard      {guard}")
    if len(failure.guards) > 3:
        lines.append(f"             and {len(failure.guards) - 3} more guards")
    if failure.traffic is not None:
        count = len(failure.traffic.batches)
        lines.append(f"  traffic    {count} batch{'es' if count > 1 else ''}, as small as it gets:")
        lines += [f"             {batch!r}" for batch in failure.traffic.batches]
    lines.append(
        textwrap.fill(
            failure.advice, 96, initial_indent="  advice     ", subsequent_indent=" " * 13
        )
    )
    if failure.note:
        lines.append(
            textwrap.fill(
                failure.note, 96, initial_indent="  note       ", subsequent_indent=" " * 13
            )
        )
    if failure.path:
        lines.append(f"  evidence   {failure.path}")
    return "\n".join(lines)
