"""The run over one target: warm up, apply the canary, search strictly, keep the books."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import torch

from vlm_ci import books, causes, environment, interrupts
from vlm_ci.errors import UsageError, check_int
from vlm_ci.exploration import Explorer
from vlm_ci.failures import Failure, Finding, identity
from vlm_ci.listeners import Journal, Progress, Silent
from vlm_ci.logits import note_judge
from vlm_ci.parity.canary import apply_canary
from vlm_ci.parity.judging import Judge
from vlm_ci.parity.oracle import EAGER_ERROR_USUAL, ReferenceError
from vlm_ci.parity.relations import parse
from vlm_ci.policies import Policies
from vlm_ci.relating import Relations
from vlm_ci.result import Result, tolerate, verdict
from vlm_ci.strict import Step, StrictRunner
from vlm_ci.targets.answers import checked
from vlm_ci.targets.protocol import Target, info_of
from vlm_ci.warmed import Warmed, counts
from vlm_ci.warming import Warmer
from vlm_ci.warmup import MAX_ROUNDS, Plan, WarmupReport, find_plan
from vlm_ci.watch import internals
from vlm_ci.watch.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vlm_ci.baselines.use import Baseline
    from vlm_ci.caching.use import CompileCache
    from vlm_ci.memory import Memory
    from vlm_ci.sharding import Shard
    from vlm_ci.traffic.spec import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """How much to try, after which warm-up. ``examples`` counts sessions.
    ``evidence`` is tried first, then ``memory``, ``corpus``, and what is generated, of which a run
    may do a ``part`` alone. ``target`` is the name by which the user called the target,
    ``baseline`` what the run is compared with when it is over.
    """

    plan: Plan
    examples: int = 100
    seed: int = 0
    max_rounds: int = MAX_ROUNDS
    command: str = "run"
    corpus: tuple[Session, ...] = ()
    memory: Memory | None = None
    evidence: tuple[Session, ...] = ()
    part: Shard | None = None
    target: str | None = None
    policies: Policies = field(default_factory=Policies)
    baseline: Baseline | None = None
    reference: str = "auto"
    relations: str = "none"


def check(
    target: Target,
    *,
    examples: int = 100,
    warmup: Plan | str | Path | None = None,
    seed: int = 0,
    max_rounds: int = MAX_ROUNDS,
    reference: str = "auto",
    relations: str = "none",
    progress: Progress | None = None,
) -> Result:
    """Warm a target up and search for traffic that it compiles again for or answers wrongly.

    ``warmup`` is a plan, a plan file, a name, or None for the default plan. ``examples`` counts
    sessions; ``reference`` and ``relations`` are as on the command line. An interrupt keeps what
    was found: the result says so and holds it.

    Raises:
        UsageError: a number is out of range, or there is no such plan.
    """
    check_numbers(examples=(examples, 1), seed=(seed, 0), max_rounds=(max_rounds, 2))
    target = checked(target)
    settings = CheckSettings(
        examples=examples,
        seed=seed,
        plan=find_plan(warmup, target.envelope),
        max_rounds=max_rounds,
        reference=reference,
        relations=relations,
    )
    parse(relations)
    checker = Checker(target, settings, progress or Silent())
    checker.run()
    return checker.result


def check_numbers(**numbers: tuple[int, int]) -> None:
    """Refuse numbers, given by name as (value, least value).

    Raises:
        UsageError: one is no whole number or too small.
    """
    for name, (value, minimum) in numbers.items():
        try:
            check_int(name, value, minimum=minimum)
        except ValueError as error:
            raise UsageError(str(error)) from None


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
        self._own_watcher = not isinstance(getattr(target, "watcher", None), Watcher)
        info = info_of(target)
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
        self._judge = Judge(self.target, dtype=info.dtype, wanted=settings.reference)
        note_judge(self._judge, self.result.parity)
        self._relations: Relations | None = None
        # A target that does not say where it runs may run on the GPU, if there is one.
        known = hasattr(target, "info") or not torch.cuda.is_available()
        self._watcher = Watcher(info.device if known else "cuda")
        self.keep_in(journal or Silent())

    def keep_in(self, journal: Journal, cache: CompileCache | None = None) -> None:
        """Let a journal keep what the run finds; warm up from a cache, if one is given."""
        self.journal = journal
        self.warmer = Warmer(
            self.target, self.watcher, progress=self.progress, journal=journal, cache=cache
        )
        self.explorer = Explorer(
            self.target, self.result, journal=journal, progress=self.progress, save=self.save
        )

    @property
    def watcher(self) -> Watcher:
        """The target's own watcher, or one of ours where it has none."""
        return self._watcher if self._own_watcher else self.target.watcher  # type: ignore[attr-defined]

    # -- the run -----------------------------------------------------------------------------

    def run(self) -> None:
        """Warm up, apply the canary, search; fills ``result``."""
        self.drive(self._search)

    def replay(self, session: Session | None, on_step: Callable[[Step], None]) -> None:
        """Warm up, apply the canary, and serve one session; ``on_step`` hears of each batch.

        Without a session a search of ``settings.examples`` sessions takes its place.
        """

        def serve(runner: StrictRunner) -> None:
            if session is None:  # the failure belongs to no session: it takes a search
                self._search(runner)
                return
            runner.on_step = on_step
            self.watcher.sign_all = True
            try:
                runner.run_session(session)
            except Finding as found:
                self.result.failures.append(found.failure)
            finally:
                self.watcher.sign_all = False
            self.judge_calls(runner)

        self.drive(serve)

    @interrupts.remembered()
    def drive(self, judge: Callable[[StrictRunner], None]) -> None:
        """Warm up, apply the canary, and let ``judge`` be strict; ``result`` is valid also where
        an exception ends it."""
        interrupted = complete = False
        self.watcher.begin_run()
        if self._own_watcher:
            self._watcher.start()
        self.save()
        try:
            warmed = self._warm_up()
            self.save()
            if warmed is not None:
                self._apply_canary()
                self._prove_reference()
                self.save()
                self.watcher.begin("strict")
                if names := parse(self.settings.relations):
                    self._relations = Relations(self.target, self.watcher, names, self.result)
                self.result.strict.refusing = self.target.capabilities.in_process
                judge(
                    StrictRunner(
                        self.target,
                        self.watcher,
                        warmed,
                        self.result,
                        records_calls=not self._own_watcher,
                        policies=self.settings.policies,
                        judge=self._judge,
                        relations=self._relations,
                    )
                )
                interrupts.check()
                complete = True
                if self.settings.baseline is not None:
                    self.judge_findings(self.settings.baseline.judge(self.result))
                if getattr(self.target, "weights_changed", bool)():
                    raise UsageError(
                        "the compiled twin wrote into weights that both twins share while it "
                        "served, so that the eager baseline changed too and proves nothing"
                    )
        except KeyboardInterrupt:
            interrupted = True
        finally:
            self.watcher.begin("end")
            if self._own_watcher:
                self._watcher.stop()
            self._close_books()
            self.result.verdict = verdict(self.result, complete=complete, interrupted=interrupted)
            if self.settings.baseline is not None:
                self.settings.baseline.keep(self.result)
            self.save(final=True)

    def save(self, *, final: bool = False) -> None:
        """Let the journal keep what was found so far."""
        found = self.result.failures + self.explorer.found()
        self.journal.save(self.result, found, self.watcher.run_events, final=final)

    def _warm_up(self) -> WarmupReport | None:
        """Run the plan; None where it failed, so that there is nothing to be strict about."""
        if self.warmed is not None:
            self.result.warmup = msgspec.structs.replace(self.warmed.record, reused=True)
            self.judge_findings(self.warmed.findings)
            return self.warmed.report
        plan, result = self.settings.plan, self.result.warmup
        result.plan, result.batches = plan.name, len(plan.batches)
        report = WarmupReport(plan=plan)
        before = self.target.stats()
        try:
            self.warmer.run(report, max_rounds=self.settings.max_rounds)
        except Finding as found:
            self.result.failures.append(found.failure)
            return None
        finally:
            books.note_warmup(result, report, self.target, self.watcher, before)
        findings = self.warmer.findings(plan)
        self.judge_findings(findings)
        if not report.converged:
            self.result.failures.append(causes.endless_warmup(report))
            return None
        if not self.result.failures:
            self.warmed = Warmed(
                report=report,
                record=result,
                counts=counts(self.target),
                mark=internals.CacheMark(),
                findings=findings,
            )
        return report

    def judge_findings(self, findings: tuple[tuple[Failure, int], ...]) -> None:
        """Report what is against a warm-up, or a run as a whole, as the policies say; each cause
        once. Findings come with how often they occurred."""
        reported = set(map(identity, self.result.failures))
        occurred: Counter[str] = Counter()
        for failure, count in findings:
            policy = self.settings.policies.of(failure.kind)
            occurred[failure.kind] += count
            if policy == "off" or identity(failure) in reported:
                continue
            if not self.settings.policies.tolerates(failure.kind, occurred[failure.kind]):
                self.result.failures.append(failure)
                continue
            for _ in range(count):
                tolerate(self.result, failure, policy)

    def _apply_canary(self) -> None:
        self.watcher.begin("canary")
        self.progress.note("canary and reference")
        canary = self.result.parity.canary
        if not hasattr(self.target, "run_perturbed"):
            self.result.warnings.append(
                "the target cannot perturb images, so nothing proves that they matter"
            )
            return
        for outcome in apply_canary(self.target, self._judge.tolerance):  # type: ignore[arg-type]
            canary.applied += 1
            canary.moved += outcome.shows
            change = outcome.largest_change
            canary.changes[outcome.modality] = change if math.isfinite(change) else None
            if not outcome.shows:
                self.result.failures.append(causes.blind(outcome))

    def _prove_reference(self) -> None:
        """Compare eager with its reference on a batch of each mix of modalities in the plan."""
        seen: set[frozenset[str]] = set()
        for batch in self.settings.plan.batches:
            if batch.modalities in seen:
                continue
            seen.add(batch.modalities)
            try:
                self._judge.prove(batch)
            except ReferenceError as error:
                self.result.failures.append(causes.no_reference(str(error), (batch,)))
                break
        note_judge(self._judge, self.result.parity)
        usual = EAGER_ERROR_USUAL.get(str(self.result.options["dtype"]), 0.0)
        autocast = "autocast" in self.target.envelope.contexts  # which narrows by itself
        if self._judge.refers and not autocast and self._judge.eager_error > usual:
            self.result.warnings.append(
                f"eager differs from its {self._judge.reference} reference by "
                f"{self._judge.eager_error:.2g} of the logits' size, more than its type explains: "
                "a part of the model computes in a narrower type, and smaller faults go unseen"
            )

    def _search(self, runner: StrictRunner) -> None:
        settings = self.settings
        self.result.failures += self.explorer.explore(
            runner,
            examples=settings.examples,
            seed=settings.seed,
            corpus=settings.corpus,
            memory=settings.memory,
            evidence=settings.evidence,
            part=settings.part,
        )
        self.judge_calls(runner)

    def judge_calls(self, runner: StrictRunner) -> None:
        """Report a run in which nothing that the recipe compiles was ever called."""
        result = self.result
        if result.failures:
            return
        if not runner.called:
            result.failures.append(causes.never_called(result.recipe))
        elif runner.compares and result.strict.batches and not result.parity.tokens_compared:
            result.failures.append(causes.never_compared(result.strict.batches))

    def _close_books(self) -> None:
        books.note_strict(self.result, self.target, self.watcher, self.settings.policies)
        if self._relations is not None:
            self._relations.close_books()
        if self._judge.missing:
            self.result.warnings.append(
                f"{self._judge.missing} batches were judged by a fixed tolerance, which is weaker: "
                f"{self._judge.failed}"
            )
        missed = [name for name, count in self.result.traffic.corners.items() if not count]
        if missed and not self.result.failures:
            part = self.settings.part
            tail = f" of part {part}; other parts may have reached them" if part else ""
            self.result.warnings.append(
                f"{len(missed)} corners of the envelope were not reached by "
                f"{self.result.traffic.examples} examples{tail}: {', '.join(missed)}"
            )
