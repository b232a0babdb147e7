"""Compares what a match names in two answers. Serves nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from vlm_ci.families.base import KIND_NAMES, PADDING
from vlm_ci.parity.relations.distance import ALLOWED, MOVES, Row, distances, rows_of
from vlm_ci.parity.relations.records import Match, Relation, Violation

if TYPE_CHECKING:
    from vlm_ci.targets.protocol import Output, Target
    from vlm_ci.traffic.spec import Batch


class Served(NamedTuple):
    """The answer to one batch: its tokens by request, and what stands in its padded rows."""

    batch: Batch
    rows: list[Row]
    kinds: torch.Tensor

    @classmethod
    def of(cls, batch: Batch, output: Output) -> Served:
        """Copy what is compared out of an answer."""
        return cls(batch, rows_of(output), output.token_kinds.clone())


class LeftOut(Exception):
    """A variant cannot be judged; the text says why."""


class Comparer:
    """Compares the answers of one target.

    ``worst`` is the largest difference so far relative to what is allowed, by relation.
    """

    def __init__(self, target: Target) -> None:
        self._envelope = target.envelope
        info = getattr(target, "info", None)
        self._dtype: str = info.dtype if info is not None else "float32"
        self.worst: dict[str, float] = {}

    def compare(
        self, relation: Relation, base: Served, served: list[Served], match: Match
    ) -> Violation | None:
        """Compare what a match names; returns its violation.

        Raises:
            LeftOut: the answers do not say where the tokens of the match stand.
        """
        left = base if match.against is None else served[match.against]
        right = served[match.in_batch]
        if match.tokens is not None or match.start or match.in_start:
            self._check_geometry(left, match.request)
            self._check_geometry(right, match.in_request)
        one = left.rows[match.request].part(match.start, match.tokens)
        other = right.rows[match.in_request].part(match.in_start, match.tokens)
        if one.values.shape[1:] != other.values.shape[1:] and one.ids is None:
            raise LeftOut("the answers have different vocabularies")

        def broken(index: int, ratio: float, what: str) -> Violation:
            return self._violation(relation, base, served, match, index, ratio, what)

        if len(one.kinds) != len(other.kinds) or not torch.equal(one.kinds, other.kinds):
            shorter = min(len(one.kinds), len(other.kinds))
            unequal = one.kinds[:shorter] != other.kinds[:shorter]
            index = int(unequal.nonzero()[0]) if bool(unequal.any()) else max(shorter - 1, 0)
            return broken(index, math.inf, "other tokens stand there (token_kinds)")
        if not len(one.kinds):
            raise LeftOut("the request has no tokens there")
        apart = distances(one, other)
        if match.differ:
            most = float(apart.max())
            if not most < MOVES:  # NaN moves too, and is found where it must not
                return None
            return broken(0, math.inf, f"nothing moved from there on, by more than {most:.2g}")
        index = int(apart.argmax())
        value, allowed = float(apart[index]), self.allowed(base.batch)
        ratio = value / allowed
        self.worst[relation.name] = max(self.worst.get(relation.name, 0.0), ratio)
        if ratio <= 1.0:
            return None
        what = (
            f"the logits differ by {value:.3g} of their size, {ratio:.3g} times what is allowed"
            if math.isfinite(value)
            else "NaN or Inf stands on one side"
        )
        return broken(index, ratio, what)

    def allowed(self, batch: Batch) -> float:
        """Return what a token of this batch may differ by, relative to its logits."""
        return ALLOWED["bfloat16" if batch.context == "autocast" else self._dtype]

    def _check_geometry(self, served: Served, request: int) -> None:
        expected = self._envelope.row_tokens(served.batch.requests[request])
        if len(served.rows[request].places) != expected:
            raise LeftOut("the envelope's geometry does not say where an item's tokens stand")

    def _violation(
        self,
        relation: Relation,
        base: Served,
        served: list[Served],
        match: Match,
        index: int,
        ratio: float,
        what: str,
    ) -> Violation:
        """Say where it is in the base: ``index`` counts the matched tokens."""
        left = base if match.against is None else served[match.against]
        row = left.rows[match.request]
        at = min(match.start + index, max(len(row.kinds) - 1, 0))
        places = base.rows[match.request].places
        token = int(places[min(at, len(places) - 1)]) if len(places) else 0
        modality = KIND_NAMES.get(int(row.kinds[at]) if len(row.kinds) else PADDING, "text")
        other = served[match.in_batch].batch
        text = (
            f"{relation.name}: {relation.says}. Request {match.request}, token {token} "
            f"({modality}): {what}. The other answer: request {match.in_request} of {other!r}"
        )
        if match.against is not None:
            text += f", against {left.batch!r}"
        return Violation(
            relation=relation.name,
            request=match.request,
            token=token,
            modality=modality,
            ratio=ratio,
            batches=tuple(one.batch for one in served),
            text=text,
        )
