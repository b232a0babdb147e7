"""The search: Hypothesis generates sessions, and shrinks those that fail. Judges nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import seed as with_seed
from hypothesis.errors import FlakyFailure, Unsatisfiable

from vlm_ci import shrink
from vlm_ci.failures import Failure, Finding
from vlm_ci.traffic import strategies
from vlm_ci.traffic.spec import Session

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from vlm_ci.traffic.envelope import Envelope

# Hypothesis spends most examples after its first ten on variations of earlier ones. A search in
# runs of ten draws afresh far more often, which is what it takes for 50 examples to reach every
# corner (measured over 12 seeds: none missed; one run of 50 missed one or two in 4 of the 12).
RUN_LENGTH = 10

Check = Callable[[Session], None]


@dataclass(slots=True)
class Search:
    """What a search has found so far: the smallest failing session of each cause."""

    envelope: Envelope
    best: dict[str, Failure] = field(default_factory=dict)
    flaky: bool = False

    def run(self, check: Check, *, examples: int, seed: int) -> None:
        """Try ``examples`` sessions, or stop after the run of ten that finds something.

        ``check`` raises a ``Finding`` for a session that fails. What was found is in ``best``,
        also when the search is interrupted.
        """
        strategy = strategies.sessions(self.envelope)
        for index in range(math.ceil(examples / RUN_LENGTH)):
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
            try:
                check(session)
            except Finding as found:
                self._keep(found.failure)
                raise
            except Exception as error:  # not a verdict: an error of our own, or bad input
                errors.append(error)
                raise

        try:
            explore()
        except Finding:
            pass
        except FlakyFailure:
            if errors:
                raise errors[0] from None
            self.flaky = True
        except Unsatisfiable:
            pass
        except BaseExceptionGroup as group:
            # Several causes at once; anything that is not a finding is an error of our own.
            _, others = group.split(Finding)
            if others is not None:
                raise

    def _keep(self, failure: Failure) -> None:
        key = f"{failure.kind}: {failure.key}"
        known = self.best.get(key)
        if known is None or _complexity(failure) < _complexity(known):
            self.best[key] = failure

    def _reduce(self, check: Check, key: str) -> None:
        def fails(session: Session) -> bool:
            try:
                check(session)
            except Finding as found:
                self._keep(found.failure)
                return f"{found.failure.kind}: {found.failure.key}" == key
            return False

        traffic = self.best[key].traffic
        if traffic is not None:
            shrink.reduce(traffic, fails, self.envelope)


def _complexity(failure: Failure) -> tuple[int, ...]:
    return shrink.complexity(failure.traffic) if failure.traffic is not None else ()
