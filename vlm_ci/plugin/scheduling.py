"""Which worker of xdist runs which tests: those of one target stay together. Runs none itself."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from xdist.scheduler import LoadScheduling

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest
    from xdist.remote import Producer
    from xdist.workermanage import WorkerController


class TargetScheduling(LoadScheduling):
    """xdist's own distribution, but all tests of one target go to one worker, at once.

    Targets come first, those with the most tests before the others: they take longest. Any other
    test is spread as ``--dist load`` does it, and without tests of targets nothing else happens.
    ``targets`` maps node ids to a number for each target; it is read once collection is over.
    """

    collection: list[str] | None
    maxschedchunk: int | None
    node2collection: dict[WorkerController, list[str]]
    node2pending: dict[WorkerController, list[int]]
    pending: list[int]

    def __init__(
        self, config: pytest.Config, log: Producer | None, targets: Mapping[str, int]
    ) -> None:
        super().__init__(config, log)
        self._targets = targets
        self._ranks: list[tuple[int, ...]] = []  # of each test, by its index in the collection
        self._unsorted = False

    def schedule(self) -> None:
        """Hand out the first tests, or more to a worker that came later."""
        first, *others = self.node2collection.values()
        grouped = any(nodeid in self._targets for nodeid in first)
        if self.collection is not None or not grouped or any(other != first for other in others):
            super().schedule()
            return
        self.collection = first
        self._ranks = self._rank(first)
        self.pending[:] = range(len(first))
        self._unsorted = True
        if self.maxschedchunk is None:
            self.maxschedchunk = len(first)
        self._sort()
        for node in self.nodes:  # each worker a target of its own before any has a second one
            self._give(node, self._unit())
        for node in self.nodes:
            self.check_schedule(node)

    def check_schedule(self, node: WorkerController, duration: float = 0) -> None:
        """Give a worker more where it needs it: it begins a test once it knows the next one."""
        if not self._ranks:
            super().check_schedule(node, duration)
            return
        if node.shutting_down:
            return
        self._sort()
        held = self.node2pending[node]
        while self.pending and len(held) < 2 and self._of_target(self.pending[0]):
            self._give(node, self._unit())
        if not self.pending or not any(map(self._of_target, held)):
            super().check_schedule(node, duration)
        elif len(held) < 2:
            self._give(node, 1)  # no more: it would wait behind a target

    def remove_node(self, node: WorkerController) -> str | None:
        """Take the tests of a worker that ended back; return the one that it died in, if any.

        The others of its target go to one worker again: the next that is free, which mostly is
        the replacement.
        """
        self._unsorted = True
        crashed: str | None = super().remove_node(node)
        return crashed

    def mark_test_pending(self, item: str) -> None:
        """Put a test back, for a plugin that runs it again."""
        self._unsorted = True
        super().mark_test_pending(item)

    def _rank(self, collection: list[str]) -> list[tuple[int, ...]]:
        """Return what sorts tests: those of targets first, by how many a target has."""
        numbers = [self._targets.get(nodeid, -1) for nodeid in collection]
        sizes = Counter(numbers)
        return [
            (0, -sizes[number], number, index) if number >= 0 else (1, 0, 0, index)
            for index, number in enumerate(numbers)
        ]

    def _of_target(self, index: int) -> bool:
        return self._ranks[index][0] == 0

    def _unit(self) -> int:
        """Return how many of the pending tests go together: all of the first one's target."""
        if not self.pending or not self._of_target(self.pending[0]):
            return 1
        head = self._ranks[self.pending[0]][:3]
        return sum(self._ranks[index][:3] == head for index in self.pending)

    def _sort(self) -> None:
        if self._unsorted:
            self.pending.sort(key=self._ranks.__getitem__)
            self._unsorted = False

    def _give(self, node: WorkerController, count: int) -> None:
        indices = self.pending[:count]
        if indices:
            del self.pending[:count]
            self.node2pending[node].extend(indices)
            node.send_runtest_some(indices)
