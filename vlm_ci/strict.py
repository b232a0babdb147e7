"""One strict step: run a batch where compiling is refused, and judge what was recorded.

Verdicts come from recorded events; an exception is one more piece of evidence, because model code
can swallow it.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_ci import causes
from vlm_ci.failures import Failure, finding
from vlm_ci.parity.comparison import TOLERANCES, Comparison, compare
from vlm_ci.result import Result, Worst
from vlm_ci.traffic.spec import Batch, Session
from vlm_ci.warmup import WarmupReport, batch_class, increase
from vlm_ci.watch import internals
from vlm_ci.watch.events import region_class
from vlm_ci.watch.explain import explain

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from vlm_ci.targets.protocol import Output, Stats, Target
    from vlm_ci.watch.signatures import Signature
    from vlm_ci.watch.watcher import Call, Watcher


@dataclass(slots=True, kw_only=True)
class Step:
    """What one strict step did: what a replay shows.

    ``regions`` counts the compiled regions that it executed, None where that is not known;
    ``comparison`` is None where the step did not come to its logits.
    """

    batch: Batch
    calls: list[Call]
    refusals: list[tuple[internals.Refusal, Signature | None, str]]
    regions: int | None
    comparison: Comparison | None


class StrictRunner:
    """Runs sessions after warm-up; keeps the books in ``result.strict`` and ``result.parity``.

    ``regions`` lists the compiled regions that each step executed; ``called`` says whether any
    step reached compiled code; ``on_step`` hears of each step, also of one that fails.
    ``records_calls`` says that the watch sees every call of compiled
    code, so that a step without one had nothing to execute.
    """

    def __init__(
        self,
        target: Target,
        watcher: Watcher,
        warmed: WarmupReport,
        result: Result,
        *,
        records_calls: bool,
    ) -> None:
        self.target = target
        self.watcher = watcher
        self.result = result
        self.tolerance = TOLERANCES[result.options["dtype"]]
        self.regions: list[int] = []
        self.called = False
        self.on_step: Callable[[Step], None] | None = None
        self._comparison: Comparison | None = None
        self._worst_ratio = -1.0
        self._warmed = warmed
        self._records_calls = records_calls

    def run_session(self, session: Session) -> None:
        """Run a session strictly.

        Raises:
            Finding: a batch was refused, compiled something, ran eagerly or answered wrongly. Its
                failure holds the session up to that batch.
        """
        # What a session leaves behind (a changed matmul precision, say) belongs to it alone.
        with internals.preserving_state():
            for index, batch in enumerate(session.batches):
                served = session.batches[: index + 1]
                if self.on_step is None:
                    self._run_strictly(batch, served)
                else:
                    self._run_aloud(batch, served, self.on_step)

    def _run_aloud(
        self, batch: Batch, served: tuple[Batch, ...], say: Callable[[Step], None]
    ) -> None:
        before, self._comparison = self.target.stats(), None
        try:
            self._run_strictly(batch, served)
        finally:
            say(
                Step(
                    batch=batch,
                    calls=self.watcher.calls,
                    refusals=self.watcher.refusals,
                    regions=increase(before.regions, self.target.stats().regions),
                    comparison=self._comparison,
                )
            )

    def _run_strictly(self, batch: Batch, served: tuple[Batch, ...]) -> None:
        watcher, strict = self.watcher, self.result.strict
        before, first_event = self.target.stats(), len(watcher.events)
        watcher.begin_step()
        strict.batches += 1
        guard: Callable[[], AbstractContextManager[None]] = (
            internals.strict if self.target.capabilities.in_process else nullcontext
        )
        output: Output | None = None
        crash: Exception | None = None
        started = time.perf_counter()
        try:
            with guard():
                output = self.target.run_compiled(batch)
        except Exception as error:
            crash = error
        elapsed = time.perf_counter() - started
        if watcher.refusals:
            raise finding(self._refused(served, swallowed=crash is None)) from crash
        if crash is not None:
            raise finding(causes.crash("the compiled twin", crash, served)) from crash
        self._judge_events(watcher.events[first_event:], before, served)
        self._judge_regions(batch, before, served)
        assert output is not None
        started = time.perf_counter()
        try:
            expected = self.target.run_eager(batch)
        except Exception as error:
            raise finding(causes.crash("the eager twin", error, served)) from error
        if before.forward_seconds is None:
            strict.forward_seconds += elapsed + time.perf_counter() - started
        self._judge_logits(output, expected, served)

    def _refused(self, served: tuple[Batch, ...], *, swallowed: bool) -> Failure:
        self.called = True
        refusal, signature, region = self.watcher.refusals[0]
        explanation = explain(
            refusal.guards, signature, self.watcher.warm.get(region_class(region), [])
        )
        return Failure(
            kind="recompile" if refusal.guards else "new-frame",
            cause=explanation.cause,
            advice=explanation.advice,
            key=f"{region_class(region)}: {explanation.key}",
            frame=refusal.frame + (f" in {region}" if region else ""),
            guards=refusal.guards,
            difference=tuple(
                {"path": d.path, "aspect": d.aspect, "warm": d.warm, "now": d.now}
                for d in explanation.differences
            ),
            call=explanation.call,
            traffic=Session(served),
            note="the model swallowed the refusal; in production it would compile here"
            if swallowed
            else "",
        )

    def _judge_events(self, events: list[Any], before: Stats, served: tuple[Batch, ...]) -> None:
        for event in events if self.target.capabilities.in_process else ():
            if event.kind in causes.LATE:
                cause, advice = causes.LATE[event.kind]
                raise finding(
                    Failure(
                        kind="recompile" if event.kind == "compile" else event.kind,
                        cause=cause,
                        advice=advice,
                        key=f"{event.kind} {event.frame}",
                        frame=event.frame,
                        traffic=Session(served),
                    )
                )
        count = increase(before.compiles, self.target.stats().compiles)
        if count:
            raise finding(
                Failure(
                    kind="recompile",
                    cause=f"the target counted {count} compilations after warm-up",
                    advice="add this batch to the warm-up",
                    key="counted by the target",
                    traffic=Session(served),
                    note="they were not Dynamo's, which refuses calls in this process"
                    if self.target.capabilities.in_process
                    else "the target is out of process: the call could not be refused",
                )
            )

    def _judge_regions(self, batch: Batch, before: Stats, served: tuple[Batch, ...]) -> None:
        executed = increase(before.regions, self.target.stats().regions)
        if executed is None:
            self.called = True
            return
        calls = self.watcher.calls
        expected = self._warmed.expected_regions(batch, self.target.envelope)
        self.called |= bool(calls) or executed > 0
        if calls or executed or expected or not self._records_calls:
            self.regions.append(executed)
        limited = self.watcher.count("limit-hit") > 0
        skipped = sorted({region_class(call.region) for call in calls if not call.regions})
        if executed == 0 and (calls or expected or not self._records_calls):
            cause, key = "0 compiled regions executed: the compiled code ran eagerly", "none"
        elif skipped:
            cause, key = "some calls of compiled code executed no compiled region", "some calls"
        elif expected is not None and executed < expected and not limited:
            cause = (
                f"{executed} compiled regions executed; warm-up executed {expected} for a batch "
                f"of this class ({batch_class(batch, self.target.envelope)})"
            )
            key = "fewer"
        else:
            return
        raise finding(
            Failure(
                kind="eager-fallback",
                cause=cause + (f" ({', '.join(skipped[:3])})" if skipped else ""),
                advice=causes.LIMIT_ADVICE
                if limited
                else "find out why Dynamo skips it: run with TORCH_LOGS=graph_breaks,recompiles",
                key=f"{key}: {', '.join(skipped)}",
                traffic=Session(served),
                note=self._limit_note() if limited else "",
            )
        )

    def _limit_note(self) -> str:
        event = next(e for e in self.watcher.events if e.kind == "limit-hit")
        limit = self.result.options.get("recompile_limit")
        return (
            f"the recompile limit ({limit}) was reached at {event.frame}; beyond "
            "it torch runs the frame eagerly and says nothing further"
        )

    def _judge_logits(self, output: Output, expected: Output, served: tuple[Batch, ...]) -> None:
        try:
            comparison = compare(output, expected, self.tolerance)
        except ValueError as error:
            raise finding(causes.mismatch(str(error), "shape", None, served)) from error
        self._comparison = comparison
        parity = self.result.parity
        parity.tokens_compared += comparison.tokens
        if comparison.ratio > self._worst_ratio:
            self._worst_ratio, parity.worst = comparison.ratio, _worst(comparison)
        if comparison.passes:
            return
        place = comparison.at
        assert place is not None
        where = f"request {place.request}, token {place.token} ({place.modality})"
        if comparison.nonfinite:
            raise finding(
                Failure(
                    kind="nonfinite",
                    cause=f"the {comparison.nonfinite} logits hold NaN or Inf at {where}",
                    advice="look for a row that is masked as a whole, or an overflow in this type",
                    key=comparison.nonfinite,
                    location={
                        "request": place.request,
                        "token": place.token,
                        "modality": place.modality,
                    },
                    traffic=Session(served),
                )
            )
        raise finding(
            causes.mismatch(
                f"compiled logits differ from eager by {comparison.error:.3g} at {where}, "
                f"{comparison.ratio:.3g} times what {self.result.options['dtype']} allows",
                "logits",
                comparison,
                served,
            )
        )


def _worst(comparison: Comparison) -> Worst:
    assert comparison.at is not None
    return Worst(
        ratio=comparison.ratio if math.isfinite(comparison.ratio) else None,
        error=comparison.error if math.isfinite(comparison.error) else None,
        request=comparison.at.request,
        token=comparison.at.token,
        modality=comparison.at.modality,
    )
