"""Captured graphs, and what went into and came out of their compiled regions in one step.

A graph can be run again, as Dynamo captured it, and compiled again by itself: Dynamo's cache has no
part in either. Judges nothing.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.fx.node import map_arg

from vlm_ci.targets.reference import NARROW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A graph as Dynamo captured it, and the place in the source where it begins."""

    graph: torch.fx.GraphModule
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One execution of a compiled region: the number of its graph, its inputs as they were before,
    its outputs, and by index the inputs that it wrote into, as they were after."""

    graph: int
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    written: dict[int, torch.Tensor]
    call: str = ""  # the compiled module in whose call it was executed


def keep(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Copy a graph, which backends change in place; its attributes are the very same objects."""
    kept = copy.deepcopy(graph.graph)
    for node in kept.nodes:  # the tensors in there would keep the capture's whole state alive
        node.meta.clear()
    return torch.fx.GraphModule(graph, kept)


@dataclass(slots=True)
class Recorder:
    """Executes regions and keeps what they did; ``where`` names the call that goes on."""

    where: Callable[[], str] = field(default=lambda: "")
    executions: list[Execution] = field(default_factory=list)

    def execute(self, graph: int, compiled: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call a region. Parameters are not copied: nothing may write into them."""
        before = cloned(args)
        result = compiled(*args)
        written = {
            index: after.detach().clone()
            for index, (now, after) in enumerate(zip(before, args, strict=True))
            if isinstance(now, torch.Tensor) and now is not after and not _same(now, after)
        }
        self.executions.append(
            Execution(
                graph=graph,
                inputs=before,
                outputs=flat(result),
                written=written,
                call=self.where(),
            )
        )
        return result


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    equal = one == other
    if one.is_floating_point():
        equal = equal | (one.isnan() & other.isnan())
    return bool(equal.all())


def cloned(args: Sequence[Any]) -> tuple[Any, ...]:
    """Copy the tensors among the inputs of a graph, but for parameters."""
    return tuple(
        one.detach().clone()
        if isinstance(one, torch.Tensor) and not isinstance(one, torch.nn.Parameter)
        else one
        for one in args
    )


def flat(result: Any) -> tuple[Any, ...]:
    """Return copies of the outputs of a region: the next replay may overwrite them."""
    values = result if isinstance(result, tuple | list) else (result,)
    return tuple(one.detach().clone() if isinstance(one, torch.Tensor) else one for one in values)


class _Rerun(torch.fx.Interpreter):
    """Runs a graph without writing into its attributes; ``wider`` is a type to lift them to."""

    def __init__(self, graph: torch.fx.GraphModule, wider: torch.dtype | None) -> None:
        super().__init__(graph)
        self._wider = wider
        self._held: dict[Any, Any] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return an attribute of the graph; a tensor as a copy, the same one each time."""
        if target not in self._held:
            found = super().get_attr(target, args, kwargs)
            self._held[target] = lift(found, self._wider)
        return self._held[target]


def lift(value: Any, wider: torch.dtype | None) -> Any:
    """Copy a tensor, a narrower float in ``wider``; parameters stay where nothing is wider."""
    if not isinstance(value, torch.Tensor):
        return value
    if wider is not None and value.dtype in NARROW:
        return value.detach().to(wider)
    return cloned((value,))[0]


def run_again(
    captured: Captured, execution: Execution, *, wider: torch.dtype | None = None
) -> Execution:
    """Run a region's graph as it was captured on the same inputs, lifted to ``wider`` if given.

    Whatever the graph computes in ``wider`` has to be lifted by the caller (``Lifting``).
    """
    inputs = tuple(lift(one, wider) for one in execution.inputs)
    return _ran(execution, inputs, _Rerun(captured.graph, wider).run)


def compile_again(
    captured: Captured, execution: Execution, compile_graph: Callable[..., Callable[..., Any]]
) -> Execution:
    """Compile a region's graph by itself (``backends.resolve``), and run it on the same inputs."""
    inputs = cloned(execution.inputs)
    graph = keep(captured.graph)
    _bake_scalars(graph.graph, inputs)
    graph.recompile()
    return _ran(execution, inputs, compile_graph(graph, cloned(inputs)))


def _ran(execution: Execution, inputs: tuple[Any, ...], function: Callable[..., Any]) -> Execution:
    result = function(*inputs)
    written = {index: inputs[index] for index in execution.written}
    return Execution(
        graph=execution.graph,
        inputs=inputs,
        outputs=flat(result),
        written=written,
        call=execution.call,
    )


def _bake_scalars(graph: torch.fx.Graph, inputs: Sequence[Any]) -> None:
    """Write the value of each Python float into the graph.

    Dynamo passes it as a tensor without dimensions whose value it knows; outside of a capture
    nothing knows it.
    """
    places = [node for node in graph.nodes if node.op == "placeholder"]
    for place, value in zip(places, inputs, strict=True):
        if not isinstance(value, torch.Tensor) or value.dim() or value.device.type != "cpu":
            continue
        for asked in [user for user in place.users if user.target == "item"]:
            _replace(asked, value.item())
            graph.erase_node(asked)


def _replace(node: torch.fx.Node, value: Any) -> None:
    def put(each: torch.fx.Node) -> Any:
        return value if each is node else each

    for user in list(node.users):
        user.args = map_arg(user.args, put)
        user.kwargs = map_arg(user.kwargs, put)


def results(execution: Execution) -> Iterator[torch.Tensor]:
    """Yield the tensors that a region gave: its outputs, and inputs that it wrote into."""
    for value in (*execution.outputs, *execution.written.values()):
        if isinstance(value, torch.Tensor):
            yield value
