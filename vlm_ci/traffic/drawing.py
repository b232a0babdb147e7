"""Traffic as a small drawing in characters: rows of a batch, to scale. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_ci.traffic.envelope import Geometry
from vlm_ci.traffic.spec import Batch, Image, Item, Session, Text, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH = 56  # characters for the longest row
MARKS = {"text": "t", "image": "#", "video": "=", "padding": "·"}


def draw(session: Session, geometry: Geometry | None = None) -> list[str]:
    """Return a drawing of a session: one line for each request, its positions from left to right.

    ``t`` is text, ``#`` an image, ``=`` a video, ``·`` padding, and ``|`` stands between items.
    Rows of one batch are drawn to one scale, and every item has at least one mark. ``geometry``
    says how many positions an item takes.
    """
    geometry = geometry or Geometry()
    lines = []
    for number, batch in enumerate(session.batches, start=1):
        if len(session.batches) > 1:
            lines.append(f"batch {number}")
        lines += _rows(batch, geometry)
    return lines


def _rows(batch: Batch, geometry: Geometry) -> Iterator[str]:
    # At least one each: without the model's own geometry a small image may come out as none.
    positions = [[max(1, geometry.positions(item)) for item in row.items] for row in batch.requests]
    longest = max(map(sum, positions))
    most_items = max(len(request.items) for request in batch.requests)
    scale = min(1.0, max(WIDTH - 2 * most_items, 1) / longest)
    bodies = [
        "|".join(
            MARKS[kind_of(item)] * max(1, round(count * scale))
            for item, count in zip(request.items, counts, strict=True)
        )
        for request, counts in zip(batch.requests, positions, strict=True)
    ]
    width = max(map(len, bodies))
    for index, (request, body, counts) in enumerate(
        zip(batch.requests, bodies, positions, strict=True)
    ):
        fill = MARKS["padding"] * (width - len(body))
        drawn = fill + body if batch.padding == "left" else body + fill
        named = ", ".join(map(_name, request.items))
        total = sum(counts)
        yield f"{index} [{drawn}] {total} position{'s' if total > 1 else ''}: {named}"


def _name(item: Item) -> str:
    if isinstance(item, Text):
        return f"text {item.tokens}"
    if isinstance(item, Image):
        return f"image {item.height}×{item.width}"
    return f"video {item.frames} × {item.height}×{item.width}"
