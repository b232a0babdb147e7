"""Logits under the books of a run: judges an answer, notes it, words what is wrong."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from vlm_ci import causes
from vlm_ci.families.base import KIND_NAMES
from vlm_ci.parity.oracle import ReferenceError
from vlm_ci.picture import picture_of
from vlm_ci.result import Worst

if TYPE_CHECKING:
    from vlm_ci.failures import Failure
    from vlm_ci.parity.comparison import Comparison, Location
    from vlm_ci.parity.judging import Judge
    from vlm_ci.result import Parity
    from vlm_ci.targets.protocol import Output
    from vlm_ci.traffic.envelope import Geometry
    from vlm_ci.traffic.spec import Batch


class Logits:
    """Judges the logits of one run; ``parity`` is where its books are kept.

    ``comparison`` is the last one, None where the answers could not be compared.
    """

    def __init__(self, judge: Judge, parity: Parity, geometry: Geometry) -> None:
        self.judge = judge
        self.comparison: Comparison | None = None
        self._parity = parity
        self._geometry = geometry
        self._worst = -1.0
        note_judge(judge, parity)

    def look(self, compiled: Output, eager: Output, served: tuple[Batch, ...]) -> Failure | None:
        """Judge the answers to the last batch that was served; None where nothing is wrong."""
        self.comparison = None
        try:
            comparison = self.judge.judge(compiled, eager, served[-1])
        except ReferenceError as error:
            return causes.no_reference(str(error), served)
        except ValueError as error:
            return causes.mismatch(str(error), "shape", served)
        self.comparison = comparison
        parity = self._parity
        parity.tokens_compared += comparison.tokens
        note_judge(self.judge, parity)
        if comparison.ratio > self._worst:
            self._worst, parity.worst = comparison.ratio, _worst(comparison)
        if comparison.passes:
            return None
        assert comparison.at is not None
        first = comparison.first or comparison.at
        failure = (
            causes.nonfinite(comparison.nonfinite, _location(first, comparison.at), served)
            if comparison.nonfinite
            else causes.mismatch(
                self._words(comparison, first),
                "logits",
                served,
                location=_location(first, comparison.at),
            )
        )
        return self.drawn(failure, comparison, compiled)

    def drawn(self, failure: Failure, comparison: Comparison, output: Output) -> Failure:
        """Return the failure with a picture of the batch, token by token."""
        assert failure.traffic is not None
        served = failure.traffic.batches
        picture = picture_of(
            served[-1],
            [[KIND_NAMES[kind] for kind in row] for row in output.token_kinds.tolist()],
            comparison.ratios.tolist(),
            self._geometry,
            title=failure.cause,
            number=len(served),
            count=len(served),
        )
        return msgspec.structs.replace(failure, picture=picture)

    def _words(self, comparison: Comparison, first: Location) -> str:
        assert comparison.at is not None
        allowed = (
            f"what eager's own error against {self.judge.reference} allows"
            if self.judge.refers
            else "what its type allows"
        )
        return (
            f"compiled logits differ from eager by {comparison.error:.3g}, {comparison.ratio:.3g} "
            f"times {allowed} ({comparison.statistic}); the first that does is request "
            f"{first.request}, token {first.token} ({first.modality})"
        )


def note_judge(judge: Judge, parity: Parity) -> None:
    """Note how logits are judged, and how well."""
    parity.reference, parity.weaker = judge.reference, judge.weaker
    parity.rtol, parity.atol = judge.tolerance.rtol, judge.tolerance.atol
    parity.eager_error = judge.eager_error or None
    parity.without_reference = judge.missing
    if judge.missing:
        parity.weaker = judge.failed


def _location(first: Location, worst: Location) -> dict[str, object]:
    place = {"request": first.request, "token": first.token, "modality": first.modality}
    if first == worst:
        return place
    return {**place, "worst": {"request": worst.request, "token": worst.token}}


def _worst(comparison: Comparison) -> Worst:
    assert comparison.at is not None
    return Worst(
        ratio=comparison.ratio if math.isfinite(comparison.ratio) else None,
        error=comparison.error if math.isfinite(comparison.error) else None,
        statistic=comparison.statistic,
        request=comparison.at.request,
        token=comparison.at.token,
        modality=comparison.at.modality,
    )
