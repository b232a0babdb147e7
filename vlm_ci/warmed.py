"""Whether an earlier warm-up of a target still holds."""

from __future__ import annotations

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
