"""What the compiler did, over time: phases, and a lane for each kind. Pure: events in, SVG out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from vlm_ci import svg
from vlm_ci.report.html import drawing
from vlm_ci.report.html.drawing import CHARACTER, shorter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vlm_ci.watch.events import Event

WIDTH, LEFT, RIGHT = 1120, 132, 16  # pixels: the picture, and beside the lanes
BAND, LANE, NEAR = 20, 26, 4.0  # pixels: a phase, a lane, marks that become one
MOST_TOLD, MOST_ROWS = 6, 200  # events in one tooltip, rows of the table
LONGEST = 160  # characters of an event's evidence

PHASES = {
    "load": "load",
    "warmup": "warm-up",
    "canary": "canary",
    "strict": "strict: nothing may compile",
}
# Lanes, from the top down, and the kinds of events in each.
LANES = {
    "compiles": ("compile", "lazy-compile"),
    "graphs built": ("graph", "lowering", "autograd"),
    "graph captures": ("graph-capture", "graph-recording"),
    "Triton": ("triton-compile", "autotune"),
    "breaks and limits": ("graph-break", "frame-skip", "graph-skip", "limit-hit"),
    "stalls": ("stall",),
    "refused calls": ("refusal",),
}
ALWAYS = ("compiles", "refused calls")  # an empty lane of these says something
_MARKS = ("phase", "round", "compiled", "left-out")


class Mark(NamedTuple):
    """One event on its lane: when it began, for how long, and whether it is against the run."""

    start: float
    seconds: float
    bad: bool
    words: str


class Row(NamedTuple):
    """One line of the table that says the same in words."""

    time: str
    phase: str
    kind: str
    times: int
    frame: str
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The picture, and its text alternative with ``more`` rows left out; ``note`` says what the
    file of events lacks."""

    picture: str
    rows: tuple[Row, ...]
    more: int
    note: str


def timeline(events: Sequence[Event], name: str) -> Timeline | None:
    """Draw the events of a run; None where there are none, or their times make no sense."""
    timed = sorted((event for event in events if math.isfinite(event.time)), key=_time)
    if not timed:
        return None
    seconds = _durations(timed)
    start = timed[0].time
    end = max(event.time + seconds.get(id(event), 0.0) for event in timed)
    if not math.isfinite(end - start) or end - start > 1e9:
        return None
    lanes = {lane: _marks(timed, kinds, seconds, start) for lane, kinds in LANES.items()}
    lanes = {lane: marks for lane, marks in lanes.items() if marks or lane in ALWAYS}
    picture = _draw(name, timed, lanes, start, max(end - start, 0.001))
    rows = _rows(timed, start)
    more = max(len(rows) - MOST_ROWS, 0)
    return Timeline(picture=picture, rows=rows[:MOST_ROWS], more=more, note=_note(timed))


def _time(event: Event) -> float:
    return event.time


def _durations(events: Sequence[Event]) -> dict[int, float]:
    """Return how long each compilation took, by the identity of the event that began it."""
    took: dict[Any, float] = {}
    for event in events:
        seconds = event.evidence.get("seconds")
        if event.kind in ("compiled", "frame-skip") and isinstance(seconds, int | float):
            took[str(event.evidence.get("compile_id"))] = min(max(float(seconds), 0.0), 1e6)
    return {
        id(event): took.get(str(event.evidence.get("compile_id")), 0.0)
        for event in events
        if event.kind == "compile"
    }


def _marks(
    events: Sequence[Event], kinds: Sequence[str], seconds: dict[int, float], start: float
) -> list[Mark]:
    names = {
        str(event.evidence.get("compile_id")): event.frame
        for event in events
        if event.kind == "compiled"
    }
    marks = []
    for event in events:
        if event.kind not in kinds:
            continue
        took = seconds.get(id(event), 0.0)
        frame = event.frame or names.get(str(event.evidence.get("compile_id")), "")
        words = f"{event.kind} {frame}".strip() + (f", {took:.2f} s" if took else "")
        bad = event.kind in ("refusal", "stall", "limit-hit") or event.phase == "strict"
        marks.append(Mark(event.time - start, took, bad, shorter(words, LONGEST)))
    return marks


# -- the drawing ------------------------------------------------------------------------------


def _draw(
    name: str, events: Sequence[Event], lanes: dict[str, list[Mark]], start: float, span: float
) -> str:
    scale = (WIDTH - LEFT - RIGHT) / span
    title = "Timeline of compilations and captures"
    root = drawing.begin(name, title, _description(events, lanes, span), WIDTH)
    _phases(root, events, start, span, scale)
    y = 2 * BAND + 8
    for lane, marks in lanes.items():
        middle = y + LANE / 2
        drawing.label(root, 0, middle + 4, lane)
        drawing.rule(root, LEFT, middle, WIDTH - RIGHT, middle)
        groups = list(_near(marks, scale))
        for group in groups:
            _mark(root, group, middle, scale)
        if not marks:
            drawing.label(root, LEFT + 8, middle - 4, "none", kind="pale")
        y += LANE
    _axis(root, span, scale, y)
    return svg.finish(root, y + 24)


