"""The relations: when each applies, and which batches it has served. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from vlm_ci.errors import UsageError, unknown_name
from vlm_ci.parity.relations import pixels
from vlm_ci.parity.relations.records import Match, Relation, Variant
from vlm_ci.traffic.spec import MAX_SEED, PADDING_SIDES, Batch, Image, Item, Request, Text, Video

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vlm_ci.targets.protocol import Target
    from vlm_ci.traffic.envelope import Envelope

WARM_UP_ORDER = "warm-up-order"
EXTRA_PADDING = 5  # positions, where the envelope names no bucket to pad to

_OTHER_SHAPE = "another shape of the batch takes other kernels, which sum in another order"
_ONE_REQUEST = "the batch has one request"
_NOT_PADDED = "no row of the batch is padded"


def whole(pairs: Sequence[tuple[int, int]], *, in_batch: int = 0) -> tuple[Match, ...]:
    """Match whole requests: pairs of a request of the base and one of the variant's batch."""
    return tuple(
        Match(request=request, in_batch=in_batch, in_request=other) for request, other in pairs
    )


def _with(batch: Batch, requests: Sequence[Request]) -> Batch:
    return msgspec.structs.replace(batch, requests=tuple(requests))


def _is_padded(batch: Batch, envelope: Envelope) -> bool:
    longest = envelope.padded_length(batch)
    return any(envelope.row_tokens(request) < longest for request in batch.requests)


def _off_for_one_request(target: Target, batch: Batch) -> str:
    return _ONE_REQUEST if len(batch.requests) == 1 else ""


# -- alone, permuted, split ------------------------------------------------------------------


def _off_alone(target: Target, batch: Batch) -> str:
    least = target.envelope.requests[0]
    if least > 1:
        return f"the envelope asks for at least {least} requests a batch"
    return _off_for_one_request(target, batch)


def _alone(batch: Batch, envelope: Envelope) -> Iterator[Variant]:
    for index, request in enumerate(batch.requests):
        single = msgspec.structs.replace(batch, requests=(request,), extra_padding=0)
        yield Variant(batches=(single,), matches=whole([(index, 0)]))


def _permuted(batch: Batch, envelope: Envelope) -> Iterator[Variant]:
    """Yield the rows in reverse; of three and more also turned by one, which moves every row."""
    count = len(batch.requests)
    orders = [list(range(count))[::-1]]
    if count > 2:
        orders.append([*range(1, count), 0])
    for order in orders:
        moved = _with(batch, [batch.requests[index] for index in order])
        pairs = [(index, place) for place, index in enumerate(order)]
        yield Variant(batches=(moved,), matches=whole(pairs))


def _split(batch: Batch, envelope: Envelope) -> Iterator[Variant]:
    count = len(batch.requests)
    half = count // 2
    yield Variant(
        batches=(_with(batch, batch.requests[:half]), _with(batch, batch.requests[half:])),
        matches=(
            *whole([(index, index) for index in range(half)]),
            *whole([(index, index - half) for index in range(half, count)], in_batch=1),
        ),
    )


# -- padding -----------------------------------------------------------------------------------


def _same_requests(batch: Batch) -> tuple[Match, ...]:
    return whole([(index, index) for index in range(len(batch.requests))])


def _off_unless_padded(target: Target, batch: Batch) -> str:
    return "" if _is_padded(batch, target.envelope) else _NOT_PADDED


def _off_padding_side(target: Target, batch: Batch) -> str:
    allowed = target.envelope.padding
    if missing := [side for side in PADDING_SIDES if side not in allowed]:
        return f"the envelope has no {missing[0]} padding"
    return _off_unless_padded(target, batch)


def _padding_side(batch: Batch, envelope: Envelope) -> Iterator[Variant]:
    side = "right" if batch.padding == "left" else "left"
    other = msgspec.structs.replace(batch, padding=side)
    yield Variant(batches=(other,), matches=_same_requests(batch), elsewhere=True)


def _longer(batch: Batch, envelope: Envelope) -> Batch:
    """Pad a batch further: to the next bucket, or by ``EXTRA_PADDING``."""
    length = envelope.padded_length(batch)
    bucket = next((bucket for bucket in envelope.buckets if bucket > length), None)
    more = EXTRA_PADDING if bucket is None else bucket - length
    return msgspec.structs.replace(batch, extra_padding=batch.extra_padding + more)


