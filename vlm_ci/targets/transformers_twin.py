"""A transformers model as two instances that share weights: one eager, one compiled."""

from __future__ import annotations

import copy
import time
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from vlm_ci.errors import UsageError
from vlm_ci.families.base import PADDING
from vlm_ci.targets import recipes
from vlm_ci.targets.backends import CompileOptions, CountingBackend
from vlm_ci.targets.contexts import run_in
from vlm_ci.targets.executions import Recorder
from vlm_ci.targets.protocol import Capabilities, Output, Stats, TargetInfo
from vlm_ci.targets.reference import Reference, reference_dtype
from vlm_ci.traffic.spec import CONTEXTS, Batch
from vlm_ci.watch import internals
from vlm_ci.watch.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vlm_ci.families.base import Encoded
    from vlm_ci.targets.executions import Captured, Execution
    from vlm_ci.targets.models import Model
    from vlm_ci.traffic.envelope import Envelope

Mutate = Callable[[Any], None]

CUDAGRAPH_MODES = ("reduce-overhead", "max-autotune")


class TransformersTwin:
    """The eager twin is the model as it is; the compiled twin is a copy that shares weights.

    Separate instances, because an eager call on the compiled instance would hide faults that show
    only on a cold start. ``mutate`` changes the compiled twin before it is compiled, and the eager
    one too if ``in_both``.
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
        in_both: bool = False,
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
        self._reference: Reference | None = None
        self.compiled_modules: dict[str, torch.nn.Module] = {}  # what the recipe compiled
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
            if in_both:
                mutate(self._eager)
                self._checksum = checksum(self._eager)
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
        self._backend = backend
        self.compiled_modules = {}
        names = {id(module): name or "model" for name, module in self._compiled.named_modules()}
        embeddings = _embeddings(self._compiled)
        self.no_poison = "" if embeddings is not None else "the model names no input embeddings"
        cudagraphs = self._options.mode in CUDAGRAPH_MODES

        def compile_module(module: torch.nn.Module) -> None:
            if id(module) not in names:
                raise UsageError(
                    f"recipe {self.info.recipe!r} compiles a {type(module).__name__} that is no "
                    "part of the model"
                )
            if any(part is embeddings for part in module.modules()):
                self.no_poison = f"the embeddings are inside {names[id(module)]}, which is compiled"
            self.compiled_modules[names[id(module)]] = module
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

    def run_compiled(
        self, batch: Batch, *, change: Callable[[Encoded], Encoded] | None = None
    ) -> Output:
        """Answer a batch with the compiled twin, its inputs changed by ``change``."""
        if self._options.mode in CUDAGRAPH_MODES:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self._run(self._compiled, batch, change=change)

    def run_poisoned(self, batch: Batch, value: float) -> Output:
        """Answer a batch with the compiled twin, its padded places embedded as ±``value``.

        ``value`` is in multiples of the root mean square of the batch's embeddings. Its sign
        alternates, so that no layer's mean takes it out. Not available where ``no_poison`` says
        why: a hook inside of what is compiled would compile it again.

        Raises:
            UsageError: it is not available.
            RuntimeError: nothing embedded the batch's rows.
        """
        if self.no_poison:
            raise UsageError(f"target {self.name} cannot poison padding: {self.no_poison}")
        seen: list[torch.Tensor] = []  # the padded places, then what was embedded

        def note(encoded: Encoded) -> Encoded:
            seen.append((encoded.token_kinds == PADDING).to(self._device))
            return encoded

        def poison(module: torch.nn.Module, args: Any, embedded: torch.Tensor) -> torch.Tensor:
            padded = seen[0]
            if embedded.shape[:-1] != padded.shape:
                return embedded
            scale = embedded[~padded].double().square().mean().sqrt()
            signs = 1 - 2 * (torch.arange(embedded.shape[-1], device=embedded.device) % 2)
            seen.append(embedded)
            huge = (value * scale).clamp(max=torch.finfo(embedded.dtype).max / 16)
            return embedded.where(~padded[..., None], (huge * signs).to(embedded.dtype))

        embeddings = _embeddings(self._compiled)
        assert embeddings is not None
        handle = embeddings.register_forward_hook(poison)
        try:
            output = self.run_compiled(batch, change=note)
        finally:
            handle.remove()
        if len(seen) == 1:
            raise RuntimeError("nothing embedded the rows of the batch: no place was poisoned")
        return output

    def same_inputs(self, one: Batch, other: Batch) -> bool:
        """Whether two batches give the model the same inputs, to the bit."""
        first, second = (
            self._source.encode(batch, device=self._device, dtype=self._dtype).inputs
            for batch in (one, other)
        )
        return first.keys() == second.keys() and all(
            torch.equal(value, second[name]) for name, value in first.items()
        )

    def run_mixed(self, batch: Batch, other: Batch, part: int, parts: int) -> Output:
        """Answer a batch with the compiled twin, with part of the pixels of another.

        ``other`` differs from ``batch`` in the content of one item. Of the rows of pixels in which
        they differ the ``part``-th of ``parts`` equal parts is taken from it: one group of frames
        of a video, whose groups stand one after another.

        Raises:
            RuntimeError: the pixels do not differ in rows of so many parts.
        """
        second = self._source.encode(other, device=self._device, dtype=self._dtype)

        def mix(encoded: Encoded) -> Encoded:
            inputs = dict(encoded.inputs)
            for name in encoded.pixel_inputs.values():
                mine, theirs = inputs[name], second.inputs[name]
                differs = (mine != theirs).flatten(1).any(dim=1).nonzero().flatten()
                if not len(differs):
                    continue
                if len(differs) % parts:
                    raise RuntimeError(f"{len(differs)} rows of {name} are not {parts} parts")
                size = len(differs) // parts
                rows = differs[part * size : (part + 1) * size]
                inputs[name] = mine.index_copy(0, rows, theirs[rows])
            return replace(encoded, inputs=inputs)

        return self.run_compiled(batch, change=mix)

    def warm_up(self, batch: Batch) -> None:
        """Run a batch of the warm-up plan through the compiled twin."""
        self.run_compiled(batch)

    def run_perturbed(self, batch: Batch, modality: str) -> Output:
        """Answer a batch with the eager twin, the pixels of one modality negated."""

        def negate(encoded: Encoded) -> Encoded:
            name = encoded.pixel_inputs[modality]
            return replace(encoded, inputs={**encoded.inputs, name: -encoded.inputs[name]})

        return self._run(self._eager, batch, change=negate)

    def reference(self) -> Reference | None:
        """Return the instance that answers in higher precision; None where there is no wider type.

        It is built at its first use.
        """
        wider = reference_dtype(self._dtype, self._device)
        if self._reference is None and wider is not None:
            self._reference = Reference(self._eager, dtype=wider, device=self._device)
        return self._reference

    def run_reference(self, batch: Batch) -> Output:
        """Answer a batch in higher precision, under inference mode whatever its context."""
        reference = self.reference()
        if reference is None:
            raise UsageError(f"{self.info.dtype} has no wider type: use --reference none")
        encoded = self._source.encode(batch, device=self._device, dtype=self._dtype)
        logits = reference.logits(encoded.inputs)
        return Output(logits=logits, token_kinds=encoded.token_kinds)

    def twins(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        """Return the eager and the compiled twin, for ``parity.localisation`` to look into."""
        if self._eager is None:
            raise UsageError(f"target {self.name} is closed")
        return self._eager, self._compiled

    @property
    def graphs(self) -> Mapping[int, Captured]:
        """The captured graphs by number."""
        return self._backend.graphs

    @contextmanager
    def recording(self, where: Callable[[], str] = lambda: "") -> Iterator[list[Execution]]:
        """Keep what each compiled region takes and gives; ``where`` names the call it is in."""
        recorder = self._backend.recorder = Recorder(where)
        try:
            yield recorder.executions
        finally:
            self._backend.recorder = None

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
        self._eager = self._compiled = self._reference = None
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


def _embeddings(model: Any) -> torch.nn.Module | None:
    try:
        found: torch.nn.Module | None = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found


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
