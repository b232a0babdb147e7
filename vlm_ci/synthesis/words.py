"""What a synthesis found, put in words as failures. Records in, failures out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_ci import causes
from vlm_ci.failures import Failure
from vlm_ci.traffic.spec import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlm_ci.result import Sweep
    from vlm_ci.synthesis.bench import Problem
    from vlm_ci.synthesis.cold import Found
    from vlm_ci.synthesis.growth import Trouble
    from vlm_ci.traffic.spec import Batch


def unbounded(sweeps: Sequence[Sweep], trouble: Trouble, smallest: Batch | None) -> Failure:
    """Every value of a dimension needs a graph of its own, or growing never came to an end."""
    growing = [sweep for sweep in sweeps if sweep.growing]
    problem = trouble.problem
    if growing:
        cause = "; ".join(_grows(sweep) for sweep in growing)
        still = [sweep for sweep in sweeps if sweep.control]
        if still:
            cause += "; nothing new was compiled while " + " and ".join(
                f"the {sweep.dimension} took {len(sweep.rows)} values" for sweep in still[:3]
            )
        what = growing[0].dimension
        advice = (
            f"keep the {what} out of Python decisions (len(), lists of sizes, loops) inside the "
            "compiled region, pad it to a fixed value, compile a part of the model that does not "
            "see it, or narrow the envelope so that all values fit below the recompile limit"
        )
        key = f"growing: {what}"
    else:
        cause = "each round of growing found something new to compile, and no single dimension "
        cause += "of the traffic explains it"
        advice = causes.LIMIT_ADVICE
        key = "growing"
    return Failure(
        kind="unbounded",
        cause=cause,
        advice=advice,
        key=key,
        frame=problem.frame if problem else trouble.frame,
        guards=problem.guards if problem else (),
        traffic=Session((smallest,)) if smallest is not None else None,
        note="a replay warms the generic plan up and shows one of these compilations",
    )


def _grows(sweep: Sweep) -> str:
    new = [str(value) for value, compiles in sorted(sweep.rows) if compiles]
    return f"one graph for each {sweep.dimension}: {len(new)} of {len(sweep.rows)} values " + (
        f"compiled ({', '.join(new)})"
    )


def limit(frame: str, allowed: int, variants: int, smallest: Batch | None) -> Failure:
    """The plan holds, but one frame needs more variants than torch keeps."""
    return Failure(
        kind="limit-hit",
        cause=f"{frame or 'a frame'} needs {variants} variants for this envelope, and torch keeps "
        f"{allowed}: beyond them it runs eagerly",
        advice=f"deploy with recompile_limit {variants + 1} (--recompile-limit {variants + 1} "
        "makes the plan for it), or keep what varies out of the compiled region",
        key=f"variants of {frame}",
        frame=frame,
        traffic=Session((smallest,)) if smallest is not None else None,
    )


def of_problem(problem: Problem | Found, smallest: Batch, *, tail: str) -> Failure:
    """A batch that no warm-up helped, or that a plan let through cold."""
    return Failure(
        kind=problem.kind,
        cause=problem.cause + tail,
        advice=problem.advice,
        key=problem.key,
        frame=problem.frame,
        guards=problem.guards,
        traffic=Session((smallest,)),
    )
