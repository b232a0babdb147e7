"""The interface of an observer, and the observers of a target on a device. Judges nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Record(Protocol):
    """Where an observer writes its events."""

    def __call__(
        self, kind: str, *, frame: str = "", evidence: dict[str, Any] | None = None
    ) -> None:
        """Append an event; safe from any thread."""
        ...


class Observer(Protocol):
    """Watches one layer of the compiler between ``start`` and ``stop``.

    ``blind`` and ``sees`` hold from ``start`` on.
    """

    @property
    def layer(self) -> str:
        """Its name in reports."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of events that belong to its layer."""
        ...

    @property
    def blind(self) -> str:
        """What it cannot see, and why; empty if it sees everything of its kinds."""
        ...

    @property
    def sees(self) -> tuple[str, ...]:
        """The kinds of events that it records on this torch and device."""
        ...

    def start(self, record: Record) -> None:
        """Begin to watch. Dynamo's cache has just been emptied, which dropped every callback."""
        ...

    def collect(self) -> None:
        """Turn what torch has counted since the last call into events. Called at each step's end:
        it has to cost next to nothing where nothing happened."""
        ...

    def stop(self) -> None:
        """Leave torch as it was found."""
        ...


def observers(device: str) -> Sequence[Observer]:
    """Return one observer for each layer, for a target on ``device`` ("cpu", "cuda", "cuda:1")."""
    from vlm_ci.watch.cudagraphs import CudagraphObserver
    from vlm_ci.watch.dynamo import DynamoObserver
    from vlm_ci.watch.inductor import InductorObserver
    from vlm_ci.watch.triton import TritonObserver

    return (
        DynamoObserver(),
        InductorObserver(),
        CudagraphObserver(device),
        TritonObserver(device),
    )
