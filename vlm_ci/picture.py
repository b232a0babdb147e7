"""A mismatch as a picture: the error of each token of a batch, as SVG. Imports no torch, no numpy.

Records and pure functions; ``vlm_ci.artifacts`` writes the file.
"""

from __future__ import annotations

import math
import textwrap
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vlm_ci import svg
from vlm_ci.svg import INK, LINE, PALE
from vlm_ci.traffic.spans import Span, item_spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlm_ci.traffic.envelope import Geometry
    from vlm_ci.traffic.spec import Batch

STRIP = "strip.svg"  # in the failure's folder
KINDS = ("padding", "text", "image", "video")
LIMIT = 1.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One request as it was padded. ``kinds`` says what each token is (``KINDS``).

    ``ratios`` is each token's largest error divided by what is allowed: above 1 is a mismatch, inf
    is NaN or Inf, None is padding.
    """

    kinds: tuple[str, ...]
    ratios: tuple[float | None, ...]
    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        if len(self.kinds) != len(self.ratios):
            raise ValueError(
                f"Row.ratios must be as long as kinds: {len(self.ratios)}, not {len(self.kinds)}"
            )
        if unknown := set(self.kinds) - set(KINDS):
            raise ValueError(f"Row.kinds must be among {', '.join(KINDS)}, not {min(unknown)!r}")
        # JSON has no infinity: msgspec writes null, and it has to come back as what it was.
        ratios = tuple(map(_normal, self.kinds, self.ratios))
        msgspec.structs.force_setattr(self, "ratios", ratios)

    @property
    def judged(self) -> int:
        """The number of tokens that are not padding."""
        return sum(ratio is not None for ratio in self.ratios)

    @property
    def above(self) -> tuple[int, ...]:
        """The tokens above the limit."""
        return tuple(at for at, ratio in enumerate(self.ratios) if ratio and ratio > LIMIT)

    def worst(self, first: int, end: int) -> int | None:
        """Return the token of the largest ratio from ``first`` to before ``end``; None of padding
        alone."""
        judged = [at for at in range(first, end) if self.ratios[at] is not None]
        return max(judged, key=lambda at: self.ratios[at] or 0.0, default=None)


def _normal(kind: str, ratio: float | None) -> float | None:
    if kind == "padding":
        return None
    return math.inf if ratio is None or math.isnan(ratio) else float(ratio)


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """The batch that failed. ``title`` is the cause; ``batch`` counts from 1, of ``batches`` in
    the session; ``rows`` are its requests."""

    title: str
    rows: tuple[Row, ...]
    batch: int = 1
    batches: int = 1

    def __post_init__(self) -> None:
        if not any(row.kinds for row in self.rows):
            raise ValueError("Picture.rows must hold at least one token")


def picture_of(
    batch: Batch,
    kinds: Sequence[Sequence[str]],
    ratios: Sequence[Sequence[float | None]],
    geometry: Geometry,
    *,
    title: str,
    number: int = 1,
    count: int = 1,
) -> Picture:
    """Build the picture of a batch, the ``number``-th of ``count`` in its session.

    ``kinds`` and ``ratios`` are [requests, padded length]; what ``ratios`` holds at padding is not
    looked at. Ratios are kept to three digits, on their side of the limit.

    Raises:
        ValueError: ``kinds`` and ``ratios`` differ in their sizes, or a kind is unknown.
    """
    rows = tuple(
        Row(kinds=tuple(names), ratios=tuple(map(_rounded, values)), spans=spans)
        for names, values, spans in zip(
            kinds, ratios, item_spans(batch, kinds, geometry), strict=True
        )
    )
    return Picture(title=title, rows=rows, batch=number, batches=count)


def _rounded(ratio: float | None) -> float | None:
    if ratio is None or not math.isfinite(ratio):
        return ratio
    short = float(f"{ratio:.3g}")
    return short if (short > LIMIT) == (ratio > LIMIT) else ratio


# -- the drawing ------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT = 1200, 100, 150  # pixels: the picture, and beside the rows
WIDEST, NARROWEST = 24.0, 2.0  # pixels: one cell
HEIGHT, SWATCH = 24, 14  # pixels: a row of cells, a sample in the legend
LANE, MOST_LANES = 14, 6  # pixels: one line of labels above a row; how many there may be
CHARACTER = 6.6  # pixels: the mean width of one at the size of labels, in a wide font

# log10 of the ratio and a colour. Blue below the limit and orange to brown above: the hues differ
# for every kind of colour vision, and the picture grows darker throughout, also in print.
BELOW = ((-2.0, (244, 248, 252)), (0.0, (143, 188, 225)))
ABOVE = ((0.0, (240, 138, 36)), (1.0, (190, 58, 30)), (2.0, (88, 18, 10)))


class _Scale(NamedTuple):
    """Tokens to pixels: ``tokens`` share one cell of ``width`` pixels."""

    length: int
    tokens: int
    width: float

    def x(self, token: float) -> float:
        return LEFT + token / self.tokens * self.width


def strip_svg(picture: Picture, *, inside: str = "") -> str:
    """Return the picture as an SVG document: a strip of cells for each request, all to one scale.

    A cell is a token, coloured by its ratio. Where tokens would be narrower than ``NARROWEST``
    pixels, some share a cell, which shows the largest of their ratios. Tooltips say it in words.
    With ``inside`` it is an element of a page, and its ids begin with that.
    """
    scale = _scale(max(len(row.kinds) for row in picture.rows))
    root = svg.document(picture.title, _description(picture), WIDTH)
    definitions = svg.add(root, "defs")
    svg.pattern(definitions, "padding", "#ffffff", "M-1 1l2-2M0 6l6-6M5 7l2-2", "#b4bdc6")
    svg.pattern(definitions, "nonfinite", "#000000", "M0 0l6 6M0 6l6-6", "#ffffff")
    for name, stops in (("below", BELOW), ("above", ABOVE)):
        gradient = svg.add(definitions, "linearGradient", id=f"vlm-ci-{name}")
        for at, colour in stops:
            offset = (at - stops[0][0]) / (stops[-1][0] - stops[0][0])
            svg.add(gradient, "stop", offset=offset, stop_color=_hex(colour))
    y = _legend(root, _header(root, picture, scale))
    for request, row in enumerate(picture.rows):
        y = _row(root, picture, request, row, scale, y)
    height = _axis(root, scale, y)
    return svg.inline(root, height, inside) if inside else svg.finish(root, height)


def _scale(length: int) -> _Scale:
    space = WIDTH - LEFT - RIGHT
    tokens = math.ceil(length * NARROWEST / space)
    return _Scale(length, tokens, min(WIDEST, space / math.ceil(length / tokens)))


def _header(root: svg.Element, picture: Picture, scale: _Scale) -> int:
    y = 30
    for part in textwrap.wrap(picture.title, 125, max_lines=4, placeholder=" …"):
        svg.text(root, 24, y, part, size=15, weight="bold")
        y += 20
    count = len(picture.rows)
    of = f"batch {picture.batch} of {picture.batches} in the session"
    each = (
        "each cell is one token"
        if scale.tokens == 1
        else f"each cell is {scale.tokens} tokens and shows the largest of their ratios"
    )
    size = f"{count} request{'s' if count > 1 else ''}, padded to {scale.length:,} tokens"
    svg.text(root, 24, y, f"{of} · {size} · {each}", fill=PALE)
    return y + 18


def _legend(root: svg.Element, y: int) -> int:
    """Draw the colour scale and what the marks mean."""
    svg.text(root, 24, y + 11, "error ÷ what is allowed", fill=PALE)
    left, decade, high = 180, 62, SWATCH
    for index, name in enumerate(("below", "above")):
        _swatch(root, name, left + 2 * decade * index, y, 2 * decade)
    for index, label in enumerate(("≤ 0.01", "0.1", "1: the limit", "10", "≥ 100")):
        x = left + index * decade
        limit = index == 2
        svg.line(root, x, y - 4 * limit, x, y + high + 4, INK, 1.5 if limit else 0.75)
        svg.text(
            root, x, y + high + 15, label, anchor="middle", weight="bold" if limit else "normal"
        )
    x = left + 4 * decade + 46
    for name, label, wide in (("nonfinite", "NaN or Inf", 104), ("padding", "padding", 92)):
        _swatch(root, name, x, y, 20)
        svg.text(root, x + 26, y + 11, label)
        x += wide
    for kind in ("image", "video"):
        _outline(root, kind, x, x + 20, y, high)
        svg.text(root, x + 26, y + 11, kind)
        x += 76
    for filled, label, wide in ((False, "first above the limit", 148), (True, "worst", 0)):
        svg.caret(root, x + 6, y + 3, filled=filled)
        svg.text(root, x + 16, y + 11, label)
        x += wide
    return y + high + 30


def _swatch(root: svg.Element, name: str, x: float, y: float, width: float) -> None:
    svg.box(root, x, y, width, SWATCH, f"url(#vlm-ci-{name})").set("stroke", LINE)


def _row(root: svg.Element, picture: Picture, request: int, row: Row, scale: _Scale, y: int) -> int:
    """Draw one request from ``y`` down; return where the next one may begin."""
    group = svg.add(root, "g", id=f"vlm-ci-request-{request}")
    y += _flags(group, row, scale, y) + 6
    judged = row.judged
    svg.text(group, 24, y + 10, f"request {request}", weight="bold")
    svg.text(group, 24, y + 22, f"{judged:,} token{'s' * (judged != 1)}", fill=PALE)
    _cells(group, request, row, scale, y)
    for span in row.spans:
        if scale.x(span.end) - scale.x(span.first) >= 6:  # a smaller one would be all outline
            _outline(group, span.kind, scale.x(span.first), scale.x(span.end), y, HEIGHT)
    above, right = row.above, scale.x(len(row.kinds)) + 10
    many = f"{len(above):,} of {judged:,}" if above else "none"
    svg.text(group, right, y + 10, many, weight="bold" if above else "normal")
    svg.text(group, right, y + 22, "above the limit", fill=PALE)
    y += HEIGHT + 3
    marks = _marks(picture, request)
    for index, (filled, token, words) in enumerate(marks):
        svg.caret(group, scale.x(token + 0.5), y, filled=filled)
        line = y + 24 + 15 * index
        svg.caret(group, LEFT + 6, line - 9, filled=filled)
        svg.text(group, LEFT + 16, line, words)
    return y + (15 * len(marks) + 22 if marks else 12)


def _cells(group: svg.Element, request: int, row: Row, scale: _Scale, y: int) -> None:
    for first in range(0, len(row.kinds), scale.tokens):
        end = min(first + scale.tokens, len(row.kinds))
        worst = row.worst(first, end)
        fill = "url(#vlm-ci-padding)" if worst is None else colour(row.ratios[worst] or 0.0)
        cell = svg.box(group, scale.x(first), y, scale.x(end) - scale.x(first), HEIGHT, fill)
        cell.set("class", "cell")
        if scale.width >= 5:  # narrower ones would be all border
            cell.set("stroke", LINE)
            cell.set("stroke-width", "0.5")
        svg.add(cell, "title", _tooltip(request, row, first, end, worst))
    whole = svg.box(group, LEFT, y, scale.x(len(row.kinds)) - LEFT, HEIGHT, "none")
    whole.set("stroke", LINE)


def _marks(picture: Picture, request: int) -> list[tuple[bool, int, str]]:
    """Return the tokens to point at: whether it is the worst, which one, and the words for it."""
    row = picture.rows[request]
    worst = row.worst(0, len(row.ratios))
    if worst is None or not row.above:
        return []
    first = row.above[0]
    everywhere = max(ratio or 0.0 for other in picture.rows for ratio in other.ratios)
    several = sum(bool(other.above) for other in picture.rows) > 1
    place = " of the batch" if several and row.ratios[worst] == everywhere else ""
    place = place or (" of this request" if several else "")
    if first == worst:
        return [(True, first, f"first above the limit, and worst{place}: {_of(row, first)}")]
    return [
        (False, first, f"first above the limit: {_of(row, first)}"),
        (True, worst, f"worst{place}: {_of(row, worst)}"),
    ]


def _of(row: Row, token: int) -> str:
    return f"token {token} ({row.kinds[token]}), {_times(row.ratios[token] or 0.0)}"


def _flags(group: svg.Element, row: Row, scale: _Scale, y: int) -> int:
    """Draw the labels of a row's items from ``y`` down; return how much room they took.

    A label starts above the left end of its item. One that would run into a later item's stands
    in a higher lane than that item's own, so that no line from item to label crosses a label.
    """
    lanes: dict[int, int] = {}
    for index in reversed(range(len(row.spans))):
        right = scale.x(row.spans[index].first) + len(row.spans[index].label) * CHARACTER + 10
        over = [lane for i, lane in lanes.items() if scale.x(row.spans[i].first) < right]
        if (lane := max(over, default=-1) + 1) < MOST_LANES:
            lanes[index] = lane
    if not row.spans:
        return 0
    bottom = y + LANE * (max(lanes.values()) + 1) + 8
    for index, span in enumerate(row.spans):
        x, end = scale.x(span.first) + 0.5, max(scale.x(span.end) - 0.5, scale.x(span.first) + 2)
        path = f"M{x:.1f} {bottom + 3}V{bottom - 2}H{end:.1f}V{bottom + 3}"
        bracket = svg.add(group, "path", d=path, fill="none", stroke=INK, class_="bracket")
        svg.add(bracket, "title", f"{span.label}: tokens {span.first} to {span.end - 1}")
        if index in lanes:
            base = bottom - 6 - LANE * lanes[index]
            if lanes[index]:
                svg.line(group, x, base - 8, x, bottom - 2, LINE, 1)
            svg.text(group, x + (3 if lanes[index] else 0), base, span.label)
    return bottom - y


def _outline(parent: svg.Element, kind: str, x: float, end: float, y: float, height: float) -> None:
    """Frame an item's cells: an image with a whole line, a video with dashes."""
    for stroke, width in (("#ffffff", 3.5), (INK, 1.5)):  # white around it: cells may be dark
        box = svg.box(parent, x + 0.5, y - 0.5, max(end - x - 1.0, 1.0), height + 1.0, "none")
        box.set("stroke", stroke)
        box.set("stroke-width", str(width))
        box.set("pointer-events", "none")  # the cells below keep their tooltips
    if kind == "video":
        box.set("stroke-dasharray", "4 2")


