"""Sessions to try, drawn ahead of use, so that nothing of Hypothesis stands around a forward."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from vlm_ci.sharding import RUN_LENGTH
from vlm_ci.traffic import strategies

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypothesis.strategies import SearchStrategy

    from vlm_ci.traffic.envelope import Envelope
    from vlm_ci.traffic.spec import Session


def examples(envelope: Envelope, seed: int) -> Iterator[Session]:
    """Yield sessions without end; one seed always gives the same ones.

    They are drawn in runs of ten, as ``search`` does and for its reason.
    """
    strategy = strategies.sessions(envelope)
    for run in count():
        yield from _drawn(strategy, seed * 1_000_003 + run)


def _drawn(strategy: SearchStrategy[Session], seed: int) -> list[Session]:
    from hypothesis import HealthCheck, Phase, Verbosity, given, settings
    from hypothesis import seed as with_seed

    drawn: list[Session] = []

    @with_seed(seed)
    @settings(
        max_examples=RUN_LENGTH,
        database=None,
        deadline=None,
        derandomize=False,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(strategy)
    def draw(session: Session) -> None:
        drawn.append(session)

    draw()
    return drawn
