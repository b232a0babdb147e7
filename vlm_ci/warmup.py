"""Warm-up: an ordered plan of batches, run until a whole round compiles nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vlm_ci.errors import UsageError, unknown_name
from vlm_ci.traffic import corners
from vlm_ci.traffic.files import read_plan
from vlm_ci.traffic.spec import Batch, Image, Item, Request, Text, Video

if TYPE_CHECKING:
    from collections.abc import Callable

    from vlm_ci.traffic.envelope import Envelope

NAMED_PLANS = ("default", "text-only", "image-only")
MAX_ROUNDS = 8


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """An ordered list of batches; ``name`` is a named plan or the file it came from."""

    name: str
    batches: tuple[Batch, ...]


def named_plan(name: str, envelope: Envelope) -> Plan:
    """Build a named plan for an envelope: generic sizes first, corners last, kept small.

    Sizes that are equal by accident (height = width, batch = length, a length that equals the
    number of mrope axes) come last or not at all, because Dynamo specialises on what it meets
    first: the same batches in another order would need more graphs.

    Raises:
        UsageError: there is no plan of that name, or the envelope leaves nothing of it.
    """
    if name not in NAMED_PLANS:
        raise unknown_name("warm-up plan", name, NAMED_PLANS)
    rows = {"default": _default, "text-only": _text_only, "image-only": _image_only}[name](
        _Sizes(envelope)
    )
    if name == "default" and envelope.images[0] > 0:  # text alone is not accepted
        sizes = _Sizes(envelope)
        rows += _image_only(sizes)
        rows.append([[*sizes.image(2, 5), *sizes.text(3), *sizes.video(5, 2, 3)]])
    batches: list[Batch] = []
    for context in envelope.contexts:
        for seed, row in enumerate(rows):
            for shorter in (False, True):
                requests = _requests(row, envelope, shorter=shorter)
                if not requests:
                    break
                batch = Batch(requests, seed=seed, padding=envelope.padding[0], context=context)
                if envelope.violation(batch) is None:
                    batches.append(batch)
                    break
    if not batches:
        raise UsageError(
            f"warm-up plan {name!r} has no batch that this envelope accepts: its modalities are "
            f"{', '.join(envelope.modalities)}"
        )
    return Plan(name=name, batches=tuple(batches))


def find_plan(plan: Plan | str | Path | None, envelope: Envelope) -> Plan:
    """Return a plan as it is, a named one, or the one in a file; None is the default plan.

    Raises:
        UsageError: there is neither, or the file is broken.
    """
    if isinstance(plan, Plan):
        return plan
    name = "default" if plan is None else str(plan)
    if name in NAMED_PLANS:
        return named_plan(name, envelope)
    path = Path(name)
    if not path.exists() and path.suffix != ".json":
        raise unknown_name("warm-up plan", name, (*NAMED_PLANS, "a plan file (*.json)"))
    return Plan(name=str(path), batches=read_plan(path))


Rows = list[list[list[Item]]]


def _requests(rows: list[list[Item]], envelope: Envelope, *, shorter: bool) -> tuple[Request, ...]:
    """Fit rows to the number of requests that is allowed; with the shortest texts if asked."""
    low, high = envelope.requests
    full = [
        tuple(
            Text(envelope.tokens[0]) if shorter and isinstance(item, Text) else item for item in row
        )
        for row in rows
        if row
    ]
    if not full:
        return ()
    full += [full[-1]] * (low - len(full))
    return tuple(Request(row) for row in full[:high])


class _Sizes:
    """Generic sizes within an envelope."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope

    def text(self, tokens: int) -> list[Item]:
        if "text" not in self._envelope.modalities:
            return []
        low, high = self._envelope.tokens
        return [Text(min(max(tokens, low), high))]

    def image(self, rows: int, columns: int) -> list[Item]:
        if "image" not in self._envelope.modalities:
            return []
        return [Image(self._side(rows, "image"), self._side(columns, "image"))]

    def video(self, frames: int, rows: int, columns: int) -> list[Item]:
        if "video" not in self._envelope.modalities:
            return []
        low, high = self._envelope.frames
        frames = min(max(frames, low), high)
        return [Video(frames, self._side(rows, "video"), self._side(columns, "video"))]

    def _side(self, steps: int, kind: str) -> int:
        sides: list[int] = getattr(self._envelope, f"{kind}_sides")
        return sides[min(steps, len(sides)) - 1]


