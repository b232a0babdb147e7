"""The failures that a check can find, put in words: what happened, and what would help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm_ci.errors import UsageError
from vlm_ci.failures import Failure
from vlm_ci.traffic.spec import Batch, Session

if TYPE_CHECKING:
    from vlm_ci.parity.canary import CanaryResult
    from vlm_ci.parity.comparison import Comparison
    from vlm_ci.warmup import WarmupReport

# Events that must not occur after warm-up, each with its cause and advice.
LATE = {
    "compile": ("something was compiled after warm-up", "add this batch to the warm-up"),
    "graph-capture": (
        "a CUDA graph was captured after warm-up",
        "add this size to the captured sizes",
    ),
    "triton-compile": (
        "a Triton kernel was compiled or autotuned after warm-up",
        "warm this shape up",
    ),
    "limit-hit": ("the recompile limit was reached after warm-up", "see TORCH_LOGS=recompiles"),
}
LIMIT_ADVICE = (
    "find what varies with TORCH_LOGS=recompiles and keep it out of the compiled region; raising "
    "recompile_limit only moves the limit"
)


def crash(where: str, error: Exception, served: tuple[Batch, ...]) -> Failure:
    """A batch that the envelope allows raised; a user's mistake is passed on as it is."""
    if isinstance(error, UsageError):
        raise error
    name = type(error).__name__
    text = str(error).strip().split("\n")[0][:300]
    return Failure(
        kind="crash",
        cause=f"{where} raised {name}: {text}",
        advice="the envelope allows this batch: serve it, or take it out of the envelope",
        key=f"{where} {name}",
        traffic=Session(served),
    )


def endless_warmup(report: WarmupReport) -> Failure:
    """Warm-up went on compiling; the traffic is the batch that compiled most in the end."""
    worst = max(range(len(report.last_round)), key=lambda index: report.last_round[index])
    return Failure(
        kind="unbounded",
        cause=f"warm-up still compiled in round {report.rounds}: "
        f"{sum(report.last_round)} compilations over {len(report.plan.batches)} batches",
        advice="something differs from call to call though the batches are the same: look for "
        "counters and identities in the guards with TORCH_LOGS=recompiles",
        key="warm-up does not converge",
        traffic=Session((report.plan.batches[worst],)),
    )


def limit_hit(function: str, evidence: dict[str, Any], batch: Batch) -> Failure:
    """Warm-up reached the recompile limit at ``function`` with this batch."""
    return Failure(
        kind="limit-hit",
        cause=f"the recompile limit was reached in warm-up at {function}; from then on it runs "
        "eagerly for whatever is not compiled yet",
        advice=LIMIT_ADVICE,
        key=function,
        frame=function,
        guards=(evidence["last_reason"],) if evidence.get("last_reason") else (),
        traffic=Session((batch,)),
    )


def blind(outcome: CanaryResult) -> Failure:
    """The canary moved nothing."""
    modality = outcome.modality
    return Failure(
        kind="vacuous",
        cause=f"changing every {modality} moves no logit beyond the tolerance (by at most "
        f"{outcome.largest_change:.3g}), so that a dropped {modality} would go unseen",
        advice="initialise the model with a wider distribution, or open gates that start at zero",
        key=f"canary {modality}",
        traffic=Session((outcome.batch,)),
    )


def never_called(recipe: str) -> Failure:
    """Nothing that the recipe compiles was ever called."""
    return Failure(
        kind="vacuous",
        cause=f"no batch reached anything that recipe {recipe!r} compiles",
        advice="choose a recipe that compiles what this traffic runs through",
        key="never called",
    )


def mismatch(
    cause: str, key: str, comparison: Comparison | None, served: tuple[Batch, ...]
) -> Failure:
    """The compiled logits are not eager\'s."""
    place = comparison.at if comparison else None
    return Failure(
        kind="mismatch",
        cause=cause,
        advice="nothing was compiled again: the compiled code computes something else. Compare "
        "backends eager, aot_eager and inductor to see which stage does",
        key=key,
        location={"request": place.request, "token": place.token, "modality": place.modality}
        if place
        else None,
        traffic=Session(served),
    )
