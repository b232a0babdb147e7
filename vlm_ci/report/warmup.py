"""What a warm-up synthesis says at its end. Pure: a result in, lines of text out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_ci.failures import headline
from vlm_ci.report.terminal import line, target_line

if TYPE_CHECKING:
    from vlm_ci.result import GraphUse, Growth, Result, Sweep, Synthesis, Verification

MOST_POINTS = 12  # of the curve
MOST_CLASSES = 3  # of the traffic on one graph


def summary(result: Result, out: str) -> list[str]:
    """Return the summary of a synthesis as lines of text."""
    books = result.synthesis
    assert books is not None
    lines = [line("target", target_line(result))]
    told = ""
    for label, text in facts(books, out):
        lines.append(line("" if label == told else label, text))
        told = label
    lines += [line("warning", text) for text in result.warnings]
    for failure in result.failures:
        lines += [line("failure", headline(failure)), line("", f"advice: {failure.advice}")]
        if failure.traffic is not None:
            lines += [line("", repr(batch)) for batch in failure.traffic.batches]
        lines.append(line("evidence", f"{out}/{failure.path}"))
    lines.append(line("verdict", f"{outcome(result, books)} ({books.seconds:.1f} s)"))
    return lines


def facts(books: Synthesis, out: str) -> list[tuple[str, str]]:
    """Return what the books of a synthesis say, label and text."""
    found = [("plan", _plan(books, out))]
    found += [("curve", text) for text in _curve(books.curve)]
    found += [("pruned", _pruned(books))]
    found += [("graphs", text) for text in _uses(books.serves)]
    if books.graphs and not books.counted:
        found.append(("graphs", "this target does not tell its graphs apart"))
    found += [("sweep", _sweep(sweep)) for sweep in books.sweeps]
    found += [("verified", _verified(proof)) for proof in books.verifications]
    return found


def _plan(books: Synthesis, out: str) -> str:
    size = f"{books.batches} batch{'es' if books.batches != 1 else ''}"
    if not books.graphs:
        return f"{size} so far, in {out}/{books.plan}"
    return (
        f"{size}, {books.graphs} graphs, {books.compiles} compiles, "
        f"{books.compile_seconds:.1f} s of compiling, in {out}/{books.plan}"
    )


def _curve(points: list[Growth]) -> list[str]:
    if not points:
        return []
    step = max(1, -(-len(points) // MOST_POINTS))
    shown = [*points[:-1:step], points[-1]]
    return ["graphs after examples: " + ", ".join(f"{p.graphs} after {p.examples}" for p in shown)]


def _pruned(books: Synthesis) -> str:
    pruned = books.pruned
    left = f", {pruned.untried} not tried for lack of time" if pruned.untried else ""
    return (
        f"{pruned.compiled_nothing} compiled nothing, {pruned.not_needed} were not missed when "
        f"left out, {pruned.needed} were{left}"
    )


def _uses(serves: list[GraphUse]) -> list[str]:
    """Say for each batch of the plan which graphs it compiled, and what ran on the busiest one."""
    by_batch: dict[int, list[GraphUse]] = {}
    for use in serves:
        by_batch.setdefault(use.batch, []).append(use)
    return [_of_batch(batch, uses) for batch, uses in sorted(by_batch.items())]


def _of_batch(batch: int, uses: list[GraphUse]) -> str:
    busiest = max(uses, key=lambda use: use.batches)
    numbers = [use.graph for use in uses]
    named = f"{numbers[0]}–{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
    shown = [f"{count} of {name}" for name, count in list(busiest.served.items())[:MOST_CLASSES]]
    more = len(busiest.served) - len(shown)
    tail = f"; and {more} more classes" if more > 0 else ""
    served = f": {'; '.join(shown)}{tail}" if shown else ""
    return (
        f"batch {batch + 1} compiles {named}, {busiest.place}; that served "
        f"{busiest.batches} batches in {busiest.examples} examples{served}"
    )


def _sweep(sweep: Sweep) -> str:
    rows = ", ".join(f"{value}: {compiles}" for value, compiles in sweep.rows)
    kind = " (growing)" if sweep.growing else " (control)" if sweep.control else ""
    return f"{sweep.dimension}{kind}: new compiles by value {rows}"


def _verified(proof: Verification) -> str:
    end = "held" if proof.held else "did not hold"
    seeds = " and ".join(map(str, proof.seeds))
    return (
        f"in process {proof.process}: cold warm-up of {proof.warmup_compiles} compiles in "
        f"{proof.rounds} rounds, then {proof.examples} examples ({proof.batches} batches) of seeds "
        f"{seeds}: {proof.compiles} compiles, {proof.refused} refused; {end}"
    )


def outcome(result: Result, books: Synthesis) -> str:
    """Return in words how a synthesis ended."""
    if result.verdict == "interrupted":
        return "interrupted: the plan so far is kept, and was not verified"
    if books.status == "unbounded":
        grows = ", the ".join(books.growing) or "traffic"
        return f"unbounded: the number of graphs grows with the {grows}"
    if books.status == "limit":
        return f"limit: {books.variants} variants are needed, the recompile limit is {books.limit}"
    if books.status == "not-held":
        return "not held: no plan was found that holds in a fresh process"
    if books.status == "bounded":
        return "bounded: the plan holds"
    return f"{books.status}: no plan was found to hold"
