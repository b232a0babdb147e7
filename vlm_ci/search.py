"""The search: Hypothesis generates sessions, and shrinks those that fail. Judges nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import seed as with_seed
from hypothesis.errors import FlakyFailure, Unsatisfiable

from vlm_ci import shrink
from vlm_ci.errors import UsageError
from vlm_ci.failures import Failure, Finding, identity
from vlm_ci.sharding import RUN_LENGTH, Shard
from vlm_ci.traffic import strategies
from vlm_ci.traffic.spec import Session

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from vlm_ci.traffic.envelope import Envelope

# Hypothesis may shrink for as long as a minute. It is stopped after so many seconds, but not before
# so many sessions, which a slow target needs; ``shrink`` then goes on with what there is.
SHRINK_SECONDS = 3.0
SHRINK_SESSIONS = 5

Check = Callable[[Session], None]


class _Stopped(BaseException):
    """Carries what is no ``Exception`` through Hypothesis, which would take a test runner's
    timeout for a failing example and shrink it."""


@contextmanager
def _same_constants() -> Iterator[None]:
    """Let a seed mean the same traffic in every process.

    Hypothesis also draws numbers that it finds in the source of modules which lie outside
    site-packages (since 6.131). What a seed draws would depend on what a process has imported, so
    that shards would not try what one run tries. It has no option for that, hence the private name;
    a version without it is taken as it is.
    """
    from hypothesis.internal.conjecture import providers

    find = getattr(providers, "_get_local_constants", None)
    if find is None or not hasattr(providers, "CONSTANTS_CACHE"):
        yield
        return
    none = type(find())()
    providers.CONSTANTS_CACHE.cache.clear()
    providers._get_local_constants = lambda: none
    try:
        yield
    finally:
        providers._get_local_constants = find
        providers.CONSTANTS_CACHE.cache.clear()


@dataclass(slots=True)
class Search:
    """What a search has found so far: the smallest failing session of each cause.

    ``on_found`` is called whenever ``best`` has become better; ``passed`` and ``failed`` are the
    sessions of the corpus that do not fail and that do.
    """

    envelope: Envelope
    on_found: Callable[[], None] = lambda: None
    best: dict[str, Failure] = field(default_factory=dict)
    passed: list[Session] = field(default_factory=list)
    failed: list[Session] = field(default_factory=list)
    flaky: bool = False
    first_red: float | None = None  # time.perf_counter() of the first failing session
    _since_red: int = 0  # sessions tried since then

    def run(
        self,
        check: Check,
        *,
        examples: int,
        seed: int,
        corpus: Sequence[Session] = (),
        part: Shard | None = None,
    ) -> None:
        """Try the corpus, then ``examples`` sessions; stop where something was found.

        That is after the corpus, or after the run of ten. ``check`` raises a ``Finding`` for a
        session that fails. What was found is in ``best``, also when the search is interrupted.
        With a ``part`` every count-th run of ten is tried: all parts together try what a search
        without parts does, each with the seeds of its own runs.
        """
        strategy = strategies.sessions(self.envelope)
        for session in corpus:
            try:
                check(session)
            except Finding as found:
                self.failed.append(session)
                self._keep(found.failure)
            else:
                self.passed.append(session)
        if self.best:
            examples = 0
        for index in range(math.ceil(examples / RUN_LENGTH)):
            if part is not None and not part.takes(index):
                continue
            count = min(RUN_LENGTH, examples - index * RUN_LENGTH)
            self._run_once(check, strategy, count, seed * 1_000_003 + index)
            if self.best:
                break
        for key in list(self.best):
            self._reduce(check, key)

    def _run_once(
        self, check: Check, strategy: SearchStrategy[Session], count: int, seed: int
    ) -> None:
        errors: list[Exception] = []
        stops: list[BaseException] = []

        @with_seed(seed)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            derandomize=False,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
            print_blob=False,
            report_multiple_bugs=True,
        )
        @given(strategy)
        def explore(session: Session) -> None:
            if self._shrunk_enough():
                raise _Stopped
            try:
                check(session)
            except Finding as found:
                self._keep(found.failure)
                raise
            except UsageError as error:  # bad input is no traffic to shrink
                stops.append(error)
                raise _Stopped from error
            except Exception as error:  # not a verdict: an error of our own, or bad input
                errors.append(error)
                raise
            except BaseException as error:
                stops.append(error)
                raise _Stopped from error

        try:
            with _same_constants():
                explore()
        except _Stopped:
            if stops:
                raise stops[0] from None
        except Finding:
            pass
        except FlakyFailure:
            if errors:
                raise errors[0] from None
            self.flaky = True
        except Unsatisfiable:
            pass
        except BaseExceptionGroup as group:
            # Several causes at once, each raised once more in the end, when it may be too late for
            # it; anything else is an error of our own.
            if stops:
                raise stops[0] from None
            _, others = group.split((Finding, _Stopped))
            if others is not None:
                raise

    def _shrunk_enough(self) -> bool:
        """Whether Hypothesis had its time since the first failing session."""
        if self.first_red is None:
            return False
        self._since_red += 1
        seconds = time.perf_counter() - self.first_red
        return seconds > SHRINK_SECONDS and self._since_red > SHRINK_SESSIONS

    def _keep(self, failure: Failure) -> None:
        key = identity(failure)
        known = self.best.get(key)
        if self.first_red is None:
            self.first_red = time.perf_counter()
        if known is None or _complexity(failure) < _complexity(known):
            self.best[key] = failure
            self.on_found()

    def _reduce(self, check: Check, key: str) -> None:
        def fails(session: Session) -> bool:
            try:
                check(session)
            except Finding as found:
                self._keep(found.failure)
                return identity(found.failure) == key
            return False

        traffic = self.best[key].traffic
        if traffic is not None:
            shrink.reduce(traffic, fails, self.envelope)


def _complexity(failure: Failure) -> tuple[int, ...]:
    return shrink.complexity(failure.traffic) if failure.traffic is not None else ()
