"""Sweeps: one dimension of the traffic varied, everything else constant, to name what grows."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from vlm_ci.result import Sweep
from vlm_ci.traffic.spec import Batch, Image, Item, Request, Text, Video

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vlm_ci.synthesis.bench import Bench
    from vlm_ci.traffic.envelope import Envelope

MOST_VALUES = 8
LEAST_NEW = 3  # values beyond the first that must compile before a dimension is called growing
TIME_LIMIT = 30.0  # seconds for all sweeps of one test
REPEATS = 5  # servings of one batch; more than the two that settle a model with a lazy start


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One dimension: its values within the envelope, the batch for each, and its measure."""

    name: str
    values: tuple[int, ...]
    build: Callable[[int], Batch]
    measure: Callable[[Batch], int]


def dimensions(envelope: Envelope) -> list[Dimension]:
    """Return the dimensions that vary within an envelope; those with few values are left out.

    The base batch is one padded row of text beside one with text and a picture, as far as the
    envelope allows.
    """
    found = [
        replace(
            dimension,
            values=tuple(
                value
                for value in dimension.values
                if envelope.violation(dimension.build(value)) is None
            ),
        )
        for dimension in _Bases(envelope).all()
    ]
    return [dimension for dimension in found if len(dimension.values) >= 2]


def run_sweep(bench: Bench, dimension: Dimension) -> Sweep:
    """Serve one batch for each value, from an empty cache; the limit must have been lifted."""
    bench.reset()
    rows = [(value, bench.run(dimension.build(value))[0]) for value in _spread(dimension.values)]
    return Sweep(
        dimension=dimension.name,
        rows=rows,
        growing=is_growing([compiles for _, compiles in rows]),
        possible=len(dimension.values),
    )


def is_growing(compiles: Sequence[int]) -> bool:
    """Whether new values go on compiling.

    A bounded target compiles for the first value and perhaps for a special one or two (1, and one
    that equals another size); it is quiet at the end.
    """
    beyond = [count > 0 for count in compiles[1:]]
    return sum(beyond) >= LEAST_NEW and all(beyond[-2:])


def repeat(bench: Bench, batch: Batch) -> Sweep:
    """Serve one batch again and again: what compiles then depends on no size at all."""
    bench.reset()
    rows = [(number, bench.run(batch)[0]) for number in range(1, REPEATS + 1)]
    return Sweep(
        dimension="number of calls with one and the same batch",
        rows=rows,
        growing=is_growing([compiles for _, compiles in rows]),
        possible=REPEATS,
    )


def sweeps(
    bench: Bench,
    witnesses: Sequence[Batch],
    *,
    time_limit: float = TIME_LIMIT,
    say: Callable[[str], None] = lambda text: None,
) -> list[Sweep]:
    """Sweep numbers of things, the sizes in which the witnesses differ, and then the rest.

    Stops when the time (in seconds) is over and both a growing dimension and a control are known,
    or everything was swept.
    """
    deadline = time.monotonic() + time_limit
    bench.lift_limit()
    found: list[Sweep] = []
    if witnesses:
        again = repeat(bench, witnesses[-1])
        if again.growing:
            return [again]

    def likeliest(dimension: Dimension) -> tuple[bool, int]:
        """Numbers of things first; then sizes, those first in which the witnesses differ most."""
        if dimension.name.startswith("number of"):
            return False, 0
        return True, -len({dimension.measure(batch) for batch in witnesses})

    for dimension in sorted(dimensions(bench.envelope), key=likeliest):
        known = any(s.growing for s in found) and any(s.control for s in found)
        if time.monotonic() >= deadline and known:
            break
        say(f"sweeping the {dimension.name}")
        found.append(run_sweep(bench, dimension))
    return found


def _spread(values: tuple[int, ...]) -> list[int]:
    """Choose up to MOST_VALUES values, 1 last: it is specialised wherever it occurs."""
    if len(values) > MOST_VALUES:
        step = (len(values) - 1) / (MOST_VALUES - 1)
        values = tuple(dict.fromkeys(values[round(i * step)] for i in range(MOST_VALUES)))
    return sorted(values, key=lambda value: (value == 1, value))


