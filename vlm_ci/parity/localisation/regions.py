"""Compiled regions on their own terms: does the compiler change what a captured graph computes?

Each executed region's graph is run again on the same inputs, as it was captured and in higher
precision. Nothing here goes through Dynamo, so that its cache stays as it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from vlm_ci.parity.localisation.judging import worst
from vlm_ci.targets import backends
from vlm_ci.targets.contexts import run_in
from vlm_ci.targets.executions import Captured, Execution, compile_again, results, run_again
from vlm_ci.watch import stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from vlm_ci.parity.localisation.judging import Rows
    from vlm_ci.targets.reference import Reference

AOT, INDUCTOR = "AOTAutograd", "Inductor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What regions are judged with: the context that their batch is served in, the places to look
    at, the reference, and beyond which ratio a value is wrong."""

    context: str
    device: torch.device
    rows: Rows
    reference: Reference | None
    factor: float

    def serving(self, work: Callable[[], Execution]) -> Execution:
        """Run something as the batch is run: in its grad mode, autocast and thread."""
        with stages.uncompiled():
            return run_in(self.context, self.device, lambda: None, lambda _: work())


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """A region whose compiled code is wrong by ``ratio``, and the stage that made it so."""

    execution: Execution
    ratio: float
    stage: str
    note: str


def first_wrong(
    executions: Iterable[Execution],
    graphs: Mapping[int, Captured],
    bench: Bench,
    backend: str,
) -> Wrong | None:
    """Return the first region, in the order of execution, that is not what its graph computes."""
    for execution in executions:
        captured = graphs[execution.graph]
        plain = bench.serving(partial(run_again, captured, execution))
        if _same(execution, plain):
            continue
        lifted = lifted_run(captured, execution, bench)
        ratio = difference(execution, plain, lifted, bench)
        if ratio > bench.factor:
            stage, note = _stage(execution, plain, lifted, captured, bench, backend)
            return Wrong(execution=execution, ratio=ratio, stage=stage, note=note)
    return None


def lifted_run(captured: Captured, execution: Execution, bench: Bench) -> Execution | None:
    """Run a region's graph in higher precision; None where there is no reference."""
    if bench.reference is None:
        return None
    with stages.uncompiled(), bench.reference.lifting():
        return run_again(captured, execution, wider=bench.reference.dtype)


def difference(
    execution: Execution, plain: Execution, lifted: Execution | None, bench: Bench
) -> float:
    """Return the largest ratio of a region's results; infinite where their number differs."""
    got, want = list(results(execution)), list(results(plain))
    truth = list(results(lifted)) if lifted else [None] * len(want)
    if not len(got) == len(want) == len(truth):
        return float("inf")
    of = bench.rows.of
    return max(
        (
            worst(of(a), of(e), of(r) if r is not None else None)
            for a, e, r in zip(got, want, truth, strict=True)
        ),
        default=0.0,
    )


def _same(one: Execution, other: Execution) -> bool:
    pairs = zip(results(one), results(other), strict=False)
    return len(list(results(one))) == len(list(results(other))) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in pairs
    )


def _stage(
    execution: Execution,
    plain: Execution,
    lifted: Execution | None,
    captured: Captured,
    bench: Bench,
    backend: str,
) -> tuple[str, str]:
    """Say which part of the compiler is at fault, comparing with backend aot_eager."""
    if backend == "eager":
        return "backend eager", "it runs the captured graph and gives something else"
    if backend == "aot_eager":
        return AOT, "backend aot_eager: there is no Inductor in it"
    compile_graph = backends.resolve(backends.CompileOptions(backend="aot_eager"))
    try:
        with stages.uncounted():
            again = bench.serving(partial(compile_again, captured, execution, compile_graph))
    except Exception as error:  # a graph that only a capture can compile
        return (
            f"{AOT} or {INDUCTOR}",
            f"not told apart: compiled by itself, aot_eager raised {type(error).__name__}",
        )
    ratio = difference(again, plain, lifted, bench)
    if ratio > bench.factor:
        return AOT, f"compiled by itself, aot_eager is wrong too ({ratio:.3g} times)"
    return INDUCTOR, f"compiled by itself, aot_eager is right ({ratio:.3g} times)"


def module_of(execution: Execution, names: Mapping[int, str]) -> str:
    """Name the innermost module around all parameters that a region takes.

    Dynamo shares a graph among modules of one class, so that the graph itself does not tell.
    ``names`` has the owner of each parameter by the parameter's id.
    """
    owners = [names[id(one)].split(".") for one in execution.inputs if id(one) in names]
    if not owners:
        return execution.call
    common: list[str] = []
    for parts in zip(*owners, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def owners(model: torch.nn.Module) -> dict[int, str]:
    """Return the module that owns each parameter, by the parameter's id; shared ones are left
    out, because they name two."""
    named = [
        (id(parameter), name)
        for name, module in model.named_modules()
        for parameter in module.parameters(recurse=False)
    ]
    often = Counter(key for key, _ in named)
    return {key: name for key, name in named if often[key] == 1}
