"""The named corners of traffic: which ones an envelope allows, and which ones a session reaches.

Uniform sampling misses most bugs. Pure functions; imports neither torch nor Hypothesis.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise

from vlm_ci.traffic.envelope import Envelope
from vlm_ci.traffic.spec import Batch, Image, Item, Request, Session, Text, Video, kind_of

EXTREME_ASPECT = 4  # an extreme grid has one side this many times the other


def counts(request: Request) -> Counter[str]:
    """Count the items of each kind in a request."""
    return Counter(kind_of(item) for item in request.items)


def _images(batch: Batch) -> list[Image]:
    return [item for item in batch.items() if isinstance(item, Image)]


def is_ragged(batch: Batch, envelope: Envelope) -> bool:
    """Whether rows differ in length, so that some are padded."""
    return len({envelope.row_tokens(request) for request in batch.requests}) > 1


def is_equal_length(batch: Batch, envelope: Envelope) -> bool:
    """Whether there are two rows or more, all of one length."""
    return len(batch.requests) > 1 and not is_ragged(batch, envelope)


def is_small_large_small(part: Sequence[Batch], envelope: Envelope) -> bool:
    """Whether a batch is followed by one at least twice its size, and that by a small one."""
    size = [len(batch.requests) * envelope.padded_length(batch) for batch in part]
    return any(size[i + 1] >= 2 * max(size[i], size[i + 2]) for i in range(len(size) - 2))


def _adjacent(request: Request) -> bool:
    return any(
        isinstance(first, Image) and isinstance(second, Image)
        for first, second in pairwise(request.items)
    )


def _transposed(session: Session) -> bool:
    shapes = {(i.height, i.width) for batch in session.batches for i in _images(batch)}
    return any(height != width and (width, height) in shapes for height, width in shapes)


def _splits(session: Session, envelope: Envelope) -> list[tuple[str, tuple[int, ...]]]:
    """For each batch with pictures of one kind: that kind, and the tokens of each picture."""
    found = []
    for batch in session.batches:
        visual = [item for item in batch.items() if not isinstance(item, Text)]
        kinds = {kind_of(item) for item in visual}
        if len(kinds) == 1:
            tokens = tuple(envelope.geometry.visual_tokens(item) for item in visual)
            found.append((kinds.pop(), tokens))
    return found


def _equal_totals(session: Session, envelope: Envelope) -> bool:
    by_total: dict[int, set[tuple[int, ...]]] = {}
    for kind, tokens in _splits(session, envelope):
        if kind == "image":
            by_total.setdefault(sum(tokens), set()).add(tokens)
    return any(len(splits) > 1 for splits in by_total.values())


def _video_or_images(session: Session, envelope: Envelope) -> bool:
    by_total: dict[int, set[str]] = {}
    for kind, tokens in _splits(session, envelope):
        by_total.setdefault(sum(tokens), set()).add(kind)
    return any(len(kinds) > 1 for kinds in by_total.values())


def _text_image_text(session: Session, envelope: Envelope) -> bool:
    has_image = ["image" in batch.modalities for batch in session.batches]
    plain = [batch.modalities == {"text"} for batch in session.batches]
    return any(plain[i] and has_image[i + 1] and plain[i + 2] for i in range(len(plain) - 2))


BatchTest = Callable[[Batch, Envelope], bool]
SessionTest = Callable[[Session, Envelope], bool]

_BATCH_CORNERS: dict[str, BatchTest] = {
    "batch-1": lambda batch, _: len(batch.requests) == 1,
    "batch-2": lambda batch, _: len(batch.requests) == 2,
    "batch-3-or-more": lambda batch, _: len(batch.requests) >= 3,
    "length-1": lambda batch, envelope: envelope.padded_length(batch) == 1,
    "length-2": lambda batch, envelope: envelope.padded_length(batch) == 2,
    "equal-length": is_equal_length,
    "ragged": is_ragged,
    "text-only": lambda batch, _: batch.modalities == {"text"},
    "image-only": lambda batch, _: batch.modalities == {"image"},
    "video-only": lambda batch, _: batch.modalities == {"video"},
    "mixed-in-request": lambda batch, _: any(len(r.modalities) > 1 for r in batch.requests),
    "mixed-across-requests": lambda batch, _: len({r.modalities for r in batch.requests}) > 1,
    "no-image": lambda batch, _: "image" not in batch.modalities,
    "one-image": lambda batch, _: any(counts(r)["image"] == 1 for r in batch.requests),
    "two-or-more-images": lambda batch, _: any(counts(r)["image"] >= 2 for r in batch.requests),
    "as-many-images-as-requests": lambda batch, _: (
        len(batch.requests) > 1 and len(_images(batch)) == len(batch.requests)
    ),
    "one-token-image": lambda batch, envelope: any(
        envelope.geometry.visual_tokens(image) == 1 for image in _images(batch)
    ),
    "square-image": lambda batch, _: any(i.height == i.width for i in _images(batch)),
    "extreme-image": lambda batch, _: any(
        max(i.height, i.width) >= EXTREME_ASPECT * min(i.height, i.width) for i in _images(batch)
    ),
    "adjacent-images": lambda batch, _: any(_adjacent(r) for r in batch.requests),
    "image-first": lambda batch, _: any(
        len(r.items) > 1 and isinstance(r.items[0], Image) for r in batch.requests
    ),
    "image-last": lambda batch, _: any(
        len(r.items) > 1 and isinstance(r.items[-1], Image) for r in batch.requests
    ),
    "odd-frames": lambda batch, _: any(
        isinstance(item, Video) and item.frames % 2 == 1 for item in batch.items()
    ),
}

_SESSION_CORNERS: dict[str, SessionTest] = {
    "transposed-images": lambda session, _: _transposed(session),
    "equal-totals": _equal_totals,
    "video-or-images": _video_or_images,
    "text-image-text": _text_image_text,
    "small-large-small": lambda session, env: is_small_large_small(session.batches, env),
    "same-batch-twice": lambda session, _: any(
        first == second for first, second in pairwise(session.batches)
    ),
}

_BUCKET_OFFSETS = {"bucket-minus-1": -1, "bucket": 0, "bucket-plus-1": 1}


def bucket_lengths(name: str, envelope: Envelope) -> list[int]:
    """Return the padded lengths that make up a bucket corner."""
    if not envelope.buckets:
        return []
    lengths = (
        [envelope.buckets[-1] + 2, envelope.max_tokens]
        if name == "bucket-above-largest"
        else [bucket + _BUCKET_OFFSETS[name] for bucket in envelope.buckets]
    )
    # A length above the largest bucket belongs to the corner of that name alone.
    top = envelope.max_tokens
    reachable = [
        n
        for n in lengths
        if 1 <= n <= top
        and _text_reachable(n, envelope)
        and _accepts(envelope, text_row(n, envelope))
    ]
    if name == "bucket-above-largest":
        reachable = [n for n in reachable if n > envelope.buckets[-1]]
    return sorted(set(reachable))


def _text_reachable(length: int, envelope: Envelope) -> bool:
    low, high = envelope.tokens
    return any(count * low <= length <= count * high for count in range(1, length // low + 1))


def text_row(length: int, envelope: Envelope) -> tuple[Text, ...]:
    """Return runs of text that add up to ``length`` positions."""
    low, high = envelope.tokens
    count = next(n for n in range(1, length + 1) if n * low <= length <= n * high)
    share, rest = divmod(length, count)
    return tuple(Text(share + (index < rest)) for index in range(count))


def _bucket_test(name: str, envelope: Envelope) -> BatchTest:
    lengths = set(bucket_lengths(name, envelope))
    return lambda batch, env: env.padded_length(batch) in lengths


def equal_splits(envelope: Envelope) -> list[tuple[tuple[Item, ...], tuple[Item, ...]]]:
    """Pairs of image lists with one token total and different splits, such as 4+6+8 and 5+5+8."""
    if envelope.images[1] < 2 or envelope.geometry.token_side is None:
        return []
    sides = envelope.image_sides
    low = sides[0]
    pairs: list[tuple[tuple[Item, ...], tuple[Item, ...]]] = []
    for first in sides:
        for second in sides:
            # Widths of strips of the smallest height: a + b = (a + step) + (b - step).
            moved = (first + envelope.side_multiple, second - envelope.side_multiple)
            if moved[0] in sides and moved[1] in sides and set(moved) != {first, second}:
                before: tuple[Item, ...] = (Image(low, first), Image(low, second))
                after: tuple[Item, ...] = (Image(low, moved[0]), Image(low, moved[1]))
                if all(_accepts(envelope, row) for row in (before, after)):
                    pairs.append((before, after))
    return pairs


def video_splits(envelope: Envelope) -> list[tuple[tuple[Item, ...], tuple[Item, ...]]]:
    """Pairs of one video and N images of the same grid, with one token total."""
    group = envelope.geometry.frames_per_group
    sides = [side for side in envelope.video_sides if side in envelope.image_sides]
    pairs: list[tuple[tuple[Item, ...], tuple[Item, ...]]] = []
    for count in range(1, envelope.images[1] + 1):
        frames = count * group
        if not envelope.frames[0] <= frames <= envelope.frames[1]:
            continue
        for side in sides:
            video: tuple[Item, ...] = (Video(frames, side, side),)
            images: tuple[Item, ...] = (Image(side, side),) * count
            if all(_accepts(envelope, row) for row in (video, images)):
                pairs.append((video, images))
    return pairs


def _accepts(envelope: Envelope, row: tuple[Item, ...]) -> bool:
    batch = Batch(
        (Request(row),) * envelope.requests[0],
        padding=envelope.padding[0],
        context=envelope.contexts[0],
    )
    return envelope.violation(batch) is None


@cache
def allowed(envelope: Envelope) -> tuple[str, ...]:
    """Return the names of the corners that this envelope allows, in a fixed order."""
    text, image, video = (kind in envelope.modalities for kind in ("text", "image", "video"))
    fewest, most = envelope.requests
    many_images = image and envelope.images[1] >= 2 and envelope.items[1] >= 2
    free_text = text and envelope.images[0] == 0 and envelope.videos[0] == 0
    pair = envelope.items[1] >= 2
    grids = image and len(envelope.image_sides) > 1
    low, high = envelope.tokens
    tests = {
        "batch-1": fewest == 1,
        "batch-2": fewest <= 2 <= most,
        "batch-3-or-more": most >= 3,
        "length-1": free_text and low <= 1,
        "length-2": free_text and low <= 2 <= high and envelope.max_tokens >= 2,
        "equal-length": most >= 2,
        "ragged": most >= 2,
        **{f"padding-{side}": most >= 2 for side in envelope.padding},
        "text-only": free_text,
        "image-only": image and envelope.videos[0] == 0,
        "video-only": video and envelope.images[0] == 0,
        "mixed-in-request": len(envelope.modalities) > 1
        and envelope.items[1] >= len(envelope.modalities),
        "mixed-across-requests": len(envelope.modalities) > 1
        and most >= 2
        and envelope.images[0] == 0
        and envelope.videos[0] == 0,
        "no-image": image and envelope.images[0] == 0 and (text or video),
        "one-image": image,
        "two-or-more-images": many_images,
        "as-many-images-as-requests": image and most >= 2,
        "one-token-image": image
        and envelope.geometry.visual_tokens(Image(envelope.image_sides[0], envelope.image_sides[0]))
        == 1,
        "square-image": image,
        "transposed-images": grids,
        "extreme-image": grids
        and envelope.image_sides[-1] >= EXTREME_ASPECT * envelope.image_sides[0],
        "adjacent-images": many_images,
        "image-first": image and text and pair,
        "image-last": image and text and pair,
        "odd-frames": video
        and any(n % 2 for n in range(envelope.frames[0], envelope.frames[1] + 1)),
        "equal-totals": image and bool(equal_splits(envelope)),
        "video-or-images": image and video and bool(video_splits(envelope)),
        **{
            name: free_text and bool(bucket_lengths(name, envelope))
            for name in (*_BUCKET_OFFSETS, "bucket-above-largest")
        },
        "text-image-text": free_text and image,
        "small-large-small": free_text and most >= 2 and high >= 2 * low,
        "same-batch-twice": True,
        **{f"context-{name}": len(envelope.contexts) > 1 for name in envelope.contexts},
    }
    return tuple(name for name, possible in tests.items() if possible)


def reached(session: Session, envelope: Envelope) -> frozenset[str]:
    """Return the corners that a session reaches, among those that the envelope allows."""
    return frozenset(name for name in allowed(envelope) if _test(name, envelope)(session, envelope))


def _test(name: str, envelope: Envelope) -> SessionTest:
    if name in _SESSION_CORNERS:
        return _SESSION_CORNERS[name]
    if name.startswith("context-"):
        context = name.removeprefix("context-")
        return _any_batch(lambda batch, _: batch.context == context)
    if name.startswith("padding-"):
        side = name.removeprefix("padding-")
        return _any_batch(lambda batch, env: batch.padding == side and is_ragged(batch, env))
    if name.startswith("bucket"):
        return _any_batch(_bucket_test(name, envelope))
    return _any_batch(_BATCH_CORNERS[name])


def _any_batch(test: BatchTest) -> SessionTest:
    return lambda session, envelope: any(test(batch, envelope) for batch in session.batches)


def tally(sessions: Iterable[Session], envelope: Envelope) -> dict[str, int]:
    """Count, for every allowed corner, the sessions that reach it; zero where none does."""
    found = dict.fromkeys(allowed(envelope), 0)
    for session in sessions:
        for name in reached(session, envelope):
            found[name] += 1
    return found
