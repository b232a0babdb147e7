"""Who hears of a run while it goes on: a progress line, a journal on disk. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlm_ci.failures import Failure
    from vlm_ci.result import Result
    from vlm_ci.traffic.spec import Batch, Session
    from vlm_ci.watch.events import Event


class Progress(Protocol):
    """Hears how a run goes on; the default says nothing."""

    def warming(self, round_number: int, index: int, total: int) -> None:
        """A warm-up batch begins: the round from 1, the batch's index, batches in a round."""
        ...

    def searching(self, sessions: int, examples: int, batches: int, failing: int) -> None:
        """A session is over; shrinking may run more sessions than ``examples``."""
        ...

    def auditing(self, search: int, causes: int) -> None:
        """Another search of an audit begins: its number from 1, and the causes known so far."""
        ...

    def note(self, text: str) -> None:
        """Something begins that may take long, and counts nothing."""
        ...


class Journal(Protocol):
    """Keeps what a run has found, while it goes on."""

    def save(
        self,
        result: Result,
        failures: Sequence[Failure],
        events: Sequence[Event],
        *,
        final: bool = False,
    ) -> None:
        """Keep the result so far, with all failures so far."""
        ...

    def serving(self, session: Session) -> None:
        """Keep the session that is about to be served."""
        ...

    def warmed_by(self, batches: tuple[Batch, ...], *, recompile_limit: int) -> None:
        """From here on failures are found after a warm-up with these batches and this limit."""
        ...


class Silent:
    """Says nothing and keeps nothing."""

    def save(
        self,
        result: Result,
        failures: Sequence[Failure],
        events: Sequence[Event],
        *,
        final: bool = False,
    ) -> None:
        """Keep nothing."""

    def serving(self, session: Session) -> None:
        """Keep nothing."""

    def warmed_by(self, batches: tuple[Batch, ...], *, recompile_limit: int) -> None:
        """Keep nothing."""

    def warming(self, round_number: int, index: int, total: int) -> None:
        """Say nothing."""

    def searching(self, sessions: int, examples: int, batches: int, failing: int) -> None:
        """Say nothing."""

    def auditing(self, search: int, causes: int) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""
