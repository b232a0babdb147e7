"""Toy engines that compile worse than the healthy one, each in a single way."""

from __future__ import annotations

from typing import Any

import torch
from toy import Toy, ToyTarget

from vlm_ci.traffic.spec import Batch


class Breaking(Toy):
    """Breaks its graph as often as ``times`` says."""

    times = 1

    def forward(self, ids, features=None):
        hidden = self.embed(ids).sin()
        torch._dynamo.graph_break()
        hidden = hidden.cos()
        if self.times > 1:
            torch._dynamo.graph_break()
        return self.project(hidden.sin())


class BreakingTwice(Breaking):
    times = 2


def breaking() -> ToyTarget:
    return ToyTarget(model=Breaking())


def breaking_twice() -> ToyTarget:
    return ToyTarget(model=BreakingTwice())


def another_frame() -> ToyTarget:
    """Compiles a function beside the model."""

    def beside(ids: torch.Tensor) -> torch.Tensor:
        return ids + 1

    compiled: Any = torch.compile(beside, backend="eager", dynamic=True)

    def serve(call: Any, ids: torch.Tensor, batch: Batch) -> torch.Tensor:
        compiled(ids)
        return call(ids)  # type: ignore[no-any-return]

    return ToyTarget(serve)


def more_graphs() -> ToyTarget:
    """Compiles the same frame for an argument too that warm-up passes for every other batch."""
    features, seen = torch.zeros(1), set()

    def serve(call: Any, ids: torch.Tensor, batch: Batch) -> torch.Tensor:
        seen.add(batch)
        call(ids, features=features)
        return call(ids)  # type: ignore[no-any-return]

    return ToyTarget(serve)


def another_round() -> ToyTarget:
    """Compiles a second variant of its frame not before the second round."""
    features, seen = torch.zeros(1), set()

    def serve(call: Any, ids: torch.Tensor, batch: Batch) -> torch.Tensor:
        if batch in seen:
            call(ids, features=features)
        seen.add(batch)
        return call(ids)  # type: ignore[no-any-return]

    return ToyTarget(serve)


def rounding(size: float) -> ToyTarget:
    """Its compiled logits are off by a part of their size."""

    class Rounding(torch.nn.Module):
        def __init__(self, compiled: Any) -> None:
            super().__init__()
            self.compiled = compiled

        def forward(self, ids: torch.Tensor) -> Any:
            return self.compiled(ids) * (1 + size)

    return ToyTarget(
        compile_model=lambda model, backend: Rounding(
            torch.compile(model, backend=backend, dynamic=True)
        )
    )


def capturing(times: int) -> ToyTarget:
    """Captures CUDA graphs for each batch that it has not had."""
    seen: set[Batch] = set()

    def serve(call: Any, ids: torch.Tensor, batch: Batch) -> torch.Tensor:
        if len(seen) < 5 and batch not in seen:  # which are those of the plan
            for _ in range(times):
                graph: Any = torch.cuda.CUDAGraph
                graph.capture_begin(None)
        seen.add(batch)
        return call(ids)  # type: ignore[no-any-return]

    return ToyTarget(serve)
