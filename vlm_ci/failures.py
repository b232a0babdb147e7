"""What can be wrong: one record for each failure, one exception class for each cause.

Hypothesis tells failures apart by exception type and place; without a class of its own for each
cause, one cause would hide the others. ``render`` is the only function that words a failure.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from typing import TYPE_CHECKING, Any

import msgspec

from vlm_ci.picture import STRIP, Picture
from vlm_ci.traffic import drawing
from vlm_ci.traffic.spec import Session

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vlm_ci.traffic.envelope import Geometry

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
    "baseline",
)


# The key of a crash that ended its process: nobody is left to make its session smaller.
ENDED = "the process ended"


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """A standalone repro. ``path`` is relative to the result file, empty where none could be
    written; ``reproduced`` says that it showed the cause in a fresh process."""

    path: str
    reproduced: bool
    note: str = ""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """One root cause and the smallest session that shows it.

    ``key`` identifies the cause whatever the sizes; ``words`` are the failed ``guards`` in words;
    ``line`` is the user's line that gave rise to the guard; ``difference`` lists the aspects in
    which the refused call differs from the nearest warm-up call (path, aspect, warm, now), or the
    fields in which the run is worse than its baseline;
    ``call`` shows all arguments of both calls side by side (path, now, warm); ``location`` is the
    earliest wrong token of a mismatch (request, token, modality; the ``worst``) and, where they
    could be told, the first ``module`` that diverges and the ``stage`` at fault, with a ``note``;
    ``path`` is the failure's folder, relative to the result file; ``repro`` its standalone script,
    where one was asked for; ``picture`` the error of each token, which result.json leaves out.
    """

    kind: str
    cause: str
    advice: str
    key: str
    frame: str = ""
    guards: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    line: str = ""
    difference: tuple[dict[str, str], ...] = ()
    call: tuple[dict[str, str], ...] = ()
    location: dict[str, Any] | None = None
    traffic: Session | None = None
    note: str = ""
    path: str = ""
    repro: Script | None = None
    picture: Picture | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown failure kind {self.kind!r}")


def identity(failure: Failure) -> str:
    """Return what tells this cause from every other one."""
    return f"{failure.kind}: {failure.key}"


class Finding(Exception):
    """A failure on its way through Hypothesis; raised as a subclass made for its cause."""

    failure: Failure


_classes: dict[str, type[Finding]] = {}


def finding(failure: Failure) -> Finding:
    """Wrap a failure in an exception whose class belongs to its cause alone."""
    key = identity(failure)
    if key not in _classes:
        _classes[key] = type("Finding", (Finding,), {"__qualname__": f"Finding[{key}]"})
    error = _classes[key](headline(failure))
    error.failure = failure
    return error


def headline(failure: Failure) -> str:
    """Return the failure in one line."""
    return f"{failure.kind}: {failure.cause}"


def replay_command(failure: Failure, out: str) -> str:
    """Return the command that runs a failure again; ``out`` is the folder of the result file as the
    user names it. Empty where nothing was kept, and for a rise over a baseline: that takes the
    whole run again, as it was."""
    if not failure.path or failure.kind == "baseline":
        return ""
    return f"vlm-ci replay {shlex.quote(f'{out}/{failure.path}' if out else failure.path)}"


def render(
    failure: Failure,
    *,
    out: str = "",
    geometry: Geometry | None = None,
    replayable: bool = True,
) -> str:
    """Return the failure as text that stands alone: cause, evidence, traffic, what to do.

    ``out`` is the folder of the result file as the user names it; ``geometry`` tells the drawing
    how many positions an image takes; ``replayable`` says that the target can be built again by
    name.
    """
    lines = [headline(failure)]
    if failure.frame:
        lines.append(_line("frame", failure.frame))
    if failure.location:
        place = failure.location
        worst = place.get("worst")
        more = f"; the worst is request {worst['request']}, token {worst['token']}" if worst else ""
        lines += _block(
            "place",
            [
                f"request {place['request']}, token {place['token']} ({place['modality']}){more}",
                *([f"module {place['module']}"] if place.get("module") else []),
                *([f"stage {place['stage']}"] if place.get("stage") else []),
                *([f"graph {place['region']}"] if place.get("region") else []),
                *textwrap.wrap(str(place.get("note", "")), 83),
            ],
        )
    lines += _block("call", _side_by_side(failure.call))
    if failure.kind == "baseline":
        rows = ((row["path"], row["warm"], row["now"]) for row in failure.difference)
        lines += _block("baseline", changed(rows))
    for index, guard in enumerate(failure.guards[:3]):
        lines.append(_line("guard", guard))
        if index < len(failure.words) and failure.words[index] != failure.cause:
            lines += _block("", textwrap.wrap(f"({failure.words[index]})", 83))
    if len(failure.guards) > 3:
        lines.append(_line("", f"and {len(failure.guards) - 3} more guards"))
    if failure.line:
        lines.append(_line("line", failure.line))
    if failure.traffic is not None:
        count = len(failure.traffic.batches)
        size = (
            "the session that was being served" if failure.key == ENDED else "as small as it gets"
        )
        text = f"{count} batch{'es' if count > 1 else ''}, {size}:"
        code = [repr(batch) for batch in failure.traffic.batches]
        lines += _block("traffic", [text, *code, *drawing.draw(failure.traffic, geometry)])
    lines += _block("advice", textwrap.wrap(failure.advice, 83))
    lines += _block("note", textwrap.wrap(failure.note, 83))
    if failure.path:
        place_of_it = f"{out}/{failure.path}" if out else failure.path
        lines.append(_line("evidence", place_of_it))
        if failure.picture is not None:
            lines.append(_line("picture", f"{place_of_it}/{STRIP}"))
        if replayable and (command := replay_command(failure, out)):
            lines.append(_line("replay", command))
    if failure.repro is not None:
        lines += _block("repro", _repro(failure.repro, out))
    return "\n".join(lines)


def changed(rows: Iterable[tuple[str, str, str]]) -> list[str]:
    """Return fields that differ, given as (field, before, after), as a diff has them."""
    return [
        f"{sign} {field} {value}"
        for field, *values in rows
        for sign, value in zip("-+", values, strict=True)
    ]


def _repro(script: Script, out: str) -> list[str]:
    if not script.path:
        return textwrap.wrap(f"none: {script.note}", 83)
    place = f"{out}/{script.path}" if out else script.path
    run = (
        "run in a fresh process, it shows this cause"
        if script.reproduced
        else ("it does NOT show this cause")
    )
    return [
        f"python {shlex.quote(place)}",
        *textwrap.wrap(f"{run}: {script.note}" if script.note else run, 83),
    ]


def _line(label: str, text: str) -> str:
    return f"  {label:<10} {text}"


def _block(label: str, texts: list[str]) -> list[str]:
    return [_line(label if index == 0 else "", text) for index, text in enumerate(texts)]


MOST_ARGUMENTS = 12


def _side_by_side(call: tuple[dict[str, str], ...]) -> list[str]:
    """Return a table of arguments: what stands there now, and in the nearest warm-up call.

    ``≠`` marks another kind of value, ``~`` another size; what differs most comes first.
    """
    if not call:
        return []
    rows = sorted(((_mark(row), row) for row in call), key=lambda pair: "≠~ ".index(pair[0]))
    shown = [(" ", "", "now", "nearest call in warm-up")]
    shown += [(mark, row["path"], row["now"], row["warm"]) for mark, row in rows[:MOST_ARGUMENTS]]
    paths, nows = (max(len(row[column]) for row in shown) for column in (1, 2))
    lines = [
        f"{mark} {path:<{paths}}  {now:<{nows}}  {warm}".rstrip() for mark, path, now, warm in shown
    ]
    if len(rows) > MOST_ARGUMENTS:
        lines.append(f"  and {len(rows) - MOST_ARGUMENTS} more arguments")
    return lines


def _mark(row: dict[str, str]) -> str:
    if row["now"] == row["warm"]:
        return " "
    now, warm = (re.sub(r"(?<=[\[ ])\d+(?=[,\]])", "N", row[side]) for side in ("now", "warm"))
    return "~" if now == warm else "≠"