def _off_more_padding(target: Target, batch: Batch) -> str:
    envelope = target.envelope
    if not _is_padded(batch, envelope):
        # A batch that is not padded may do without a mask: padding it takes other code.
        return _NOT_PADDED
    if envelope.padded_length(_longer(batch, envelope)) > envelope.max_tokens:
        return f"the rows would be longer than max_tokens, {envelope.max_tokens}"
    return ""


def _more_padding(batch: Batch, envelope: Envelope) -> Iterator[Variant]:
    longer = _longer(batch, envelope)
    yield Variant(batches=(longer,), matches=_same_requests(batch), elsewhere=True)


def _off_poisoned(target: Target, batch: Batch) -> str:
    if not callable(getattr(target, "run_poisoned", None)):
        return "the target has no run_poisoned"
    unavailable: str = getattr(target, "no_poison", "")
    return unavailable or _off_unless_padded(target, batch)


def _poisoned(batch: Batch, envelope: Envelope) -> Iterator[Variant]:
    yield Variant(batches=(batch,), matches=_same_requests(batch), poisoned=True)


# -- other requests and images -----------------------------------------------------------------


def _is_text(request: Request) -> bool:
    return request.modalities == {"text"}


def _off_beside(target: Target, batch: Batch) -> str:
    envelope = target.envelope
    if not any(map(_is_text, batch.requests)):
        return "no request of the batch is text only"
    if not all(map(_is_text, batch.requests)):
        return ""
    if envelope.requests[1] == 1:
        return "the envelope allows one request a batch"
    if envelope.modalities == ("text",) or not _companions(envelope):
        return "the envelope allows no request with an image or a video"
    return ""


def _companions(envelope: Envelope) -> list[Request]:
    """Return a request with an image and one with a video, as far as they are allowed."""
    found = []
    for kind in ("image", "video"):
        if kind not in envelope.modalities:
            continue
        sides = envelope.image_sides if kind == "image" else envelope.video_sides
        high, wide = sides[min(1, len(sides) - 1)], sides[min(2, len(sides) - 1)]
        few = max(envelope.frames[0], min(3, envelope.frames[1]))
        for height, width, frames in ((high, wide, few), (sides[0], sides[0], envelope.frames[0])):
            item: Item = Image(height, width, seed=1)
            if kind == "video":
                item = Video(frames, height, width, seed=1)
            text = Text(max(envelope.tokens[0], min(4, envelope.tokens[1])), seed=2)
            rows = [Request((text, item)), Request((item,))]
            allowed = [row for row in rows if _accepts(envelope, row)]
            if allowed:
                found.append(allowed[0])
                break
    return found


def _accepts(envelope: Envelope, request: Request) -> bool:
    rows = (request,) * envelope.requests[0]
    batch = Batch(rows, padding=envelope.padding[0], context=envelope.contexts[0])
    return envelope.violation(batch) is None


def _beside(batch: Batch, envelope: Envelope) -> Iterator[Variant]:
    """Add a request with an image, then one with a video; take them away where there are some."""
    texts = [index for index, request in enumerate(batch.requests) if _is_text(request)]
    if len(texts) < len(batch.requests):
        left = _with(batch, [batch.requests[index] for index in texts])
        pairs = [(index, place) for place, index in enumerate(texts)]
        yield Variant(batches=(left,), matches=whole(pairs))
        return
    kept = texts[: envelope.requests[1] - 1]
    for companion in _companions(envelope):
        crowd = _with(batch, [*(batch.requests[index] for index in kept), companion])
        yield Variant(batches=(crowd,), matches=whole([(index, index) for index in kept]))


def _two_images(request: Request) -> tuple[int, int] | None:
    """Return the places of a request's first two images."""
    places = [place for place, item in enumerate(request.items) if isinstance(item, Image)]
    return (places[0], places[1]) if len(places) > 1 else None


def _off_image_order(target: Target, batch: Batch) -> str:
    return "" if any(map(_two_images, batch.requests)) else "no request has two images"


def _image_order(batch: Batch, envelope: Envelope) -> Iterator[Variant]:
    """Yield, for each request with two images, both orders against the request that ends there."""

    def having(row: int, items: Sequence[Item]) -> Batch:
        requests = list(batch.requests)
        requests[row] = Request(tuple(items))
        return _with(batch, requests)

    for row, request in enumerate(batch.requests):
        if (places := _two_images(request)) is None:
            continue
        first, second = places
        items = list(request.items)
        swapped = list(items)
        swapped[first], swapped[second] = items[second], items[first]
        for order in (items, swapped):
            until = order[: first + 1]
            tokens = sum(map(envelope.geometry.positions, until))
            cut = having(row, until)
            if order is items:
                match = Match(request=row, in_request=row, tokens=tokens)
                yield Variant(batches=(cut,), matches=(match,))
            else:
                match = Match(request=row, in_batch=1, in_request=row, tokens=tokens, against=0)
                yield Variant(batches=(having(row, swapped), cut), matches=(match,))
        if _same_size(items[first], items[second]) and items[first] != items[second]:
            before = sum(map(envelope.geometry.positions, items[:first]))
            match = Match(request=row, start=before, in_request=row, in_start=before, differ=True)
            yield Variant(batches=(having(row, swapped),), matches=(match,))