def _axis(root: svg.Element, scale: _Scale, y: int) -> int:
    """Number the tokens below the last row."""
    pixels = scale.width / scale.tokens
    step = next(
        size
        for power in range(12)
        for size in (10**power, 2 * 10**power, 5 * 10**power)
        if size * pixels >= 44
    )
    svg.line(root, LEFT, y, scale.x(scale.length), y, LINE, 1)
    for token in range(0, scale.length, step):
        x = scale.x(token + 0.5)
        svg.line(root, x, y, x, y + 4, LINE, 1)
        svg.text(root, x, y + 16, f"{token:,}", anchor="middle", fill=PALE)
    svg.text(root, 24, y + 16, "token", fill=PALE)
    return y + 30


# -- words and colours ------------------------------------------------------------------------


def colour(ratio: float) -> str:
    """Return the fill of a cell of this ratio: by its logarithm, from 0.01 to 100."""
    if not math.isfinite(ratio):
        return "url(#vlm-ci-nonfinite)"
    at = min(max(math.log10(ratio), BELOW[0][0]), ABOVE[-1][0]) if ratio > 0 else BELOW[0][0]
    stops = ABOVE if ratio > LIMIT else BELOW
    for (low, one), (high, other) in pairwise(stops):
        if at <= high:
            part = (at - low) / (high - low)
            return _hex(tuple(round(a + (b - a) * part) for a, b in zip(one, other, strict=True)))
    raise AssertionError("the last stop is the largest value")


