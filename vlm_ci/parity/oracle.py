"""The judge of compiled logits: their error against a higher-precision reference, beside eager's.

Compiled code may sum in another order and fuse what eager rounds in between, so that it differs
from eager by as much as eager differs from the truth, and no fixed tolerance tells that from a
fault. What tells it is how much further from the reference the compiled twin is than eager.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vlm_ci.families.base import PADDING
from vlm_ci.parity.comparison import Comparison, conclude

if TYPE_CHECKING:
    from vlm_ci.targets.protocol import Output

TOP = (1, 5)  # the k of the sets of most likely tokens that are compared
CHUNK = 1 << 24  # logits that are looked at together: bounds the memory in float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How many times eager's own noise the compiled twin's error may be, for each statistic.

    With e, c and r the eager, compiled and reference logits [vocabulary] of one token, all errors
    are relative to the root mean square (RMS) of r:

    - ``token``: RMS(c - r) against RMS(e - r);
    - ``row``: the root mean square of ``token`` over a request, for what no token shows alone;
    - ``peak``: max|c - r| against max|e - r|, for a fault in few logits;
    - ``rank``: by how much r prefers a token that c left out of its k most likely ones to one that
      it put in, for k in ``TOP``, against max|e - r|. Nothing is asked where r itself is
      undecided: a margin within the noise;
    - ``kl``: the root of KL(softmax r ‖ softmax c) against that of e.

    The noise of a token is the largest of three: eager's own error there; eager's error over all
    tokens of the batch (root mean square, because eager may be exact at a token by luck; a token
    far above the median counts as ``OUTLIER`` times that, so that one excuses no other); and
    ``floor`` times the unit roundoff of the type. So the rule is relative to what this model, in
    this type, does to rounding errors on this batch: forward errors against a reference of higher
    precision (Higham, Accuracy and Stability of Numerical Algorithms, ch. 1 and 3). Constants:
    ``suites/bench/parity_calibration.py`` measures the largest value of each over clean runs;
    docs/results/ holds what it printed.
    """

    token: float
    row: float
    peak: float
    rank: float
    kl: float
    floor: float = 1.0


RULE = Rule(token=4.0, row=3.0, peak=5.0, rank=5.0, kl=6.0)

# Eager itself must be this close to the reference (relative, RMS over the batch), or the two do not
# compute the same thing and the comparison proves nothing.
EAGER_ERROR_LIMIT = {"float32": 5e-3, "float16": 0.1, "bfloat16": 0.3}
# Nor may it be this many times further than on the batches of the warm-up plan.
EAGER_ERROR_RISE = 10.0
# What a type explains; a larger error says that a part of the model computes in a narrower one.
EAGER_ERROR_USUAL = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.15}
OUTLIER = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Each statistic of one batch over its noise, [tokens], and where the tokens stand.

    ``places`` is [tokens, 2]: request and index in the padded row. ``eager`` is eager's own error
    over the batch, relative.
    """

    places: torch.Tensor
    token: torch.Tensor
    row: torch.Tensor
    peak: torch.Tensor
    rank: torch.Tensor
    kl: torch.Tensor
    eager: float

    def exceeded(self, rule: Rule) -> dict[str, torch.Tensor]:
        """Return each statistic over what the rule allows, [tokens]: above 1 is a mismatch."""
        return {
            name: getattr(self, name) / getattr(rule, name)
            for name in ("token", "row", "peak", "rank", "kl")
        }


class ReferenceError(ValueError):
    """Eager and the reference do not compute the same thing."""


def decide(measured: Measured, compiled: Output, eager: Output, *, rule: Rule = RULE) -> Comparison:
    """Return the comparison of a batch that was measured: each token's worst statistic decides."""
    kinds, places = eager.token_kinds, measured.places
    exceeded = measured.exceeded(rule)
    alone = {name: value for name, value in exceeded.items() if name != "row"}
    ratios = torch.stack(list(alone.values())).amax(dim=0)
    statistics = alone
    if not bool((ratios > 1.0).any()):
        # A row's value belongs to all of its tokens: it decides only where no token stands out.
        ratios, statistics = torch.maximum(ratios, exceeded["row"]), exceeded
    worst = int(ratios.argmax())
    statistic = max(statistics, key=lambda name: float(statistics[name][worst]))
    at = tuple(places[worst].tolist())
    error = float((compiled.logits[at].double() - eager.logits[at].double()).abs().max())
    return conclude(kinds, places, ratios.cpu(), error=error, statistic=statistic)


