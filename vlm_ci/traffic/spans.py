"""Where the images and videos of a batch stand in its padded rows. Imports no torch."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import msgspec

from vlm_ci.traffic.spec import Batch, Image, Item, Text, Video, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vlm_ci.traffic.envelope import Geometry

Visual = Image | Video


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Where an image or a video stands in its row: from ``first`` up to, not including, ``end``.

    Delimiters around it are left out; those between a video's groups of frames are inside.
    """

    kind: str
    label: str
    first: int
    end: int


def item_spans(
    batch: Batch, kinds: Sequence[Sequence[str]], geometry: Geometry
) -> list[tuple[Span, ...]]:
    """Return, for each row of ``kinds`` [requests, padded length], where its pictures stand.

    The visual tokens of a row are dealt out to the request's images and videos in their order, as
    many to each as ``geometry`` says. Where that does not add up, each run of one kind is an item;
    where there are not as many runs as items, runs have no sizes in their labels.
    """
    requests = [request.items for request in batch.requests] + [()] * len(kinds)
    return [_spans(items, row, geometry) for items, row in zip(requests, kinds, strict=False)]


def _spans(items: Sequence[Item], kinds: Sequence[str], geometry: Geometry) -> tuple[Span, ...]:
    visual = [item for item in items if not isinstance(item, Text)]
    # Some models count an item's delimiters among its visual tokens.
    for count in (geometry.visual_tokens, geometry.positions):
        if spans := _dealt(visual, kinds, count):
            return spans
    runs = []
    start = 0
    for kind, tokens in groupby(kinds):
        end = start + len(list(tokens))
        if kind in ("image", "video"):
            runs.append(Span(kind=kind, label=kind, first=start, end=end))
        start = end
    if [run.kind for run in runs] == [kind_of(item) for item in visual]:
        return tuple(
            msgspec.structs.replace(run, label=_label(item))
            for run, item in zip(runs, visual, strict=True)
        )
    return tuple(runs)


def _dealt(
    items: Sequence[Visual], kinds: Sequence[str], count: Callable[[Visual], int]
) -> tuple[Span, ...]:
    """Deal the visual tokens out to the items in order; nothing where they do not fit."""
    places = [at for at, kind in enumerate(kinds) if kind in ("image", "video")]
    if len(places) != sum(map(count, items)):
        return ()
    spans, taken = [], 0
    for item in items:
        own = places[taken : taken + count(item)]
        taken += len(own)
        if not own or {kinds[at] for at in own} != {kind_of(item)}:
            return ()
        if isinstance(item, Image) and own[-1] - own[0] >= len(own):  # not in one piece
            return ()
        spans.append(Span(kind=kind_of(item), label=_label(item), first=own[0], end=own[-1] + 1))
    return tuple(spans)


def _label(item: Visual) -> str:
    size = f"{item.height}×{item.width}"
    return f"image {size}" if isinstance(item, Image) else f"video {item.frames} × {size}"
