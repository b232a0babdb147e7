"""The books of a run: events that the watch recorded become the counts of the result."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from vlm_ci import stalls
from vlm_ci.result import Watched
from vlm_ci.warmup import increase
from vlm_ci.watch import internals

if TYPE_CHECKING:
    from vlm_ci.policies import Policies
    from vlm_ci.result import Result, Warmup
    from vlm_ci.targets.protocol import Stats, Target
    from vlm_ci.warmup import WarmupReport
    from vlm_ci.watch.watcher import Watcher


def note_warmup(
    record: Warmup, report: WarmupReport, target: Target, watcher: Watcher, before: Stats
) -> None:
    """Note what a warm-up compiled; ``before`` is what the target counted before it."""
    seen, inside, after = watcher.counts("warmup"), target.capabilities.in_process, target.stats()
    record.compiles = seen["compile"]
    if not inside:
        record.compiles = increase(before.compiles, after.compiles) or 0
    # A target that has no watcher of its own counts its graphs itself.
    record.graphs = seen["graph"] or increase(before.graphs, after.graphs) or 0
    record.graph_breaks = internals.graph_breaks()
    events = [event for event in watcher.run_events if event.phase == "warmup"]
    places = (event.evidence["place"] for event in events if "place" in event.evidence)
    reasons = (
        str(event.evidence["reason"]).partition("\n")[0]
        for event in events
        if event.kind == "graph-break"
    )
    record.frames, record.breaks = dict(Counter(places)), dict(Counter(reasons))
    sees = {kind for one in watcher.observers if inside for kind in one.sees}
    record.captures = (
        seen["graph-capture"]
        if "graph-capture" in sees
        else increase(before.captures, after.captures)
    )
    record.rounds, record.seconds = report.rounds, report.seconds
    record.converged = report.converged


def note_strict(result: Result, target: Target, watcher: Watcher, policies: Policies) -> None:
    """Note what happened after warm-up, and what of it could be seen."""
    seen, strict = watcher.counts("strict"), result.strict
    strict.compiles += seen["compile"]
    strict.refusals = seen["refusal"]
    result.watch = _watched(result, target, watcher, policies)
    sees = {kind for one in result.watch for kind in one.sees}
    if "graph-capture" in sees:
        strict.graph_captures = seen["graph-capture"]
    if "triton-compile" in sees:
        strict.triton_compiles = seen["triton-compile"] + seen["autotune"]


def _watched(result: Result, target: Target, watcher: Watcher, policies: Policies) -> list[Watched]:
    """Say what each layer of the watch saw, and where it was blind."""
    inside = target.capabilities.in_process
    layers = [
        Watched(
            layer=one.layer,
            sees=list(one.sees) if inside else [],
            blind=one.blind if inside else "the target is out of process",
        )
        for one in watcher.observers
    ]
    blind = stalls.unwatched(str(result.options["device"]), policies, in_process=inside)
    return [*layers, Watched(layer="stalls", sees=[] if blind else ["stall"], blind=blind)]
