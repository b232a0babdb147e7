"""How far two answers to the same tokens are apart, and what each type allows. Performs no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from vlm_ci.families.base import PADDING

if TYPE_CHECKING:
    from vlm_ci.targets.protocol import Output

# What a token may differ by: the root mean square of the difference over the vocabulary, relative
# to that of the token's logits. About four times the largest that clean batches of the tiny models
# reached on a CPU, over all relations; no figure of a GPU is in it.
#
#   dtype      llava-tiny             qwen2.5-vl-tiny        qwen3-vl-tiny
#   float32    6.5e-6 (2000 batches)  3.9e-6 (2000)          2.5e-6 (2000)
#   bfloat16   9.3e-2 (506)           1.1e-1 (378)           3.6e-2 (395)
#   float16    8.3e-3 (78)
#   float64    3.4e-6 (127): norms and rotary embeddings compute in float32 whatever the type
ALLOWED = {
    "float64": 3e-5,
    "float32": 3e-5,
    "float16": 4e-2,
    "bfloat16": 4e-1,
}

# What has to move moves by at least this, relative to its logits: an image whose features are all
# but zero moves them in the last bits alone.
MOVES = 1e-2

CHUNK = 256  # tokens that are compared at a time: a vocabulary may be large


class Row(NamedTuple):
    """The tokens of one request of an answer, padding left out.

    ``places`` [tokens] are their indices in the padded row, ``kinds`` [tokens] what stands there,
    both on the CPU; ``values`` [tokens, n] logits or log-probabilities, and ``ids`` of the latter.
    """

    places: torch.Tensor
    kinds: torch.Tensor
    values: torch.Tensor
    ids: torch.Tensor | None

    def part(self, start: int, tokens: int | None) -> Row:
        """Return ``tokens`` of them from ``start`` on, all that follow for None."""
        end = None if tokens is None else start + tokens
        return Row(*(None if one is None else one[start:end] for one in self))  # type: ignore[arg-type]


def rows_of(output: Output) -> list[Row]:
    """Copy the tokens of each request out of an answer, which the next one may overwrite."""
    found = []
    for index, kinds in enumerate(output.token_kinds):
        places = (kinds != PADDING).nonzero().flatten()
        at = places.to(output.logits.device)
        ids = None if output.token_ids is None else output.token_ids[index][at]
        found.append(Row(places, kinds[places], output.logits[index][at], ids))
    return found


def distances(base: Row, other: Row) -> torch.Tensor:
    """Return by how much each token differs, [tokens]; inf where NaN or Inf stands on a side.

    That is the root mean square of the difference over the vocabulary, relative to that of the
    base's logits. Of answers of the k most likely tokens it is taken over those that both sides
    have, in nats, relative to the base's log-probabilities or to 1 nat where they are smaller; a
    token of one side counts by how far it stands above the other side's smallest one.
    """
    parts = [
        _distances(base.part(start, CHUNK), other.part(start, CHUNK))
        for start in range(0, len(base.places), CHUNK)
    ]
    return torch.cat(parts).cpu()


def _distances(base: Row, other: Row) -> torch.Tensor:
    expected, actual = base.values.double(), other.values.double()
    if base.ids is None or other.ids is None:
        apart, size = _rms(actual - expected), _rms(expected)
        scale = size.clamp(min=torch.finfo(torch.float64).tiny)
        return _or_inf(apart / scale)
    same = base.ids[:, :, None] == other.ids[:, None, :]
    pairs = expected[:, :, None], actual[:, None, :]
    between = (pairs[0] - pairs[1]).abs().where(same & (pairs[0] != pairs[1]), 0.0)
    ours = between.amax(dim=2).where(same.any(dim=2), _above(expected, actual))
    theirs = _above(actual, expected).where(~same.any(dim=1), 0.0)
    scale = _rms(expected.where(expected.isfinite(), 0.0)).clamp(min=1.0)
    faulty = [(side.isnan() | side.isposinf()).any(dim=-1) for side in (expected, actual)]
    apart = _rms(torch.cat([ours, theirs], dim=-1)) / scale
    return _or_inf(apart.masked_fill(faulty[0] | faulty[1], torch.inf))


def _above(values: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return by how far values stand above the other side's smallest one; 0 where they do not."""
    cut = other.amin(dim=-1, keepdim=True)
    return (values - cut).where(values > cut, 0.0)


def _rms(values: torch.Tensor) -> torch.Tensor:
    return values.square().mean(dim=-1).sqrt()


def _or_inf(values: torch.Tensor) -> torch.Tensor:
    return values.masked_fill(values.isnan(), torch.inf)
