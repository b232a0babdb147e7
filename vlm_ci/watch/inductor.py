"""Observes AOTAutograd and Inductor: lazy compilations, their caches, autotuning."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from vlm_ci.watch import internals

if TYPE_CHECKING:
    from vlm_ci.watch.observers import Record

# torch's counters by group: name, the kind of event, what the event calls it.
COUNTERS = {
    "inductor": (
        ("fxgraph_cache_hit", "cache-hit", "FX graph cache"),
        ("fxgraph_cache_miss", "cache-miss", "FX graph cache"),
        ("fxgraph_cache_bypass", "cache-miss", "FX graph cache (bypassed)"),
        ("select_algorithm_autotune", "autotune", "choice of an algorithm"),
        ("pad_mm_bench", "autotune", "padding of a matrix product"),
        ("combo_autotune_bench", "autotune", "combined kernels"),
    ),
    "aot_autograd": (
        ("autograd_cache_hit", "cache-hit", "AOTAutograd cache"),
        ("autograd_cache_miss", "cache-miss", "AOTAutograd cache"),
        ("autograd_cache_bypass", "cache-miss", "AOTAutograd cache (bypassed)"),
    ),
}


class InductorObserver:
    """Records "lazy-compile" where a part is compiled at its first use, "cache-hit" and
    "cache-miss" of the compile caches, and "autotune" where Inductor tries out algorithms.
    """

    layer = "Inductor"
    kinds = ("lazy-compile", "cache-hit", "cache-miss", "autotune")
    blind = ""
    sees = kinds

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._last: dict[str, dict[str, int]] = {}

    def start(self, record: Record) -> None:
        """Register for lazy compilations, and remember where the counters stand."""

        def started(trigger: str, compile_id: str) -> None:
            if trigger == "lazy":
                record("lazy-compile", evidence={"compile_id": compile_id})

        self._record = record
        self._last = {group: dict(internals.counters(group)) for group in COUNTERS}
        self._stack.enter_context(internals.reporting_compiles(started))

    def collect(self) -> None:
        """Record how far the counters have moved."""
        for group, last in self._last.items():
            now = internals.counters(group)
            if now == last:
                continue
            for name, kind, what in COUNTERS[group]:
                more = now.get(name, 0) - last.get(name, 0)
                if more > 0:
                    self._record(kind, frame=what, evidence={"count": more})
            self._last[group] = dict(now)

    def stop(self) -> None:
        """Take the callback away again."""
        self._stack.close()
