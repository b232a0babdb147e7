"""Differences between calls in words, and what to do about each: what explanations are made of.

It judges nothing: which difference is a cause is for ``explain`` to say.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any

from vlm_ci.watch.guards import STATE_ADVICE
from vlm_ci.watch.guards.family import ADD
from vlm_ci.watch.signatures import STATE, Difference, Signature

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST_VALUES = 5


def side_by_side(now: Signature, warm: Signature) -> tuple[dict[str, str], ...]:
    """Describe every argument of two calls, and the process state where it differs."""
    rows = []
    for path in dict.fromkeys([*warm.aspects, *now.aspects]):
        if path != STATE:
            rows.append((path, now.describe(path), warm.describe(path)))
            continue
        old, new = warm.aspects[path], now.aspects[path]
        rows += [
            (name, _state(name, str(new[name])), _state(name, str(old[name])))
            for name in new
            if new[name] != old[name]
        ]
    return tuple({"path": path, "now": new, "warm": old} for path, new, old in rows)


def say(difference: Difference, warmed: Iterable[Signature] = ()) -> str:
    """Put a difference in words: what the argument is now, and what it was in warm-up.

    ``warmed`` are all calls of warm-up: a number is compared with every value it had there.
    """
    d = difference
    if d.path == STATE:
        return f"{d.aspect} is {_state(d.aspect, d.now)}; in warm-up it was " + _state(
            d.aspect, d.warm
        )
    if d.aspect == "inference":
        inside, outside = "inside inference_mode (an inference tensor)", "outside inference_mode"
        now, warm = (inside, outside) if d.now == "True" else (outside, inside)
        return f"{d.path} was made {now}; in warm-up {warm}"
    if d.aspect == "value":
        return f"{d.path} is {d.now}; in warm-up it was {_listed(_values(d, warmed))}"
    if d.aspect.startswith("size "):
        return _say_size(d, _values(d, warmed))
    return str(d)


def _say_size(difference: Difference, warm: list[Any]) -> str:
    d = difference
    place, known = f"{d.path}: {d.aspect} is {d.now}", _listed(warm)
    if d.now in ("0", "1"):
        least = f"2 or more ({known})" if min(warm) > 1 else known
        return f"{place}, which Dynamo specialises; in warm-up it was {least}"
    return f"{place}; in warm-up it was {known}, which Dynamo specialises"


def _values(difference: Difference, warmed: Iterable[Signature]) -> list[Any]:
    """Return the sizes or values that warm-up had at a difference's place, without repeats."""
    found = []
    for signature in warmed:
        aspects = signature.aspects.get(difference.path, {})
        if difference.aspect == "value" and "value" in aspects:
            found.append(aspects["value"])
        dim = difference.aspect.removeprefix("size ")
        if dim.isdecimal() and int(dim) < len(aspects.get("size", ())):
            found.append(aspects["size"][int(dim)])
    if not found:
        return [int(difference.warm) if difference.warm.isdecimal() else difference.warm]
    return list(dict.fromkeys(found))


def _listed(values: list[Any]) -> str:
    try:
        values = sorted(values)
    except TypeError:
        pass
    more = ", …" if len(values) > _MOST_VALUES else ""
    return ", ".join(map(str, values[:_MOST_VALUES])) + more


def _state(name: str, value: str) -> str:
    """Write a part of the process state as people do: autocast is "bfloat16 on cpu", or "off"."""
    if name != "autocast":
        return value
    dtypes = dict(zip(("cpu", "cuda"), ast.literal_eval(value), strict=False))
    found = [f"{t.removeprefix('torch.')} on {d}" for d, t in dtypes.items() if t != "off"]
    return " and ".join(found) or "off"


