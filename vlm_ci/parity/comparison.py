"""Comparison of logits, or of the largest log-probabilities, per token that is not padding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

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


# Where there is no reference (--reference none, or answers of the most likely tokens): wide enough
# for another order of summation in that type, narrow enough that one dropped image or one wrong
# mask, which move logits by about their own scale, stand far outside. A subtle fault passes.
TOLERANCES = {
    "float64": Tolerance(rtol=1e-5, atol=1e-5),
    "float32": Tolerance(rtol=1e-4, atol=1e-3),
    "float16": Tolerance(rtol=1e-2, atol=5e-2),
    "bfloat16": Tolerance(rtol=2e-2, atol=5e-1),
}


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """A token of a batch: its request, its index in the padded row, and what stands there."""

    request: int
    token: int
    modality: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How far the compiled logits (or log-probabilities) of one batch are from what they should be.

    ``ratio`` is the worst token's error divided by what is allowed it: above 1 is a mismatch, and
    ``statistic`` names what was exceeded. ``error`` is that token's largest absolute difference
    from eager. ``at`` is the worst token, ``first`` the earliest mismatch of the first request that
    has one: in a causal model the fault lies there, and what follows inherits it. ``ratios`` is
    float64 [requests, padded length] on the CPU, NaN at padding. ``nonfinite`` names the twin with
    NaN or Inf in its logits.
    """

    tokens: int
    ratio: float
    error: float
    at: Location | None
    first: Location | None = None
    ratios: torch.Tensor
    statistic: str = "tolerance"
    nonfinite: str | None = None

    @property
    def passes(self) -> bool:
        """Whether every element is finite and within what is allowed."""
        return self.nonfinite is None and self.ratio <= 1.0


def compare(actual: Output, expected: Output, tolerance: Tolerance) -> Comparison:
    """Compare two answers to one batch; NaN and Inf never pass, padding is left out.

    Answers of the k most likely tokens (``Output.token_ids``) hold log-probabilities. They have a
    scale of their own: a difference of 1 nat is a factor of e in the probability, so that ``scale``
    is 1. A token that is in both answers passes by the tolerance's rule. A token that only one
    side returned may have fallen just below the other's cut: it passes where its log-probability
    exceeds the other side's smallest one by no more than is allowed. -inf is a probability of 0:
    it equals -inf and nothing else; NaN and +inf never pass. The two sides may have different k.
    Where one side is full, its k largest log-probabilities are taken, k as on the other side.

    Raises:
        ValueError: the answers have different shapes or types, disagree about what is padding, or
            name a token twice at one position.
    """
    check_alike(actual, expected)
    kinds = expected.token_kinds
    places = (kinds != PADDING).nonzero()  # [tokens, 2] on the CPU: request, token
    if bad := nonfinite(actual, expected, places):
        return bad
    got, want = _judged(actual, places), _judged(expected, places)
    error, allowed = _errors(got, want, tolerance)
    ratio = (error / allowed.clamp(min=torch.finfo(error.dtype).tiny)).amax(dim=-1)
    worst = float(error[int(ratio.argmax())].max())
    return conclude(kinds, places, ratio.double().cpu(), error=worst, statistic="tolerance")


def nonfinite(actual: Output, expected: Output, places: torch.Tensor) -> Comparison | None:
    """Return the comparison of answers that hold NaN or Inf at ``places``; None if none does.

    Of log-probabilities -inf is a value like others: a probability of 0.
    """
    for name, answer in (("eager", expected), ("compiled", actual)):
        values = answer.logits[places.to(answer.logits.device).unbind(1)]
        by_token = answer.token_ids is not None
        faulty = (values.isnan() | values.isposinf()) if by_token else ~values.isfinite()
        bad = faulty.any(dim=-1).cpu()
        if bool(bad.any()):
            ratios = bad.double() * float("inf")
            ratios[~bad] = 0.0
            found = conclude(
                expected.token_kinds, places, ratios, error=float("inf"), statistic="finite"
            )
            return replace(found, nonfinite=name)
    return None


def conclude(
    kinds: torch.Tensor, places: torch.Tensor, ratios: torch.Tensor, *, error: float, statistic: str
) -> Comparison:
    """Return the comparison of which ``ratios`` [tokens] are the tokens' at ``places``."""
    worst = int(ratios.argmax())
    beyond = (ratios > 1.0).nonzero()
    by_place = torch.full(kinds.shape, float("nan"), dtype=torch.float64)
    by_place[places.unbind(1)] = ratios.double()
    return Comparison(
        tokens=len(places),
        ratio=float(ratios[worst]),
        error=error,
        at=_location(kinds, places, worst),
        first=_location(kinds, places, int(beyond[0])) if len(beyond) else None,
        ratios=by_place,
        statistic=statistic,
    )


class _Answer(NamedTuple):
    """The tokens to judge: logits or log-probabilities [tokens, n] and, of the latter, ids."""

    values: torch.Tensor
    ids: torch.Tensor | None