class _Bases:
    """Builds the batch of each dimension's value around one generic base."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        low, high = envelope.tokens
        self._texts = [min(max(n, low), high) for n in (7, 13, 5)]
        self._rows = min(max(2, envelope.requests[0]), envelope.requests[1])
        self._most_rows = envelope.requests[1]

    def all(self) -> list[Dimension]:
        """Return all dimensions, the likeliest to grow first, with values not yet checked."""
        envelope = self._envelope
        found = []
        for kind in ("image", "video"):
            if kind not in envelope.modalities:
                continue
            most = getattr(envelope, f"{kind}s")[1] * self._most_rows
            found.append(
                Dimension(
                    name=f"number of {kind}s",
                    values=tuple(range(1, most + 1)),
                    build=partial(self._pictures, kind),
                    measure=partial(_count, kind),
                )
            )
            for side in ("height", "width"):
                found.append(self._size(kind, side, getattr(envelope, f"{kind}_sides")))
        if "video" in envelope.modalities:
            low, high = envelope.frames
            found.append(self._size("video", "frames", range(low, high + 1)))
        if "text" in envelope.modalities:
            low, high = envelope.tokens
            found.append(
                Dimension(
                    name="text length (tokens)",
                    values=tuple(range(low, high + 1)),
                    build=self._text,
                    measure=lambda batch: sum(
                        item.tokens for item in batch.items() if isinstance(item, Text)
                    ),
                )
            )
        found.append(
            Dimension(
                name="number of requests",
                values=tuple(range(envelope.requests[0], self._most_rows + 1)),
                build=self._requests,
                measure=lambda batch: len(batch.requests),
            )
        )
        return found

    def _size(self, kind: str, size: str, values: Sequence[int]) -> Dimension:
        return Dimension(
            name=f"{size} of a video" if size == "frames" else f"{kind} {size} (pixels)",
            values=tuple(values),
            build=lambda value: self._base(kind, **{size: value}),
            measure=partial(_largest, kind, size),
        )

    def _batch(self, rows: Sequence[Sequence[Item]]) -> Batch:
        requests = tuple(Request(tuple(row)) for row in rows)
        return Batch(
            requests, padding=self._envelope.padding[0], context=self._envelope.contexts[0]
        )

    def _text_of(self, index: int) -> list[Item]:
        if "text" not in self._envelope.modalities:
            return []
        return [Text(self._texts[index % len(self._texts)])]

    def _picture(self, kind: str, **sizes: int) -> Item:
        """One picture of a generic grid, with the given sizes in place of its own."""
        sides: list[int] = getattr(self._envelope, f"{kind}_sides")
        height = sizes.get("height", sides[min(2, len(sides) - 1)])
        width = sizes.get("width", sides[min(3, len(sides) - 1)])
        if height == width and len(sides) > 1 and not sizes:
            height = sides[0]
        if kind == "image":
            return Image(height, width)
        low, high = self._envelope.frames
        return Video(sizes.get("frames", min(max(4, low), high)), height, width)

    def _base(self, kind: str, **sizes: int) -> Batch:
        first = [*self._text_of(0), self._picture(kind, **sizes)]
        if self._envelope.items[1] > len(first):
            first += self._text_of(2)
        return self._batch([first, *self._others(kind, self._rows - 1)])

    def _others(self, kind: str, count: int) -> list[list[Item]]:
        plain = self._text_of(1) or [self._picture(kind)]
        return [list(plain) for _ in range(count)]

    def _pictures(self, kind: str, number: int) -> Batch:
        """The given number of equal pictures over as many rows as there may be."""
        rows = [self._text_of(index) for index in range(self._most_rows)]
        for index in range(number):
            rows[index % len(rows)].append(self._picture(kind))
        return self._batch([row for row in rows if row])

    def _kind(self) -> str | None:
        return next((k for k in ("image", "video") if k in self._envelope.modalities), None)

    def _text(self, tokens: int) -> Batch:
        kind = self._kind()
        pictures = [self._picture(kind)] if kind else []
        longer: list[Item] = [Text(tokens), *pictures]
        return self._batch([longer, *([self._text_of(1)] * (self._rows - 1))])

    def _requests(self, number: int) -> Batch:
        kind = self._kind()
        pictures = [self._picture(kind)] if kind else []
        first = [*self._text_of(0), *pictures]
        rest = [self._text_of(1) or pictures for _ in range(number - 1)]
        return self._batch([first, *rest])


def _count(kind: str, batch: Batch) -> int:
    return sum(isinstance(item, Image if kind == "image" else Video) for item in batch.items())


def _largest(kind: str, size: str, batch: Batch) -> int:
    of_kind = Image if kind == "image" else Video
    sizes = (getattr(item, size) for item in batch.items() if isinstance(item, of_kind))
    return max(sizes, default=0)
