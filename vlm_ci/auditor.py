"""All root causes of one target: search, shrink, add what was found to the warm-up, search again.

The recompile limit is raised while the warm-up grows: beyond it torch runs a frame eagerly and
refuses nothing more. A frame that needs more variants than the real limit is a cause of its own.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from vlm_ci import causes, shrink
from vlm_ci.checker import Checker, CheckSettings, check_numbers
from vlm_ci.failures import Failure, Finding, identity
from vlm_ci.listeners import Silent
from vlm_ci.result import Audit, Result
from vlm_ci.targets.answers import checked
from vlm_ci.warmup import Plan, WarmupReport, find_plan
from vlm_ci.watch import internals

if TYPE_CHECKING:
    from pathlib import Path

    from vlm_ci.caching.use import CompileCache
    from vlm_ci.listeners import Journal, Progress
    from vlm_ci.strict import StrictRunner
    from vlm_ci.targets.protocol import Target
    from vlm_ci.traffic.spec import Batch

MOST_ROUNDS = 40
MOST_EXTENSIONS = 6  # of the warm-up for one cause: beyond that it grows with the traffic
RAISED_LIMIT = 64
_EXTENDABLE = ("recompile", "new-frame")


def audit(
    target: Target,
    *,
    examples: int = 300,
    warmup: Plan | str | Path | None = None,
    seed: int = 0,
    reference: str = "auto",
    relations: str = "none",
    progress: Progress | None = None,
) -> Result:
    """Find all root causes of a target: the result's failures, each with its smallest session.

    ``examples`` counts the sessions of each search; ``warmup`` is a plan, a plan file, a name, or
    None for the default plan; ``reference`` and ``relations`` are as on the command line. The
    target's warm-up grows; reset or close it afterwards.

    Raises:
        UsageError: a number is out of range, or there is no such plan.
    """
    check_numbers(examples=(examples, 1), seed=(seed, 0))
    target = checked(target)
    plan = find_plan(warmup, target.envelope)
    auditor = Auditor(
        target,
        CheckSettings(
            examples=examples,
            seed=seed,
            plan=plan,
            command="audit",
            reference=reference,
            relations=relations,
        ),
        progress,
    )
    auditor.run()
    return auditor.result


class Auditor:
    """An audit of one target; ``result`` is valid at any moment.

    The batches that show a cause are added to the warm-up, so that the next search finds another
    one. Causes that no warm-up mends (wrong logits, eager calls) are passed over once known.
    """

    def __init__(
        self,
        target: Target,
        settings: CheckSettings,
        progress: Progress | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._checker = Checker(target, settings, progress or Silent(), journal=journal)
        self._settings = settings
        self._plan = settings.plan
        self._extensions: dict[str, int] = {}  # of the warm-up, by cause
        self._extended = False  # since the last search
        self.result.audit = Audit()

    @property
    def result(self) -> Result:
        """What was found."""
        return self._checker.result

    def keep_in(self, journal: Journal, cache: CompileCache | None = None) -> None:
        """Let a journal keep what the audit finds; warm up from a cache, if one is given."""
        self._checker.keep_in(journal, cache)

    def run(self) -> None:
        """Warm up, then search and extend until a whole search finds nothing new."""
        limit = internals.recompile_limit()
        internals.set_recompile_limit(max(limit, RAISED_LIMIT))
        self._checker.journal.warmed_by(
            self._plan.batches, recompile_limit=internals.recompile_limit()
        )
        try:
            self._checker.drive(lambda runner: self._audit(runner, limit))
        finally:
            internals.set_recompile_limit(limit)

    def _audit(self, runner: StrictRunner, limit: int) -> None:
        audit = self.result.audit
        assert audit is not None
        clean = False
        while not clean and audit.rounds < MOST_ROUNDS:
            audit.rounds += 1
            self._checker.progress.auditing(audit.rounds, len(self.result.failures))
            settings = self._settings
            found = self._checker.explorer.explore(
                runner,
                examples=settings.examples,
                seed=settings.seed + audit.rounds - 1,
                corpus=settings.corpus,
                memory=settings.memory if audit.rounds == 1 else None,
                evidence=settings.evidence if audit.rounds == 1 else (),
                part=settings.part,
            )
            clean, self._extended = not found, False
            left = sorted(found, key=_size)
            try:
                while left:
                    self._take(left[0], runner)
                    del left[0]
            except BaseException:  # an interrupt: what waits is reported as it is
                known = set(map(identity, self.result.failures))
                self.result.failures += [one for one in left if identity(one) not in known]
                raise
            self._checker.save()
        audit.complete = clean
        audit.plan_batches = len(self._plan.batches)
        if not clean:
            self.result.warnings.append(
                f"the audit stopped after {MOST_ROUNDS} rounds, and was still finding causes"
            )
        self._judge_variants(limit)
        self._checker.judge_calls(runner)

    def _take(self, failure: Failure, runner: StrictRunner) -> None:
        """Report a cause once, and do what lets the search find the next one."""
        key = identity(failure)
        refused = failure.kind in _EXTENDABLE and not causes.is_late(failure)
        if self._extended and refused and not self._shows(failure, runner):
            return  # another cause of this search has mended it, or hides it: not one of its own
        if key not in self._extensions:
            self._extensions[key] = 0
            self.result.failures.append(failure)
            self._checker.save()  # with the warm-up under which it was found
        if not refused or failure.traffic is None:
            runner.known.add(key)
            return
        try:
            self._extend(failure.traffic.batches)
        except Finding as crash:  # the warm-up cannot serve it either
            self._note(key, f"the warm-up could not be extended: {crash}")
            if identity(crash.failure) not in map(identity, self.result.failures):
                self.result.failures.append(crash.failure)
            runner.known.add(key)
            return
        self._extensions[key] += 1
        if self._shows(failure, runner):
            self._note(key, "it is refused even after a warm-up with this very traffic")
            runner.known.add(key)
        elif self._extensions[key] == 1:
            self._note(key, "with this traffic in the warm-up it does not occur")
        elif self._extensions[key] == MOST_EXTENSIONS:
            self._note(
                key,
                f"it came back with other sizes after each of {MOST_EXTENSIONS} extensions of the "
                "warm-up: `vlm-ci warmup` tells what it grows with",
            )
            runner.known.add(key)

    def _extend(self, batches: tuple[Batch, ...]) -> None:
        """Add batches to the warm-up and run all of it until nothing is compiled."""
        audit, watcher = self.result.audit, self._checker.watcher
        assert audit is not None
        new = tuple(batch for batch in batches if batch not in self._plan.batches)
        longer = Plan(name=self._plan.name, batches=(*self._plan.batches, *new))
        audit.extensions += 1
        self._extended = True
        before, first = watcher.count("compile"), len(watcher.events)
        warmer = self._checker.warmer
        try:
            warmer.run(WarmupReport(plan=longer), max_rounds=self._settings.max_rounds)
            self._plan = longer
            self._checker.judge_findings(warmer.findings(longer, watcher.events[first:]))
        finally:
            audit.extension_compiles += watcher.count("compile") - before
            watcher.begin("strict")
            self._checker.journal.warmed_by(
                self._plan.batches, recompile_limit=internals.recompile_limit()
            )

    def _shows(self, failure: Failure, runner: StrictRunner) -> bool:
        assert failure.traffic is not None
        try:
            runner.run_session(failure.traffic)
        except Finding as found:
            return identity(found.failure) == identity(failure)
        return False

    def _note(self, key: str, note: str) -> None:
        failures = self.result.failures
        index = next(i for i, known in enumerate(failures) if identity(known) == key)
        failures[index] = msgspec.structs.replace(failures[index], note=note)

    def _judge_variants(self, limit: int) -> None:
        """Report frames that need more compiled variants than torch keeps."""
        variants: Counter[str] = Counter()
        names: dict[str, str] = {}
        for event in self._checker.watcher.run_events:
            if event.kind == "compiled":
                frame = str(event.evidence["compile_id"]).rpartition("/")[0]
                variants[frame] += 1
                names[frame] = event.frame
        many = {names[frame]: count for frame, count in variants.items() if count > limit}
        self._checker.journal.warmed_by(self._plan.batches, recompile_limit=limit)
        self._checker.judge_findings(
            tuple((causes.too_many_variants(name, many[name], limit), 1) for name in many)
        )
        self._checker.save()


def _size(failure: Failure) -> tuple[int, ...]:
    return shrink.complexity(failure.traffic) if failure.traffic is not None else ()
