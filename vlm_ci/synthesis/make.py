"""Warm-up synthesis from settings to files: grow, order, prune, verify cold, write the plan."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from vlm_ci import artifacts, building, causes, environment, interrupts
from vlm_ci.errors import UsageError
from vlm_ci.failures import Failure, Finding
from vlm_ci.result import Growth, Result, Synthesis, Warmup, verdict
from vlm_ci.shrink import complexity
from vlm_ci.synthesis import files, words
from vlm_ci.synthesis.bench import NO_LIMIT, Bench
from vlm_ci.synthesis.examples import examples as draw
from vlm_ci.synthesis.growth import Grower, Trouble
from vlm_ci.synthesis.pruning import prune
from vlm_ci.synthesis.sizes import ordered
from vlm_ci.synthesis.sweep import sweeps
from vlm_ci.synthesis.verification import verify
from vlm_ci.traffic.spec import Session
from vlm_ci.warmup import named_plan

if TYPE_CHECKING:
    from vlm_ci.listeners import Progress
    from vlm_ci.settings import Settings
    from vlm_ci.synthesis.cold import Found, Outcome
    from vlm_ci.targets.protocol import Target
    from vlm_ci.traffic.spec import Batch

ATTEMPTS = 4  # verifications; each that fails adds what it found
ORDERINGS = 4  # cold warm-ups in order before the order is taken as it is


def synthesize(settings: Settings, progress: Progress) -> Result:
    """Make a warm-up plan for the target and envelope of the settings; writes it to ``out``.

    ``settings.examples`` is N: the plan is accepted when N examples of two seeds that were not
    used before compile nothing after a cold warm-up in a fresh process. An interrupt keeps what
    was found. ``result.synthesis`` holds the books; the verdict is "clean" where the plan holds.

    Raises:
        UsageError: bad input, or a target that breaks its protocol.
    """
    check(settings)
    building.prepare(replace(settings, warmup="default"))
    target = building.build_target(settings)
    try:
        return Synthesizer(settings, target, progress).run()
    finally:
        target.close()


def check(settings: Settings) -> None:
    """Refuse what no plan can be made for, before a model is built.

    Raises:
        UsageError: several targets, or a folder that holds what is not ours.
    """
    if len(settings.targets) > 1:
        raise UsageError(f"a plan belongs to one target: name one of {', '.join(settings.targets)}")
    files.check(settings.out)


class Synthesizer:
    """One synthesis over one target; ``result`` is valid at any moment."""

    def __init__(self, settings: Settings, target: Target, progress: Progress) -> None:
        self.settings = settings
        self.progress = progress
        self.bench = Bench(target)
        info = getattr(target, "info", None)
        device = info.device if info else "cpu"
        self.result = Result(
            command="warmup",
            target=settings.target,
            recipe=info.recipe if info else "",
            backend=info.backend if info else "",
            options={
                "device": device,
                "dtype": info.dtype if info else "float32",
                **(info.options if info else {}),
            },
            environment=environment.describe(device),
            seed=settings.seed,
            warnings=environment.version_warnings(),
        )
        if settings.bug is not None:
            self.result.options |= {"bug": settings.bug, "repaired": settings.repaired}
        self.books = self.result.synthesis = Synthesis(
            limit=self.bench.limit, counted=self.bench.tells_graphs
        )
        self.grower = Grower(
            bench=self.bench,
            plan=list(ordered(named_plan("default", target.envelope).batches, target.envelope)),
            on_change=self._save_partial,
        )
        self._first_plan = tuple(self.grower.plan)
        self._failures: list[Failure] = []
        self._sessions = draw(target.envelope, settings.seed)
        self._next_seed = settings.seed + 1
        self._limited = ""  # the frame that reached the deployment's limit
        self._holds = False
        self._graphs: tuple[int, ...] = ()
        self._complete = False
        self._last_found: list[Found] = []  # what the last verification found

    @interrupts.remembered()
    def run(self) -> Result:
        """Do all of it; an interrupt ends it early and keeps what there is."""
        started = time.perf_counter()
        files.prepare(self.settings.out)
        self._save_partial()
        interrupted = False
        try:
            self._make()
            interrupts.check()
            self._complete = True
        except KeyboardInterrupt:
            interrupted = True
        except Finding as found:  # a batch that the envelope allows raised
            self._failures.append(found.failure)
            self.books.status = "not-held"
        finally:
            self.bench.close()
            self.books.curve = self.grower.curve
            self.books.pruned.compiled_nothing += self.grower.dropped
            self.books.seconds = round(time.perf_counter() - started, 3)
            self._close_books(interrupted=interrupted)
        return self.result

    # -- stages ------------------------------------------------------------------------------

    def _make(self) -> None:
        trouble: Trouble | None = self._settle("warming the generic plan up")
        for _ in range(ATTEMPTS):
            if trouble is None:
                trouble = self._grow()
            while trouble is not None:
                if not self._resolve(trouble):
                    return
                trouble = self._grow()
            if trouble := self._order():
                continue
            self._prune()
            outcome = self._verify()
            if self._accepted(outcome):
                return
            trouble = self._take_over(outcome)
        self.books.status = "not-held"

    def _settle(self, stage: str) -> Trouble | None:
        self.progress.note(stage)
        return self.grower.cold()

    def _grow(self) -> Trouble | None:
        # Half of N: the verification serves N more, and what it finds leads back here.
        quiet = max(1, self.settings.examples // 2)
        self.progress.note("serving examples")

        def heard(since: int) -> None:
            served = self.grower.examples
            self.progress.searching(served, served - since + quiet, self.grower.batches, 0)

        return self.grower.grow(self._sessions, quiet=quiet, on_example=heard)

    def _order(self) -> Trouble | None:
        """Put the plan in order and warm it up cold, until that refuses nothing known."""
        for _ in range(ORDERINGS):
            plan = ordered(self.grower.plan, self.bench.envelope)
            if plan == tuple(self.grower.plan) and self.grower.settled:
                return None
            self.grower.plan = list(plan)
            if trouble := self._settle("warming up cold, generic sizes first"):
                return trouble
            missed = [p for batch in self._judges() if (p := self.bench.problem(batch))]
            for problem in missed:
                if self.bench.problem(problem.batch) is None:  # an earlier one helped
                    continue
                if trouble := self.grower.add(problem):
                    return trouble
        return None

    def _prune(self) -> None:
        plan, books = prune(
            self.bench, tuple(self.grower.plan), self._judges(), say=self.progress.note
        )
        known = self.books.pruned
        known.not_needed += books.not_needed
        known.compiled_nothing += books.compiled_nothing
        known.needed, known.untried = books.needed, books.untried
        self.grower.plan, self.grower.settled = list(plan), False
        self._save_partial()

    def _judges(self) -> list[Batch]:
        """The batches that a plan must serve: refused before, or of each class served so far."""
        found = [batch for batches in self.grower.witnesses.values() for batch in batches]
        return [*found, *(b for batches in self.grower.sample.values() for b in batches)]

    def _verify(self) -> Outcome:
        seeds = [self._next_seed, self._next_seed + 1]
        self._next_seed += 2
        self.progress.note(f"verifying in a fresh process, seeds {seeds[0]} and {seeds[1]}")
        outcome = verify(
            self.settings,
            self.bench.envelope,
            tuple(self.grower.plan),
            seeds=seeds,
            examples=self.settings.examples,
            lifted=bool(self._limited),
            progress=self.progress,
        )
        self.books.verifications.append(outcome.verification)
        self.result.traffic = outcome.traffic
        if outcome.failure is not None:
            self._failures.append(outcome.failure)
        return outcome

    def _accepted(self, outcome: Outcome) -> bool:
        """Take the outcome over where it settles the synthesis."""
        proof = outcome.verification
        if outcome.failure is not None:
            self.books.status = "not-held"
            return True
        if outcome.limit_hits and not self._limited:
            return False
        if not proof.held:
            return False
        self.grower.curve.append(
            Growth(
                examples=self.grower.examples + proof.examples,
                graphs=sum(outcome.graphs),
                batches=len(self.grower.plan),
            )
        )
        books = self.books
        self._graphs = outcome.graphs
        books.graphs, books.compiles = sum(outcome.graphs), proof.warmup_compiles
        books.compile_seconds, books.serves = outcome.compile_seconds, outcome.serves
        self.result.warmup = Warmup(
            plan=files.PLAN,
            rounds=proof.rounds,
            batches=len(self.grower.plan),
            compiles=books.compiles,
            graphs=books.graphs,
            seconds=proof.warmup_seconds,
            converged=True,
        )
        strict = self.result.strict
        strict.batches, strict.compiles = proof.batches, proof.compiles
        strict.refusals, strict.seconds = proof.refused, proof.seconds - proof.warmup_seconds
        if not outcome.called:
            books.status = "not-held"
            self._failures.append(causes.never_called(self.result.recipe))
        elif self._limited:
            frame, variants = outcome.most_variants
            books.status, books.limit_frame, books.variants = "limit", frame, variants
            self._failures.append(
                words.limit(frame, self.bench.limit, variants, self._smallest(None))
            )
        else:
            books.status, self._holds = "bounded", True
        return True

    def _take_over(self, outcome: Outcome) -> Trouble | None:
        """Add what the fresh process found; what it refused may not be refused here."""
        if outcome.limit_hits:
            return Trouble(kind="limit", frame=outcome.limit_hits[0])
        if not outcome.found:  # its warm-up did not converge
            return Trouble(kind="endless", witnesses=(self.grower.plan[-1],))
        self._last_found = outcome.found
        for found in outcome.found:
            self.grower.witnesses[found.key].append(found.smallest)
            if found.general not in self.grower.plan:
                self.grower.plan.append(found.general)
        self.grower.plan = list(ordered(self.grower.plan, self.bench.envelope))
        return self._settle("warming up cold with what the fresh process found")

    # -- trouble -----------------------------------------------------------------------------

    def _resolve(self, trouble: Trouble) -> bool:
        """Find out what the trouble means; False where it ends the synthesis."""
        if trouble.kind == "eager":
            assert trouble.problem is not None
            self.books.status = "not-held"
            self._failures.append(
                words.of_problem(
                    trouble.problem, trouble.witnesses[0], tail="; no warm-up helps that"
                )
            )
            return False
        self.progress.note("asking whether that ever ends: one dimension at a time")
        found = sweeps(self.bench, trouble.witnesses, say=self.progress.note)
        self.books.sweeps = found
        growing = [sweep for sweep in found if sweep.growing]
        growing.sort(key=lambda sweep: -sum(compiles > 0 for _, compiles in sweep.rows))
        self.books.growing = [sweep.dimension for sweep in growing]
        room = NO_LIMIT if self._limited else self.bench.limit
        fits = trouble.kind == "recurring" and all(s.possible < room for s in growing)
        ends = trouble.kind in ("endless", "too-many")
        ends |= trouble.kind == "limit" and bool(self._limited)  # beyond the lifted limit too
        if ends or (growing and not fits):
            self.books.status = "unbounded"
            ordered_sweeps = [*growing, *(sweep for sweep in found if not sweep.growing)]
            self._failures.append(words.unbounded(ordered_sweeps, trouble, self._smallest(trouble)))
            return False
        if trouble.kind == "limit":
            self._limited = trouble.frame
            self.result.warnings.append(
                f"the recompile limit ({self.bench.limit}) was reached at {trouble.frame}: growing "
                "went on with the limit lifted, to find how many variants are needed"
            )
        else:
            self.bench.lift_limit(lifted=bool(self._limited))
            if growing:
                self.result.warnings.append(
                    f"one graph for each {growing[0].dimension}: the plan grows with the envelope"
                )
        return (again := self._settle("warming up cold")) is None or self._resolve(again)

    def _smallest(self, trouble: Trouble | None) -> Batch | None:
        """The smallest batch that shows the trouble."""
        if trouble is not None and trouble.witnesses:
            return min(trouble.witnesses, key=lambda batch: complexity(Session((batch,))))
        plan = self.grower.plan
        return plan[-1] if plan else None

    # -- files -------------------------------------------------------------------------------

    def _save_partial(self) -> None:
        self._write(files.PARTIAL, files.UNFINISHED, holds=False)

    def _write(self, name: str, note: str, *, holds: bool) -> None:
        plan = tuple(self.grower.plan)
        files.write_plan(
            self.settings.out / name, self.result, plan, self._graphs, note=note, holds=holds
        )

    def _close_books(self, *, interrupted: bool) -> None:
        books, result = self.books, self.result
        books.batches = len(self.grower.plan)
        result.failures = self._failures
        if books.status == "not-held" and not self._failures:
            result.failures = [
                words.of_problem(found, found.smallest, tail=" (after a cold warm-up)")
                for found in self._last_found[:1]
            ]
        if self._holds:
            books.plan = files.PLAN
            proof = books.verifications[-1]
            self._write(
                files.PLAN,
                f"verified: {proof.examples} examples of the seeds "
                f"{' and '.join(map(str, proof.seeds))} compiled nothing",
                holds=True,
            )
            (self.settings.out / files.PARTIAL).unlink(missing_ok=True)
        else:
            books.plan = files.PARTIAL
            self._write(files.PARTIAL, files.partial_note(books), holds=False)
        result.warmup.plan = books.plan
        result.verdict = verdict(
            result, complete=self._complete and self._holds, interrupted=interrupted
        )
        evidence = artifacts.evidence_of(
            result,
            # What needs ever more graphs is refused after the generic plan already.
            plan=self._first_plan if books.status == "unbounded" else tuple(self.grower.plan),
            envelope=self.bench.envelope,
            test="",
            loadable=True,
        )
        folder = artifacts.ResultsFolder(self.settings.out, evidence)
        folder.save(result, result.failures, [], final=True)
