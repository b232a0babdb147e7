"""The run over one target: warm up, apply the canary, search strictly, keep the books."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from vlm_ci import causes, environment
from vlm_ci.errors import UsageError, check_int
from vlm_ci.failures import Failure, Finding, finding
from vlm_ci.listeners import Journal, Progress, Silent
from vlm_ci.parity.canary import apply_canary
from vlm_ci.parity.comparison import TOLERANCES
from vlm_ci.result import Regions, Result, verdict
from vlm_ci.strict import Step, StrictRunner
from vlm_ci.targets.answers import checked
from vlm_ci.targets.protocol import Target, TargetInfo
from vlm_ci.traffic import corners
from vlm_ci.traffic.spec import Batch, Image, Session, Video
from vlm_ci.warmed import Warmed, counts
from vlm_ci.warmup import MAX_ROUNDS, Plan, WarmupReport, find_plan, increase, run_rounds
from vlm_ci.watch import internals
from vlm_ci.watch.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vlm_ci.memory import Memory
    from vlm_ci.search import Search


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """How much to try, after which warm-up. ``examples`` counts sessions.

    ``corpus`` is tried before anything is generated, and before it what ``memory`` holds of
    earlier runs; ``target`` is the name by which the user called the target.
    """

    plan: Plan
    examples: int = 100
    seed: int = 0
    max_rounds: int = MAX_ROUNDS
    command: str = "run"
    corpus: tuple[Session, ...] = ()
    memory: Memory | None = None
    target: str | None = None


def check(
    target: Target,
    *,
    examples: int = 100,
    warmup: Plan | str | Path | None = None,
    seed: int = 0,
    max_rounds: int = MAX_ROUNDS,
    progress: Progress | None = None,
) -> Result:
    """Warm a target up and search for traffic that it compiles again for or answers wrongly.

    ``warmup`` is a plan, a plan file, a name, or None for the default plan. ``examples`` counts
    sessions. An interrupt keeps what was found: the result says so and holds it.

    Raises:
        UsageError: a number is out of range, or there is no such plan.
    """
    for name, value, minimum in (
        ("examples", examples, 1),
        ("seed", seed, 0),
        ("max_rounds", max_rounds, 2),
    ):
        try:
            check_int(name, value, minimum=minimum)
        except ValueError as error:
            raise UsageError(str(error)) from None
    target = checked(target)
    settings = CheckSettings(
        examples=examples,
        seed=seed,
        plan=find_plan(warmup, target.envelope),
        max_rounds=max_rounds,
    )
    checker = Checker(target, settings, progress or Silent())
    checker.run()
    return checker.result


class Checker:
    """One run over one target; ``result`` is valid at any moment.

    ``warmed`` is the warm-up of an earlier run that still holds; afterwards it is this run's own,
    or None where it did not hold.
    """

    def __init__(
        self,
        target: Target,
        settings: CheckSettings,
        progress: Progress,
        *,
        journal: Journal | None = None,
        warmed: Warmed | None = None,
    ) -> None:
        self.target: Target = checked(target)
        self.settings = settings
        self.progress = progress
        self.warmed = warmed
        self.journal = journal or Silent()
        self._search: Search | None = None
        self._own_watcher = not isinstance(getattr(target, "watcher", None), Watcher)
        info = getattr(target, "info", None) or TargetInfo(
            name=target.name, recipe="", backend="", device="cpu", dtype="float32"
        )
        self.result = Result(
            command=settings.command,
            target=settings.target or info.name,
            recipe=info.recipe,
            backend=info.backend,
            options={"device": info.device, "dtype": info.dtype, **info.options},
            environment=environment.describe(info.device),
            seed=settings.seed,
            warnings=environment.version_warnings(),
        )
        self._tolerance = TOLERANCES[info.dtype]
        self.result.parity.rtol = self._tolerance.rtol
        self.result.parity.atol = self._tolerance.atol
        self._watcher = Watcher()

    @property
    def watcher(self) -> Watcher:
        """The target's own watcher, or one of ours where it has none."""
        return self._watcher if self._own_watcher else self.target.watcher  # type: ignore[attr-defined]

    # -- the run -----------------------------------------------------------------------------

    def run(self) -> None:
        """Warm up, apply the canary, search; fills ``result``."""
        self._run(self._explore)

    def replay(self, session: Session | None, on_step: Callable[[Step], None]) -> None:
        """Warm up, apply the canary, and serve one session; ``on_step`` hears of each batch.

        Without a session a search of ``settings.examples`` sessions takes its place.
        """

        def serve(runner: StrictRunner) -> None:
            if session is None:  # the failure belongs to no session: it takes a search
                self._explore(runner)
                return
            runner.on_step = on_step
            self.watcher.sign_all = True
            try:
                runner.run_session(session)
            except Finding as found:
                self.result.failures.append(found.failure)
            finally:
                self.watcher.sign_all = False
            self._judge_calls(runner)

        self._run(serve)

    def _run(self, judge: Callable[[StrictRunner], None]) -> None:
        interrupted = complete = False
        self.watcher.begin_run()
        if self._own_watcher:
            self._watcher.start()
        self._save()
        try:
            warmed = self._warm_up()
            self._save()
            if warmed is not None:
                self._apply_canary()
                self._save()
                self.watcher.begin("strict")
                self.result.strict.refusing = self.target.capabilities.in_process
                judge(
                    StrictRunner(
                        self.target,
                        self.watcher,
                        warmed,
                        self.result,
                        records_calls=not self._own_watcher,
                    )
                )
                complete = True
                if getattr(self.target, "weights_changed", bool)():
                    raise UsageError(
                        "the compiled twin wrote into weights that both twins share while it "
                        "served, so that the eager baseline changed too and proves nothing"
                    )
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if self._own_watcher:
                self._watcher.stop()
            self._close_books()
            self.result.verdict = verdict(self.result, complete=complete, interrupted=interrupted)
            self._save(final=True)

    def _save(self, *, final: bool = False) -> None:
        found = list(self.result.failures)
        if self._search is not None:
            found += self._search.best.values()
        self.journal.save(self.result, found, self.watcher.run_events, final=final)

    def _warm_up(self) -> WarmupReport | None:
        """Run the plan; None where it failed, so that there is nothing to be strict about."""
        if self.warmed is not None:
            self.result.warmup = msgspec.structs.replace(self.warmed.record, reused=True)
            return self.warmed.report
        plan = self.settings.plan
        watcher, result = self.watcher, self.result.warmup
        watcher.begin("warmup")
        result.plan, result.batches = plan.name, len(plan.batches)

        def run(batch: Batch) -> tuple[int, int | None]:
            before, compiles = self.target.stats(), watcher.count("compile")
            watcher.begin_step()
            self.journal.serving(Session((batch,)))
            try:
                self.target.warm_up(batch)
            except Exception as error:
                raise finding(causes.crash("warm-up", error, (batch,))) from error
            watcher.keep_warm()
            after = self.target.stats()
            compiled = watcher.count("compile") - compiles
            if not self.target.capabilities.in_process:
                compiled = increase(before.compiles, after.compiles) or 0
            return compiled, increase(before.regions, after.regions)

        report = WarmupReport(plan=plan)
        compiles_before = self.target.stats().compiles
        try:
            run_rounds(
                report,
                run,
                self.target.envelope,
                max_rounds=self.settings.max_rounds,
                on_batch=lambda round_number, index: self.progress.warming(
                    round_number, index, len(plan.batches)
                ),
            )
        except Finding as found:
            self.result.failures.append(found.failure)
            return None
        finally:
            seen = watcher.counts("warmup")
            result.compiles, result.graphs = seen["compile"], seen["graph"]
            if not self.target.capabilities.in_process:
                result.compiles = increase(compiles_before, self.target.stats().compiles) or 0
            result.graph_breaks = internals.graph_breaks()
            result.rounds, result.seconds = report.rounds, report.seconds
            result.converged = report.converged
        self._judge_limits(plan)
        if not report.converged:
            self.result.failures.append(causes.endless_warmup(report))
            return None
        if not self.result.failures:
            self.warmed = Warmed(
                report=report,
                record=result,
                counts=counts(self.target),
                mark=internals.CacheMark(),
            )
        return report

    def _judge_limits(self, plan: Plan) -> None:
        seen = set()
        for event in self.watcher.run_events:
            if event.kind == "limit-hit" and event.phase == "warmup" and event.frame not in seen:
                seen.add(event.frame)
                batch = plan.batches[(event.step - 1) % len(plan.batches)]
                self.result.failures.append(causes.limit_hit(event.frame, event.evidence, batch))

    def _apply_canary(self) -> None:
        self.watcher.begin("canary")
        canary = self.result.parity.canary
        if not hasattr(self.target, "run_perturbed"):
            self.result.warnings.append(
                "the target cannot perturb images, so nothing proves that they matter"
            )
            return
        for outcome in apply_canary(self.target, self._tolerance):  # type: ignore[arg-type]
            canary.applied += 1
            canary.moved += outcome.shows
            change = outcome.largest_change
            canary.changes[outcome.modality] = change if math.isfinite(change) else None
            if not outcome.shows:
                self.result.failures.append(causes.blind(outcome))

    def _explore(self, runner: StrictRunner) -> None:
        from vlm_ci.search import Search

        settings = self.settings
        search = self._search = Search(envelope=self.target.envelope, on_found=self._save)
        strict, traffic = self.result.strict, self.result.traffic
        traffic.corners = dict.fromkeys(corners.allowed(self.target.envelope), 0)
        recorded = [*(settings.memory.sessions() if settings.memory else ()), *settings.corpus]
        accepted = [
            session
            for session in dict.fromkeys(recorded)
            if not any(map(self.target.envelope.violation, session.batches))
        ]
        traffic.corpus = len(accepted)
        traffic.corpus_outside = len(set(recorded)) - len(accepted)
        strict.started, started = time.time(), time.perf_counter()
        at_start = self.target.stats()
        forward = at_start.forward_seconds
        left = len(accepted)  # sessions of the corpus come first, and are no examples

        def check_session(session: Session) -> None:
            nonlocal left
            if left or not search.best:  # from the first failure on, Hypothesis shrinks
                self._count(session, example=not left)
            left = max(left - 1, 0)
            self.journal.serving(session)
            runner.run_session(session)
            self._save()
            self.progress.searching(
                self.result.traffic.examples,
                settings.examples,
                strict.batches,
                len(search.best),
            )

        try:
            search.run(
                check_session, examples=settings.examples, seed=settings.seed, corpus=accepted
            )
        finally:
            strict.seconds = time.perf_counter() - started
            self.result.failures += [_noted(f, search.flaky) for f in search.best.values()]
            self._search = None  # what it found is in the result now
            if runner.regions:
                strict.regions_per_step = Regions(
                    least=min(runner.regions),
                    mean=round(sum(runner.regions) / len(runner.regions), 3),
                    most=max(runner.regions),
                )
            if settings.memory is not None:
                failed = [failure.traffic for failure in search.best.values() if failure.traffic]
                settings.memory.update(passed=search.passed, failed=failed)
            at_end = self.target.stats()  # last: an engine that died may raise here
            if forward is not None and at_end.forward_seconds is not None:
                strict.forward_seconds = at_end.forward_seconds - forward
            if not self.target.capabilities.in_process:
                strict.compiles = increase(at_start.compiles, at_end.compiles) or 0
        self._judge_calls(runner)

    def _judge_calls(self, runner: StrictRunner) -> None:
        if not runner.called and not self.result.failures:
            self.result.failures.append(causes.never_called(self.result.recipe))

    def _count(self, session: Session, *, example: bool) -> None:
        traffic = self.result.traffic
        traffic.examples += example
        for batch in session.batches:
            traffic.batches += 1
            traffic.requests += len(batch.requests)
            traffic.images += sum(isinstance(item, Image) for item in batch.items())
            traffic.videos += sum(isinstance(item, Video) for item in batch.items())
            traffic.text_only += batch.modalities == {"text"}
        for name in corners.reached(session, self.target.envelope):
            traffic.corners[name] += 1

    def _close_books(self) -> None:
        seen, strict = self.watcher.counts("strict"), self.result.strict
        strict.compiles += seen["compile"]
        strict.refusals = seen["refusal"]
        if str(self.result.environment["device"]).startswith("cuda"):
            strict.graph_captures = seen["graph-capture"]
        missed = [name for name, count in self.result.traffic.corners.items() if not count]
        if missed and not self.result.failures:
            self.result.warnings.append(
                f"{len(missed)} corners of the envelope were not reached by "
                f"{self.result.traffic.examples} examples: {', '.join(missed)}"
            )


def _noted(failure: Failure, flaky: bool) -> Failure:
    if not flaky:
        return failure
    note = "not every repetition showed it: it depends on what was served before"
    return msgspec.structs.replace(failure, note=note)
