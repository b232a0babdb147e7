"""The run over one target: warm up, apply the canary, search strictly, keep the books."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from vlm_ci import causes, environment
from vlm_ci.errors import UsageError, check_int
from vlm_ci.failures import Failure, Finding, finding
from vlm_ci.parity.canary import apply_canary
from vlm_ci.parity.comparison import TOLERANCES
from vlm_ci.result import Regions, Result, verdict
from vlm_ci.strict import StrictRunner
from vlm_ci.targets.protocol import Target, TargetInfo
from vlm_ci.traffic import corners
from vlm_ci.traffic.spec import Batch, Image, Session, Video
from vlm_ci.warmup import MAX_ROUNDS, Plan, WarmupReport, find_plan, increase, run_rounds
from vlm_ci.watch import internals
from vlm_ci.watch.watcher import Watcher

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """How much to try, after which warm-up. ``examples`` counts sessions."""

    plan: Plan
    examples: int = 100
    seed: int = 0
    max_rounds: int = MAX_ROUNDS
    command: str = "run"


class Progress(Protocol):
    """Hears how a run goes on; the default says nothing."""

    def warming(self, round_number: int, index: int, total: int) -> None:
        """A warm-up batch begins: the round from 1, the batch's index, batches in a round."""
        ...

    def searching(self, sessions: int, examples: int, batches: int, failing: int) -> None:
        """A session is over; shrinking may run more sessions than ``examples``."""
        ...


class Silent:
    """Says nothing."""

    def warming(self, round_number: int, index: int, total: int) -> None:
        """Say nothing."""

    def searching(self, sessions: int, examples: int, batches: int, failing: int) -> None:
        """Say nothing."""


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
    """One run over one target; ``result`` is valid at any moment."""

    def __init__(self, target: Target, settings: CheckSettings, progress: Progress) -> None:
        self.target = target
        self.settings = settings
        self.progress = progress
        self._own_watcher = not isinstance(getattr(target, "watcher", None), Watcher)
        info = getattr(target, "info", None) or TargetInfo(
            name=target.name, recipe="", backend="", device="cpu", dtype="float32"
        )
        self.result = Result(
            command=settings.command,
            target=info.name,
            recipe=info.recipe,
            backend=info.backend,
            options={"dtype": info.dtype, **info.options},
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
        interrupted = complete = False
        self.watcher.begin_run()
        if self._own_watcher:
            self._watcher.start()
        try:
            warmed = self._warm_up()
            if warmed is not None:
                self._apply_canary()
                self._search(
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

    def _warm_up(self) -> WarmupReport | None:
        """Run the plan; None where it failed, so that there is nothing to be strict about."""
        plan = self.settings.plan
        watcher, result = self.watcher, self.result.warmup
        watcher.begin("warmup")
        result.plan, result.batches = plan.name, len(plan.batches)

        def run(batch: Batch) -> tuple[int, int | None]:
            before, compiles = self.target.stats(), watcher.count("compile")
            watcher.begin_step()
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
            counts = watcher.counts("warmup")
            result.compiles, result.graphs = counts["compile"], counts["graph"]
            result.graph_breaks = internals.graph_breaks()
            result.rounds, result.seconds = report.rounds, report.seconds
            result.converged = report.converged
        self._judge_limits(plan)
        if not report.converged:
            self.result.failures.append(causes.endless_warmup(report))
            return None
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
            canary.changes[outcome.modality] = outcome.largest_change
            if not outcome.shows:
                self.result.failures.append(causes.blind(outcome))

    def _search(self, runner: StrictRunner) -> None:
        from vlm_ci.search import Search

        search = Search(self.target.envelope)
        strict, traffic = self.result.strict, self.result.traffic
        traffic.corners = dict.fromkeys(corners.allowed(self.target.envelope), 0)
        self.watcher.begin("strict")
        strict.refusing = self.target.capabilities.in_process
        strict.started, started = time.time(), time.perf_counter()
        forward = self.target.stats().forward_seconds

        def check_session(session: Session) -> None:
            if not search.best:  # from the first failure on, Hypothesis shrinks
                self._count(session)
            runner.run_session(session)
            self.progress.searching(
                self.result.traffic.examples,
                self.settings.examples,
                strict.batches,
                len(search.best),
            )

        try:
            search.run(check_session, examples=self.settings.examples, seed=self.settings.seed)
        finally:
            strict.seconds = time.perf_counter() - started
            now = self.target.stats().forward_seconds
            if forward is not None and now is not None:
                strict.forward_seconds = now - forward
            if runner.regions:
                strict.regions_per_step = Regions(
                    least=min(runner.regions),
                    mean=round(sum(runner.regions) / len(runner.regions), 3),
                    most=max(runner.regions),
                )
            self.result.failures += [_noted(f, search.flaky) for f in search.best.values()]
        if not runner.called and not self.result.failures:
            self.result.failures.append(causes.never_called(self.result.recipe))

    def _count(self, session: Session) -> None:
        traffic = self.result.traffic
        traffic.examples += 1
        for batch in session.batches:
            traffic.batches += 1
            traffic.requests += len(batch.requests)
            traffic.images += sum(isinstance(item, Image) for item in batch.items())
            traffic.videos += sum(isinstance(item, Video) for item in batch.items())
            traffic.text_only += batch.modalities == {"text"}
        for name in corners.reached(session, self.target.envelope):
            traffic.corners[name] += 1

    def _close_books(self) -> None:
        counts, strict = self.watcher.counts("strict"), self.result.strict
        strict.compiles, strict.refusals = counts["compile"], counts["refusal"]
        if str(self.result.environment["device"]).startswith("cuda"):
            strict.graph_captures = counts["graph-capture"]
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
