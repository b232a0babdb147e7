"""One strict step: run a batch where compiling is refused, and judge what was recorded.

Verdicts come from recorded events; an exception is one more piece of evidence, because model code
can swallow it.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_ci import causes, interrupts, stalls
from vlm_ci.failures import Failure, Finding, finding, identity
from vlm_ci.logits import Logits
from vlm_ci.parity.judging import Judge
from vlm_ci.policies import Policies
from vlm_ci.result import Result, tolerate
from vlm_ci.traffic.spec import Batch, Session
from vlm_ci.warmup import WarmupReport, batch_class, increase
from vlm_ci.watch import internals, state
from vlm_ci.watch.events import region_class
from vlm_ci.watch.explain import explain

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from vlm_ci.parity.comparison import Comparison
    from vlm_ci.relating import Relations
    from vlm_ci.targets.protocol import Output, Target
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
    code, so that a step without one had nothing to execute. ``policies`` say what becomes of each
    kind of finding. ``known`` holds the identities of causes that are reported already: a batch
    that shows one of them is passed over.
    """

    def __init__(
        self,
        target: Target,
        watcher: Watcher,
        warmed: WarmupReport,
        result: Result,
        *,
        records_calls: bool,
        policies: Policies | None = None,
        judge: Judge | None = None,
        relations: Relations | None = None,
    ) -> None:
        self.target = target
        self.watcher = watcher
        self.result = result
        judge = judge or Judge(target, dtype=str(result.options["dtype"]))
        self.logits = Logits(judge, result.parity, target.envelope.geometry)
        self.regions: list[int] = []
        self.called = False
        self.on_step: Callable[[Step], None] | None = None
        self._relations = relations
        self._executed: int | None = None  # compiled regions in this step
        self._warmed = warmed
        self._records_calls = records_calls
        self.policies = policies or Policies()
        self.known: set[str] = set()
        self.compares = True  # with the eager twin
        self._occurred: Counter[str] = Counter()
        unwatched = stalls.unwatched(
            str(result.options["device"]),
            self.policies,
            in_process=target.capabilities.in_process,
        )
        self._stalls = None if unwatched else stalls.StallWatch(target, watcher)

    def run_session(self, session: Session) -> None:
        """Run a session strictly.

        Raises:
            Finding: a batch was refused, compiled something, ran eagerly or answered wrongly. Its
                failure holds the session up to that batch.
        """
        # What a session leaves behind (a changed matmul precision, say) belongs to it alone.
        with state.preserving_state():
            for index, batch in enumerate(session.batches):
                interrupts.check()
                served = session.batches[: index + 1]
                if self.on_step is None:
                    self._run_strictly(batch, served)
                else:
                    self._run_aloud(batch, served, self.on_step)

    def _run_aloud(
        self, batch: Batch, served: tuple[Batch, ...], say: Callable[[Step], None]
    ) -> None:
        self.logits.comparison = self._executed = None
        try:
            self._run_strictly(batch, served)
        finally:
            say(
                Step(
                    batch=batch,
                    calls=self.watcher.calls,
                    refusals=self.watcher.refusals,
                    regions=self._executed,
                    comparison=self.logits.comparison,
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
        watcher.end_step()
        after = self.target.stats()
        self._executed = increase(before.regions, after.regions)
        refusals = watcher.refusals
        swallowed = crash is None or not internals.is_refusal(crash)
        for one in refusals:
            self._found(self._refused(one, served, swallowed=swallowed), crash)
        if refusals and not swallowed:
            return  # what it would have answered is not known
        if crash is not None:
            self._found(causes.crash("the compiled twin", crash, served), crash)
            return
        self._judge_events(
            watcher.events[first_event:], increase(before.compiles, after.compiles), served
        )
        if refusals:
            return  # tolerated: what ran in place of the refused call is not the compiled code
        self._judge_regions(batch, served)
        if self._stalls is not None:
            spent = _increase(before.forward_seconds, after.forward_seconds)
            self._judge_stall(batch, elapsed if spent is None else spent, served)
        assert output is not None
        if self.compares:
            self._compare(batch, output, served, elapsed, before.forward_seconds is None)
        if self._relations is not None:
            for failure in self._relations.broken_by(batch, output, served):
                self._found(failure)

    def _compare(
        self,
        batch: Batch,
        output: Output,
        served: tuple[Batch, ...],
        elapsed: float,
        untimed: bool,
    ) -> None:
        """Judge the logits; ``untimed`` says that the target does not time its forwards itself."""
        started = time.perf_counter()
        try:
            expected = self.target.run_eager(batch)
        except Exception as error:
            self._found(causes.crash("the eager twin", error, served), error)
            return
        if untimed:
            self.result.strict.forward_seconds += elapsed + time.perf_counter() - started
        self._judge_logits(output, expected, served)

    def _found(self, failure: Failure, error: BaseException | None = None) -> None:
        """Raise the finding, unless its policy lets it pass or it is reported already."""
        policy = self.policies.of(failure.kind)
        if policy == "off" or identity(failure) in self.known:
            return
        self._occurred[failure.kind] += 1
        if not self.policies.tolerates(failure.kind, self._occurred[failure.kind]):
            raise finding(failure) from error
        tolerate(self.result, failure, policy)

    def _judge_stall(self, batch: Batch, seconds: float, served: tuple[Batch, ...]) -> None:
        """A stall does not come back when the session is served again: no search shrinks it."""
        assert self._stalls is not None
        with self.watcher.aside():
            stall = self._stalls.look(batch, seconds)
        for fresh, event in self._stalls.events:  # of the shapes that were served to find out
            if event.kind in causes.LATE:
                self._found(causes.late(event, (fresh,)))
        if stall is None:
            return
        self.watcher.record("stall", evidence={"first": stall.first, "repeat": stall.repeat})
        failure = causes.stall(stall, served[-1:])
        try:
            self._found(failure)
        except Finding:
            if identity(failure) not in map(identity, self.result.failures):
                self.result.failures.append(failure)

    def _refused(
        self,
        refused: tuple[internals.Refusal, Signature | None, str],
        served: tuple[Batch, ...],
        *,
        swallowed: bool,
    ) -> Failure:
        self.called = True
        refusal, signature, region = refused
        explanation = explain(
            refusal.failed, signature, self.watcher.warm.get(region_class(region), [])
        )
        return Failure(
            kind="recompile" if refusal.guards else "new-frame",
            cause=explanation.cause,
            advice=explanation.advice,
            key=f"{region_class(region)}: {refusal.function}: {explanation.key}",
            frame=refusal.frame + (f" in {region}" if region else ""),
            guards=refusal.guards,
            words=explanation.words,
            line=explanation.line,
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

    def _judge_events(
        self, events: list[Any], count: int | None, served: tuple[Batch, ...]
    ) -> None:
        """Judge what the watch saw; ``count`` is how many compilations the target counted."""
        if self.target.capabilities.in_process:
            late = {event.kind: event for event in reversed(events) if event.kind in causes.LATE}
            if "graph-recording" in late:
                late.pop("graph-capture", None)  # the same capture
            for kind in causes.LATE:
                if kind in late:
                    self._found(causes.late(late[kind], served))
            if late:
                return
        if count:
            self._found(
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

    def _judge_regions(self, batch: Batch, served: tuple[Batch, ...]) -> None:
        executed = self._executed
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
        advice, note = causes.skipped(self.watcher, skipped)
        self._found(
            Failure(
                kind="eager-fallback",
                cause=cause + (f" ({', '.join(skipped[:3])})" if skipped else ""),
                advice=causes.LIMIT_ADVICE if limited else advice,
                key=f"{key}: {', '.join(skipped)}",
                traffic=Session(served),
                note=self._limit_note() if limited else note,
            )
        )

    def _limit_note(self) -> str:
        event = next(e for e in self.watcher.events if e.kind == "limit-hit")
        limit = self.result.options.get("recompile_limit") or internals.recompile_limit()
        return (
            f"the recompile limit ({limit}) was reached at {event.frame}; beyond "
            "it torch runs the frame eagerly and says nothing further"
        )

    def _judge_logits(self, output: Output, expected: Output, served: tuple[Batch, ...]) -> None:
        failure = self.logits.look(output, expected, served)
        if failure is not None:
            self._found(failure)


def _increase(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