def _phases(
    root: svg.Element, events: Sequence[Event], start: float, span: float, scale: float
) -> None:
    """Draw the phases, and under them the rounds of warm-up."""
    drawing.label(root, 0, BAND - 6, "phase")
    for began, ended, event in _spells(events, "phase", start, span):
        if event.phase in PHASES:
            words = f"{PHASES[event.phase]}: {began:.1f} to {ended:.1f} s"
            kind = f"phase {event.phase}"
            _named(root, began * scale, ended * scale, 0, kind, PHASES[event.phase], words)
    for began, ended, event in _spells(events, "round", start, span):
        number = shorter(str(event.evidence.get("round", "")), 8)
        words = f"round {number} of warm-up: {began:.1f} to {ended:.1f} s"
        _named(root, began * scale, ended * scale, BAND + 2, "round", f"round {number}", words)


def _spells(
    events: Sequence[Event], kind: str, start: float, span: float
) -> Iterator[tuple[float, float, Event]]:
    """Yield what began with each mark of a kind: from when, until when, and the mark.

    A round ends where the next one or another phase begins.
    """
    marks = [event for event in events if event.kind in ("phase", kind)]
    if kind == "phase" and events and events[0].kind != "phase":
        marks.insert(0, events[0])
    for index, event in enumerate(marks):
        if event.kind == kind or index == 0:
            ended = marks[index + 1].time - start if index + 1 < len(marks) else span
            yield event.time - start, ended, event


def _named(
    root: svg.Element, left: float, right: float, y: float, kind: str, label: str, title: str
) -> None:
    """Draw a spell; its label stands inside where there is room."""
    drawing.box(root, LEFT + left, y, max(right - left, 1.0), BAND - 2, kind, title)
    for text in (label, label.partition(":")[0]):
        if right - left > len(text) * CHARACTER + 8:
            drawing.label(root, LEFT + left + 5, y + 13, text, kind="on")
            return


def _near(marks: Sequence[Mark], scale: float) -> Iterator[list[Mark]]:
    """Yield marks that would lie on each other together."""
    group: list[Mark] = []
    for mark in marks:
        if group and ((mark.start - group[0].start) * scale > NEAR or mark.bad != group[0].bad):
            yield group
            group = []
        group.append(mark)
    if group:
        yield group


def _mark(root: svg.Element, group: Sequence[Mark], middle: float, scale: float) -> None:
    first = group[0]
    end = max(mark.start + mark.seconds for mark in group)
    x, wide = LEFT + first.start * scale, max((end - first.start) * scale, 2.5)
    told = [mark.words for mark in group[:MOST_TOLD]]
    if len(group) > MOST_TOLD:
        told.append(f"and {len(group) - MOST_TOLD} more")
    title = f"at {first.start:.2f} s: " + "; ".join(told)
    drawing.box(root, x, middle - 6, wide, 12, "mark bad" if first.bad else "mark", title)
    if first.bad:
        mark = drawing.caret(root, x + 1, middle - 6, "bad")
        svg.add(mark, "title", title)


def _axis(root: svg.Element, span: float, scale: float, y: float) -> None:
    step = next(
        size * 10.0**power
        for power in range(-3, 10)
        for size in (1, 2, 5)
        if size * 10.0**power * scale >= 70
    )
    for index in range(int(span / step) + 1):
        x = LEFT + index * step * scale
        drawing.rule(root, x, y, x, y + 5, "tick")
        last = x > WIDTH - RIGHT - 20
        label = f"{index * step:g} s"
        drawing.label(root, x, y + 18, label, kind="pale", anchor="end" if last else "middle")


# -- the words --------------------------------------------------------------------------------


def _description(events: Sequence[Event], lanes: dict[str, list[Mark]], span: float) -> str:
    named = [PHASES[e.phase] for e in events if e.kind == "phase" and e.phase in PHASES]
    counts = [
        f"{lane}: {len(marks)}"
        + (f", {late} of them after warm-up" if (late := sum(mark.bad for mark in marks)) else "")
        for lane, marks in lanes.items()
    ]
    phases = ", then ".join(dict.fromkeys(named)) or "not recorded"
    return f"{span:.1f} seconds. Phases: {phases}. {'; '.join(counts)}. The table says it in words."


def _rows(events: Sequence[Event], start: float) -> tuple[Row, ...]:
    """Return the table: neighbours of one kind, phase and frame are one row."""
    rows: list[Row] = []
    for event in events:
        row = Row(
            time=f"{event.time - start:.2f} s",
            phase=f"{event.phase}, step {event.step}" if event.step else event.phase,
            kind=event.kind,
            times=1,
            frame=event.frame,
            evidence=_evidence(event),
        )
        if rows and (rows[-1].kind, rows[-1].frame) == (row.kind, row.frame):
            rows[-1] = rows[-1]._replace(times=rows[-1].times + 1)
        else:
            rows.append(row)
    return tuple(rows)


def _evidence(event: Event) -> str:
    parts = []
    for key, value in event.evidence.items():
        if isinstance(value, float):
            value = f"{value:.3g}"
        elif isinstance(value, list):
            value = "; ".join(map(str, value[:2])) + ("; …" if len(value) > 2 else "")
        if value not in ("", None):
            parts.append(f"{key}: {value}")
    return shorter(", ".join(parts), LONGEST)


def _note(events: Sequence[Event]) -> str:
    """Say what the file of events leaves out."""
    gone = [event.evidence.get("events") for event in events if event.kind == "left-out"]
    count = sum(number for number in gone if isinstance(number, int))
    return f"{count:,} events were too many to be kept" if gone else ""
