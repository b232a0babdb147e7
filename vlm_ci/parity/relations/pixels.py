"""The canary of each place: an image or a group of frames moves its own request and no other.

Imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vlm_ci.parity.relations.records import Match, Variant
from vlm_ci.traffic.spec import MAX_SEED, Batch, Request, Text, Video

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vlm_ci.targets.protocol import Target
    from vlm_ci.traffic.envelope import Envelope

MOST = 4  # places of one batch that are looked at: which ones, its seed decides


class Place(NamedTuple):
    """An image, or one group of frames of a video: ``group`` of ``groups``."""

    request: int
    item: int
    group: int
    groups: int


def off(target: Target, batch: Batch) -> str:
    """Say why the relation does not apply."""
    return "" if batch.modalities - {"text"} else "the batch has no image and no video"


def places(batch: Batch, envelope: Envelope) -> list[Place]:
    """Return every image and every group of frames of a batch, in order."""
    found = []
    for row, request in enumerate(batch.requests):
        for column, item in enumerate(request.items):
            if isinstance(item, Text):
                continue
            groups = envelope.geometry.frame_groups(item) if isinstance(item, Video) else 1
            found += [Place(row, column, group, groups) for group in range(groups)]
    return found


def variants(batch: Batch, envelope: Envelope) -> Iterator[Variant]:
    """Yield the batch with other pixels in one place, for up to ``MOST`` places."""
    every = places(batch, envelope)
    turn = batch.seed % len(every)
    ordered = [every[-1], *every[turn:], *every[:turn]]
    for place in list(dict.fromkeys(ordered))[:MOST]:
        yield _changed(batch, envelope, place)


def _changed(batch: Batch, envelope: Envelope, place: Place) -> Variant:
    request = batch.requests[place.request]
    item = request.items[place.item]
    other = msgspec.structs.replace(item, seed=((item.seed or 0) + 1) % (MAX_SEED + 1))
    requests = list(batch.requests)
    requests[place.request] = Request(
        (*request.items[: place.item], other, *request.items[place.item + 1 :])
    )
    changed = msgspec.structs.replace(batch, requests=tuple(requests))
    before = sum(map(envelope.geometry.positions, request.items[: place.item]))
    matches = [
        Match(request=index, in_request=index)
        for index in range(len(batch.requests))
        if index != place.request
    ]
    own = place.request
    if before:
        matches.append(Match(request=own, in_request=own, tokens=before))
    matches.append(Match(request=own, start=before, in_request=own, in_start=before, differ=True))
    if place.groups == 1:
        return Variant(batches=(changed,), matches=tuple(matches))
    mixed = (place.group, place.groups)
    return Variant(batches=(batch, changed), matches=tuple(matches), mixed=mixed)
