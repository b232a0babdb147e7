"""The torch.compile backend, wrapped so that executed compiled regions are counted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from vlm_ci.errors import UsageError, check_int, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from vlm_ci.targets.executions import Captured, Recorder

BACKENDS = ("eager", "aot_eager", "inductor")
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


class CompileOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the compiled twin is compiled.

    ``dynamic`` is torch.compile's; True by default, because an engine serves all sizes. ``mode``
    applies to the Inductor backend only. ``recompile_limit`` None leaves torch's own default.
    """

    backend: str = "eager"
    dynamic: bool | None = True
    mode: str | None = None
    fullgraph: bool = False
    recompile_limit: int | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise unknown_name("backend", self.backend, BACKENDS)
        if self.mode is not None:
            if self.mode not in MODES:
                raise unknown_name("mode", self.mode, MODES)
            if self.backend != "inductor":
                raise UsageError(
                    f"mode {self.mode!r} needs --backend inductor; backend {self.backend!r} has "
                    "no modes"
                )
        if self.recompile_limit is not None:
            try:
                check_int("recompile limit", self.recompile_limit, minimum=1)
            except ValueError as error:
                raise UsageError(str(error)) from None


class CountingBackend:
    """A backend that numbers the graphs it compiles, from 1, and reports each execution of one.

    ``on_graph`` hears of a graph's number and of the place in the source where it begins, as
    ``function (file:line)``; ``on_region`` hears of the number at each execution. ``graphs`` holds
    each graph as it was captured; while ``recorder`` is set, it executes the regions.
    """

    def __init__(
        self,
        options: CompileOptions,
        *,
        on_graph: Callable[[int, str], None],
        on_region: Callable[[int], None],
    ) -> None:
        self._compile = resolve(options)
        self._on_graph = on_graph
        self._on_region = on_region
        self.graphs: dict[int, Captured] = {}
        self.recorder: Recorder | None = None
        self.__name__ = options.backend

    def __call__(
        self, graph: torch.fx.GraphModule, example_inputs: Sequence[Any]
    ) -> Callable[..., Any]:
        """Compile one graph; the result counts its own executions."""
        from vlm_ci.targets.executions import Captured, keep  # here: it imports torch

        number, on_region, place = len(self.graphs) + 1, self._on_region, _place(graph)
        self.graphs[number] = Captured(graph=keep(graph), place=place)
        self._on_graph(number, place)
        compiled = self._compile(graph, example_inputs)

        def region(*args: Any) -> Any:
            on_region(number)
            if self.recorder is not None:
                return self.recorder.execute(number, compiled, args)
            return compiled(*args)

        return region


_STACK_ENTRY = re.compile(r'File "(?P<path>.+)", line (?P<line>\d+), in (?P<name>\S+)')


def _place(graph: torch.fx.GraphModule) -> str:
    """Name the line of the compiled frame that a graph's first operation comes from."""
    from vlm_ci.watch.internals import short_path  # here: it imports torch

    for node in graph.graph.nodes:
        if found := _STACK_ENTRY.search(node.stack_trace or ""):
            return f"{found['name']} ({short_path(found['path'])}:{found['line']})"
    return ""


def resolve(options: CompileOptions) -> Callable[..., Callable[..., Any]]:
    """Return what compiles one graph, given example inputs."""
    if options.backend == "inductor":
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        mode = options.mode if options.mode != "default" else None
        patches = list_mode_options(mode, options.dynamic) if mode else {}

        def inductor(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            compiled: Any = compile_fx(graph, inputs, config_patches=dict(patches))
            return compiled  # type: ignore[no-any-return]

        return inductor
    from torch._dynamo.backends.registry import lookup_backend

    found: Callable[..., Callable[..., Any]] = lookup_backend(options.backend)
    return found
