"""The verification's own process: warm a plan up cold, serve fresh examples strictly, report.

``python -m vlm_ci.synthesis.cold JOB OUTCOME`` reads a job and writes an outcome, both JSON; lines
on standard output that begin with ``PROGRESS`` say how far it is. It prunes and grows nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, defaultdict
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vlm_ci.failures import Failure, Finding
from vlm_ci.result import GraphUse, Traffic, Verification
from vlm_ci.traffic.envelope import Envelope
from vlm_ci.traffic.spec import Batch, Image, Session, Video

if TYPE_CHECKING:
    from vlm_ci.synthesis.bench import Bench, Problem, Warmed

PROGRESS = "vlm-ci-progress"
MOST_REFUSED = 25  # a plan that refuses so many does not hold: the rest of the examples is spared
MOST_CAUSES = 6  # that are shrunk and handed back


class Job(msgspec.Struct, kw_only=True):
    """What to verify. ``settings`` are those that tell one target from another; ``lifted`` says
    that the recompile limit is to be lifted. ``examples`` are spread over ``seeds``."""

    settings: dict[str, Any]
    envelope: Envelope | None
    plan: tuple[Batch, ...]
    seeds: list[int]
    examples: int
    lifted: bool = False


class Found(msgspec.Struct, kw_only=True):
    """A cause for which a batch was refused: the batch as small as it gets, and generic."""

    key: str
    kind: str
    cause: str
    advice: str
    frame: str
    guards: tuple[str, ...]
    smallest: Batch
    general: Batch


class Outcome(msgspec.Struct, kw_only=True):
    """What the process found. ``failure`` is a batch that raised; ``graphs`` are those of each
    batch of the plan."""

    verification: Verification
    traffic: Traffic
    graphs: tuple[int, ...] = ()
    compile_seconds: float = 0.0
    counted: bool = True
    called: bool = False
    serves: list[GraphUse] = []
    found: list[Found] = []
    limit_hits: list[str] = []
    most_variants: tuple[str, int] = ("", 0)
    failure: Failure | None = None
    error: str = ""


def main(arguments: list[str]) -> int:
    """Run one job; returns 0 where there is an outcome, whatever it says."""
    job = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=Job)
    outcome = verify(job)
    Path(arguments[1]).write_bytes(msgspec.json.encode(outcome))
    return 0


def verify(job: Job) -> Outcome:
    """Build the job's target and verify its plan, in this process."""
    from vlm_ci import building
    from vlm_ci.errors import UsageError
    from vlm_ci.settings import Settings
    from vlm_ci.synthesis.bench import Bench

    names = {field.name for field in fields(Settings)}
    settings = Settings(**{k: v for k, v in job.settings.items() if k in names})
    outcome = Outcome(
        verification=Verification(process=os.getpid(), seeds=job.seeds), traffic=Traffic()
    )
    target = None
    try:
        target = building.build_target(settings, envelope=job.envelope)
        bench = Bench(target)
        _verify(bench, job, outcome)
    except UsageError as error:
        outcome.error = str(error)
    except Finding as found:
        outcome.failure = found.failure
    finally:
        if target is not None:
            target.close()
    return outcome


def _verify(bench: Bench, job: Job, outcome: Outcome) -> None:
    verification = outcome.verification
    started = time.perf_counter()
    if job.lifted:
        bench.lift_limit()
        bench.reset()
    uses = _Uses(bench, job.plan)
    warmed = uses.warm_up()
    verification.rounds = warmed.rounds
    verification.warmup_compiles = bench.watcher.count("compile") or sum(warmed.compiles)
    verification.warmup_seconds = round(time.perf_counter() - started, 3)
    outcome.graphs = warmed.graphs
    outcome.limit_hits = bench.limit_hits
    outcome.most_variants = bench.most_variants()
    outcome.compile_seconds = round(
        sum(e.evidence.get("seconds", 0.0) for e in bench.watcher.events if e.kind == "compiled"), 3
    )
    outcome.counted = bench.tells_graphs
    if warmed.converged and not outcome.limit_hits:
        problems = _serve(bench, job, outcome, uses)
        outcome.found = [_found(bench, problem) for problem in problems[:MOST_CAUSES]]
        verification.held = not problems
    outcome.called = bench.called
    outcome.serves = uses.records()
    verification.seconds = round(time.perf_counter() - started, 3)


