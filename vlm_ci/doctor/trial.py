"""A watcher at work, and a way to compile functions under it: what the probes share.

Importing it loads no torch.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vlm_ci.doctor.outcomes import NotHere, expect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vlm_ci.watch.events import Event
    from vlm_ci.watch.watcher import Watcher


class Trial:
    """A watcher at work, and a way to compile functions under it."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.graphs = 0

    def compile(
        self, function: Callable[..., Any], backend: str = "eager", mode: str | None = None
    ) -> Callable[..., Any]:
        """Compile a function as a target does, for the sizes that it is called with."""
        import torch

        from vlm_ci.targets.backends import CompileOptions, CountingBackend

        counting = CountingBackend(
            CompileOptions(backend=backend, mode=mode),
            on_graph=lambda number, place: self._count_graph(),
            on_region=self.watcher.region_executed,
        )
        compiled: Callable[..., Any] = torch.compile(function, backend=counting, dynamic=False)
        observed: Callable[..., Any] = self.watcher.observe("probe", function)(compiled)
        return observed

    def warm(self, compiled: Callable[..., Any]) -> None:
        """Let a compiled function compile for two ones, and keep the call as one of warm-up."""
        compiled(ones(2))
        expect(self.graphs > 0, "torch.compile compiled nothing")
        self.watcher.keep_warm()

    def events(self, kind: str) -> list[Event]:
        """End the step, which takes what torch has counted, and return the events of a kind."""
        self.watcher.end_step()
        return [event for event in self.watcher.events if event.kind == kind]

    def _count_graph(self) -> None:
        self.graphs += 1


@contextmanager
def trial(device: str = "cpu") -> Iterator[Trial]:
    """Start from an empty cache with a watcher for ``device``, and leave Dynamo as it was found:
    empty. Observers of what exists on a GPU alone are blind on the CPU."""
    from vlm_ci.watch import internals
    from vlm_ci.watch.watcher import Watcher

    limit = internals.recompile_limit()
    internals.reset()
    watcher = Watcher(device)
    watcher.start()
    watcher.begin("warmup")
    watcher.begin_step()
    try:
        yield Trial(watcher)
    finally:
        watcher.stop()
        internals.set_recompile_limit(limit)
        internals.reset()


def ones(*sizes: int, device: str = "cpu") -> Any:
    """Return a float32 tensor of ones."""
    import torch

    return torch.ones(*sizes, device=device)


def need_gpu(otherwise: str) -> None:
    """Raise NotHere with these words where torch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise NotHere(otherwise)
