"""A batch as a picture: each request a row, its items to scale. Pure: traffic in, SVG out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vlm_ci import svg
from vlm_ci.report.html import drawing
from vlm_ci.report.html.drawing import CHARACTER
from vlm_ci.traffic.envelope import Geometry
from vlm_ci.traffic.spec import Image, Text, kind_of

if TYPE_CHECKING:
    from vlm_ci.traffic.spec import Batch, Item, Request, Video

LEFT, RIGHT, GAP, LEAST = 76, 96, 14, 340  # pixels: beside the rows, between items, a whole picture
TALLEST, WIDEST, LARGEST = 96.0, 220.0, 4.0  # pixels: a picture; how much a pixel is enlarged
LINE, BAR = 18, 12  # pixels: the height of a run of text, and of a row's positions
MOST_FRAMES, OFFSET = 8, 4.0  # frames that are drawn, and pixels between two
MOST_ROWS, MOST_ITEMS, MOST_CELLS = 16, 16, 40  # drawn of a batch, of a request, of its bar


class _Scale(NamedTuple):
    """Pixels of the drawing for a pixel of an image, and for a token of text."""

    pixel: float
    token: float


def draw(
    batch: Batch,
    geometry: Geometry | None,
    *,
    name: str,
    title: str,
    place: tuple[int, int] | None = None,
) -> str:
    """Return a batch as SVG: images and frames to one scale, runs of text to another.

    Below each row stand its positions, padding included; ``geometry`` says how many an item takes.
    ``place`` is a (request, token) to point at.
    """
    model = geometry or Geometry()
    scale = _scale(batch)
    rows = batch.requests[:MOST_ROWS]
    longest = max(sum(_positions(row, model)) for row in batch.requests)
    longest += batch.extra_padding
    needed = max(LEFT + sum(_slot(item, scale) for item in _shown(row)) for row in rows)
    width = max(LEAST, min(needed + 40, 2400.0), LEFT + RIGHT + min(longest * 5.0, 700.0))
    root = drawing.begin(name, title, _description(batch, model), width)
    y = 8.0
    for index, row in enumerate(rows):
        at = place[1] if place is not None and place[0] == index else None
        y = _row(root, batch, index, row, scale, model, longest, width, y, at)
    if len(rows) < len(batch.requests):
        drawing.label(root, 0, y + 6, f"and {len(batch.requests) - len(rows)} more requests")
        y += 18
    return svg.finish(root, round(y))


def _positions(row: Request, model: Geometry) -> list[int]:
    # At least one each: without the model's own geometry a small image may come out as none.
    return [max(1, model.positions(item)) for item in row.items]


def _shown(row: Request) -> tuple[Item, ...]:
    return row.items[:MOST_ITEMS]


def _scale(batch: Batch) -> _Scale:
    visual: list[Image | Video] = [item for item in batch.items() if not isinstance(item, Text)]
    high = max((item.height for item in visual), default=1)
    wide = max((item.width for item in visual), default=1)
    tokens = max((item.tokens for item in batch.items() if isinstance(item, Text)), default=1)
    return _Scale(min(TALLEST / high, WIDEST / wide, LARGEST), min(5.0, WIDEST / tokens))


def _size(item: Item, scale: _Scale) -> tuple[float, float]:
    """Return width and height of an item in pixels of the drawing."""
    if isinstance(item, Text):
        return max(4.0, item.tokens * scale.token), LINE
    width, height = max(3.0, item.width * scale.pixel), max(3.0, item.height * scale.pixel)
    if isinstance(item, Image):
        return width, height
    behind = (min(item.frames, MOST_FRAMES) - 1) * OFFSET
    return width + behind, height + behind


def _slot(item: Item, scale: _Scale) -> float:
    """Return the width of an item with its label."""
    wide = max(len(text) for text in _labels(item, None)) * CHARACTER
    return max(_size(item, scale)[0], wide) + GAP


def _labels(item: Item, model: Geometry | None) -> tuple[str, str]:
    if isinstance(item, Text):
        return "text", f"{item.tokens} token{'s' * (item.tokens != 1)}"
    tokens = model.visual_tokens(item) if model is not None else 999
    size = f"{item.height}×{item.width}"
    frames = "" if isinstance(item, Image) else f"{item.frames} × "
    return f"{kind_of(item)} {frames}{size}", f"{tokens} token{'s' * (tokens != 1)}"


def _row(
    root: svg.Element,
    batch: Batch,
    index: int,
    row: Request,
    scale: _Scale,
    model: Geometry,
    longest: int,
    width: float,
    y: float,
    at: int | None,
) -> float:
    """Draw one request from ``y`` down; return where the next one may begin."""
    items = _shown(row)
    bottom = y + max(_size(item, scale)[1] for item in items) + 2
    drawing.label(root, 0, bottom - 5, f"request {index}", kind="strong")
    x = float(LEFT)
    for item in items:
        _item(root, item, x, bottom, scale, model)
        for line, text in enumerate(_labels(item, model)):
            drawing.label(root, x, bottom + 13 + 13 * line, text, kind="pale" if line else "")
        x += _slot(item, scale)
    if len(items) < len(row.items):
        drawing.label(root, x, bottom - 5, f"and {len(row.items) - len(items)} more items")
    y = bottom + 34 + (8 if at is not None else 0)
    positions = _positions(row, model)
    total = sum(positions)
    padding = longest - total
    one = (width - LEFT - RIGHT) / longest
    x = LEFT + (padding * one if batch.padding == "left" else 0.0)
    for item, count in list(zip(row.items, positions, strict=True))[:MOST_CELLS]:
        wide = count * one
        kind, words = kind_of(item), " ".join(_labels(item, model))
        drawing.box(root, x, y, wide, BAR, f"cell {kind}", words)
        x += wide
    if padding:
        x = LEFT if batch.padding == "left" else LEFT + total * one
        drawing.box(root, x, y, padding * one, BAR, "cell padding", f"{padding} of padding")
    if at is not None:
        mark = drawing.caret(root, LEFT + (min(at, longest - 1) + 0.5) * one, y, "bad")
        svg.add(mark, "title", f"token {at}: the first wrong one")
    words = f"{total} position{'s' * (total != 1)}"
    drawing.label(root, width - RIGHT + 8, y + BAR - 2, words, kind="pale")
    return y + BAR + 18


def _item(
    root: svg.Element, item: Item, x: float, bottom: float, scale: _Scale, model: Geometry
) -> None:
    width, height = _size(item, scale)
    top = bottom - height
    if isinstance(item, Text):
        drawing.box(root, x, top, width, height, "item text", f"text of {item.tokens} tokens")
        for line in range(1, 4):
            end = x + width - 3 - (width * 0.25 if line == 3 else 0)
            if end > x + 4:
                drawing.rule(root, x + 3, top + 4.5 * line, end, top + 4.5 * line, "writing")
        return
    words = " ".join(_labels(item, model))
    behind = 0 if isinstance(item, Image) else min(item.frames, MOST_FRAMES) - 1
    width, height = width - behind * OFFSET, height - behind * OFFSET
    for frame in range(behind, -1, -1):
        left, high = x + frame * OFFSET, bottom - height - frame * OFFSET
        title = words if frame == 0 else ""
        drawing.box(root, left, high, width, height, f"item {kind_of(item)}", title)
    rows, columns = model.grid(item)
    if model.token_side is None or not rows or not columns or max(rows, columns) > 40:
        return
    if min(width / columns, height / rows) < 4:
        return
    top = bottom - height
    for column in range(1, columns):
        at = x + width * column / columns
        drawing.rule(root, at, top, at, bottom, "grid")
    for line in range(1, rows):
        at = top + height * line / rows
        drawing.rule(root, x, at, x + width, at, "grid")


def _description(batch: Batch, model: Geometry) -> str:
    rows = [
        f"Request {index}: "
        + ", ".join(", ".join(_labels(item, model)) for item in _shown(row))
        + "."
        for index, row in enumerate(batch.requests[:MOST_ROWS])
    ]
    extra = f" and by {batch.extra_padding} more" if batch.extra_padding else ""
    return " ".join(rows) + f" Padded on the {batch.padding}{extra}; {batch.context}."
