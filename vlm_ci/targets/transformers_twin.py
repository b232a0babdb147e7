"""A transformers model as two instances that share weights: one eager, one compiled."""

from __future__ import annotations

import copy
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from vlm_ci.errors import UsageError
from vlm_ci.targets import recipes
from vlm_ci.targets.backends import CompileOptions, CountingBackend
from vlm_ci.targets.contexts import run_in
from vlm_ci.targets.protocol import Capabilities, Output, Stats, TargetInfo
from vlm_ci.traffic.spec import CONTEXTS, Batch
from vlm_ci.watch import internals
from vlm_ci.watch.watcher import Watcher

if TYPE_CHECKING:
    from vlm_ci.families.base import Encoded
    from vlm_ci.targets.models import Model
    from vlm_ci.traffic.envelope import Envelope

Mutate = Callable[[Any], None]

CUDAGRAPH_MODES = ("reduce-overhead", "max-autotune")


class TransformersTwin:
    """The eager twin is the model as it is; the compiled twin is a copy that shares weights.

    Separate instances, because an eager call on the compiled instance would hide faults that show
    only on a cold start. ``mutate`` changes the compiled twin before it is compiled.
    """

    def __init__(
        self,
        source: Model,
        *,
        recipe: str,
        options: CompileOptions,
        device: torch.device,
        dtype: torch.dtype,
        envelope: Envelope,
        mutate: Mutate | None = None,
    ) -> None:
        """Build both twins and compile one.

        Raises:
            UsageError: the recipe is unknown, or ``mutate`` wrote into shared weights.
        """
        compile_parts = recipes.load(recipe)
        self.name = source.name
        self.envelope = envelope
        self.capabilities = Capabilities(contexts=CONTEXTS)
        self.info = TargetInfo(
            name=source.name,
            recipe=recipe,
            backend=options.backend,
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            options={
                **{k: v for k, v in msgspec.to_builtins(options).items() if k != "backend"},
                "recompile_limit": options.recompile_limit or internals.recompile_limit(),
            },
        )
        self.watcher = Watcher(str(device))
        self._source = source
        self._options = options
        self._device = device
        self._dtype = dtype
        self._compile_parts = compile_parts
        self._forward_seconds = 0.0
        self._limit_before = internals.recompile_limit()
        self._eager: Any = source.build(device=device, dtype=dtype)
        self._compiled: Any = share_weights(self._eager)
        self._checksum: int | None = None
        if mutate is not None:
            self._checksum = checksum(self._eager)
            mutate(self._compiled)
            if self.weights_changed():
                raise UsageError(
                    "mutate wrote into weights that both twins share, so that the eager baseline "
                    "changed too: replace the parameter (module.weight = nn.Parameter(...)) "
                    "instead of writing into it"
                )
        self._start()

    def _start(self) -> None:
        """Empty Dynamo's cache, then register the observers (a reset drops them), then compile."""
        internals.reset()
        if self._options.recompile_limit is not None:
            internals.set_recompile_limit(self._options.recompile_limit)
        self.watcher = Watcher(str(self._device))
        self.watcher.start()
        backend = CountingBackend(
            self._options,
            on_graph=lambda graph, place: self.watcher.record(
                "graph", frame=place, evidence={"graph": graph}
            ),
            on_region=self.watcher.region_executed,
        )
        names = {id(module): name or "model" for name, module in self._compiled.named_modules()}
        cudagraphs = self._options.mode in CUDAGRAPH_MODES

        def compile_module(module: torch.nn.Module) -> None:
            if id(module) not in names:
                raise UsageError(
                    f"recipe {self.info.recipe!r} compiles a {type(module).__name__} that is no "
                    "part of the model"
                )
            module.compile(
                backend=backend, dynamic=self._options.dynamic, fullgraph=self._options.fullgraph
            )
            if cudagraphs:
                internals.intercept_calls(module, internals.cloning)
            internals.intercept_calls(
                module, self.watcher.observe(names[id(module)], module.forward)
            )

        parts = self._source.parts(self._compiled)
        try:
            self._compile_parts(parts, compile_module)
        except (UsageError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise UsageError(
                f"recipe {self.info.recipe!r} raised {type(error).__name__}: {error}"
            ) from error

    def run_eager(self, batch: Batch) -> Output:
        """Answer a batch with the eager twin."""
        return self._run(self._eager, batch)

    def run_compiled(self, batch: Batch) -> Output:
        """Answer a batch with the compiled twin."""
        if self._options.mode in CUDAGRAPH_MODES:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self._run(self._compiled, batch)

    def warm_up(self, batch: Batch) -> None:
        """Run a batch of the warm-up plan through the compiled twin."""
        self.run_compiled(batch)

    def run_perturbed(self, batch: Batch, modality: str) -> Output:
        """Answer a batch with the eager twin, the pixels of one modality negated."""

        def negate(encoded: Encoded) -> Encoded:
            name = encoded.pixel_inputs[modality]
            return replace(encoded, inputs={**encoded.inputs, name: -encoded.inputs[name]})

        return self._run(self._eager, batch, change=negate)

    def stats(self) -> Stats:
        """Return what the watch has counted since loading."""
        return Stats(
            compiles=self.watcher.count("compile"),
            graphs=self.watcher.count("graph"),
            regions=self.watcher.regions,
            captures=self.watcher.count("graph-capture"),
            forward_seconds=self._forward_seconds,
        )

    def weights_changed(self) -> bool:
        """Whether shared weights were written into since loading; looks only after ``mutate``."""
        return self._checksum is not None and checksum(self._eager) != self._checksum

    def reset(self) -> None:
        """Forget everything that was compiled and start to watch anew."""
        self.watcher.stop()
        for module in self._compiled.modules():
            module._compiled_call_impl = None
        self._start()

    def close(self) -> None:
        """Stop watching and give the models back."""
        self.watcher.stop()
        internals.set_recompile_limit(self._limit_before)
        self._eager = self._compiled = None
        internals.reset()

    def _run(
        self, model: Any, batch: Batch, change: Callable[[Encoded], Encoded] | None = None
    ) -> Output:
        if model is None:
            raise UsageError(f"target {self.name} is closed")

        def make_inputs() -> Encoded:
            encoded = self._source.encode(batch, device=self._device, dtype=self._dtype)
            return change(encoded) if change else encoded

        def forward(encoded: Encoded) -> Output:
            started = time.perf_counter()
            logits = model(**encoded.inputs, use_cache=False).logits
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._forward_seconds += time.perf_counter() - started
            return Output(logits=logits.detach(), token_kinds=encoded.token_kinds)

        return run_in(batch.context, self._device, make_inputs, forward)


def share_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Copy a model; the copy's parameters are the very same objects, its buffers are its own."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, memo)


def checksum(model: torch.nn.Module) -> int:
    """Return a checksum over the bits of all parameters."""
    total = 0
    for parameter in model.parameters():
        bits = parameter.detach().reshape(-1).view(torch.uint8).cpu().numpy()
        total = zlib.crc32(bits.data, total)
    return total
