"""Whether an earlier warm-up of a target still holds; remembers the last one."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_ci.causes import LATE
from vlm_ci.watch.watcher import Watcher

if TYPE_CHECKING:
    from vlm_ci.failures import Failure
    from vlm_ci.result import Warmup
    from vlm_ci.targets.protocol import Target
    from vlm_ci.warmup import Plan, WarmupReport
    from vlm_ci.watch import internals


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmed:
    """A warm-up that held: a later run over the same target need not repeat it.

    ``findings`` are what the watch had against it, each with how often it occurred.
    """

    report: WarmupReport
    record: Warmup
    counts: tuple[Any, ...]
    mark: internals.CacheMark
    findings: tuple[tuple[Failure, int], ...] = ()

    def holds(self, target: Target, plan: Plan) -> bool:
        """Whether the target is still as this plan left it: nothing was compiled or forgotten."""
        return (
            plan.batches == self.report.plan.batches
            and any(count is not None for count in self.counts)
            and self.counts == counts(target)
            and self.mark.holds()
        )


def is_untouched(target: Target) -> bool:
    """Whether nothing was compiled and no compiled code ran since the target was loaded.

    A target that does not count, and that no watch counts, may have been touched.
    """
    seen = (*counts(target), target.stats().regions)
    return any(count is not None for count in seen) and not any(seen)


def counts(target: Target) -> tuple[Any, ...]:
    """Return what was compiled in a target, as far as it and the watch know."""
    stats = target.stats()
    watcher = getattr(target, "watcher", None)
    seen = tuple(watcher.count(kind) for kind in LATE) if isinstance(watcher, Watcher) else (None,)
    return (stats.compiles, stats.graphs, stats.captures, *seen)


class WarmSlot:
    """Remembers the target that was warmed last, so that its next run need not warm it again.

    Compiled code is shared by all targets of a process, so that one is remembered, not more.
    """

    def __init__(self) -> None:
        self._target: weakref.ref[Target] | None = None
        self._warmed: Warmed | None = None

    def take(self, target: Target, plan: Plan) -> Warmed | None:
        """Return the warm-up that still holds for this target and plan.

        A target in which something else was compiled is reset first: what it compiled for one
        plan, or in a test, would hide what another plan lacks.
        """
        same = self._target is not None and self._target() is target
        if same and self._warmed is not None and self._warmed.holds(target, plan):
            return self._warmed
        if not is_untouched(target):
            target.reset()
        return None

    def put(self, target: Target, warmed: Warmed | None) -> None:
        """Remember how a target was warmed; None where its warm-up did not hold."""
        if self._warmed is not None and self._warmed is not warmed:
            self._warmed.mark.remove()
        try:
            self._target, self._warmed = weakref.ref(target), warmed
        except TypeError:  # no weak reference to it: its next run starts cold
            self._target = self._warmed = None