def measure(compiled: Output, eager: Output, reference: Output, *, rule: Rule = RULE) -> Measured:
    """Return each statistic of a batch over its noise (see ``Rule``)."""
    places = (eager.token_kinds != PADDING).nonzero()
    device = reference.logits.device
    rows = places[:, 0].to(device)
    step = max(1, CHUNK // reference.logits.shape[-1])
    parts = [
        _raw(*(one.logits[part.to(device).unbind(1)] for one in (compiled, eager, reference)))
        for part in torch.split(places, step)
    ]
    raw = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    unit = rule.floor * torch.finfo(eager.logits.dtype).eps / 2

    def noise(values: torch.Tensor) -> torch.Tensor:
        return torch.maximum(values, pool(values)).clamp(min=unit)

    # Over the tokens of each row.
    count = torch.zeros(int(rows.max()) + 1, dtype=torch.float64, device=device)
    count.index_add_(0, rows, torch.ones_like(raw["token_e"]))

    def by_row(values: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(count).index_add_(0, rows, values.square())
        return (total / count.clamp(min=1)).sqrt()

    pooled = raw["token_e"].square().mean().sqrt()
    token = raw["token_c"] / noise(raw["token_e"])
    return Measured(
        places=places,
        token=token,
        row=by_row(token)[rows],
        peak=raw["peak_c"] / noise(raw["peak_e"]),
        rank=raw["rank_c"] / noise(raw["peak_e"]),
        kl=raw["kl_c"] / noise(raw["kl_e"]),
        eager=float(pooled),
    )


def pool(values: torch.Tensor) -> torch.Tensor:
    """Return the root mean square of values [tokens], outliers taken down (``calm``)."""
    return calm(values).square().mean().sqrt()


def calm(values: torch.Tensor) -> torch.Tensor:
    """Return values [tokens], each at most ``OUTLIER`` times the median of those that are not 0."""
    some = values[values > 0]
    return values.clamp(max=float(OUTLIER * some.median())) if len(some) else values


def _raw(c: torch.Tensor, e: torch.Tensor, r: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the errors of some tokens, each [tokens], in float64, relative to the logits' RMS."""
    c, e, r = c.double(), e.double(), r.double()
    scale = r.square().mean(dim=-1).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    log_r = r.log_softmax(dim=-1)
    found = {}
    for name, x in (("c", c), ("e", e)):
        found[f"token_{name}"] = (x - r).square().mean(dim=-1).sqrt() / scale
        found[f"peak_{name}"] = (x - r).abs().amax(dim=-1) / scale
        kl = (log_r.exp() * (log_r - x.log_softmax(dim=-1))).sum(dim=-1)
        found[f"kl_{name}"] = kl.clamp(min=0).sqrt() / scale
    deficits = []
    for k in TOP:
        k = min(k, r.shape[-1] - 1)
        if k < 1:
            continue
        chosen = torch.zeros_like(r, dtype=torch.bool)
        chosen.scatter_(-1, c.topk(k, dim=-1).indices, True)
        best_left_out = r.masked_fill(chosen, float("-inf")).amax(dim=-1)
        worst_put_in = r.masked_fill(~chosen, float("inf")).amin(dim=-1)
        deficits.append((best_left_out - worst_put_in).clamp(min=0) / scale)
    found["rank_c"] = torch.stack(deficits).amax(dim=0) if deficits else torch.zeros_like(scale)
    return found
