"""Figures of a run as JUnit properties. Pure: a result in, pairs of strings out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm_ci.failures import headline, replay_command

if TYPE_CHECKING:
    from vlm_ci.result import Result, Worst


def properties(result: Result, out: str, *, replayable: bool = True) -> list[tuple[str, str]]:
    """Return the figures of a run; a figure that nothing here observes is left out.

    Each cause is a property ``vlm_ci_cause`` of its own, and so is each command that runs one again
    where ``replayable`` says that the target can be built again by name.
    """
    strict, worst = result.strict, result.parity.worst
    figures: dict[str, Any] = {
        "verdict": result.verdict,
        "target": result.target,
        "recipe": result.recipe,
        "backend": result.backend,
        "device": result.options.get("device"),
        "dtype": result.options.get("dtype"),
        "torch": result.environment.get("torch"),
        "transformers": result.environment.get("transformers"),
        "seed": result.seed,
        "warmup_compiles": result.warmup.compiles,
        "warmup_seconds": f"{result.warmup.seconds:.3f}",
        "examples": result.traffic.examples,
        "batches": strict.batches,
        "compiles_after_warmup": strict.compiles,
        "refused_calls": strict.refusals,
        "graph_captures": strict.graph_captures,
        "regions_least": strict.regions_per_step.least,
        "regions_most": strict.regions_per_step.most,
        "strict_seconds": f"{strict.seconds:.3f}",
        "worst_ratio": _ratio(worst),
        "canary_moved": f"{result.parity.canary.moved} of {result.parity.canary.applied}",
        "failures": ", ".join(failure.kind for failure in result.failures) or None,
        "results": out,
    }
    known = ((name, value) for name, value in figures.items() if value not in (None, ""))
    causes = [("vlm_ci_cause", headline(failure)) for failure in result.failures]
    commands = [
        ("vlm_ci_replay", command)
        for failure in result.failures
        if replayable and (command := replay_command(failure, out))
    ]
    return [*((f"vlm_ci_{name}", str(value)) for name, value in known), *causes, *commands]


def _ratio(worst: Worst | None) -> str | None:
    if worst is None:
        return None
    return "not finite" if worst.ratio is None else f"{worst.ratio:.6g}"
