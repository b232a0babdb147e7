"""A family tried on two small batches before its model is built: do its methods agree?

Runs no model. What is wrong here would otherwise show as a crash deep inside a forward, or not at
all: a geometry that miscounts makes the traffic miss its corners.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm_ci.errors import UsageError
from vlm_ci.families.base import KIND_NAMES, PADDING
from vlm_ci.targets.answers import describe, raised_at
from vlm_ci.traffic.spec import Batch, Image, Item, Request, Text, Video, kind_of

if TYPE_CHECKING:
    import torch

    from vlm_ci.families.base import Encoded
    from vlm_ci.targets.models import Model
    from vlm_ci.traffic.envelope import Envelope


def try_encoding(
    model: Model, envelope: Envelope, *, device: torch.device, dtype: torch.dtype
) -> None:
    """Encode a batch for each padding side, twice, and compare it with the envelope's geometry.

    Raises:
        UsageError: ``encode`` fails, or what it returns contradicts the geometry or itself.
    """
    requests = _requests(envelope)
    if not requests:
        return
    import torch

    for padding in envelope.padding:
        batch = Batch(requests, padding=padding, context=envelope.contexts[0])
        where = f"model {model.name!r}: {model.family.name}.encode"
        try:
            encoded = model.encode(batch, device=device, dtype=dtype)
            again = model.encode(batch, device=device, dtype=dtype)
        except UsageError:
            raise
        except Exception as error:  # the family may fail in any way
            raise UsageError(f"{where} raised {raised_at(error)}, for {batch!r}") from error
        if reason := _wrong_inputs(encoded, batch) or _wrong_rows(encoded, batch, envelope):
            raise UsageError(f"{where} {reason}, for {batch!r}")
        for name, value in encoded.inputs.items():
            if name not in again.inputs or not torch.equal(value, again.inputs[name]):
                raise UsageError(
                    f"{where} gave other values for {name!r} when it was asked again: draw with "
                    "the methods of a row (vlm_ci.families.encoding), which are seeded by the batch"
                )


def _requests(envelope: Envelope) -> tuple[Request, ...]:
    """Return as many unlike requests as one batch may hold."""
    words: list[Item] = []
    items: list[list[Item]] = []
    if "text" in envelope.modalities:
        words = [Text(min(envelope.tokens[0] + 2, envelope.tokens[1]))]
        items.append(list(words))
    if "image" in envelope.modalities:
        sides = envelope.image_sides
        items += [[Image(sides[0], sides[-1])], [*words, Image(sides[0], sides[0]), *words]]
    if "video" in envelope.modalities:
        side = envelope.video_sides[0]
        items += [[Video(envelope.frames[1], side, side)], [Video(envelope.frames[0], side, side)]]
    low, high = envelope.requests

    def allowed(request: Request) -> bool:
        batch = Batch((request,) * low, padding=envelope.padding[0], context=envelope.contexts[0])
        return envelope.violation(batch) is None

    found = [request for row in reversed(items) if allowed(request := Request(tuple(row)))]
    return tuple((found + found[-1:] * low)[: max(low, min(high, len(found)))])


def _wrong_inputs(encoded: Encoded, batch: Batch) -> str | None:
    import torch

    inputs: Any = encoded.inputs
    if not isinstance(inputs, dict) or not inputs:
        return f"returned inputs that are {describe(inputs)}, not a dict of tensors"
    for name, value in inputs.items():
        if not isinstance(value, torch.Tensor):
            return f"returned an input {name!r} that is {describe(value)}, not a tensor"
    visual = sorted(batch.modalities - {"text"})
    if sorted(encoded.pixel_inputs) != visual:
        return (
            f"names pixel_inputs for {sorted(encoded.pixel_inputs)}; this batch holds {visual}, "
            "and the canary changes the input that is named"
        )
    for kind, name in encoded.pixel_inputs.items():
        if name not in inputs:
            return f"names {name!r} as the pixels of each {kind}, and inputs has no such entry"
    return None


def _wrong_rows(encoded: Encoded, batch: Batch, envelope: Envelope) -> str | None:
    import torch

    kinds: Any = encoded.token_kinds
    shape = [len(batch.requests), envelope.padded_length(batch)]
    if not isinstance(kinds, torch.Tensor) or kinds.dtype != torch.int8 or kinds.is_cuda:
        return f"returned token_kinds that are {describe(kinds)}, not an int8 tensor on the CPU"
    if list(kinds.shape) != shape:
        return f"returned token_kinds of shape {list(kinds.shape)}; by the geometry it is {shape}"
    for index, request in enumerate(batch.requests):
        tokens = envelope.row_tokens(request)
        row = kinds[index]
        if int((row != PADDING).sum()) != tokens:
            return (
                f"filled {int((row != PADDING).sum())} positions of row {index}; by the geometry "
                f"its request takes {tokens}"
            )
        held = row[-tokens:] if batch.padding == "left" else row[:tokens]
        if bool((held == PADDING).any()):
            return f"padded row {index} on another side than the {batch.padding}"
        for kind, name in KIND_NAMES.items():
            if name not in ("image", "video"):
                continue
            wanted = sum(
                envelope.geometry.visual_tokens(item)
                for item in request.items
                if kind_of(item) == name
            )
            if int((row == kind).sum()) != wanted:
                return (
                    f"marked {int((row == kind).sum())} positions of row {index} as {name}; by the "
                    f"geometry it holds {wanted}"
                )
    return None
