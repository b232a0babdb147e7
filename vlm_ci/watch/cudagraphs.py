"""Observes CUDA graphs: recordings by cudagraph trees, captures by anyone, skips."""

from __future__ import annotations

from contextlib import ExitStack
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch

from vlm_ci.watch import internals, logs

if TYPE_CHECKING:
    from vlm_ci.watch.observers import Record


UNSEEN = "graphs that Inductor gives up without a word, where it cuts code into partitions"


class CudagraphObserver:
    """Records "graph-capture" at each ``torch.cuda.CUDAGraph.capture_begin``, whoever calls it,
    "graph-recording" where that is Inductor's cudagraph trees, and "graph-skip" with the reason
    where Inductor gives CUDA graphs up for a piece of code.
    """

    layer = "CUDA graphs"
    kinds = ("graph-capture", "graph-recording", "graph-skip")

    def __init__(self, device: str) -> None:
        self._stack = ExitStack()
        self._here = device.startswith("cuda")
        self.blind = UNSEEN if self._here else "there are none on the CPU"

    @property
    def sees(self) -> tuple[str, ...]:
        """All kinds on a GPU, none on the CPU."""
        return self.kinds if self._here else ()

    def start(self, record: Record) -> None:
        """Wrap ``capture_begin``, and listen to the callbacks and the log."""
        if not self._here:
            return

        def started(trigger: str, compile_id: str) -> None:
            if trigger == "recording":
                record("graph-recording", evidence={"compile_id": compile_id})

        self._stack.enter_context(internals.reporting_compiles(started))
        self._stack.enter_context(
            logs.reporting_graph_skips(
                lambda reason: record("graph-skip", evidence={"reason": reason})
            )
        )
        graph: Any = torch.cuda.CUDAGraph
        original = graph.capture_begin

        @wraps(original)
        def capture_begin(self: Any, *args: Any, **kwargs: Any) -> Any:
            record("graph-capture", evidence={"by": "torch.cuda.CUDAGraph.capture_begin"})
            return original(self, *args, **kwargs)

        graph.capture_begin = capture_begin
        self._stack.callback(setattr, graph, "capture_begin", original)

    def collect(self) -> None:
        """Nothing waits: each event is recorded as it happens."""

    def stop(self) -> None:
        """Put ``capture_begin`` back."""
        self._stack.close()