def _default(sizes: _Sizes) -> Rows:
    text, image, video = sizes.text, sizes.image, sizes.video
    return [
        [[*text(7), *image(3, 4), *text(5)], [*text(13)]],  # padded, one image
        [[*text(7), *image(4, 5), *text(4)]],
        [[*text(6), *video(5, 2, 3), *text(4)], [*image(2, 5), *text(3), *image(5, 3)]],
        [[*text(9)]],
        [[*text(9)], [*text(9)]],  # equal lengths: no padding, so the mask becomes None
        [[*image(1, 1), *text(7)]],  # one visual token
        [[*text(6)], [*image(1, 1), *text(8)]],
        [[*text(1)]],
        [[*text(1)], [*text(1)]],
    ]


def _text_only(sizes: _Sizes) -> Rows:
    text = sizes.text
    return [
        [[*text(7)], [*text(13)]],
        [[*text(11)]],
        [[*text(9)], [*text(9)]],
        [[*text(1)]],
        [[*text(1)], [*text(1)]],
    ]


def _image_only(sizes: _Sizes) -> Rows:
    text, image = sizes.text, sizes.image
    if not image(1, 1):
        return []
    return [
        [[*text(7), *image(3, 4), *text(5)], [*image(2, 5), *text(3)]],
        [[*text(6), *image(4, 5), *text(4)]],
        [[*image(3, 4)], [*image(3, 4)]],
        [[*image(2, 4), *text(3), *image(5, 3)]],
        [[*image(1, 1), *text(7)]],
        [[*text(6), *image(1, 1)], [*image(1, 1), *text(8)]],
    ]


class BatchClass(NamedTuple):
    """Batches within which the same compiled regions are expected to run."""

    modalities: frozenset[str]
    single: bool
    padded: bool
    context: str

    def __str__(self) -> str:
        rows = "one row" if self.single else "rows"
        shape = "padded" if self.padded else "of equal length"
        return f"{'+'.join(sorted(self.modalities))}, {rows} {shape}, {self.context}"


def batch_class(batch: Batch, envelope: Envelope) -> BatchClass:
    """Return the class of a batch."""
    return BatchClass(
        modalities=batch.modalities,
        single=len(batch.requests) == 1,
        padded=corners.is_ragged(batch, envelope),
        context=batch.context,
    )


@dataclass(slots=True, kw_only=True)
class WarmupReport:
    """What a warm-up did; ``regions`` is what the last round executed."""

    plan: Plan
    rounds: int = 0
    seconds: float = 0.0
    converged: bool = False
    last_round: tuple[int, ...] = ()  # compiles of each batch in the last round
    regions: dict[BatchClass, int] = field(default_factory=dict)  # the least in each class

    def expected_regions(self, batch: Batch, envelope: Envelope) -> int | None:
        """Return the least number of compiled regions that a batch has to execute.

        That is what warm-up executed for its class; for a class that warm-up did not have, the
        least of all classes whose modalities this batch has too (text runs through every batch).
        None where warm-up tells nothing.
        """
        wanted = batch_class(batch, envelope)
        if wanted in self.regions:
            return self.regions[wanted]
        return min(
            (
                count
                for known, count in self.regions.items()
                if known.context == wanted.context
                and known.modalities <= wanted.modalities | {"text"}
            ),
            default=None,
        )


def run_rounds(
    report: WarmupReport,
    run: Callable[[Batch], tuple[int, int | None]],
    envelope: Envelope,
    *,
    max_rounds: int = MAX_ROUNDS,
    on_batch: Callable[[int, int], None] = lambda round_number, index: None,
) -> None:
    """Run the report's plan round after round until a whole round compiles nothing.

    ``run(batch)`` returns how many compilations the batch caused and how many compiled regions it
    executed (None where that is not known). The report is valid also when ``run`` raises.
    """
    plan = report.plan
    started = time.perf_counter()
    try:
        while report.rounds < max_rounds and not report.converged:
            report.rounds += 1
            report.regions = {}
            compiles = []
            for index, batch in enumerate(plan.batches):
                on_batch(report.rounds, index)
                compiled, regions = run(batch)
                compiles.append(compiled)
                if regions is not None:
                    name = batch_class(batch, envelope)
                    report.regions[name] = min(regions, report.regions.get(name, regions))
            report.last_round = tuple(compiles)
            report.converged = not any(compiles)
    finally:
        report.seconds = time.perf_counter() - started


def increase(before: int | None, after: int | None) -> int | None:
    """Return after - before; None where either count is not known."""
    return None if before is None or after is None else after - before