def _same_size(one: Item, other: Item) -> bool:
    return msgspec.structs.replace(one, seed=None) == msgspec.structs.replace(other, seed=None)


# -- again -------------------------------------------------------------------------------------


def _never_off(target: Target, batch: Batch) -> str:
    return ""


def _twice(batch: Batch, envelope: Envelope) -> Iterator[Variant]:
    yield Variant(batches=(batch,), matches=_same_requests(batch))
    between = other_content(batch)
    if len(batch.requests) > max(1, envelope.requests[0]):
        between = _with(between, between.requests[:-1])
    pairs = [(index, index) for index in range(len(batch.requests))]
    yield Variant(batches=(between, batch), matches=whole(pairs, in_batch=1))


def other_content(batch: Batch) -> Batch:
    """Return a batch with other content in every item, all sizes as they are."""
    return _with(
        batch,
        [
            Request(
                tuple(
                    msgspec.structs.replace(item, seed=((item.seed or 0) + 1) % (MAX_SEED + 1))
                    for item in request.items
                )
            )
            for request in batch.requests
        ],
    )


RELATIONS: dict[str, Relation] = {
    relation.name: relation
    for relation in (
        Relation(
            name="alone",
            says="a request is answered alone as it is in its batch",
            because=_OTHER_SHAPE,
            off=_off_alone,
            variants=_alone,
        ),
        Relation(
            name="permuted",
            says="requests are answered in another order as they are in this one",
            because="another row of a kernel's grid may sum in another order",
            off=_off_for_one_request,
            variants=_permuted,
        ),
        Relation(
            name="padding-side",
            says="rows padded on the left are answered as those padded on the right",
            because="other rows of a kernel's grid, and positions that rotate by other angles",
            off=_off_padding_side,
            variants=_padding_side,
        ),
        Relation(
            name="more-padding",
            says="a batch that is padded further is answered as before",
            because=_OTHER_SHAPE,
            off=_off_more_padding,
            variants=_more_padding,
        ),
        Relation(
            name="poisoned-padding",
            says="huge values in padded places move no token",
            because="the weight of a masked place is exactly 0, but kernels may scale by the "
            "largest value; NaN in its place is not promised, because 0 × NaN is NaN in the "
            "product with the values",
            off=_off_poisoned,
            variants=_poisoned,
        ),
        Relation(
            name="beside",
            says="a text-only request is answered beside an image or a video as without it",
            because=_OTHER_SHAPE,
            off=_off_beside,
            variants=_beside,
        ),
        Relation(
            name="pixels",
            says="other pixels in an image or a group of frames move its request and no other",
            because="what moves is other input; what must not move has the same shapes as before",
            off=pixels.off,
            variants=pixels.variants,
        ),
        Relation(
            name="image-order",
            says="what stands up to an image follows from nothing behind it, in either order of "
            "two images",
            because=_OTHER_SHAPE,
            off=_off_image_order,
            variants=_image_order,
        ),
        Relation(
            name="split",
            says="a batch in two halves is answered as in one",
            because=_OTHER_SHAPE,
            off=_off_for_one_request,
            variants=_split,
        ),
        Relation(
            name="twice",
            says="a batch that is served again is answered as before, also after another batch",
            because="kernels that add atomically sum in another order each time",
            off=_never_off,
            variants=_twice,
        ),
    )
}


def parse(text: str) -> tuple[str, ...]:
    """Return the relations that "all", "none" or names with commas between them stand for.

    Raises:
        UsageError: there is no relation of that name.
    """
    if text in ("all", "none"):
        return tuple(RELATIONS) if text == "all" else ()
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if "all" in names and "none" not in names:
        return tuple(RELATIONS)
    if "none" in names or not names:
        raise UsageError(f"relations {text!r}: write all, or none, or names with commas between")
    for name in names:
        if name == WARM_UP_ORDER:
            raise UsageError(f"relation {name!r} takes another warm-up: --suite parity runs it")
        if name not in RELATIONS:
            raise unknown_name("relation", name, ("all", "none", *RELATIONS))
    return names
