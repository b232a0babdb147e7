"""What doctor reports: a list of checks, and its text. Pure: looks at nothing, imports no torch."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

DOCTOR_SCHEMA = "vlm-ci/doctor/1"
Status = Literal["ok", "warning", "broken", "absent"]
_WIDTH = 100


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    ``status`` is "ok"; "warning": it works, with something to know; "broken": it is there, or has
    to be there, and does not work; "absent": it is not there, and a run can do without it.
    ``found`` says what was seen, ``advice`` what to do about it, its commands in backquotes.
    """

    group: str
    name: str
    status: Status
    found: str
    advice: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All checks, in the order in which they are shown. ``ok`` is False where one is broken."""

    schema: str = DOCTOR_SCHEMA
    ok: bool
    checks: tuple[Check, ...]

    @classmethod
    def of(cls, checks: Iterable[Check]) -> Report:
        """Build the report of some checks."""
        kept = tuple(checks)
        return cls(ok=all(check.status != "broken" for check in kept), checks=kept)


def render(report: Report) -> str:
    """Return the report as text: the checks under their headings, and one line that sums up."""
    names = max((len(check.name) for check in report.checks), default=0)
    lines: list[str] = []
    group = None
    for check in report.checks:
        if check.group != group:
            lines += ["", check.group] if lines else [check.group]
            group = check.group
        lines += _lines(check, names)
    return "\n".join([*lines, "", summary(report)]) + "\n"


def summary(report: Report) -> str:
    """Return the last line of the text, such as ``ready: 2 warnings``."""
    count = Counter(check.status for check in report.checks)
    warnings = f"{count['warning']} warning{'' if count['warning'] == 1 else 's'}"
    if not report.ok:
        things = "1 thing is" if count["broken"] == 1 else f"{count['broken']} things are"
        also = f", {warnings}" if count["warning"] else ""
        return f"not ready: {things} broken (see above){also}"
    return f"ready: {warnings}" if count["warning"] else "ready"


def first_line(error: BaseException | str) -> str:
    """Return the first line of a text or of an error's message, with the error's type."""
    kind = "" if isinstance(error, str) else type(error).__name__
    lines = str(error).strip().splitlines()
    line = lines[0].strip() if lines else ""
    return ": ".join(part for part in (kind, line) if part)


def _lines(check: Check, names: int) -> list[str]:
    head = f"  {check.status:<8} {check.name:<{names}}  "
    indent = " " * len(head)
    lines = _wrap(check.found, head, indent)
    if check.advice:
        lines += _wrap(f"to do: {check.advice}", indent, indent)
    return lines


def _wrap(text: str, head: str, indent: str) -> list[str]:
    """Wrap a text, but never within a command in backquotes, so that it can be copied whole."""
    held = re.sub(r"`[^`]*`", lambda match: match[0].replace(" ", "\0"), text)
    wrapped = textwrap.wrap(
        held,
        width=_WIDTH,
        initial_indent=head,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ").rstrip() for line in wrapped or [head]]
