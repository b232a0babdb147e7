"""What goes into and comes out of each module of a model in one forward. Judges nothing.

Hooks see it, and are removed; they are never put into what is compiled, which guards on them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vlm_ci.watch import stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vlm_ci.parity.localisation.judging import Rows

Values = dict[str, torch.Tensor | None]
Key = tuple[str, int]


@dataclass(slots=True, kw_only=True)
class Call:
    """One call of a module: its name, which call of it this is, the call in whose forward it was
    made, and the rows of its inputs and outputs, each named by its place in them."""

    name: str
    number: int
    parent: Call | None
    inputs: Values
    outputs: Values = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What the same call has in another trace."""
        return self.name, self.number


class Trace:
    """The calls of a forward, in the order in which they ended: children before their parents."""

    def __init__(self, rows: Rows) -> None:
        self._calls: dict[Key, Call] = {}
        self._rows = rows
        self._open: list[Call] = []
        self._counts: dict[str, int] = {}

    @property
    def calls(self) -> Iterable[Call]:
        """The calls, in that order."""
        return self._calls.values()

    def get(self, key: Key) -> Call | None:
        """Return the same call as another trace's."""
        return self._calls.get(key)

    @property
    def current(self) -> str:
        """The module whose call goes on, "" where there is none."""
        return self._open[-1].name if self._open else ""

    def begin(self, name: str, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        """Note that a module is called."""
        number = self._counts[name] = self._counts.get(name, 0) + 1
        self._open.append(
            Call(
                name=name,
                number=number,
                parent=self._open[-1] if self._open else None,
                inputs=self._values(_named(module, args, kwargs)),
            )
        )

    def end(self, output: Any) -> None:
        """Note what it returned."""
        call = self._open.pop()
        call.outputs = self._values(output)
        self._calls[call.key] = call

    def _values(self, value: Any) -> Values:
        return {
            path: self._rows.of(leaf) if leaf is not None else None
            for path, leaf in _leaves(value, "")
        }


@contextmanager
def tracing(
    modules: Mapping[str, torch.nn.Module],
    rows: Rows,
    compiled: Mapping[str, torch.nn.Module] | None = None,
) -> Iterator[Trace]:
    """Trace modules by hooks, and ``compiled`` ones at their calls, where nothing guards."""
    trace = Trace(rows)
    with ExitStack() as stack:
        for name, module in modules.items():
            _hook(trace, name, module, stack)
        for name, module in (compiled or {}).items():
            stack.enter_context(stages.intercepted(module, _around(trace, name, module)))
        yield trace


def _hook(trace: Trace, name: str, module: torch.nn.Module, stack: ExitStack) -> None:
    def before(_: Any, args: Any, kwargs: Any) -> None:
        trace.begin(name, module, args, kwargs)

    def after(_: Any, args: Any, output: Any) -> None:
        trace.end(output)

    stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
    stack.callback(module.register_forward_hook(after).remove)


def _around(trace: Trace, name: str, module: torch.nn.Module) -> Callable[..., Callable[..., Any]]:
    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            trace.begin(name, module, args, kwargs)
            output = function(*args, **kwargs)
            trace.end(output)
            return output

        return call

    return wrap


def _named(module: torch.nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """Name arguments as the class's forward does: an instance's own may have been replaced."""
    try:
        bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    except (TypeError, ValueError):
        return {**{f"args[{index}]": one for index, one in enumerate(args)}, **kwargs}
    named: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind == inspect.Parameter.VAR_KEYWORD:
            named |= value
        else:
            named[name] = value
    return named


def _leaves(value: Any, path: str) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Yield the tensors in a value, and None where it stands; whatever else is left out."""
    if value is None or isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves(one, f"{path}.{key}" if path else str(key))
    elif isinstance(value, tuple | list):
        for index, one in enumerate(value):
            yield from _leaves(one, f"{path}[{index}]")
