"""Growing a plan: serve examples strictly, and add to the plan what would have compiled."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlm_ci import shrink
from vlm_ci.result import Growth
from vlm_ci.synthesis.sizes import generalise
from vlm_ci.traffic.spec import Batch, Session
from vlm_ci.warmup import BatchClass, batch_class

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vlm_ci.synthesis.bench import Bench, Problem

RECURRING = 4  # batches added for one cause before it is asked whether that ever ends
MOST_BATCHES = 64
SHRINK_SECONDS = 5.0
SAMPLE_OF_A_CLASS = 6  # batches of each class that are kept to judge a smaller plan by


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why growing stopped before nothing new was found.

    ``kind`` is "limit" (the recompile limit was reached), "recurring" (one cause keeps coming back
    with other sizes), "endless" (a batch compiles again though it was just warmed), "eager" (a
    batch runs eagerly, which no warm-up helps) or "too-many" (batches in the plan).
    """

    kind: str
    frame: str = ""
    problem: Problem | None = None
    witnesses: tuple[Batch, ...] = ()


@dataclass(slots=True, kw_only=True)
class Grower:
    """A plan that grows; ``plan`` is warmed up on the bench, in whatever order it grew.

    ``witnesses`` holds, for each cause, the smallest batches that were refused for it; ``sample``
    a few batches of each class that were served; ``known`` the causes that were asked about
    already; ``dropped`` counts batches that compiled nothing. ``settled`` says that the cache is
    that of a cold warm-up in the plan's order. ``on_change`` hears whenever the plan has changed.
    """

    bench: Bench
    plan: list[Batch]
    witnesses: dict[str, list[Batch]] = field(default_factory=lambda: defaultdict(list))
    sample: dict[BatchClass, list[Batch]] = field(default_factory=lambda: defaultdict(list))
    known: set[str] = field(default_factory=set)
    curve: list[Growth] = field(default_factory=list)
    examples: int = 0
    batches: int = 0
    dropped: int = 0
    settled: bool = False
    on_change: Callable[[], None] = lambda: None

    def cold(self) -> Trouble | None:
        """Warm the plan up from an empty cache, in its order, without what compiled nothing.

        Returns what went wrong. Batches that compiled nothing left the cache as it was.
        """
        warmed = self.bench.cold(self.plan)
        if not warmed.converged:
            worst = max(range(len(self.plan)), key=lambda i: warmed.last_round[i])
            return Trouble(kind="endless", witnesses=(self.plan[worst],))
        if trouble := self._limit():
            return trouble
        if any(warmed.compiles):
            kept = [batch for batch, n in zip(self.plan, warmed.compiles, strict=True) if n]
            self.dropped += len(self.plan) - len(kept)
            self.plan = kept
            self.on_change()
        self.settled = True
        self.mark()
        return None

    def grow(
        self,
        sessions: Iterator[Session],
        *,
        quiet: int,
        on_example: Callable[[int], None] = lambda since: None,
    ) -> Trouble | None:
        """Serve sessions until ``quiet`` of them in a row show nothing new."""
        since = 0
        passed: set[Batch] = set()
        while since < quiet:
            session = next(sessions)
            self.examples += 1
            since += 1
            for batch in session.batches:
                shape = Batch(batch.requests, 0, batch.padding, batch.context)
                if shape in passed:  # sizes that were served since the plan last changed
                    continue
                self.batches += 1
                problem = self.bench.problem(batch)
                if problem is None:
                    passed.add(shape)
                    self._keep(batch)
                    continue
                since = 0
                passed.clear()
                if trouble := self.add(problem):
                    return trouble
            on_example(since)
        self.mark()
        return None

    def add(self, problem: Problem) -> Trouble | None:
        """Shrink what was refused, generalise it, and warm it up."""
        smallest = smaller(self.bench, problem)
        seen = self.witnesses[problem.key]
        seen.append(smallest)
        general = generalise(
            smallest, self.bench.envelope, lambda batch: _same(self.bench, batch, problem.key)
        )
        for batch in dict.fromkeys((general, smallest)):
            if batch is smallest and general != smallest and not self.bench.problem(smallest):
                break
            self.plan.append(batch)
            self.settled = False
            # The new batch until it is quiet; the others once more, because code that was
            # compiled later may be tried first.
            warmed = self.bench.warm([batch])
            again = self.bench.warm(self.plan)
            self.on_change()
            if trouble := self._limit():
                return trouble
            if not (warmed.converged and again.converged):
                return Trouble(kind="endless", problem=problem, witnesses=(batch,))
        self.mark()
        if still := self.bench.problem(smallest):
            kind = "eager" if still.kind == "eager-fallback" else "endless"
            return Trouble(kind=kind, problem=still, witnesses=(smallest,))
        if len(self.plan) > MOST_BATCHES:
            return Trouble(kind="too-many", problem=problem, witnesses=tuple(seen))
        if len(seen) >= RECURRING and problem.key not in self.known:
            self.known.add(problem.key)
            return Trouble(kind="recurring", problem=problem, witnesses=tuple(seen))
        return None

    def mark(self) -> None:
        """Put a point on the curve, where the number of graphs or batches has changed."""
        point = Growth(examples=self.examples, graphs=self.bench.graphs, batches=len(self.plan))
        last = self.curve[-1] if self.curve else None
        if last is not None and last.examples == point.examples:
            self.curve.pop()
        self.curve.append(point)

    def _limit(self) -> Trouble | None:
        hits = self.bench.limit_hits
        if not hits:
            return None
        recent = max(self.witnesses.values(), key=len, default=[])
        return Trouble(kind="limit", frame=hits[0], witnesses=tuple(recent))

    def _keep(self, batch: Batch) -> None:
        kept = self.sample[batch_class(batch, self.bench.envelope)]
        if len(kept) < SAMPLE_OF_A_CLASS:
            kept.append(batch)


def smaller(bench: Bench, problem: Problem) -> Batch:
    """Return the smallest batch found that is refused for the same cause."""
    session = shrink.reduce(
        Session((problem.batch,)),
        lambda candidate: _same(bench, candidate.batches[0], problem.key),
        bench.envelope,
        time_limit=SHRINK_SECONDS,
    )
    return session.batches[0]


def _same(bench: Bench, batch: Batch, key: str) -> bool:
    problem = bench.problem(batch)
    return problem is not None and problem.key == key
