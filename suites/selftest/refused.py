"""Calls that are refused after warm-up, one for each form of guard, and how each is explained."""

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


T = torch.ones
THREADS = torch.get_num_threads()
BUFFER = T(20)
ONE, TWO = Box(v=1), Box(v=1)


CASES = (
    state("grad mode", torch.no_grad, "grad mode", "enter torch.no_grad()"),
    state(
        "autocast",
        lambda: torch.autocast("cpu", torch.bfloat16),
        "the process state changed: autocast",
        "same torch.autocast(...)",
    ),
    state(
        "deterministic",
        lambda: setting(torch.use_deterministic_algorithms, True, False),
        "deterministic algorithms",
        "use_deterministic_algorithms(...) once",
    ),
    state(
        "threads",
        lambda: setting(torch.set_num_threads, THREADS + 1, THREADS),
        "threads",
        "set_num_threads(...) once",
    ),
    state(
        "default dtype",
        lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
        "default dtype",
        "set_default_dtype(...) once",
    ),
    state(
        "matmul precision",
        lambda: setting(torch.set_float32_matmul_precision, "medium", "highest"),
        "matmul precision",
        "set_float32_matmul_precision(...) once",
    ),
    state(
        "torch function",
        torch._C.DisableTorchFunctionSubclass,
        "torch function",
        "DisableTorchFunction",
    ),
    state("mode", Mode, "TorchFunctionMode is active", "enter the same modes in warm-up"),
    state(
        "default device",
        lambda: torch.device("meta"),
        "another default device",
        "pass device= where it is needed",
    ),
    case(
        "was None",
        optional,
        (call(T(3)),),
        call(T(3), T(3)),
        "m was None when this was compiled, and is not now",
        "always pass the argument m, with zeros",
        line="if m is None:",
    ),
    case(
        "was a tensor",
        optional,
        (call(T(3), T(3)),),
        call(T(3), None),
        "m was a tensor when this was compiled, and is None now",
        "always pass the argument m as a plain tensor",
        line="if m is None:",
    ),
    case(
        "keyword appears",
        keyword,
        (call(T(3)),),
        call(T(3), mask=T(3)),
        "mask was not passed when this was compiled, and is now",
        "always pass the argument mask",
        line='"mask" in kwargs',
    ),
    case(
        "keyword vanishes",
        keyword,
        (call(T(3), mask=T(3)),),
        call(T(3)),
        "mask was passed when this was compiled, and is not now",
        "always pass the argument mask",
        line='"mask" in kwargs',
    ),
    case(
        "tensor to int",
        plus,
        (call(T(3)),),
        call(3),
        "x was a tensor when this was compiled, and is of type int now",
        "as a plain tensor",
        line="return x + 1",
    ),
    case(
        "parameter",
        plus,
        (call(T(3)),),
        call(torch.nn.Parameter(T(3), requires_grad=False)),
        "x was a tensor of another class when this was compiled, and is of class Parameter",
        "as a plain tensor",
        line="return x + 1",
    ),
    case(
        "tensor subclass",
        plus,
        (call(T(3)),),
        call(T(3).as_subclass(Sub)),
        "and is of class Sub now",
        "as a plain tensor",
        line="return x + 1",
    ),
    case(
        "list to tuple",
        entries,
        (call(T(3), [T(3)]),),
        call(T(3), (T(3),)),
        "items was of type list when this was compiled, and is of another now",
        "always pass items with one type",
        line="for item in items:",
    ),
    case(
        "type of an object",
        attribute,
        (call(T(3), Box(v=1)),),
        call(T(3), OtherBox(v=1)),
        "o was of type Box when this was compiled",
        "always pass o with one type",
        line='hasattr(o, "v")',
    ),
    case(
        "function",
        apply,
        (call(T(3), lambda x: x + 1),),
        call(T(3), lambda x: x + 2),
        "f was another function when this was compiled",
        "define the function once",
        line="return f(x)",
    ),
    case(
        "builtin function",
        apply,
        (call(T(3), torch.sin),),
        call(T(3), torch.cos),
        "f was another function when this was compiled",
        "define the function once",
        line="return f(x)",
    ),
    case(
        "enum",
        which,
        (call(T(3), Color.RED),),
        call(T(3), Color.BLUE),
        "e was one particular object (Color",
        "create the object once",
        line="if e is Color.RED",
    ),
    case(
        "two objects",
        same,
        (call(T(3), ONE, ONE),),
        call(T(3), ONE, TWO),
        "o and p were one object when this was compiled, and are two now",
        "pass a copy (.clone())",
        line="if o is p",
    ),
    case(
        "one tensor twice",
        added,
        (call(BUFFER, T(20)),),
        call(BUFFER, BUFFER),
        "one tensor is passed in two places now",
        "pass a copy (.clone()) in one of the places",
    ),
    case(
        "length",
        entries,
        (call(T(3), [T(3)]),),
        call(T(3), [T(3), T(3)]),
        "items had exactly 1 entries when this was compiled",
        "move this length out of the graph",
        line="for item in items:",
    ),
    case(
        "was empty",
        entries,
        (call(T(3), ()),),
        call(T(3), (T(3),)),
        "items was empty when this was compiled, and is not now",
        "keep the number of entries of items constant",
        line="for item in items:",
    ),
    case(
        "length of a dictionary",
        keys,
        (call(T(3), {"a": T(3)}),),
        call(T(3), {"a": T(3), "b": T(3)}),
        "table had exactly 1 entries when this was compiled",
        "keep the number of entries of table constant",
    ),
    case(
        "keys",
        keys,
        (call(T(3), {"a": T(3)}),),
        call(T(3), {"b": T(3)}),
        "key 0 of table was 'a' when this was compiled, and is not now",
        "with the same keys in the same order",
        line="for key in table:",
    ),
    case(
        "key vanishes",
        lookup,
        (call(T(3), {"a": 1}),),
        call(T(3), {"b": 1}),
        "table held 'a' when this was compiled, and does not now",
        "always pass the same keys",
        line='if "a" in table',
    ),
    case(
        "key appears",
        lookup,
        (call(T(3), {"b": 1}),),
        call(T(3), {"a": 1}),
        "table held no 'a' when this was compiled, and does now",
        "always pass the same keys",
        line='if "a" in table',
    ),
    case(
        "entry of a set",
        of_set,
        (call(T(3), frozenset({"a"})),),
        call(T(3), frozenset({"b"})),
        "names held 'a' when this was compiled, and does not now",
        "always pass the same keys",
        line='if "a" in names',
    ),
    case(
        "iterator",
        entries,
        (call(T(3), iter(range(3))),),
        call(T(3), iter(range(4))),
        "items is another range or slice than when this was compiled",
        "pass a tensor in place of the range",
        line="for item in items:",
    ),
    case(
        "slice",
        sliced,
        (call(T(9), slice(0, 3)),),
        call(T(9), slice(0, 4)),
        "s is another range or slice",
        "pass a tensor in place of the range",
        line="return x[s] + 1",
    ),
    case(
        "attribute appears",
        attribute,
        (call(T(3), Box(w=1)),),
        call(T(3), Box(v=1)),
        "o had no attribute v of its own when this was compiled, and has one now",
        "set attributes once, before warm-up",
        line='hasattr(o, "v")',
    ),
    case(
        "attribute vanishes",
        attribute,
        (call(T(3), Box(v=1)),),
        call(T(3), Box(w=1)),
        "or something in it, was there when this was compiled, and is missing now",
        "assign None rather than deleting one",
    ),
    net(
        "training",
        lambda m: m.eval(),
        "self.training was True when this was compiled, and is not now",
        "call .eval() (or .train()) once, before warm-up",
        line="self.training)",
    ),
    net(
        "integer attribute",
        lambda m: setattr(m, "scale", 7),
        "self.scale was compiled as exactly 3",
        "allow_unspec_int_on_nn_module",
        line="* self.scale",
    ),
    net(
        "float attribute",
        lambda m: setattr(m, "rate", 0.25),
        "self.rate was compiled as exactly 0.5",
        "set self.rate once, before warm-up",
        line="self.rate, self.training",
    ),
    net(
        "string attribute",
        lambda m: setattr(m, "kind", "flash"),
        "self.kind was compiled as exactly 'sdpa'",
        "set self.kind once, before warm-up",
        line='if self.kind == "sdpa"',
    ),
    net(
        "None attribute",
        lambda m: setattr(m, "cache", T(4)),
        "self.cache was None when this was compiled, and is not now",
        "set self.cache before warm-up",
        line="if self.cache is not None:",
    ),
    net(
        "cache entry",
        lambda m: m.table.update(a=1),
        "self.table held no 'a' when this was compiled, and does now",
        "fill self.table before warm-up",
        line='if "a" in self.table:',
        unguarded=("2.11",),
    ),
    net(
        "another submodule",
        lambda m: setattr(m, "fc", torch.nn.Identity()),
        "self.fc was of type Linear when this was compiled",
        "always pass self.fc with one type",
        line="self.fc(x)",
    ),
    net(
        "another forward",
        lambda m: setattr(m.fc, "forward", lambda x: x),
        "self.fc had no attribute forward of its own when this was compiled, and has one",
        "set attributes once",
        line="self.fc(x)",
    ),
    net(
        "parameter's gradient",
        lambda m: m.fc.weight.requires_grad_(False),
        "self.fc.weight required a gradient when this was compiled, and does not now",
        "call requires_grad_() on parameters before warm-up",
        line="self.fc(x)",
        unguarded=("2.11",),
    ),
    net(
        "parameter's size",
        lambda m: setattr(m.fc, "weight", torch.nn.Parameter(T(6, 4))),
        "size 0 of self.fc.weight was compiled as exactly 4 and is now 6",
        "leave the parameters of the model as they were in warm-up",
        line="self.fc(x)",
    ),
    case(
        "dtype",
        plus,
        (call(T(3)),),
        call(T(3).double()),
        "x was of dtype Float when this was compiled, and is Double now",
        "cast x to one dtype before the call",
        line="return x + 1",
    ),
    case(
        "rank",
        plus,
        (call(T(3)),),
        call(T(3, 3)),
        "x had 1 dimensions when this was compiled, and has 2 now",
        "the same number of dimensions (unsqueeze)",
        line="return x + 1",
    ),
    case(
        "device",
        plus,
        (call(T(3)),),
        call(T(3, device="meta")),
        "x was a CPU tensor when this was compiled, and is a Meta tensor now",
        "move x to the device",
        line="return x + 1",
    ),
    case(
        "requires_grad",
        plus,
        (call(T(3)),),
        call(T(3, requires_grad=True)),
        "x did not require a gradient when this was compiled, and does now",
        "enter torch.no_grad() around every call",
        line="return x + 1",
    ),
    case(
        "inference tensor",
        plus,
        (call(T(3)),),
        call(inference_tensor()),
        "x is an inference tensor now, and was none when this was compiled",
        "enter torch.inference_mode() around every call",
        line="return x + 1",
    ),
    case(
        "no inference tensor",
        plus,
        (call(inference_tensor()),),
        call(T(3)),
        "x was an inference tensor when this was compiled, and is none now",
        "enter torch.inference_mode() around every call",
        line="return x + 1",
    ),
    case(
        "lazy view",
        plus,
        (call(T(3, dtype=torch.cfloat)),),
        call(T(3, dtype=torch.cfloat).conj()),
        "x is a lazily conjugated or negated view now",
        "x.resolve_conj()",
        line="return x + 1",
    ),
    case(
        "marks",
        plus,
        (call(T(3)),),
        call(marked()),
        "a tensor carries other marks",
        "mark the same dimensions in warm-up as in serving",
        line=None,
    ),
    case(
        "flag",
        times,
        (call(T(3), True),),
        call(T(3), False),
        "n was compiled as exactly True",
        "always pass one value of n",
        line="return x * n",
    ),
    case(
        "string",
        mode,
        (call(T(3), "a"),),
        call(T(3), "b"),
        "s was compiled as exactly 'a'",
        "always pass one value of s",
        line='if s == "a"',
    ),
    case(
        "dtype argument",
        cast,
        (call(T(3), torch.float64),),
        call(T(3), torch.float16),
        "d was compiled as exactly torch.float64",
        "always pass one value of d",
        line="return x.to(d)",
    ),
    case(
        "float",
        times,
        (call(T(3), 0.5),),
        call(T(3), 0.25),
        "n was compiled as exactly 0.5",
        "pass n as a tensor",
        line="return x * n",
    ),
    case(
        "nan",
        times,
        (call(T(3), float("nan")),),
        call(T(3), 0.25),
        "n was compiled as NaN",
        "pass n as a tensor",
        line="return x * n",
    ),
    case(
        "integer",
        times,
        (call(T(3), 5),),
        call(T(3), 7),
        "n was compiled as exactly 5",
        "move this length out of the graph",
        line="return x * n",
    ),
    case(
        "symbolic integer",
        many,
        (call(T(3), 5), call(T(3), 7)),
        call(T(3), 20),
        "n <= 10 held when this was compiled, and does not now",
        "pad to the bucket",
        line="if n > 10",
    ),
    case(
        "closure",
        apply,
        (call(T(3), closed(1)),),
        call(T(3), closed(2)),
        "n was compiled as exactly 1",
        "pass n as a tensor",
        line="return x + n",
    ),
    case(
        "default argument",
        counted,
        (call(T(3)),),
        call(T(3)),
        "counter[0] was compiled as exactly 3",
        "as a tensor",
        before=lambda: counted.__defaults__[0].__setitem__(0, 4),
        line="return x + counter[0]",
    ),
    case(
        "number read from a tensor",
        read,
        (call(T(3), torch.tensor(5)),),
        call(T(3), torch.tensor(4)),
        "a number that the code read from a tensor",
        "keep the number in a tensor (no .item()",
        line="return x + k if k > 3",
    ),
    case(
        "static size",
        loop,
        (call(T(3)), call(T(4))),
        call(T(5)),
        "size 0 of x was compiled as exactly 3, 4 and is now 5",
        "mark this dimension dynamic",
        line="range(x.shape[0])",
    ),
    case(
        "below 2",
        total,
        (call(T(3)), call(T(4))),
        call(T(1)),
        "size 0 of x is below 2: 0 and 1 are specialised",
        "mark_unbacked(x, 0)",
        line="x.sum() + 1  # all of it",
    ),
    case(
        "compiled for 1",
        plus,
        (call(T(1)),),
        call(T(4)),
        "size 0 of x was compiled as exactly 1 (0 and 1 are specialised) and is now 4",
        "warm up with a larger size first",
        line="return x + 1",
    ),
    case(
        "duck shape",
        both,
        (call(T(3), T(3)),),
        call(T(3), T(4)),
        "size 0 of y and size 0 of x were equal when this was compiled, and are not now",
        "warm up with sizes that are not equal by accident",
        line="return x.sum() + y.sum()",
        dynamic=True,
    ),
    case(
        "lower bound",
        large,
        (call(T(20)), call(T(30))),
        call(T(4)),
        "size 0 of x was compiled for 16 and more, and is below now",
        "pad to the bucket",
        line="if x.shape[0] >= 16",
    ),
    case(
        "two bounds",
        large,
        (call(T(3)), call(T(4))),
        call(T(20)),
        "size 0 of x was compiled for 2 to 15, and is outside now",
        "from this side of the decision",
        line="if x.shape[0] >= 16",
    ),
    case(
        "multiple",
        fours,
        (call(T(8)), call(T(12))),
        call(T(13)),
        "size 0 of x was a multiple of 4 when this was compiled, and is none now",
        "pad to the bucket (a multiple of 4)",
        line="x.shape[0] % 4 == 0",
    ),
    case(
        "no multiple",
        fours,
        (call(T(9)), call(T(13))),
        call(T(12)),
        "size 0 of x was no multiple of 4 when this was compiled, and is one now",
        "pad to the bucket (a multiple of 4)",
        line="x.shape[0] % 4 == 0",
    ),
    case(
        "relation",
        double,
        (call(T(3), T(6)), call(T(4), T(8))),
        call(T(4), T(9)),
        "y.shape[0] == 2*x.shape[0] held when this was compiled, and does not now",
        "move this length out of the graph",
        line="x.shape[0] * 2 == y.shape[0]",
    ),
    case(
        "size that depends on data",
        picked,
        (call(T(3), torch.tensor([True, False, True])),),
        call(T(3), torch.tensor([True, False, False])),
        "size 0 of (value 0 before a graph break) was compiled as exactly 2 and is now 1",
        "its size depends on data: pad to the bucket",
        line="return x[m] + 1",
    ),
    case(
        "stride",
        plus,
        (call(T(3, 4)),),
        call(T(4, 3).T),
        "stride 1 of x was compiled as exactly 1 and is now 3",
        "call .contiguous() on x",
        dynamic=True,
        line="return x + 1",
    ),
    case(
        "relation of strides",
        plus,
        (call(T(3, 4)), call(T(5, 6))),
        call(T(1, 4).expand(3, 4)),
        "the strides of x are of another form than when this was compiled",
        "call .contiguous() on x",
        line="return x + 1",
    ),
    case(
        "transform",
        tangent,
        (call(T(3)),),
        call(T(3)),
        "other torch.func transforms (vmap, grad, jvp) are active",
        "inside the same transforms in warm-up",
        within=lambda: torch._functorch.eager_transforms.jvp_increment_nesting(),
    ),
    case(
        "saved-tensor hooks",
        total,
        (call(T(3, requires_grad=True)),),
        call(T(3, requires_grad=True)),
        "other saved-tensor hooks are active",
        "register the hooks before warm-up",
        backend="aot_eager",
        within=hooks,
    ),
    case(
        "dispatch mode",
        plus,
        (call(T(3)),),
        call(T(3)),
        "x has other dispatch keys than when this was compiled: with Python",
        "call compiled code in the same modes",
        within=Dispatch,
        line="return x + 1",
    ),
    case(
        "overlapping memory",
        written,
        (call(BUFFER[:4], BUFFER[5:9]),),
        call(BUFFER[:4], BUFFER[2:6]),
        "the arguments share memory in another way than when this was compiled",
        "pass copies (.clone()) of views",
        backend="aot_eager",
        dynamic=True,
    ),
    case(
        "equality that the code asks for",
        attend,
        (call(T(2, 2, 5, 4), T(2, 1, 5, 5)), call(T(3, 2, 6, 4), T(3, 1, 6, 6))),
        call(T(4, 2, 7, 4), T(1, 1, 7, 7)),
        "size 0 of m and size 0 of x were equal when this was compiled, and are not now",
        "pad to the bucket",
        line="attn_mask=m",
    ),
    case(
        "relation of numbers",
        product,
        (call(T(3), 5, 6),),
        call(T(3), 2, 3),
        "m*n > 10 held when this was compiled, and does not now",
        "pad to the bucket",
        dynamic=True,
        line="if n * m > 10",
    ),
    case(
        "a set of numbers",
        entries,
        (call(T(3), {1}),),
        call(T(3), {1, 2}),
        "items was compiled as exactly {1}",
        "keep the value of items out of the compiled region",
        line="for item in items:",
    ),
)
