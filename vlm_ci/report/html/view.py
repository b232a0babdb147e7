"""What the page shows of the records, in the order in which it shows it. Pure; words no failure."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from markupsafe import Markup

from vlm_ci.failures import ENDED, headline
from vlm_ci.picture import strip_svg
from vlm_ci.report import warmup
from vlm_ci.report.failures import text_of
from vlm_ci.report.html import batches
from vlm_ci.report.html.differences import Argument, arguments
from vlm_ci.report.html.drawing import shorter
from vlm_ci.report.html.timeline import Timeline, timeline
from vlm_ci.report.records import LONGEST_SCRIPT
from vlm_ci.report.terminal import split, summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlm_ci.failures import Failure
    from vlm_ci.report.records import FailureRecord, Records, RunRecord
    from vlm_ci.result import Result
    from vlm_ci.traffic.envelope import Geometry

# From the worst to the best: the first that occurs is the verdict of the page.
VERDICTS = {
    "failed": "bad",
    "vacuous": "bad",
    "incomplete": "warn",
    "interrupted": "warn",
    "clean": "good",
}
ROOM = 1_200_000  # characters for the pictures of failures; what goes beyond is left out, and said
MOST_BATCHES, MOST_GUARDS, LONGEST_TEXT, LONGEST_CODE = 8, 20, 4_000, 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchView:
    """One batch of a failure's session: its picture, and its code."""

    number: int
    picture: Markup
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureView:
    """One failure. ``same`` are arguments that do not differ; ``strip`` is empty where there is
    none, and ``left_out`` says where it lies if it did not fit."""

    id: str
    failure: Failure
    title: str
    place: tuple[str, ...]
    differing: tuple[Argument, ...]
    same: tuple[Argument, ...]
    guards: tuple[tuple[str, str], ...]
    more_guards: int
    session_title: str
    batches: tuple[BatchView, ...]
    more_batches: int
    default_geometry: bool
    strip: Markup
    left_out: str
    replay: str
    script: str
    script_command: str
    script_cut: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One run: ``facts`` are the lines of its summary, label and text."""

    id: str
    result: Result
    name: str
    tone: str
    folder: str
    facts: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...]
    timeline: Timeline | None
    picture: Markup
    failures: tuple[FailureView, ...]
    worst: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """The page: the worst verdict of its runs, and what could not be read."""

    verdict: str
    tone: str
    sentence: str
    runs: tuple[RunView, ...]
    problems: tuple[str, ...]


class _Room:
    """How many characters are left for pictures."""

    def __init__(self) -> None:
        self._left = ROOM

    def takes(self, drawn: str) -> bool:
        """Whether a picture still fits; from then on its room is taken."""
        fits = len(drawn) <= self._left
        self._left -= len(drawn) if fits else 0
        return fits


def view(records: Records) -> PageView:
    """Return what the page shows."""
    known = [one.result.verdict for one in records.runs]
    verdict = next((name for name in VERDICTS if name in known), "incomplete")
    room = _Room()
    runs = [_run(run, f"run-{index}", room) for index, run in enumerate(records.runs, 1)]
    return PageView(
        verdict=verdict,
        tone=tone(verdict),
        sentence=_sentence(records),
        runs=tuple(runs),
        problems=records.problems,
    )


def tone(verdict: str) -> str:
    """Return the class of a verdict: good, warn or bad."""
    return VERDICTS.get(verdict, "warn")


def _sentence(records: Records) -> str:
    count = len(records.runs)
    causes = sum(len(run.failures) for run in records.runs)
    found = f"{causes} cause{'s' * (causes != 1)} found" if causes else "nothing found"
    return f"{count} run{'s' * (count != 1)}, {found}"


def _run(run: RunRecord, name: str, room: _Room) -> RunView:
    result = run.result
    drawn = timeline(run.events, f"{name}-timeline")
    failures = [
        _failure(record, f"{name}-failure-{index}", room, str(run.folder))
        for index, record in enumerate(run.failures, 1)
    ]
    hidden = ("target", "environment", "failure", "verdict", "warning", "tolerated")
    facts = [split(text) for text in summary(result)]
    books = result.synthesis
    if books is not None:
        facts += warmup.facts(books, str(run.folder))
        facts.append(("outcome", warmup.outcome(result, books)))
    return RunView(
        id=name,
        result=result,
        name=_name(result),
        tone=tone(result.verdict),
        folder=str(run.folder),
        facts=tuple((label, text) for label, text in facts if label and label not in hidden),
        environment=_pairs(result.environment),
        options=_pairs(result.options),
        timeline=drawn,
        picture=Markup(drawn.picture) if drawn is not None else Markup(),
        failures=tuple(failures),
        worst=_worst(result),
    )


def _name(result: Result) -> str:
    bug = result.options.get("bug")
    repaired = " (repaired)" if result.options.get("repaired") else ""
    parts = [result.target, result.recipe, f"bug {bug}{repaired}" if bug else ""]
    return ", ".join(part for part in parts if part)


def _pairs(values: dict[str, object]) -> tuple[tuple[str, str], ...]:
    return tuple((key, _short(value)) for key, value in values.items() if value not in (None, ""))


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text[:LONGEST_TEXT]


def _worst(result: Result) -> str:
    worst = result.parity.worst
    if worst is None:
        return "–"
    return "NaN or Inf" if worst.ratio is None else f"{worst.ratio:.2g}"


def _failure(record: FailureRecord, name: str, room: _Room, out: str) -> FailureView:
    failure, file = record.failure, record.file
    geometry = file.envelope.geometry if file is not None and file.envelope is not None else None
    rows = arguments(failure.call or _as_call(failure.difference))
    strip, left_out = "", ""
    if failure.picture is not None:
        # The heading above it has said the cause.
        short = msgspec.structs.replace(failure.picture, title="Error of each token")
        strip = strip_svg(short, inside=f"{name}-strip")
        if not room.takes(strip):
            strip, left_out = "", f"{record.folder}/strip.svg"
    served = failure.traffic.batches if failure.traffic is not None else ()
    drawn = _batches(failure, geometry, name, room)
    words = dict(enumerate(failure.words))
    return FailureView(
        id=name,
        failure=failure,
        title=headline(failure),
        place=_place(failure),
        differing=tuple(row for row in rows if row.differs),
        same=tuple(row for row in rows if not row.differs),
        guards=tuple(
            (guard[:LONGEST_TEXT], words.get(index, ""))
            for index, guard in enumerate(failure.guards[:MOST_GUARDS])
        ),
        more_guards=max(len(failure.guards) - MOST_GUARDS, 0),
        session_title="The session that was being served"
        if failure.key == ENDED
        else "The smallest session that shows it",
        batches=drawn,
        more_batches=len(served) - len(drawn),
        default_geometry=geometry is None,
        strip=Markup(strip),  # our own drawing: its text is escaped as XML
        left_out=left_out,
        replay=_replay(record),
        script=record.script,
        script_command=_script_command(failure, out),
        script_cut=len(record.script) >= LONGEST_SCRIPT,
        text=_text(record, geometry, out),
    )


def _as_call(difference: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return differences as rows of a call, where only they were recorded."""
    return [
        {
            "path": f"{row.get('path', '')} {row.get('aspect', '')}".strip(),
            "now": row.get("now", ""),
            "warm": row.get("warm", ""),
        }
        for row in difference
    ]