def _serve(bench: Bench, job: Job, outcome: Outcome, uses: _Uses) -> list[Problem]:
    """Serve the examples; returns one problem for each cause."""
    from vlm_ci.synthesis.examples import examples
    from vlm_ci.traffic import corners

    verification, traffic = outcome.verification, outcome.traffic
    traffic.corners = dict.fromkeys(corners.allowed(bench.envelope), 0)
    problems: dict[str, Problem] = {}
    shares = [job.examples // len(job.seeds)] * len(job.seeds)
    shares[0] += job.examples - sum(shares)
    before = bench.watcher.count("compile")
    for seed, share in zip(job.seeds, shares, strict=True):
        sessions = examples(bench.envelope, seed)
        for _ in range(share):
            session = next(sessions)
            uses.begin_example()
            _count(session, bench.envelope, traffic)
            for batch in session.batches:
                verification.batches += 1
                problem = bench.problem(batch)
                uses.served(batch)
                if problem is not None:
                    verification.refused += 1
                    problems.setdefault(problem.key, problem)
            verification.examples += 1
            _tell("examples", verification.examples, job.examples, verification.batches)
            if verification.refused >= MOST_REFUSED:
                break
    verification.compiles = bench.watcher.count("compile") - before
    return list(problems.values())


def _found(bench: Bench, problem: Problem) -> Found:
    from vlm_ci.synthesis.growth import smaller
    from vlm_ci.synthesis.sizes import generalise

    smallest = smaller(bench, problem)

    def refused(batch: Batch) -> bool:
        again = bench.problem(batch)
        return again is not None and again.key == problem.key

    return Found(
        key=problem.key,
        kind=problem.kind,
        cause=problem.cause,
        advice=problem.advice,
        frame=problem.frame,
        guards=problem.guards,
        smallest=smallest,
        general=generalise(smallest, bench.envelope, refused),
    )


class _Uses:
    """Which graph the plan's batches compiled, and what traffic ran on it."""

    def __init__(self, bench: Bench, plan: tuple[Batch, ...]) -> None:
        self._bench = bench
        self._plan = plan
        self._made_by: dict[int, tuple[int, str]] = {}  # graph → batch of the plan, place
        self._served: dict[int, Counter[str]] = defaultdict(Counter)
        self._examples: Counter[int] = Counter()
        self._in_example: set[int] = set()

    def warm_up(self) -> Warmed:
        """Warm the plan up, and note which of its batches compiled which graph."""
        count = len(self._plan)
        warmed = self._bench.warm(
            self._plan,
            on_batch=lambda rounds, index: _tell("warm-up", rounds, index, count),
        )
        for event in self._bench.watcher.events:
            if event.kind == "graph" and "graph" in event.evidence:
                batch = (event.step - 1) % count
                self._made_by[event.evidence["graph"]] = (batch, event.frame)
        return warmed

    def begin_example(self) -> None:
        """Begin the next example."""
        self._in_example = set()

    def served(self, batch: Batch) -> None:
        """Count the graphs that the last step executed."""
        from vlm_ci.warmup import batch_class

        name = str(batch_class(batch, self._bench.envelope))
        for graph in self._bench.watcher.executed:
            self._served[graph][name] += 1
            if graph not in self._in_example:
                self._in_example.add(graph)
                self._examples[graph] += 1

    def records(self) -> list[GraphUse]:
        """Return one record for each graph."""
        return [
            GraphUse(
                graph=graph,
                place=place,
                batch=batch,
                batches=sum(self._served[graph].values()),
                examples=self._examples[graph],
                served=dict(self._served[graph].most_common()),
            )
            for graph, (batch, place) in sorted(self._made_by.items())
        ]


def _count(session: Session, envelope: Envelope, traffic: Traffic) -> None:
    from vlm_ci.traffic import corners

    traffic.examples += 1
    for batch in session.batches:
        traffic.batches += 1
        traffic.requests += len(batch.requests)
        traffic.images += sum(isinstance(item, Image) for item in batch.items())
        traffic.videos += sum(isinstance(item, Video) for item in batch.items())
        traffic.text_only += batch.modalities == {"text"}
    for name in corners.reached(session, envelope):
        traffic.corners[name] += 1


def _tell(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, (PROGRESS, *words))) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
