"""By how much a value is wrong, in multiples of eager's own rounding error. Runs no model."""

from __future__ import annotations

import torch

from vlm_ci.families.base import PADDING
from vlm_ci.parity.comparison import TOLERANCES

# A value diverges where its error is beyond this many times eager's own. Measured on regions of the
# tiny targets, compiled rightly: aot_eager is bitwise what eager is, Inductor at most 1.5 times.
FACTOR = 8.0


class Rows:
    """The places of a batch that are looked at: those of one request, or all but padding."""

    def __init__(self, token_kinds: torch.Tensor, request: int | None = None) -> None:
        """``token_kinds`` is [requests, padded length], as in ``Output``."""
        self._places = token_kinds != PADDING
        self._padded = tuple(token_kinds.shape)
        if request is not None:
            others = torch.arange(token_kinds.shape[0]) != request
            self._places[others] = False

    def of(self, value: torch.Tensor) -> torch.Tensor:
        """Return a copy of the part of a value that belongs to these places.

        Places are found by their shape: [requests, length, …] anywhere in it, [requests, …,
        length, n], [requests * length, …]. What has none of these, as in a vision tower, is
        returned whole.
        """
        value = value.detach()
        shape, (requests, length) = tuple(value.shape), self._padded
        places = self._places.to(value.device)
        for axis in range(len(shape) - 1):
            if shape[axis : axis + 2] == self._padded:
                return value.movedim((axis, axis + 1), (0, 1))[places]
        if len(shape) > 3 and shape[0] == requests and shape[-2] == length:
            return value.movedim(-2, 1)[places]
        if shape and shape[0] == requests * length and requests > 1:
            return value.reshape(*self._padded, *shape[1:])[places]
        return value.clone()


def ratios(
    actual: torch.Tensor, expected: torch.Tensor, reference: torch.Tensor | None
) -> torch.Tensor:
    """Return each row's error over its noise, [rows] in float64; a row is along the last dimension.

    With a, e and r the three values, and errors relative to the root mean square (RMS) of r: the
    error is RMS(a - r), the noise the largest of RMS(e - r) in this row, the same over all rows,
    and the unit roundoff of the type. Without a reference the error is RMS(a - e), and the noise
    what ``TOLERANCES`` allows, divided by ``FACTOR``. Where a is not finite and e is, or values
    that are no floats differ, the ratio is infinite; where e is not finite, 0.
    """
    if actual.shape != expected.shape:
        return torch.tensor([torch.inf], dtype=torch.float64)
    if reference is not None and reference.shape != expected.shape:
        reference = None
    if not expected.numel():
        return torch.zeros(1, dtype=torch.float64)
    if not (expected.is_floating_point() and actual.is_floating_point()):
        return _unequal(actual, expected, reference)
    a, e = _rows(actual), _rows(expected)
    known = e.isfinite().all(dim=-1)
    if reference is not None:
        r = _rows(reference)
        known &= r.isfinite().all(dim=-1)
    else:
        r = e
    lost = known & ~a.isfinite().all(dim=-1)
    roundoff = torch.finfo(expected.dtype).eps / 2
    size = _rms(r.where(known[:, None], r.new_zeros(())))
    scale = torch.maximum(size, _rms(size) * roundoff).clamp(min=torch.finfo(torch.float64).tiny)
    if reference is not None:
        own = (_rms(e - r) / scale).where(known, scale.new_zeros(()))
        noise = torch.maximum(own, _rms(own)).clamp(min=roundoff)
    else:
        allowed = TOLERANCES[str(expected.dtype).removeprefix("torch.")]
        noise = scale.new_full((), (allowed.atol + allowed.rtol) / FACTOR)
    found = (_rms(a - r) / scale / noise).where(known, scale.new_zeros(()))
    return found.masked_fill(lost, torch.inf)


def worst(actual: torch.Tensor, expected: torch.Tensor, reference: torch.Tensor | None) -> float:
    """Return the largest of ``ratios``."""
    return float(ratios(actual, expected, reference).max())


def _rows(value: torch.Tensor) -> torch.Tensor:
    value = value.double()
    return value.reshape(-1, value.shape[-1]) if value.dim() > 1 else value.reshape(1, -1)


def _rms(value: torch.Tensor) -> torch.Tensor:
    return value.square().mean(dim=-1).sqrt()


def _unequal(
    actual: torch.Tensor, expected: torch.Tensor, reference: torch.Tensor | None
) -> torch.Tensor:
    other = actual != expected
    if reference is not None:  # what rounding decides, as the choice of an expert, tells nothing
        other &= expected == reference
    infinite = torch.full((), torch.inf, dtype=torch.float64, device=other.device)
    return infinite.where(other.reshape(-1), infinite.new_zeros(()))