def _hex(colour: tuple[int, ...]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)


def _tooltip(request: int, row: Row, first: int, end: int, worst: int | None) -> str:
    kinds = ", ".join(dict.fromkeys(row.kinds[first:end]))
    words = "" if worst is None else _times(row.ratios[worst] or 0.0)
    if end - first == 1:
        return f"request {request}, token {first} ({kinds})" + (words and f": {words}")
    place = f"request {request}, tokens {first} to {end - 1} ({kinds})"
    return place + (words and f": at most {words}, at token {worst}")


def _times(ratio: float) -> str:
    if not math.isfinite(ratio):
        return "NaN or Inf"
    # As many digits as it takes to stand on its side of the limit.
    short = next(
        text
        for digits in range(2, 18)
        if (float(text := f"{ratio:.{digits}g}") > LIMIT) == (ratio > LIMIT)
    )
    if 100 <= ratio < 1e6:
        short = f"{ratio:,.0f}"
    return f"{short} times what is allowed"


def _description(picture: Picture) -> str:
    parts = [
        "The error of each token of a batch, divided by what is allowed; above 1 is a mismatch."
    ]
    for request, row in enumerate(picture.rows):
        many = f"Request {request}: {len(row.above)} of {row.judged} tokens above the limit"
        parts.append("; ".join([many, *(words for _, _, words in _marks(picture, request))]) + ".")
    return " ".join(parts)
