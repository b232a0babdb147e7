"""Warming a target up under the watch: rounds of a plan, and what the watch has against them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_ci import causes, interrupts
from vlm_ci.failures import Failure, finding, identity
from vlm_ci.traffic.spec import Batch, Session
from vlm_ci.warmup import MAX_ROUNDS, Plan, WarmupReport, increase, run_rounds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlm_ci.caching.use import CompileCache
    from vlm_ci.listeners import Journal, Progress
    from vlm_ci.targets.protocol import Target
    from vlm_ci.watch.events import Event
    from vlm_ci.watch.watcher import Watcher


class Warmer:
    """Warms one target up, as often as it is asked to; with a ``cache``, from what it holds."""

    def __init__(
        self,
        target: Target,
        watcher: Watcher,
        *,
        progress: Progress,
        journal: Journal,
        cache: CompileCache | None = None,
    ) -> None:
        self._target = target
        self._watcher = watcher
        self._progress = progress
        self._journal = journal
        self._cache = cache

    def run(self, report: WarmupReport, *, max_rounds: int = MAX_ROUNDS) -> None:
        """Run the report's plan round after round until a round compiles nothing.

        The report is valid also where this raises. Its seconds include loading the cache.

        Raises:
            Finding: a batch of the plan raised.
        """
        if self._cache is None:
            self._run(report, max_rounds)
            return
        loading = self._cache.load()
        try:
            with self._cache.counting():
                self._run(report, max_rounds)
        finally:
            report.seconds += loading
        if report.converged:
            self._cache.save()

    def _run(self, report: WarmupReport, max_rounds: int) -> None:
        self._watcher.begin("warmup")
        batches = len(report.plan.batches)

        def on_batch(number: int, index: int) -> None:
            interrupts.check()
            if index == 0:
                self._watcher.record("round", evidence={"round": number, "batches": batches})
            self._progress.warming(number, index, batches)

        run_rounds(
            report,
            self._warm,
            self._target.envelope,
            max_rounds=max_rounds,
            on_batch=on_batch,
        )

    def _warm(self, batch: Batch) -> tuple[int, int | None]:
        target, watcher = self._target, self._watcher
        before, compiles = target.stats(), watcher.count("compile")
        watcher.begin_step()
        self._journal.serving(Session((batch,)))
        try:
            target.warm_up(batch)
        except Exception as error:
            raise finding(causes.crash("warm-up", error, (batch,))) from error
        watcher.end_step()
        watcher.keep_warm()
        after = target.stats()
        compiled = watcher.count("compile") - compiles
        if not target.capabilities.in_process:
            compiled = increase(before.compiles, after.compiles) or 0
        return compiled, increase(before.regions, after.regions)

    def findings(
        self, plan: Plan, events: Sequence[Event] | None = None
    ) -> tuple[tuple[Failure, int], ...]:
        """Return what the watch has against the warm-up of a plan, each cause with how often it
        occurred: graph breaks, skipped CUDA graphs, the recompile limit.

        ``events`` are those of this warm-up; None stands for all of the run.
        """
        found: dict[str, tuple[Failure, int]] = {}
        for event in self._watcher.run_events if events is None else events:
            if event.phase != "warmup" or event.kind not in causes.IN_WARMUP:
                continue
            batch = plan.batches[(event.step - 1) % len(plan.batches)]
            failure = causes.in_warmup(event, batch)
            first, count = found.get(identity(failure), (failure, 0))
            found[identity(failure)] = (first, count + 1)
        return tuple(found.values())
