"""A search over one target under its books: what was sent, what was found, how long it took."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from vlm_ci import causes
from vlm_ci.failures import Failure, identity
from vlm_ci.parity.localisation import localise
from vlm_ci.result import Regions, Result
from vlm_ci.search import Search
from vlm_ci.sharding import examples_of
from vlm_ci.traffic import corners
from vlm_ci.traffic.spec import Image, Session, Video
from vlm_ci.warmup import increase

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vlm_ci.listeners import Journal, Progress
    from vlm_ci.memory import Memory
    from vlm_ci.sharding import Shard
    from vlm_ci.strict import StrictRunner
    from vlm_ci.targets.protocol import Target


class Explorer:
    """Searches a target, once or again; the books are kept in ``result``.

    ``save`` is called whenever something was found or a session is over.
    """

    def __init__(
        self,
        target: Target,
        result: Result,
        *,
        journal: Journal,
        progress: Progress,
        save: Callable[[], None],
    ) -> None:
        self._target = target
        self._result = result
        self._journal = journal
        self._progress = progress
        self._save = save
        self._search: Search | None = None

    def found(self) -> list[Failure]:
        """Return what the search that is going on has found so far."""
        return list(self._search.best.values()) if self._search is not None else []

    def explore(
        self,
        runner: StrictRunner,
        *,
        examples: int,
        seed: int,
        corpus: Sequence[Session] = (),
        memory: Memory | None = None,
        evidence: Sequence[Session] = (),
        part: Shard | None = None,
    ) -> list[Failure]:
        """Try recorded sessions, then search; return what was found, each as small as it gets.

        ``evidence`` comes first. A part of a search tries its part of the corpus too; evidence and
        memory it tries as a whole, because another machine's may hold other sessions.

        Where an exception ends the search, what it has found is in the result's failures.
        """
        target, result = self._target, self._result
        search = self._search = Search(envelope=target.envelope, on_found=self._save)
        strict, traffic = result.strict, result.traffic
        if not traffic.corners:
            traffic.corners = dict.fromkeys(corners.allowed(target.envelope), 0)
        own = [session for index, session in enumerate(corpus) if not part or part.takes(index)]
        recorded = [*evidence, *(memory.sessions() if memory else ()), *own]
        examples_here = examples_of(part, examples)
        accepted = [
            session
            for session in dict.fromkeys(recorded)
            if not any(map(target.envelope.violation, session.batches))
        ]
        traffic.corpus = len(accepted)
        traffic.corpus_outside = len(set(recorded)) - len(accepted)
        strict.started, started = strict.started or time.time(), time.perf_counter()
        at_start = target.stats()
        forward = at_start.forward_seconds
        left = len(accepted)  # sessions of the corpus come first, and are no examples
        already = traffic.examples

        def check_session(session: Session) -> None:
            nonlocal left
            if left or not search.best:  # from the first failure on, Hypothesis shrinks
                self._count(session, example=not left)
            left = max(left - 1, 0)
            self._journal.serving(session)
            runner.run_session(session)
            self._save()
            self._progress.searching(
                traffic.examples - already, examples_here, strict.batches, len(search.best)
            )

        complete = False
        try:
            search.run(check_session, examples=examples, seed=seed, corpus=accepted, part=part)
            self._localise(search)
            complete = True
        finally:
            strict.seconds += time.perf_counter() - started
            if search.first_red is not None:
                strict.shrink_seconds.append(round(time.perf_counter() - search.first_red, 3))
            found = [_noted(failure, search.flaky) for failure in search.best.values()]
            self._search = None
            if result.evidence is not None:
                result.evidence.failing += sum(one in search.failed for one in evidence)
            if not complete:
                known = set(map(identity, result.failures))
                result.failures += [one for one in found if identity(one) not in known]
            if runner.regions:
                strict.regions_per_step = Regions(
                    least=min(runner.regions),
                    mean=round(sum(runner.regions) / len(runner.regions), 3),
                    most=max(runner.regions),
                )
            if memory is not None:
                failed = [failure.traffic for failure in found if failure.traffic]
                memory.update(passed=search.passed, failed=failed)
                new = [text for text in memory.problems if text not in result.warnings]
                result.warnings += new
            at_end = target.stats()  # last: an engine that died may raise here
            if forward is not None and at_end.forward_seconds is not None:
                strict.forward_seconds += at_end.forward_seconds - forward
            if not target.capabilities.in_process:
                strict.compiles += increase(at_start.compiles, at_end.compiles) or 0
        return found

    def _localise(self, search: Search) -> None:
        """Say of each mismatch where in the model it begins, and at which stage."""
        for key, failure in search.best.items():
            place = failure.location
            if failure.kind != "mismatch" or not place or place.get("relation"):
                continue
            assert failure.traffic is not None
            where = localise(
                self._target, failure.traffic, int(place["request"]), int(place["token"])
            )
            told = {name: text for name, text in msgspec.to_builtins(where).items() if text}
            search.best[key] = msgspec.structs.replace(
                failure,
                location={**place, **told},
                advice=causes.MISMATCH_ADVICE.get(where.stage, failure.advice),
            )
            self._save()

    def _count(self, session: Session, *, example: bool) -> None:
        traffic = self._result.traffic
        traffic.examples += example
        for batch in session.batches:
            traffic.batches += 1
            traffic.requests += len(batch.requests)
            traffic.images += sum(isinstance(item, Image) for item in batch.items())
            traffic.videos += sum(isinstance(item, Video) for item in batch.items())
            traffic.text_only += batch.modalities == {"text"}
        for name in corners.reached(session, self._target.envelope):
            traffic.corners[name] += 1


def _noted(failure: Failure, flaky: bool) -> Failure:
    if not flaky:
        return failure
    note = (
        "what was captured or compiled stays: served again in this process it does not show"
        if failure.kind in ("graph-capture", "triton-compile")
        else "not every repetition showed it: it depends on what was served before"
    )
    return msgspec.structs.replace(failure, note=note)
