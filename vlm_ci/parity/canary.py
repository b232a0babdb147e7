"""The canary: an image or video that is changed must move the logits, or nothing is proved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from vlm_ci.parity.comparison import Tolerance, compare, moved
from vlm_ci.traffic.spec import Batch, Image, Item, Request, Text, Video

if TYPE_CHECKING:
    from vlm_ci.targets.protocol import WatchedTarget
    from vlm_ci.traffic.envelope import Envelope


class CanaryResult(msgspec.Struct, frozen=True, kw_only=True):
    """What changing one modality did: by how much the logits moved, and whether that shows."""

    modality: str
    batch: Batch
    largest_change: float
    shows: bool


def apply_canary(target: WatchedTarget, tolerance: Tolerance) -> list[CanaryResult]:
    """Change the pixels of each modality of the envelope in turn, on the eager twin.

    A change shows where the comparison that judges the run would call it a mismatch.
    """
    results = []
    for modality in ("image", "video"):
        batch = canary_batch(target.envelope, modality)
        if batch is None:
            continue
        plain = target.run_eager(batch)
        changed = target.run_perturbed(batch, modality)
        results.append(
            CanaryResult(
                modality=modality,
                batch=batch,
                largest_change=moved(plain, changed),
                shows=not compare(changed, plain, tolerance).passes,
            )
        )
    return results


def canary_batch(envelope: Envelope, modality: str) -> Batch | None:
    """Return one request with one image or video of the smallest size; None if not allowed."""
    if modality not in envelope.modalities:
        return None
    item: Item
    if modality == "image":
        side = envelope.image_sides[0]
        item = Image(side, side)
    else:
        side = envelope.video_sides[0]
        item = Video(envelope.frames[0], side, side)
    with_text = "text" in envelope.modalities and (
        envelope.geometry.positions(item) + envelope.tokens[0] <= envelope.max_tokens
    )
    items = (item, Text(envelope.tokens[0])) if with_text else (item,)
    return Batch((Request(items),), context=envelope.contexts[0])
