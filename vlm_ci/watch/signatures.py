"""The signature of a call: what guards can depend on, argument by argument.

A refusal names only guards of the outermost frame; the argument that changed shows up when the
refused call's signature is compared with those that warm-up recorded.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Aspects = dict[str, Any]  # what is known of one argument: type, dtype, rank, size, …
NOT_PASSED: Aspects = {"type": "not passed"}
STATE = "process state"  # the path under which grad mode and its relatives are recorded


@dataclass(frozen=True, slots=True)
class Signature:
    """Aspects of each argument of one call, keyed by its path such as ``features[0]``."""

    aspects: Mapping[str, Aspects]

    def describe(self, path: str) -> str:
        """Say in words what stands at ``path``."""
        return describe(self.aspects.get(path, NOT_PASSED))


def describe(aspects: Aspects) -> str:
    """Say in words what an argument is: "None", "float32 tensor [2, 7]", "list of 3"."""
    kind = aspects["type"]
    if kind == "tensor":
        notes = [] if aspects["layout"] == "contiguous" else [aspects["layout"]]
        notes += [name for name in ("requires_grad", "inference") if aspects[name]]
        tail = f" ({', '.join(notes)})" if notes else ""
        return f"{aspects['dtype']} tensor {list(aspects['size'])} on {aspects['device']}{tail}"
    if "length" in aspects:
        return f"{kind} of {aspects['length']}"
    return f"{kind} {aspects['value']!r}" if "value" in aspects else str(kind)


class Binder:
    """Names the positional arguments of one callable; built once, used at each call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            self._names: tuple[str, ...] = ()
        else:
            self._names = tuple(p.name for p in parameters if p.kind in kinds)

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Signature:
        """Record the signature of a call with these arguments."""
        aspects: dict[str, Aspects] = {STATE: process_state()}
        for index, value in enumerate(args):
            name = self._names[index] if index < len(self._names) else f"args[{index}]"
            _record(name, value, aspects)
        for name, value in kwargs.items():
            _record(name, value, aspects)
        return Signature(aspects)


def process_state() -> Aspects:
    """Record what Dynamo guards on besides arguments (its GLOBAL_STATE guard)."""
    return {
        "type": "state",
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": tuple(
            str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "off"
            for device in ("cpu", "cuda")
        ),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "default dtype": str(torch.get_default_dtype()),
    }


_MAX_CHILDREN = 16


def _record(path: str, value: Any, into: dict[str, Aspects]) -> None:
    if isinstance(value, torch.Tensor):
        into[path] = {
            "type": "tensor",
            "dtype": str(value.dtype).removeprefix("torch."),
            "rank": value.dim(),
            "size": tuple(value.shape),
            "layout": _layout(value),
            "device": str(value.device),
            "requires_grad": value.requires_grad,
            "inference": value.is_inference(),
        }
    elif value is None or isinstance(value, bool | int | float | str):
        into[path] = {"type": type(value).__name__, "value": value}
        if value is None:
            into[path] = {"type": "None"}
    elif isinstance(value, list | tuple):
        into[path] = {"type": type(value).__name__, "length": len(value)}
        for index, child in enumerate(value[:_MAX_CHILDREN]):
            _record(f"{path}[{index}]", child, into)
    elif isinstance(value, Mapping):
        into[path] = {"type": type(value).__name__, "length": len(value)}
        for key, child in list(value.items())[:_MAX_CHILDREN]:
            _record(f"{path}[{key!r}]", child, into)
    else:
        into[path] = {"type": type(value).__qualname__}


