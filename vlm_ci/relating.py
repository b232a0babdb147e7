"""Metamorphic relations under the books of a run: which one judges a batch, what was judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_ci import causes
from vlm_ci.parity.relations import RelationChecker
from vlm_ci.parity.relations.checker import IGNORES_SEEDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vlm_ci.failures import Failure
    from vlm_ci.result import Result
    from vlm_ci.targets.protocol import Output, Target
    from vlm_ci.traffic.spec import Batch
    from vlm_ci.watch.watcher import Watcher


class Relations:
    """Judges each batch by one of ``names``, which the batch itself chooses, and by each that is
    broken already, so that shrinking stays with it."""

    def __init__(
        self, target: Target, watcher: Watcher, names: Sequence[str], result: Result
    ) -> None:
        self._checker = RelationChecker(target, watcher)
        self._names = tuple(names)
        self._broken: dict[str, None] = {}
        self._result = result

    def broken_by(
        self, batch: Batch, output: Output, served: tuple[Batch, ...]
    ) -> Iterator[Failure]:
        """Yield what a batch that was just served, with this answer, breaks."""
        chosen = self._checker.choose(batch, self._names)
        for name in dict.fromkeys([*self._broken, *([chosen] if chosen else [])]):
            violation = self._checker.check(batch, output, [name])
            if violation is not None:
                self._broken[name] = None
                yield causes.broken_relation(violation, served)

    def close_books(self) -> None:
        """Note how often each relation was judged, and which never was and why."""
        judged = self._result.parity.relations
        for name in self._names:
            books = self._checker.books[name]
            judged[name] = books.judged
            if ignored := [reason for reason in books.off if reason.startswith(IGNORES_SEEDS)]:
                self._result.warnings.append(f"relation {name} is off for some: {ignored[0]}")
            if not books.judged:
                reasons = (books.off + books.left_out).most_common(1)
                why = reasons[0][0] if reasons else "no batch came to it"
                self._result.warnings.append(f"relation {name} was never judged: {why}")