def _batches(
    failure: Failure, geometry: Geometry | None, name: str, room: _Room
) -> tuple[BatchView, ...]:
    served = failure.traffic.batches if failure.traffic is not None else ()
    views = []
    for number, batch in enumerate(served[:MOST_BATCHES], 1):
        last = number == len(served)
        drawn = batches.draw(
            batch,
            geometry,
            name=f"{name}-batch-{number}",
            title=f"Batch {number} of {len(served)}",
            place=_token(failure) if last else None,
        )
        views.append(
            BatchView(number=number, picture=Markup(drawn), code=shorter(repr(batch), LONGEST_CODE))
        )
    return tuple(views)


def _token(failure: Failure) -> tuple[int, int] | None:
    """Return the request and the token of the earliest wrong logits."""
    place = failure.location or {}
    request, token = place.get("request"), place.get("token")
    return (request, token) if isinstance(request, int) and isinstance(token, int) else None


def _place(failure: Failure) -> tuple[str, ...]:
    place = failure.location or {}
    lines = []
    if (token := _token(failure)) is not None:
        lines.append(f"request {token[0]}, token {token[1]} ({place.get('modality', '?')})")
    worst = place.get("worst")
    if isinstance(worst, dict):
        lines.append(f"worst: request {worst.get('request')}, token {worst.get('token')}")
    lines += [f"{key} {place[key]}" for key in ("module", "stage", "region") if place.get(key)]
    if place.get("note"):
        lines.append(str(place["note"]))
    return tuple(lines)


def _text(record: FailureRecord, geometry: Geometry | None, out: str) -> str:
    loadable = bool(_replay(record))
    text = text_of(record.failure, out=out, geometry=geometry, replayable=loadable)
    return shorter(text, 2 * LONGEST_CODE)


def _replay(record: FailureRecord) -> str:
    if not record.folder or (record.file is not None and not record.file.loadable):
        return ""
    return f"vlm-ci replay {shlex.quote(record.folder)}"


def _script_command(failure: Failure, out: str) -> str:
    if failure.repro is None or not failure.repro.path:
        return ""
    return f"python {shlex.quote(f'{out}/{failure.repro.path}')}"
