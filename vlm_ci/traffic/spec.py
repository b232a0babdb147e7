"""The one traffic description: items, requests, batches and sessions. Imports no torch.

Every value is frozen and validated when it is built; its repr is code that rebuilds it. The
same types are the generator's output, the warm-up plan, the regression corpus and the failure
artifact (``vlm_ci.traffic.files`` reads and writes them).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import msgspec

from vlm_ci.errors import check_choice, check_int

if TYPE_CHECKING:
    from collections.abc import Iterator

PADDING_SIDES = ("left", "right")

# What surrounds a forward. "outside_inputs" is inference_mode with inputs created before it is
# entered, so that they carry other dispatch keys; "thread" runs the forward on a thread of its own.
CONTEXTS = ("inference_mode", "no_grad", "grad", "autocast", "thread", "outside_inputs")

TRAFFIC_SCHEMA = "vlm-ci/traffic/1"

MAX_SEED = 2**32 - 1

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=MAX_SEED)]


class Text(
    msgspec.Struct,
    frozen=True,
    tag_field="kind",
    tag="text",
    forbid_unknown_fields=True,
    repr_omit_defaults=True,
    omit_defaults=True,
):
    """A run of ``tokens`` ordinary text tokens.

    ``seed``, of this item as of the others, fixes its content wherever it stands; without one the
    content follows from the batch's seed and the item's place (``item_seed``).
    """

    tokens: AtLeastOne
    seed: Seed | None = None

    def __post_init__(self) -> None:
        _check_seed("Text.seed", self.seed)
        check_int("Text.tokens", self.tokens, minimum=1)


class Image(
    msgspec.Struct,
    frozen=True,
    tag_field="kind",
    tag="image",
    forbid_unknown_fields=True,
    repr_omit_defaults=True,
    omit_defaults=True,
):
    """One image of ``height`` × ``width`` pixels."""

    height: AtLeastOne
    width: AtLeastOne
    seed: Seed | None = None

    def __post_init__(self) -> None:
        _check_seed("Image.seed", self.seed)
        check_int("Image.height", self.height, minimum=1)
        check_int("Image.width", self.width, minimum=1)


class Video(
    msgspec.Struct,
    frozen=True,
    tag_field="kind",
    tag="video",
    forbid_unknown_fields=True,
    repr_omit_defaults=True,
    omit_defaults=True,
):
    """One video of ``frames`` frames, each of ``height`` × ``width`` pixels."""

    frames: AtLeastOne
    height: AtLeastOne
    width: AtLeastOne
    seed: Seed | None = None

    def __post_init__(self) -> None:
        _check_seed("Video.seed", self.seed)
        check_int("Video.frames", self.frames, minimum=1)
        check_int("Video.height", self.height, minimum=1)
        check_int("Video.width", self.width, minimum=1)


Item = Text | Image | Video


def _check_seed(name: str, seed: object) -> None:
    if seed is None:
        return
    check_int(name, seed, minimum=0)
    if seed > MAX_SEED:  # type: ignore[operator]
        raise ValueError(f"{name} must be at most {MAX_SEED}, not {seed}")


def _check_members(where: str, members: object, kinds: tuple[type, ...], names: str) -> None:
    if not isinstance(members, tuple) or not members:
        raise ValueError(f"{where} must be a non-empty tuple of {names}, not {members!r}")
    for member in members:
        if not isinstance(member, kinds):
            raise ValueError(f"{where} must hold only {names}, not {member!r}")


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, repr_omit_defaults=True):
    """One prompt: items in the order in which they stand in it."""

    items: tuple[Item, ...]

    def __post_init__(self) -> None:
        _check_members("Request.items", self.items, (Text, Image, Video), "Text, Image or Video")

    @property
    def modalities(self) -> frozenset[str]:
        """Which of "text", "image" and "video" occur."""
        return frozenset(kind_of(item) for item in self.items)


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, repr_omit_defaults=True):
    """Requests that go through the model in one forward.

    ``seed`` determines token ids and pixels; ``padding`` is the side on which shorter rows are
    padded; ``context`` is what surrounds the forward (see ``CONTEXTS``). ``extra_padding`` is by
    how many positions every row is padded beyond the longest one, as an engine pads to a bucket.
    """

    requests: tuple[Request, ...]
    seed: Seed = 0
    padding: str = "left"
    context: str = "inference_mode"
    extra_padding: Annotated[int, msgspec.Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        _check_members("Batch.requests", self.requests, (Request,), "Request")
        _check_seed("Batch.seed", self.seed)
        check_int("Batch.extra_padding", self.extra_padding, minimum=0)
        check_choice("Batch.padding", self.padding, PADDING_SIDES)
        check_choice("Batch.context", self.context, CONTEXTS)
        # The repr leaves defaults out where they are the same object: after decoding they are not.
        for name in ("padding", "context"):
            msgspec.structs.force_setattr(self, name, sys.intern(getattr(self, name)))

    @property
    def modalities(self) -> frozenset[str]:
        """Which of "text", "image" and "video" occur in any request."""
        return frozenset().union(*(request.modalities for request in self.requests))

    def items(self) -> Iterator[Item]:
        """Yield the items of all requests, in order."""
        for request in self.requests:
            yield from request.items


class Session(msgspec.Struct, frozen=True, forbid_unknown_fields=True, repr_omit_defaults=True):
    """Batches that one process serves, in this order. One Hypothesis example is one session.

    A session as JSON is a traffic file; ``schema`` names the version of that format.
    """

    batches: tuple[Batch, ...]
    schema: str = TRAFFIC_SCHEMA

    def __post_init__(self) -> None:
        check_choice("the schema of the traffic", self.schema, (TRAFFIC_SCHEMA,))
        _check_members("Session.batches", self.batches, (Batch,), "Batch")


def kind_of(item: Item) -> str:
    """Return "text", "image" or "video"."""
    return "text" if isinstance(item, Text) else "image" if isinstance(item, Image) else "video"


def item_seed(batch: Batch, request: int, item: int) -> int:
    """Return the seed of an item's content: its own, or the one that its place gives it.

    The items of a batch draw from separate streams, so that the content of one does not depend on
    what stands before it.
    """
    own = batch.requests[request].items[item].seed
    if own is not None:
        return own
    return (batch.seed * 7_919 + request * 10_007 + item) * 1_000_003 % (MAX_SEED + 1)


def pinned(batch: Batch) -> Batch:
    """Return the same batch with every item's seed written out, so that items can be moved."""
    requests = tuple(
        Request(
            tuple(
                msgspec.structs.replace(item, seed=item_seed(batch, row, column))
                for column, item in enumerate(request.items)
            )
        )
        for row, request in enumerate(batch.requests)
    )
    return msgspec.structs.replace(batch, requests=requests)


def batch(
    *rows: tuple[Item, ...] | list[Item] | Item,
    seed: int = 0,
    padding: str = "left",
    context: str = "inference_mode",
) -> Batch:
    """Build a batch from rows of items: ``batch([Text(5), Image(16, 24)], Text(9))``."""
    requests = tuple(
        Request(tuple(row) if isinstance(row, tuple | list) else (row,)) for row in rows
    )
    return Batch(requests, seed=seed, padding=padding, context=context)


def session(*batches: Batch) -> Session:
    """Build a session from batches."""
    return Session(tuple(batches))
