"""The canary: an image or video that is changed must move the logits, or nothing is proved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from vlm_ci.errors import UsageError
from vlm_ci.parity.comparison import Tolerance, compare, moved
from vlm_ci.targets.answers import broken, check_output, raised_at
from vlm_ci.traffic.spec import Batch, Image, Item, Request, Text, Video

if TYPE_CHECKING:
    from vlm_ci.targets.protocol import Output, WatchedTarget
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

    Raises:
        UsageError: eager cannot answer, or ``run_perturbed`` does not answer like it.
    """
    results = []
    for modality in ("image", "video"):
        batch = canary_batch(target.envelope, modality)
        if batch is None:
            continue
        plain = _plain(target, batch)
        changed = _perturbed(target, batch, modality)
        try:
            change, comparison = moved(plain, changed), compare(changed, plain, tolerance)
        except ValueError as error:
            raise broken(
                target,
                f"run_perturbed does not answer like run_eager ({error})",
                f"it must change the pixels of each {modality} and nothing else",
            ) from error
        results.append(
            CanaryResult(
                modality=modality,
                batch=batch,
                largest_change=change,
                shows=not comparison.passes,
            )
        )
    return results


def _plain(target: WatchedTarget, batch: Batch) -> Output:
    try:
        return target.run_eager(batch)
    except UsageError:
        raise
    except Exception as error:  # nothing can be compared with an eager twin that fails at once
        raise UsageError(
            f"target {target.name!r}: run_eager raised {raised_at(error)}, for a batch that its "
            f"envelope allows: {batch!r}"
        ) from error


def _perturbed(target: WatchedTarget, batch: Batch, modality: str) -> Output:
    try:
        output = target.run_perturbed(batch, modality)
    except Exception as error:
        raise broken(
            target,
            f"run_perturbed(batch, {modality!r}) raised {raised_at(error)}",
            f"it must answer eagerly with the pixels of each {modality} changed; leave the method "
            "out where that cannot be done",
        ) from error
    check_output(target, "run_perturbed", output, batch)
    return output


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
