"""Comparison of logits per row and per token that is not padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import torch

from vlm_ci.families.base import KIND_NAMES, PADDING

if TYPE_CHECKING:
    from vlm_ci.targets.protocol import Output


class Tolerance(msgspec.Struct, frozen=True, kw_only=True):
    """An element passes where |actual - expected| <= atol * scale + rtol * |expected|.

    This is torch.testing.assert_close's rule; ``scale`` is the root mean square of the expected
    logits of that token, so that a tolerance means the same at any scale of logits.
    """

    rtol: float
    atol: float


# Wide enough for another order of summation in that type, narrow enough that one dropped image
# or one wrong mask, which move logits by about their own scale, stand far outside. They are fixed
# for now; docs/results/ holds what clean runs reach.
TOLERANCES = {
    "float64": Tolerance(rtol=1e-7, atol=1e-7),
    "float32": Tolerance(rtol=1e-4, atol=1e-3),
    "float16": Tolerance(rtol=1e-2, atol=5e-2),
    "bfloat16": Tolerance(rtol=2e-2, atol=5e-1),
}


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """A token of a batch: its request, its index in the padded row, and what stands there."""

    request: int
    token: int
    modality: str


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """How far the compiled logits of one batch are from eager's.

    ``ratio`` is the worst element's error divided by what the tolerance allows it: above 1 is a
    mismatch. ``error`` is that element's absolute error. ``nonfinite`` names the twin with NaN or
    Inf in its logits, and ``at`` where.
    """

    tokens: int
    ratio: float
    error: float
    at: Location | None
    nonfinite: str | None = None

    @property
    def passes(self) -> bool:
        """Whether every element is finite and within tolerance."""
        return self.nonfinite is None and self.ratio <= 1.0


def compare(actual: Output, expected: Output, tolerance: Tolerance) -> Comparison:
    """Compare two answers to one batch; NaN and Inf never pass, padding is left out.

    Raises:
        ValueError: the logits have different shapes or types.
    """
    if actual.logits.shape != expected.logits.shape:
        raise ValueError(
            f"compiled logits have shape {list(actual.logits.shape)}, eager ones "
            f"{list(expected.logits.shape)}"
        )
    if actual.logits.dtype != expected.logits.dtype:
        raise ValueError(
            f"compiled logits have dtype {actual.logits.dtype}, eager ones {expected.logits.dtype}"
        )
    kinds = expected.token_kinds
    places = (kinds != PADDING).nonzero()  # [tokens, 2] on the CPU: request, token
    index = places.to(actual.logits.device).unbind(1)
    got, want = actual.logits[index].float(), expected.logits[index].float()
    if actual.logits.dtype == torch.float64:
        got, want = actual.logits[index], expected.logits[index]
    for name, values in (("eager", want), ("compiled", got)):
        finite = values.isfinite().all(dim=-1)
        if not bool(finite.all()):
            token = int((~finite).nonzero()[0])
            return Comparison(
                tokens=len(places),
                ratio=float("inf"),
                error=float("inf"),
                nonfinite=name,
                at=_location(kinds, places, token),
            )
    # In float64, so that the square of a large logit does not overflow and allow everything.
    scale = want.double().square().mean(dim=-1, keepdim=True).sqrt().to(want.dtype)
    error = (got - want).abs()
    allowed = tolerance.atol * scale + tolerance.rtol * want.abs()
    ratio = (error / allowed.clamp(min=torch.finfo(error.dtype).tiny)).amax(dim=-1)
    worst = int(ratio.argmax())
    return Comparison(
        tokens=len(places),
        ratio=float(ratio[worst]),
        error=float(error[worst].max()),
        at=_location(kinds, places, worst),
    )


def _location(kinds: torch.Tensor, places: torch.Tensor, token: int) -> Location:
    request, position = (int(value) for value in places[token])
    return Location(
        request=request, token=position, modality=KIND_NAMES[int(kinds[request, position])]
    )


def moved(one: Output, other: Output) -> float:
    """Return the largest change of any logit at a position that is not padding."""
    places = (one.token_kinds != PADDING).to(one.logits.device)
    return float((one.logits - other.logits)[places].abs().max())
