"""A toy engine with the Target protocol, small enough to be wrong in every way a test needs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from vlm_ci.targets.protocol import Capabilities, Output, Stats
from vlm_ci.traffic.envelope import Envelope, Geometry
from vlm_ci.traffic.spec import Batch

VOCABULARY = 32
ENVELOPE = Envelope(
    modalities=("text", "image"),
    image_side=(8, 24),
    video_side=(8, 24),
    side_multiple=8,
    tokens=(1, 12),
    geometry=Geometry(token_side=8),
)


class Toy(torch.nn.Module):
    """Embeds tokens and projects them; images are tokens of their own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(VOCABULARY, 16)
        self.project = torch.nn.Linear(16, VOCABULARY)

    def forward(self, ids: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        hidden = self.embed(ids).sin()
        if features is not None:
            hidden = hidden + features
        return self.project(hidden)


class ToyTarget:
    """Runs ``Toy`` eagerly and compiled. ``serve(call, ids, batch)`` stands between the engine and
    the compiled model, ``wrap`` replaces the way in which it is compiled."""

    def __init__(
        self,
        serve: Callable[[Any, torch.Tensor, Batch], torch.Tensor] | None = None,
        *,
        model: torch.nn.Module | None = None,
        compile_model: Callable[[torch.nn.Module, Any], Any] | None = None,
        in_process: bool = True,
        change_eager: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits,
    ) -> None:
        torch._dynamo.reset()
        self.name = "toy"
        self.envelope = ENVELOPE
        self.capabilities = Capabilities(in_process=in_process)
        self._eager = model or Toy()
        self._graphs = self._regions = 0
        compiling = compile_model or (
            lambda module, backend: torch.compile(module, backend=backend, dynamic=True)
        )
        self._compiled = compiling(copy.deepcopy(self._eager), self._backend)
        self._serve = serve or (lambda call, ids, batch: call(ids))
        self._change_eager = change_eager

    def _backend(self, graph: Any, inputs: Any) -> Any:
        self._graphs += 1

        def region(*args: Any) -> Any:
            self._regions += 1
            return graph(*args)

        return region

    def _ids(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        length = self.envelope.padded_length(batch)
        generator = torch.Generator().manual_seed(batch.seed)
        kinds = torch.full((len(batch.requests), length), -1, dtype=torch.int8)
        for row, request in enumerate(batch.requests):
            kinds[row, : self.envelope.row_tokens(request)] = 0
        return torch.randint(VOCABULARY, kinds.shape, generator=generator), kinds

    def run_eager(self, batch: Batch) -> Output:
        ids, kinds = self._ids(batch)
        with torch.inference_mode():
            return Output(logits=self._change_eager(self._eager(ids)), token_kinds=kinds)

    def run_compiled(self, batch: Batch) -> Output:
        ids, kinds = self._ids(batch)
        with torch.inference_mode():
            return Output(logits=self._serve(self._compiled, ids, batch), token_kinds=kinds)

    def warm_up(self, batch: Batch) -> None:
        self.run_compiled(batch)

    def stats(self) -> Stats:
        return Stats(compiles=self._graphs, graphs=self._graphs, regions=self._regions)

    def reset(self) -> None:
        torch._dynamo.reset()

    def close(self) -> None:
        torch._dynamo.reset()


def factory() -> ToyTarget:
    """A healthy toy, as ``--target toy:factory`` loads it."""
    return ToyTarget()


FEATURES = torch.zeros(1)


def growing() -> ToyTarget:
    """Compiles again for the first image, unless warm-up had one."""

    def serve(call: Any, ids: torch.Tensor, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor
        logits = call(ids, features=FEATURES) if "image" in batch.modalities else call(ids)
        return logits

    return ToyTarget(serve)


def broken_factory() -> object:
    """Returns something that is no target."""
    return object()


def failing_recipe(parts: object, compile_module: object) -> None:
    """A recipe with a fault of its own."""
    raise ZeroDivisionError
