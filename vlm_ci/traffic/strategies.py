"""Hypothesis strategies over an envelope. Imports Hypothesis, no torch.

They shrink towards fewer batches, then fewer requests, then text, then small sizes: every list
shrinks to its shortest form and every choice names its simplest case first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from vlm_ci.traffic import corners
from vlm_ci.traffic.spec import Batch, Image, Item, Request, Session, Text, Video

if TYPE_CHECKING:
    from collections.abc import Callable

    from vlm_ci.traffic.envelope import Envelope

SEEDS = st.integers(min_value=0, max_value=2**16)
MAX_PARTS = 4  # of a session; a part is one ordinary batch, or a corner of one to three batches

# Corners that ordinary batches and other corners seldom reach are drawn this much more often, so
# that 50 examples reach all of them. suites/selftest/test_traffic.py measures it over many seeds.
RARE_WEIGHT = 4
RARE = frozenset(
    {
        "length-1",
        "length-2",
        "image-only",
        "video-only",
        "one-token-image",
        "extreme-image",
        "transposed-images",
        "equal-totals",
        "video-or-images",
        "text-image-text",
        "small-large-small",
        "same-batch-twice",
        "bucket-minus-1",
        "bucket",
        "bucket-plus-1",
        "bucket-above-largest",
    }
)


def texts(envelope: Envelope) -> st.SearchStrategy[Text]:
    """Runs of text within the envelope."""
    low, high = envelope.tokens
    return st.integers(low, min(high, envelope.max_tokens)).map(Text)


def images(envelope: Envelope) -> st.SearchStrategy[Image]:
    """Images whose sides the envelope allows."""
    side = st.sampled_from(envelope.image_sides)
    return st.builds(Image, side, side)


def videos(envelope: Envelope) -> st.SearchStrategy[Video]:
    """Videos whose frame counts and sides the envelope allows."""
    side = st.sampled_from(envelope.video_sides)
    return st.builds(Video, st.integers(*envelope.frames), side, side)


_BY_KIND: dict[str, Callable[[Envelope], st.SearchStrategy[Any]]] = {
    "text": texts,
    "image": images,
    "video": videos,
}


def items(envelope: Envelope) -> st.SearchStrategy[Item]:
    """One text, image or video, text being the simplest."""
    kinds = [kind for kind in _BY_KIND if kind in envelope.modalities]
    return st.one_of(*(_BY_KIND[kind](envelope) for kind in kinds))


def requests(envelope: Envelope) -> st.SearchStrategy[Request]:
    """Prompts of one or more items that the envelope accepts."""
    low, high = envelope.items

    def accepted(request: Request) -> bool:
        counts = corners.counts(request)
        return (
            envelope.row_tokens(request) <= envelope.max_tokens
            and envelope.images[0] <= counts["image"] <= envelope.images[1]
            and envelope.videos[0] <= counts["video"] <= envelope.videos[1]
        )

    return (
        st.lists(items(envelope), min_size=low, max_size=high)
        .map(lambda row: Request(tuple(row)))
        .filter(accepted)
    )


def batches(
    envelope: Envelope, rows: st.SearchStrategy[list[Request]] | None = None
) -> st.SearchStrategy[Batch]:
    """Batches of the given rows, by default any requests."""
    low, high = envelope.requests
    if rows is None:
        rows = st.lists(requests(envelope), min_size=low, max_size=high)
    return st.builds(
        Batch,
        rows.map(tuple),
        seed=SEEDS,
        padding=st.sampled_from(envelope.padding),
        context=st.sampled_from(envelope.contexts),
    )


def sessions(envelope: Envelope) -> st.SearchStrategy[Session]:
    """Sequences of batches: ordinary ones mixed with every corner that the envelope allows."""
    cases = _Corners(envelope)
    plain = batches(envelope).map(lambda batch: [batch])
    weighted = [
        name
        for name in corners.allowed(envelope)
        for _ in range(RARE_WEIGHT if name in RARE else 1)
    ]

    def accepted(part: list[Batch]) -> bool:
        return all(envelope.violation(batch) is None for batch in part)

    strategy = {name: cases.strategy(name).filter(accepted) for name in weighted}
    # sampled_from shrinks to its first entry, so that a corner shrinks to an ordinary batch.
    part = st.sampled_from(["", *weighted]).flatmap(lambda name: strategy.get(name, plain))

    def join(parts: list[list[Batch]]) -> Session:
        return Session(tuple(batch for part in parts for batch in part))

    return st.lists(part, min_size=1, max_size=MAX_PARTS).map(join)


def corner_batches(name: str, envelope: Envelope) -> st.SearchStrategy[list[Batch]]:
    """The named corner as a strategy for one or more consecutive batches.

    Raises:
        ValueError: no corner has that name, or the envelope does not allow it.
    """
    return _Corners(envelope).strategy(name)


class _Corners:
    """Builds the strategy of each corner from the envelope's own strategies."""

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.request = requests(envelope)

    def strategy(self, name: str) -> st.SearchStrategy[list[Batch]]:
        if name not in corners.allowed(self.envelope):
            raise ValueError(f"corner {name!r} is unknown or not allowed by this envelope")
        if name.startswith("context-"):
            return self._context(name.removeprefix("context-"))
        if name.startswith("padding-"):
            return self._padding(name.removeprefix("padding-"))
        if name.startswith("bucket"):
            return self._bucket(name)
        build = getattr(self, "_" + name.replace("-", "_"))
        strategy: st.SearchStrategy[list[Batch]] = build()
        return strategy

    # -- helpers -----------------------------------------------------------------------------

    def _one(self, rows: st.SearchStrategy[list[Request]]) -> st.SearchStrategy[list[Batch]]:
        """One batch of exactly these rows."""
        return batches(self.envelope, rows).map(lambda batch: [batch])

    def _rows_of(self, items: tuple[Item, ...]) -> Batch:
        """The smallest batch whose rows are all this one."""
        envelope = self.envelope
        rows = (Request(items),) * envelope.requests[0]
        return Batch(rows, padding=envelope.padding[0], context=envelope.contexts[0])

    def _with_others(self, row: st.SearchStrategy[Request]) -> st.SearchStrategy[list[Batch]]:
        """One batch that holds this row, alone or with any others before it."""
        low, high = self.envelope.requests
        others = st.lists(self.request, min_size=max(low - 1, 0), max_size=min(high - 1, 2))
        return self._one(st.builds(lambda rest, last: [*rest, last], others, row))

    def _rows(self, low: int, high: int) -> st.SearchStrategy[list[Batch]]:
        return self._one(st.lists(self.request, min_size=low, max_size=high))

    def _of_items(self, *parts: st.SearchStrategy[list[Item]]) -> st.SearchStrategy[Request]:
        joined = st.tuples(*parts).map(lambda lists: Request(tuple(i for p in lists for i in p)))
        return joined.filter(
            lambda request: self.envelope.row_tokens(request) <= self.envelope.max_tokens
        )

    def _some(self, kind: str, low: int, high: int) -> st.SearchStrategy[list[Item]]:
        one: st.SearchStrategy[Any] = _BY_KIND[kind](self.envelope)
        return st.lists(one, min_size=low, max_size=high)

    def _text_rows(self) -> st.SearchStrategy[Request]:
        return self._of_items(self._some("text", 1, 2))

    def _image_rows(self, low: int, high: int) -> st.SearchStrategy[Request]:
        high = min(high, self.envelope.images[1])
        parts = [self._some("image", low, high)]
        if "text" in self.envelope.modalities:
            parts = [self._some("text", 0, 1), *parts, self._some("text", 0, 1)]
        return self._of_items(*parts)

    # -- batch and row counts ----------------------------------------------------------------

    def _batch_1(self) -> st.SearchStrategy[list[Batch]]:
        return self._rows(1, 1)

    def _batch_2(self) -> st.SearchStrategy[list[Batch]]:
        return self._rows(2, 2)

    def _batch_3_or_more(self) -> st.SearchStrategy[list[Batch]]:
        return self._rows(3, self.envelope.requests[1])

    def _length(self, tokens: int) -> st.SearchStrategy[list[Batch]]:
        low, high = self.envelope.requests
        row = Request((Text(tokens),))
        return self._one(st.integers(low, high).map(lambda count: [row] * count))

    def _length_1(self) -> st.SearchStrategy[list[Batch]]:
        return self._length(1)

    def _length_2(self) -> st.SearchStrategy[list[Batch]]:
        return self._length(2)

    def _equal_length(self) -> st.SearchStrategy[list[Batch]]:
        low, high = self.envelope.requests
        return self._one(
            st.tuples(self.request, st.integers(max(low, 2), high)).map(
                lambda pair: [pair[0]] * pair[1]
            )
        )

    def _ragged(self) -> st.SearchStrategy[list[Batch]]:
        return self._rows(2, self.envelope.requests[1]).filter(
            lambda part: corners.is_ragged(part[0], self.envelope)
        )

    def _padding(self, side: str) -> st.SearchStrategy[list[Batch]]:
        return self._ragged().map(
            lambda part: [Batch(part[0].requests, part[0].seed, side, part[0].context)]
        )

    def _context(self, context: str) -> st.SearchStrategy[list[Batch]]:
        return batches(self.envelope).map(
            lambda batch: [Batch(batch.requests, batch.seed, batch.padding, context)]
        )

    # -- modalities --------------------------------------------------------------------------

    def _only(self, kind: str) -> st.SearchStrategy[list[Batch]]:
        low, high = self.envelope.requests
        most = 2 if kind == "text" else getattr(self.envelope, f"{kind}s")[1]
        row = self._of_items(self._some(kind, 1, min(most, self.envelope.items[1])))
        return self._one(st.lists(row, min_size=low, max_size=high))

    def _text_only(self) -> st.SearchStrategy[list[Batch]]:
        return self._only("text")

    def _image_only(self) -> st.SearchStrategy[list[Batch]]:
        return self._only("image")

    def _video_only(self) -> st.SearchStrategy[list[Batch]]:
        return self._only("video")

    def _mixed_in_request(self) -> st.SearchStrategy[list[Batch]]:
        parts = [self._some(kind, 1, 1) for kind in self.envelope.modalities]
        return self._with_others(self._of_items(*parts))

    def _mixed_across_requests(self) -> st.SearchStrategy[list[Batch]]:
        kinds = self.envelope.modalities
        rows = [self._of_items(self._some(kind, 1, 1)) for kind in kinds]
        most = min(len(rows), self.envelope.requests[1])
        return self._one(
            st.permutations(range(len(rows))).flatmap(
                lambda order: st.tuples(*(rows[index] for index in order[:most])).map(list)
            )
        )

    # -- images ------------------------------------------------------------------------------

    def _no_image(self) -> st.SearchStrategy[list[Batch]]:
        return self._one(
            st.lists(
                self.request.filter(lambda request: corners.counts(request)["image"] == 0),
                min_size=self.envelope.requests[0],
                max_size=self.envelope.requests[1],
            )
        )

    def _one_image(self) -> st.SearchStrategy[list[Batch]]:
        return self._with_others(self._image_rows(1, 1))

    def _two_or_more_images(self) -> st.SearchStrategy[list[Batch]]:
        return self._with_others(self._image_rows(2, self.envelope.images[1]))

    def _as_many_images_as_requests(self) -> st.SearchStrategy[list[Batch]]:
        low, high = self.envelope.requests
        return self._one(st.lists(self._image_rows(1, 1), min_size=max(low, 2), max_size=high))

    def _one_token_image(self) -> st.SearchStrategy[list[Batch]]:
        side = self.envelope.image_sides[0]
        return self._with_others(self._around(st.just([Image(side, side)])))

    def _around(self, middle: st.SearchStrategy[list[Item]]) -> st.SearchStrategy[Request]:
        if "text" not in self.envelope.modalities:
            return self._of_items(middle)
        return self._of_items(self._some("text", 0, 1), middle, self._some("text", 0, 1))

    def _square_image(self) -> st.SearchStrategy[list[Batch]]:
        side = st.sampled_from(self.envelope.image_sides)
        return self._with_others(self._around(side.map(lambda s: [Image(s, s)])))

    def _transposed_images(self) -> st.SearchStrategy[list[Batch]]:
        side = st.sampled_from(self.envelope.image_sides)
        grid = st.tuples(side, side).filter(lambda pair: pair[0] != pair[1])

        def build(batch_pair: tuple[tuple[int, int], Request]) -> list[Batch]:
            (height, width), around = batch_pair
            text = tuple(item for item in around.items if isinstance(item, Text))[:1]
            return [
                self._rows_of((*text, Image(height, width))),
                self._rows_of((*text, Image(width, height))),
            ]

        return st.tuples(grid, self.request).map(build)

    def _extreme_image(self) -> st.SearchStrategy[list[Batch]]:
        low, high = self.envelope.image_sides[0], self.envelope.image_sides[-1]
        shape = st.sampled_from([(low, high), (high, low)])
        return self._with_others(self._around(shape.map(lambda pair: [Image(*pair)])))

    def _adjacent_images(self) -> st.SearchStrategy[list[Batch]]:
        return self._with_others(self._around(self._some("image", 2, self.envelope.images[1])))

    def _image_first(self) -> st.SearchStrategy[list[Batch]]:
        return self._with_others(
            self._of_items(self._some("image", 1, 1), self._some("text", 1, 1))
        )

    def _image_last(self) -> st.SearchStrategy[list[Batch]]:
        return self._with_others(
            self._of_items(self._some("text", 1, 1), self._some("image", 1, 1))
        )

    # -- equal totals, frames, buckets --------------------------------------------------------

    def _equal_totals(self) -> st.SearchStrategy[list[Batch]]:
        pairs = corners.equal_splits(self.envelope)
        return st.sampled_from(pairs).map(
            lambda pair: [self._rows_of(pair[0]), self._rows_of(pair[1])]
        )

    def _video_or_images(self) -> st.SearchStrategy[list[Batch]]:
        pairs = corners.video_splits(self.envelope)
        return st.sampled_from(pairs).map(
            lambda pair: [self._rows_of(pair[0]), self._rows_of(pair[1])]
        )

    def _odd_frames(self) -> st.SearchStrategy[list[Batch]]:
        odd = videos(self.envelope).filter(lambda video: video.frames % 2 == 1)
        return self._with_others(self._around(odd.map(lambda video: [video])))

    def _bucket(self, name: str) -> st.SearchStrategy[list[Batch]]:
        lengths = corners.bucket_lengths(name, self.envelope)
        return st.sampled_from(lengths).map(
            lambda length: [self._rows_of(corners.text_row(length, self.envelope))]
        )

    # -- sequences ---------------------------------------------------------------------------

    def _text_image_text(self) -> st.SearchStrategy[list[Batch]]:
        text, image = self._only("text"), self._one_image()
        return st.tuples(text, image, text).map(lambda parts: [b for part in parts for b in part])

    def _small_large_small(self) -> st.SearchStrategy[list[Batch]]:
        small = self._one(self._text_rows().map(lambda row: [row]))
        large = self._rows(*(self.envelope.requests[1],) * 2)
        return (
            st.tuples(small, large)
            .map(lambda parts: [*parts[0], *parts[1], *parts[0]])
            .filter(lambda part: corners.is_small_large_small(part, self.envelope))
        )

    def _same_batch_twice(self) -> st.SearchStrategy[list[Batch]]:
        return batches(self.envelope).map(lambda batch: [batch, batch])
