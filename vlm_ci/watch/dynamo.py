"""Observes Dynamo: compilations and what came of them, graph breaks, skipped frames, the limit.

Refusals and executed regions are recorded by the watcher, which knows the call they belong to.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from vlm_ci.watch import internals, logs

if TYPE_CHECKING:
    from vlm_ci.watch.observers import Record


class DynamoObserver:
    """Records "compile" at the start of each compilation of a frame and, at the end of the step,
    what became of it: "compiled", or "frame-skip" where Dynamo installed no code, so that the
    frame runs eagerly for ever; "graph-break" with its reason; "limit-hit" at a recompile limit.
    """

    layer = "Dynamo"
    kinds = ("compile", "compiled", "frame-skip", "graph-break", "limit-hit", "refusal")
    blind = ""
    sees = kinds

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._outcomes = internals.CompileOutcomes()
        self._breaks = internals.GraphBreaks()

    def start(self, record: Record) -> None:
        """Register with Dynamo's callbacks and its log."""

        def started(trigger: str, compile_id: str) -> None:
            self.collect()  # torch keeps the last 64 outcomes: take them before there are more
            if trigger == "dynamo":
                record(
                    "compile",
                    evidence={"compile_id": compile_id, "new_frame": compile_id.endswith("/0")},
                )

        self._record = record
        self._outcomes.skip()
        self._breaks.skip()
        self._stack.enter_context(internals.reporting_compiles(started))
        self._stack.enter_context(
            logs.reporting_limits(
                lambda function, reason: record(
                    "limit-hit", frame=function, evidence={"last_reason": reason}
                )
            )
        )

    def collect(self) -> None:
        """Record what became of compilations, and the graph breaks in them."""
        for outcome in self._outcomes.new():
            self._record(
                "compiled" if outcome.installed else "frame-skip",
                frame=outcome.frame,
                evidence={
                    "compile_id": outcome.compile_id,
                    "seconds": outcome.seconds,
                    "place": outcome.place,
                    "reason": outcome.reason,
                },
            )
        for reason, line in self._breaks.new():
            self._record("graph-break", frame=line, evidence={"reason": reason})

    def stop(self) -> None:
        """Take the callbacks away again."""
        self._stack.close()