def _layout(tensor: torch.Tensor) -> str:
    """Name the order of strides without their values, which change with the sizes."""
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    if tensor.is_contiguous():
        return "contiguous"
    if 0 in tensor.stride():
        return "expanded"
    order = sorted(range(tensor.dim()), key=lambda dim: tensor.stride(dim), reverse=True)
    return f"strides ordered {order}" if order != list(range(tensor.dim())) else "strided view"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One aspect in which the refused call differs from the nearest warm-up call."""

    path: str
    aspect: str
    warm: str
    now: str

    @property
    def key(self) -> str:
        """What identifies this difference whatever the sizes: ``features: None -> tensor``."""
        if self.aspect == "presence":
            return f"{self.path}: {_bare(self.warm)} -> {_bare(self.now)}"
        return f"{self.path}: {self.aspect}"

    def __str__(self) -> str:
        if self.path == STATE:
            return f"{self.aspect} is {self.now}; in warm-up it was {self.warm}"
        if self.aspect == "presence":
            return f"{self.path} is {_article(self.now)}; in warm-up it was {_article(self.warm)}"
        return f"{self.path}: {self.aspect} is {self.now}; in warm-up it was {self.warm}"


def _bare(description: str) -> str:
    return re.split(r" \[| of |\s\d", description)[0]


def _article(description: str) -> str:
    if description in ("None", "not passed"):
        return description
    return f"{'an' if description[0] in 'aeiou' else 'a'} {description}"


# How much a difference weighs when the nearest warm-up call is sought. Sizes alone are ordinary
# traffic; that one of them is 1 is not (0/1 specialisation), nor is another order of strides.
_WEIGHTS = {"presence": 100.0, "one": 3.0, "layout": 3.0, "size": 0.01}
_OTHER_WEIGHT = 10.0
_CAUSE_WEIGHT = 1.0


def _differences(now: Signature, warm: Signature) -> list[tuple[float, Difference]]:
    found: list[tuple[float, Difference]] = []
    for path in dict.fromkeys([*warm.aspects, *now.aspects]):
        old, new = warm.aspects.get(path, NOT_PASSED), now.aspects.get(path, NOT_PASSED)
        if old["type"] != new["type"]:
            # What lies inside a container that appears says nothing that the container does not.
            nested = any(path.startswith(f"{d.path}[") for _, d in found if d.aspect == "presence")
            if not nested:
                found.append(
                    (
                        _WEIGHTS["presence"],
                        Difference(
                            path=path, aspect="presence", warm=describe(old), now=describe(new)
                        ),
                    )
                )
            continue
        for aspect, value in new.items():
            if old.get(aspect) == value:
                continue
            if aspect == "size" and old["rank"] == new["rank"]:
                found += _sizes(path, old["size"], value)
            else:
                weight = _WEIGHTS.get(aspect, _OTHER_WEIGHT)
                found.append(
                    (
                        weight,
                        Difference(
                            path=path, aspect=aspect, warm=str(old.get(aspect)), now=str(value)
                        ),
                    )
                )
    return found


def _sizes(path: str, old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[float, Difference]]:
    found = []
    for dim, (before, after) in enumerate(zip(old, new, strict=True)):
        if before != after:
            weight = _WEIGHTS["one" if 1 in (before, after) else "size"]
            found.append(
                (
                    weight,
                    Difference(path=path, aspect=f"size {dim}", warm=str(before), now=str(after)),
                )
            )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The warm-up call most like the refused one, and how the two differ.

    ``causes`` are the differences that guards care about whatever the traffic; ``sizes`` are
    ordinary differences in size.
    """

    warm: Signature
    causes: tuple[Difference, ...]
    sizes: tuple[Difference, ...]


def nearest(now: Signature, warmed: Iterable[Signature]) -> Nearest | None:
    """Find the warm-up call that differs least from ``now``; None if warm-up recorded none."""
    best: tuple[float, Nearest] | None = None
    for warm in warmed:
        weighed = _differences(now, warm)
        total = sum(weight for weight, _ in weighed)
        if best is None or total < best[0]:
            best = (
                total,
                Nearest(
                    warm=warm,
                    causes=tuple(d for weight, d in weighed if weight >= _CAUSE_WEIGHT),
                    sizes=tuple(d for weight, d in weighed if weight < _CAUSE_WEIGHT),
                ),
            )
    return best[1] if best else None
