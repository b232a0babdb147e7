"""Annotations of GitHub Actions: a failure at the line that is to blame. Records in, lines out.

A line is a workflow command (``::error file=…,line=…::message``), which GitHub takes from whatever
a step prints; escaping as its runner undoes it (actions/runner, ActionCommand.cs).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vlm_ci.failures import Failure, headline, identity, replay_command
from vlm_ci.report.escaping import JOINER, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vlm_ci.result import Change, Result

# "GitHub Actions are limited to 10 warning annotations and 10 error annotations per step" (GitHub,
# REST API, check runs).
MOST = 10
MOST_GROUPED = 30  # lines of the annotation that stands for the rest
MOST_MESSAGE = 1_000  # characters of a cause or an advice

_LINE = re.compile(r"^(?P<path>[^:\n]+):(?P<line>\d+) in ")
_FRAME = re.compile(r"\((?P<path>[^()\n]+):(?P<line>\d+)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A line of a file, as a path from the root of the checkout; ``line`` is 0 where not known."""

    path: str
    line: int = 0


class Source(Protocol):
    """Knows the files that can be annotated."""

    def locate(self, path: str, line: int) -> Place | None:
        """Return the file that a record names, None where it cannot be annotated."""
        ...

    def find_test(self, nodeid: str) -> Place | None:
        """Return where a test is defined."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Note:
    level: str
    title: str
    message: str
    place: Place | None


def commands(runs: Sequence[tuple[Result, str]], source: Source) -> list[str]:
    """Return the workflow commands for some results and their folders.

    Each cause is an error at the line that gave rise to it where that lies in the checkout, else at
    the test; what was tolerated, and what became better than the baseline, are warnings. Beyond ten
    of a level the rest is one annotation.
    """
    notes: dict[tuple[object, ...], _Note] = {}
    for result, out in runs:
        test = source.find_test(result.test) if result.test else None
        for key, note in _notes(result, out, source, test):
            notes.setdefault((result.target, result.recipe, *key), note)
    lines = []
    for level in ("error", "warning"):
        some = [note for note in notes.values() if note.level == level]
        lines += [_command(note) for note in _within(some, level)]
    return lines


def _notes(
    result: Result, out: str, source: Source, test: Place | None
) -> Iterator[tuple[tuple[object, ...], _Note]]:
    for failure in result.failures:
        told = [f"{label}: {text}" for label, text in _told(failure, out) if text]
        message = [one_line(headline(failure), MOST_MESSAGE), *told]
        note = _at(failure, "error", result, message, source, test)
        yield (identity(failure),), note
    for entry in result.tolerated:
        times = f" {entry.count} times" if entry.count > 1 else ""
        message = [
            one_line(headline(entry.failure), MOST_MESSAGE),
            one_line(f"tolerated{times} by the policy {entry.policy}"),
        ]
        note = _at(entry.failure, "warning", result, message, source, test)
        yield ("tolerated", identity(entry.failure)), note
    for change in result.baseline.changes if result.baseline is not None else ():
        if not change.worse:  # what is worse is a failure, or tolerated
            key = ("baseline", change.field, change.before, change.after)
            yield key, _improved(change, result, test)


def _told(failure: Failure, out: str) -> list[tuple[str, str]]:
    return [
        ("advice", one_line(failure.advice, MOST_MESSAGE)),
        ("replay", one_line(replay_command(failure, out))),
    ]


def _at(
    failure: Failure,
    level: str,
    result: Result,
    message: list[str],
    source: Source,
    test: Place | None,
) -> _Note:
    named = list(_places(failure))
    place = next(
        (at for path, line in named if (at := source.locate(path, line)) is not None), None
    )
    if place is None and named:
        path, line = named[0]
        message = [*message, f"place: {one_line(path)}:{line}, which is not of this checkout"]
    return _Note(
        level=level,
        title=f"vlm-ci: {failure.kind} in {result.target}",
        message="\n".join(message),
        place=place or test,
    )


def _places(failure: Failure) -> Iterator[tuple[str, int]]:
    """Yield the files and lines that a failure names, the most telling first."""
    for pattern, text in ((_LINE, failure.line), (_FRAME, failure.frame)):
        if found := pattern.search(text):
            yield found["path"], int(found["line"])


def _improved(change: Change, result: Result, test: Place | None) -> _Note:
    return _Note(
        level="warning",
        title=f"vlm-ci: better than the baseline in {result.target}",
        message=one_line(f"{change.field} was {change.before} and is {change.after}", MOST_MESSAGE),
        place=test,
    )


def _within(notes: Sequence[_Note], level: str) -> list[_Note]:
    """Return at most ten; the last then stands for all that are over."""
    if len(notes) <= MOST:
        return list(notes)
    rest = notes[MOST - 1 :]
    lines = [f"- {note.message.splitlines()[0]}" for note in rest[:MOST_GROUPED]]
    if len(rest) > MOST_GROUPED:
        lines.append(f"and {len(rest) - MOST_GROUPED} more")
    what = "causes" if level == "error" else "warnings"
    grouped = _Note(
        level=level,
        title=f"vlm-ci: {len(rest)} more {what}",
        message="\n".join([f"GitHub shows {MOST} of a step; the others are:", *lines]),
        place=None,
    )
    return [*notes[: MOST - 1], grouped]


def _command(note: _Note) -> str:
    fields = {"title": note.title}
    if note.place is not None:
        fields = {"file": note.place.path, "line": str(note.place.line or 1), **fields}
    listed = ",".join(f"{name}={_escaped_property(value)}" for name, value in fields.items())
    return f"::{note.level} {listed}::{_escaped(note.message)}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escaped_property(text: str) -> str:
    return _escaped(one_line(text)).replace(":", "%3A").replace(",", "%2C")


def defused(text: str) -> str:
    """Return text for a log in which nothing is a workflow command, of the form ``::name::`` at the
    beginning of a line or ``##[name]`` anywhere; an invisible character parts what would be."""
    lines = (
        re.sub(r"^(\s*:)(?=:)", rf"\1{JOINER}", line).replace("##[", f"##{JOINER}[")
        for line in text.splitlines()
    )
    return "\n".join(lines)
