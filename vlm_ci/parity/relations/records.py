"""What a relation says, which answers it sets side by side, and what breaks it. Data only.

Imports torch for type checking only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from vlm_ci.traffic.spec import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vlm_ci.targets.protocol import Target
    from vlm_ci.traffic.envelope import Envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Tokens of two answers that must be equal. Positions count a request's tokens, padding left
    out.

    ``request`` and ``start`` are of the base batch, ``in_request`` and ``in_start`` of the batch
    ``in_batch`` of the variant; ``tokens`` is how many, None for all that follow on both sides.
    ``against`` is the batch of the variant that stands in the base's place, None for the base.
    ``differ`` turns the match round: at least one of these tokens must not be bitwise equal.
    """

    request: int
    start: int = 0
    in_batch: int = 0
    in_request: int
    in_start: int = 0
    tokens: int | None = None
    against: int | None = None
    differ: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Batches that are served one after another, and what of them must match.

    ``poisoned`` asks for huge values in the padded places. ``elsewhere`` says that the rows must
    come back at other places than the base's, or the target did not do what was asked.
    ``mixed`` (part, parts) makes one answer of two batches that differ in the content of one item:
    the first, with that part of the item's pixels from the second.
    """

    batches: tuple[Batch, ...]
    matches: tuple[Match, ...]
    poisoned: bool = False
    elsewhere: bool = False
    mixed: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A property of the compiled twin that needs no other twin.

    ``says`` is the property in one line, ``because`` why its answers may differ a little.
    ``off(target, batch)`` says why the relation does not apply, "" where it does.
    ``variants(batch, envelope)`` yields what to serve for a batch all of whose items have seeds.
    """

    name: str
    says: str
    because: str
    off: Callable[[Target, Batch], str]
    variants: Callable[[Batch, Envelope], Iterator[Variant]]


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """A broken relation and where it broke first or worst.

    ``request``, ``token`` (its index in the padded row) and ``modality`` are of the base batch.
    ``ratio`` is the difference divided by what is allowed, inf where NaN or other tokens came.
    ``batches`` are those of the variant, in the order in which they were served.
    """

    relation: str
    request: int
    token: int
    modality: str
    ratio: float
    batches: tuple[Batch, ...]
    text: str


@dataclass(slots=True, kw_only=True)
class Books:
    """How often a relation was judged, in batches, and how often and why it was not.

    ``left_out`` counts variants that could not be served, ``off`` batches to which the relation
    does not apply, each by its reason.
    """

    judged: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    off: Counter[str] = field(default_factory=Counter)
