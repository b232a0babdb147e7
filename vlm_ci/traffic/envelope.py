"""What traffic a deployment accepts, and how a model counts visual tokens. Imports no torch."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec

from vlm_ci.errors import check_choice, check_int
from vlm_ci.traffic.spec import CONTEXTS, PADDING_SIDES, Batch, Image, Item, Request, Text, Video

MODALITIES = ("text", "image", "video")

Bounds = tuple[int, int]  # (smallest, largest), both allowed


class Geometry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model turns pixels and frames into positions of the prompt.

    ``token_side`` is the number of pixels along one side of a merged visual token; it is None
    where every image costs ``tokens_per_image`` whatever its size. Frames are grouped by
    ``frames_per_group``, and a last incomplete group counts as a whole one. The overheads are
    the delimiter and timestamp tokens around one image, one group of frames and one whole video.
    """

    token_side: int | None = 28
    tokens_per_image: int = 1
    frames_per_group: int = 2
    image_overhead: int = 0
    frame_overhead: int = 0
    video_overhead: int = 0

    def grid(self, item: Image | Video) -> tuple[int, int]:
        """Return rows and columns of merged visual tokens of one image or one frame group."""
        if self.token_side is None:
            return (1, self.tokens_per_image)
        return (item.height // self.token_side, item.width // self.token_side)

    def frame_groups(self, item: Video) -> int:
        """Return the number of frame groups of a video."""
        return math.ceil(item.frames / self.frames_per_group)

    def visual_tokens(self, item: Item) -> int:
        """Return the number of visual tokens of an item, delimiters left out."""
        if isinstance(item, Text):
            return 0
        rows, columns = self.grid(item)
        groups = self.frame_groups(item) if isinstance(item, Video) else 1
        return groups * rows * columns

    def positions(self, item: Item) -> int:
        """Return the number of positions that an item takes in its row."""
        if isinstance(item, Text):
            return item.tokens
        if isinstance(item, Image):
            return self.visual_tokens(item) + self.image_overhead
        groups = self.frame_groups(item)
        return self.visual_tokens(item) + groups * self.frame_overhead + self.video_overhead


class Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The traffic that a deployment accepts. Bounds are (smallest, largest), both allowed.

    ``requests`` counts rows of a batch; ``images`` and ``videos`` count those of one request;
    ``tokens`` bounds one run of text, ``max_tokens`` a whole row; ``image_side`` and
    ``video_side`` are in pixels and must be multiples of ``side_multiple``; ``buckets`` are the
    sequence lengths to which the deployment pads, if it does. Contexts that are not listed are
    excluded: they are never generated.
    """

    modalities: tuple[str, ...] = MODALITIES
    requests: Bounds = (1, 4)
    items: Bounds = (1, 5)
    images: Bounds = (0, 3)
    videos: Bounds = (0, 2)
    tokens: Bounds = (1, 40)
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] = 1024
    image_side: Bounds = (28, 224)
    video_side: Bounds = (28, 112)
    side_multiple: Annotated[int, msgspec.Meta(ge=1)] = 28
    frames: Bounds = (1, 8)
    contexts: tuple[str, ...] = ("inference_mode",)
    padding: tuple[str, ...] = PADDING_SIDES
    buckets: tuple[int, ...] = ()
    geometry: Geometry = Geometry()

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("modalities", self.modalities, MODALITIES),
            ("contexts", self.contexts, CONTEXTS),
            ("padding", self.padding, PADDING_SIDES),
        ):
            if not value:
                raise ValueError(f"Envelope.{name} must name at least one of {', '.join(allowed)}")
            for entry in value:
                check_choice(f"Envelope.{name}", entry, allowed)
        for name, minimum in (
            ("requests", 1),
            ("items", 1),
            ("images", 0),
            ("videos", 0),
            ("tokens", 1),
            ("image_side", 1),
            ("video_side", 1),
            ("frames", 1),
        ):
            low, high = getattr(self, name)
            check_int(f"Envelope.{name}[0]", low, minimum=minimum)
            check_int(f"Envelope.{name}[1]", high, minimum=minimum)
            if low > high:
                raise ValueError(
                    f"Envelope.{name} must be [smallest, largest], not [{low}, {high}]"
                )
        check_int("Envelope.max_tokens", self.max_tokens, minimum=1)
        check_int("Envelope.side_multiple", self.side_multiple, minimum=1)
        for bucket in self.buckets:
            check_int("Envelope.buckets", bucket, minimum=1)
        if list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError(f"Envelope.buckets must rise strictly, not {list(self.buckets)}")
        self._check_reachable()

    def _check_reachable(self) -> None:
        for name, high in (("image", self.images[1]), ("video", self.videos[1])):
            if name not in self.modalities:
                continue
            low, top = getattr(self, f"{name}_side")
            if not sides(low, top, self.side_multiple):
                raise ValueError(
                    f"Envelope.{name}_side [{low}, {top}] holds no multiple of side_multiple "
                    f"{self.side_multiple}"
                )
            if high < 1:
                raise ValueError(
                    f"Envelope.modalities lists {name!r} but {name}s allows none of them: "
                    f"raise Envelope.{name}s[1] or leave {name!r} out"
                )
            smallest = sides(low, top, self.side_multiple)[0]
            item: Item = (
                Image(smallest, smallest)
                if name == "image"
                else Video(self.frames[0], smallest, smallest)
            )
            if self.geometry.positions(item) > self.max_tokens:
                raise ValueError(
                    f"Envelope.max_tokens {self.max_tokens} is too small for the smallest {name}, "
                    f"which takes {self.geometry.positions(item)} positions"
                )
        if "text" in self.modalities and self.tokens[0] > self.max_tokens:
            raise ValueError(
                f"Envelope.max_tokens {self.max_tokens} is smaller than the shortest text, "
                f"tokens[0] = {self.tokens[0]}"
            )

    @property
    def image_sides(self) -> list[int]:
        """The allowed heights and widths of images, in pixels, rising."""
        return sides(*self.image_side, self.side_multiple)

    @property
    def video_sides(self) -> list[int]:
        """The allowed heights and widths of frames, in pixels, rising."""
        return sides(*self.video_side, self.side_multiple)

    def row_tokens(self, request: Request) -> int:
        """Return the number of positions that a request takes, padding left out."""
        return sum(self.geometry.positions(item) for item in request.items)

    def padded_length(self, batch: Batch) -> int:
        """Return the length to which the rows of a batch are padded."""
        return max(map(self.row_tokens, batch.requests)) + batch.extra_padding

    def violation(self, batch: Batch) -> str | None:
        """Say in words why this deployment would not accept ``batch``; None where it would."""
        low, high = self.requests
        if not low <= len(batch.requests) <= high:
            return f"{len(batch.requests)} requests are outside [{low}, {high}]"
        if batch.context not in self.contexts:
            return f"context {batch.context!r} is not among {', '.join(self.contexts)}"
        if batch.padding not in self.padding:
            return f"padding {batch.padding!r} is not among {', '.join(self.padding)}"
        for index, request in enumerate(batch.requests):
            if reason := self._request_violation(request):
                return f"request {index}: {reason}"
        return None

    def _request_violation(self, request: Request) -> str | None:
        for name in ("image", "video"):
            count = sum(
                isinstance(item, Image if name == "image" else Video) for item in request.items
            )
            low, high = getattr(self, f"{name}s") if name in self.modalities else (0, 0)
            if not low <= count <= high:
                return f"{count} {name}s are outside [{low}, {high}]"
        low, high = self.items
        if not low <= len(request.items) <= high:
            return f"{len(request.items)} items are outside [{low}, {high}]"
        for item in request.items:
            if isinstance(item, Text):
                if "text" not in self.modalities:
                    return "text is not among the modalities"
                low, high = self.tokens
                if not low <= item.tokens <= high:
                    return f"{item!r}: tokens must be from {low} to {high}"
                continue
            allowed = self.image_sides if isinstance(item, Image) else self.video_sides
            if item.height not in allowed or item.width not in allowed:
                return (
                    f"{item!r}: sides must be multiples of {self.side_multiple} pixels "
                    f"from {allowed[0]} to {allowed[-1]}"
                )
            if isinstance(item, Video) and not self.frames[0] <= item.frames <= self.frames[1]:
                return f"{item!r}: frames must be from {self.frames[0]} to {self.frames[1]}"
        tokens = self.row_tokens(request)
        if tokens > self.max_tokens:
            return f"{tokens} positions, at most {self.max_tokens} allowed"
        return None


def sides(low: int, high: int, multiple: int) -> list[int]:
    """Return the multiples of ``multiple`` in [low, high], in pixels."""
    return list(range(-(-low // multiple) * multiple, high + 1, multiple))
