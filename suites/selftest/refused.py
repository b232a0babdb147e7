"""What the refused calls of refused_*.py are made of: the form of a case, and what is called."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A function, the calls that warm it up, and one that is refused.

    ``before`` runs before the refused call, ``within`` is entered for it. ``line`` is a part of
    the source line that the explanation has to name, "" where torch knows none, None where some
    releases of torch do. ``unguarded`` are releases that compile nothing for this change.
    """

    name: str
    function: Any
    warm: tuple[Any, ...]
    now: Any
    words: str
    advice: str
    line: str | None
    dynamic: bool | None = None
    backend: str = "eager"
    before: Callable[[], Any] | None = None
    within: Callable[[], Any] = contextlib.nullcontext
    unguarded: tuple[str, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether this torch refuses the call."""
        return not torch.__version__.startswith(self.unguarded)


def call(*args: Any, **kwargs: Any) -> Any:
    """The arguments of one call."""
    return args, kwargs


def case(name, function, warm, now, words, advice, line="", **more):
    """A case whose function, arguments or context change."""
    return Case(
        name=name,
        function=function,
        warm=warm,
        now=now,
        words=words,
        advice=advice,
        line=line,
        **more,
    )


def plus(x):
    return x + 1


def total(x):
    return x.sum() + 1  # all of it


def both(x, y):
    return x.sum() + y.sum()


def optional(x, m=None):
    if m is None:
        return x + 1
    return x + m


def times(x, n):
    return x * n


def keyword(x, **kwargs):
    return x + kwargs["mask"] if "mask" in kwargs else x - 1


def entries(x, items):
    for item in items:
        x = x + item
    return x - 1


def keys(x, table):
    for key in table:
        x = x + table[key]
    return x - 1


def lookup(x, table):
    return x + 1 if "a" in table else x - 1


def of_set(x, names):
    return x + 1 if "a" in names else x - 1


def attribute(x, o):
    return x + o.v if hasattr(o, "v") else x - 1


def same(x, o, p):
    return x + 1 if o is p else x - 1


def apply(x, f):
    return f(x)


def mode(x, s):
    return x + 1 if s == "a" else x - 1


def which(x, e):
    return x + 1 if e is Color.RED else x - 1


def large(x):
    return x + 1 if x.shape[0] >= 16 else x - 1


def many(x, n):
    return x * n if n > 10 else x - n


def fours(x):
    return x + 1 if x.shape[0] % 4 == 0 else x - 1


def double(x, y):
    return x + 1 if x.shape[0] * 2 == y.shape[0] else x - 1


def added(x, y):
    return x + y


def tangent(x):
    return torch.func.jvp(torch.sin, (x,), (x,))[1]


def attend(x, m):
    return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=m)


def written(x, y):
    x.add_(1)
    return x + y


def product(x, n, m):
    return x + 1 if n * m > 10 else x - 1


def descends(x, kind):
    return x + 1 if issubclass(kind, Box) else x - 1


def loop(x):
    for _ in range(x.shape[0]):
        x = x + 1
    return x


def picked(x, m):
    return x[m] + 1


def read(x, n):
    k = n.item()
    return x + k if k > 3 else x - k


def sliced(x, s):
    return x[s] + 1


def closed(n):
    def inner(x):
        return x + n

    return inner


def cast(x, d):
    return x.to(d)


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Box:
    """Holds attributes."""

    def __init__(self, **values):
        self.__dict__.update(values)


class OtherBox(Box):
    """Another type."""


class Sub(torch.Tensor):
    """A subclass."""


class Mode(TorchFunctionMode):
    """A mode that does nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Dispatch(TorchDispatchMode):
    """A mode that does nothing."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Net(torch.nn.Module):
    """State that may change between calls."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)
        self.scale, self.rate, self.kind, self.cache, self.table = 3, 0.5, "sdpa", None, {}

    def forward(self, x):
        if self.cache is not None:
            x = x + self.cache
        if "a" in self.table:
            x = x - 1
        x = torch.nn.functional.dropout(x, self.rate, self.training)
        x = x + 1 if self.kind == "sdpa" else x - 1
        return self.fc(x) * self.scale


def net(name, change, words, advice, line, **more):
    """A module of which something changes after warm-up."""
    module, x = Net(), torch.ones(2, 4)
    return case(
        name,
        module,
        (call(x),),
        call(x),
        words,
        advice,
        line,
        before=lambda: change(module),
        **more,
    )


def state(name, within, words, advice):
    """A process state that is entered after warm-up."""
    x = torch.ones(3)
    return case(name, plus, (call(x),), call(x), words, advice, within=within)


@contextlib.contextmanager
def setting(setter, value, back):
    setter(value)
    try:
        yield
    finally:
        setter(back)


def marked():
    x = torch.ones(3)
    torch._dynamo.mark_dynamic(x, 0)
    return x


def inference_tensor():
    with torch.inference_mode():
        return torch.ones(3)


def counted(x, counter=[3]):  # noqa: B006
    return x + counter[0]


def hooks():
    """Saved-tensor hooks that a compiler can take in."""
    pack, unpack = (torch.fx.symbolic_trace(lambda x: x * 1) for _ in range(2))
    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
