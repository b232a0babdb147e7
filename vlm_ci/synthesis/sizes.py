"""Generic sizes: making a refused batch larger and unequal, and the order of a plan.

Dynamo specialises on sizes of 0 and 1 and on sizes that are equal by accident (height = width,
requests = length): what a plan meets first must have neither. Imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_ci.traffic.spec import Batch, Image, Item, Request, Text, Video

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vlm_ci.traffic.envelope import Envelope

# Lengths of text that are no size of anything else: not 2 or 3, not twice one another.
LENGTHS = (7, 11, 13, 17, 19, 23, 29, 31)
GRIDS = ((3, 4), (2, 5), (4, 5), (5, 3), (4, 3), (3, 5), (5, 2))  # merged tokens; never square
SMALL_GRIDS = ((2, 3), (3, 2))
FRAMES = (5, 6, 3, 4)


def accidents(batch: Batch, envelope: Envelope) -> int:
    """Count the sizes of a batch that Dynamo may specialise on.

    Those are ones, equal sides, and a length that equals another size of the batch; a single
    request counts too.
    """
    geometry = envelope.geometry
    rows, length = len(batch.requests), envelope.padded_length(batch)
    count = int(rows == 1) + 2 * int(length <= 2) + int(length == rows) + int(length == 3)
    for item in batch.items():
        if isinstance(item, Text):
            continue
        high, wide = geometry.grid(item)
        count += int(high == wide) + int(high * wide == 1) + int(high * wide == rows)
        count += isinstance(item, Video) and geometry.frame_groups(item) == 1
    return count


def ordered(plan: Sequence[Batch], envelope: Envelope) -> tuple[Batch, ...]:
    """Return a plan in the order in which it is warmed: generic sizes first, corners last.

    Batches with equally many accidents keep their order.
    """
    return tuple(sorted(plan, key=lambda batch: accidents(batch, envelope)))


def generalise(batch: Batch, envelope: Envelope, refused: Callable[[Batch], bool]) -> Batch:
    """Return a batch of generic unequal sizes that is still refused for the same cause.

    All sizes are replaced at once if that is still refused; otherwise each by itself, and those
    stay whose size is the cause.
    """
    used = _Unused(envelope)
    wanted = [used.like(item) for item in batch.items()]
    places = [
        (row, column)
        for row, request in enumerate(batch.requests)
        for column in range(len(request.items))
    ]

    def accepted(candidate: Batch) -> bool:
        return envelope.violation(candidate) is None and (candidate == batch or refused(candidate))

    # Rows of one length stay so: padding would take another way through the model.
    equal = len({envelope.row_tokens(request) for request in batch.requests}) == 1
    for together in _groupings(batch, equal):
        changed = batch
        for group in together:
            attempt = changed
            for index in group:
                # Requests that are the same stay the same.
                source = group[0] if equal and len(batch.requests) > 1 else index
                attempt = _replaced(attempt, places[index], wanted[source % len(wanted)])
            if attempt != changed and accepted(attempt):
                changed = attempt
        if changed != batch:
            return changed
    return batch


def _groupings(batch: Batch, equal: bool) -> Iterator[list[list[int]]]:
    """Yield which items are replaced together: all, then each by itself (or each column)."""
    count = sum(len(request.items) for request in batch.requests)
    if not equal or len(batch.requests) == 1:
        yield [list(range(count))]
        yield [[index] for index in range(count)]
        return
    kinds = {tuple(type(item) for item in request.items) for request in batch.requests}
    if len(kinds) == 1:
        width = len(batch.requests[0].items)
        yield [list(range(column, count, width)) for column in range(width)]
    yield [[index] for index in range(count)]


def _replaced(batch: Batch, place: tuple[int, int], item: Item) -> Batch:
    row, column = place
    items = batch.requests[row].items
    if type(items[column]) is not type(item):
        return batch
    request = Request((*items[:column], item, *items[column + 1 :]))
    requests = (*batch.requests[:row], request, *batch.requests[row + 1 :])
    return Batch(requests, batch.seed, batch.padding, batch.context)


class _Unused:
    """Hands out generic sizes, each once while there are any."""

    def __init__(self, envelope: Envelope) -> None:
        low, high = envelope.tokens
        self._lengths = [n for n in LENGTHS if low <= n <= high] or [high]
        self._frames = [n for n in FRAMES if envelope.frames[0] <= n <= envelope.frames[1]]
        self._envelope = envelope
        self._given = 0

    def like(self, item: Item) -> Item:
        """Return a generic item of the same kind, within the envelope."""
        self._given += 1
        if isinstance(item, Text):
            return Text(self._lengths[self._given % len(self._lengths)])
        kind = "image" if isinstance(item, Image) else "video"
        sides: list[int] = getattr(self._envelope, f"{kind}_sides")
        fitting = [grid for grid in (*GRIDS, *SMALL_GRIDS) if max(grid) <= len(sides)]
        high, wide = fitting[self._given % len(fitting)] if fitting else (len(sides), len(sides))
        height, width = sides[high - 1], sides[wide - 1]
        if isinstance(item, Image):
            return Image(height, width)
        frames = self._frames[0] if self._frames else self._envelope.frames[1]
        return Video(frames, height, width)