def check_alike(actual: Output, expected: Output) -> None:
    """Refuse answers that cannot be compared.

    Raises:
        ValueError: they have different shapes or types, or disagree about what is padding.
    """
    got, want = actual.logits, expected.logits
    full = actual.token_ids is None and expected.token_ids is None
    if got.shape[:2] != want.shape[:2] or (full and got.shape != want.shape):
        raise ValueError(
            f"compiled logits have shape {list(got.shape)}, eager ones {list(want.shape)}"
        )
    if got.dtype != want.dtype:
        raise ValueError(f"compiled logits have dtype {got.dtype}, eager ones {want.dtype}")
    if actual.token_kinds.shape != got.shape[:2] or expected.token_kinds.shape != want.shape[:2]:
        raise ValueError(
            f"compiled logits have shape {list(got.shape)} and token_kinds "
            f"{list(actual.token_kinds.shape)}, eager ones {list(want.shape)} and "
            f"{list(expected.token_kinds.shape)}"
        )
    other = actual.token_kinds != expected.token_kinds
    if bool(other.any()):
        request, token = (int(value) for value in other.nonzero()[0])
        names = [
            KIND_NAMES.get(int(output.token_kinds[request, token]), "an unknown kind")
            for output in (actual, expected)
        ]
        raise ValueError(
            f"request {request}, token {token} is {names[0]} in the compiled answer and {names[1]} "
            "in eager's (token_kinds)"
        )


def _judged(output: Output, places: torch.Tensor) -> _Answer:
    """Return an answer's rows at ``places``, in float32, or float64 where it is that already."""
    index = places.to(output.logits.device).unbind(1)
    values = output.logits[index]
    values = values if values.dtype == torch.float64 else values.float()
    return _Answer(values, None if output.token_ids is None else output.token_ids[index])


def _errors(got: _Answer, want: _Answer, tolerance: Tolerance) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each element's error and what it is allowed, both [tokens, n]."""
    if got.ids is None and want.ids is None:
        expected = want.values
        # In float64, so that the square of a large logit does not overflow and allow everything.
        scale = expected.double().square().mean(dim=-1, keepdim=True).sqrt().to(expected.dtype)
        allowed = tolerance.atol * scale + tolerance.rtol * expected.abs()
        return (got.values - expected).abs(), allowed
    got, want = _most_likely(got, want), _most_likely(want, got)
    matched, present = _look_up(got, want)
    _, in_got = _look_up(want, got)
    # Between tokens of both sides; else by how far a token stands above the other side's cut.
    cut = want.values.amin(dim=-1, keepdim=True)
    own_cut = got.values.amin(dim=-1, keepdim=True)
    ours = torch.where(present, _distance(got.values, matched), _above(got.values, cut))
    theirs = torch.where(in_got, torch.zeros_like(want.values), _above(want.values, own_cut))
    expected = torch.cat([torch.where(present, matched, cut), want.values], dim=-1)
    size = torch.where(expected.isinf(), torch.zeros_like(expected), expected.abs())
    return torch.cat([ours, theirs], dim=-1), tolerance.atol + tolerance.rtol * size


def _most_likely(answer: _Answer, other: _Answer) -> _Answer:
    """Turn full logits into as many log-probabilities as the other side has."""
    if answer.ids is not None:
        return answer
    k = min(other.values.shape[-1], answer.values.shape[-1])
    return _Answer(*answer.values.log_softmax(dim=-1).topk(k, dim=-1))


def _look_up(one: _Answer, other: _Answer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for each token of ``one``, the other side's value, and whether it has that token."""
    assert one.ids is not None
    assert other.ids is not None
    ids, order = other.ids.sort(dim=-1)
    if bool((ids[:, 1:] == ids[:, :-1]).any()):
        raise ValueError("an answer names a token twice at one position (token_ids)")
    at = torch.searchsorted(ids, one.ids.contiguous()).clamp(max=ids.shape[-1] - 1)
    return other.values.gather(-1, order.gather(-1, at)), ids.gather(-1, at) == one.ids


def _distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return |one - other|; 0 where both are -inf."""
    return torch.where(one == other, torch.zeros_like(one), (one - other).abs())


def _above(values: torch.Tensor, cut: torch.Tensor) -> torch.Tensor:
    """Return by how much values exceed a cut; 0 where they do not."""
    return torch.where(values > cut, values - cut, torch.zeros_like(values))


def _location(kinds: torch.Tensor, places: torch.Tensor, token: int) -> Location:
    request, position = (int(value) for value in places[token])
    return Location(
        request=request, token=position, modality=KIND_NAMES[int(kinds[request, position])]
    )


def moved(one: Output, other: Output) -> float:
    """Return the largest change of any logit at a position that is not padding.

    Of answers with ``token_ids``, the largest change of a log-probability in nats; for a token that
    one side lacks, that is at least by how much it stands above the other side's smallest one.

    Raises:
        ValueError: as ``compare``.
    """
    check_alike(one, other)
    places = (one.token_kinds != PADDING).nonzero()
    exact = Tolerance(rtol=0.0, atol=0.0)
    error, _ = _errors(_judged(one, places), _judged(other, places), exact)
    return float(error.max())