def sizes_of(text: str, now: Signature, warmed: Iterable[Signature]) -> str:
    """Return the sizes that a guard's plain text speaks of, as they are in a call.

    Where two were equal in a call of warm-up, that value stands beside them.
    """
    places = list(dict.fromkeys(re.findall(r"([\w.\[\]'\"]+)\.shape\[(\d+)\]", text)))
    values = [_size(now, *place) for place in places]
    if not places or None in values:
        return ""
    if len(places) == 2 and re.fullmatch(r"\S+ == \S+", text):
        for signature in warmed:
            one, two = (_size(signature, *place) for place in places)
            if one is not None and one == two:
                return f"both {one} in warm-up; {values[0]} and {values[1]} now"
    return "now " + ", ".join(
        f"{name}.shape[{dim}] = {value}" for (name, dim), value in zip(places, values, strict=True)
    )


def breaks(text: str, warm: Signature) -> bool:
    """Whether a call breaks a guard on a size, given as plain text; False where it cannot tell."""
    if m := re.search(r"^tensor '(.+?)' size mismatch at index (\d+)\. expected (\d+)", text):
        size = _size(warm, m[1], m[2])
        return size is not None and size != int(m[3])
    if m := re.match(r"(?:(\d+) <= )?([^\s=<>]+)\.shape\[(\d+)\](?: <= (\d+))?$", text):
        size = _size(warm, m[2], m[3])
        return size is not None and not int(m[1] or 0) <= size <= int(m[4] or size)
    if m := re.match(r"(\S+)\.shape\[(\d+)\] == (\S+)\.shape\[(\d+)\]$", text):
        one, two = _size(warm, m[1], m[2]), _size(warm, m[3], m[4])
        return None not in (one, two) and one != two
    return False


def _size(signature: Signature, name: str, dim: str) -> int | None:
    size: tuple[int, ...] = signature.aspects.get(name, {}).get("size", ())
    return size[int(dim)] if int(dim) < len(size) else None


# What to do about an argument that differs in an aspect, by the aspect's name in signatures.
_ADVICE = {
    "dtype": "cast {path} to {warm} before the call, or {add}",
    "rank": "always give {path} {warm} dimensions (unsqueeze), or {add}",
    "device": "move {path} to {warm} before the call",
    "requires_grad": "enter torch.no_grad() around every call and pass {path}.detach(), or {add}",
    "inference": STATE_ADVICE["inference mode"],
    "layout": "call .contiguous() on {path}, or {add}",
    "length": "keep the number of entries of {path} constant, move this length out of the graph, "
    "or {add}",
    "value": "always pass one value of {path}, or pass it as a tensor, or {add}",
}
_OF_THREAD = {"grad mode": "True", "inference mode": "False"}  # what a new thread begins with


def advise(differences: tuple[Difference, ...]) -> str:
    """Say what to do about a cause: about the difference among them that tells most."""
    # Inference mode switches grad mode off too, and is what was entered.
    inference = ("inference mode", "inference")
    first = next((d for d in differences if d.aspect in inference), differences[0])
    if first.path == STATE:
        known = STATE_ADVICE.get(first.aspect, f"serve with the same {first.aspect}")
        now, warm = (_state(first.aspect, side) for side in (first.now, first.warm))
        each = (
            "; it belongs to a thread: enter it in each thread that serves"
            if _OF_THREAD.get(first.aspect) == now
            else ""
        )
        return f"{known} ({first.aspect} was {warm} in warm-up, and is {now}){each}"
    if first.aspect == "presence":
        return _about_presence(first)
    if first.aspect.startswith("size "):
        dim = first.aspect.removeprefix("size ")
        return (
            "add a batch with this size to the warm-up (0 and 1 are specialised), or mark the "
            f"dimension unbacked: torch._dynamo.decorators.mark_unbacked({first.path}, {dim})"
        )
    template = _ADVICE.get(first.aspect, "keep {aspect} of {path} constant, or warm up with both")
    return template.format(path=first.path, aspect=first.aspect, warm=first.warm, add=ADD)


def _about_presence(difference: Difference) -> str:
    name, absent = difference.path, ("None", "not passed")
    if difference.warm in absent or difference.now in absent:
        return f"always pass {name}, with zeros or an empty tensor where there is nothing, or {ADD}"
    return f"always pass {name} with one type, as in warm-up, or {ADD}"
