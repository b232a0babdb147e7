"""A refused call put in words: what differs from warm-up, and what would help.

The difference between the call's signature and warm-up's comes first; guard text is evidence, and
the cause only where no difference explains the refusal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vlm_ci.watch.signatures import STATE, Difference, Nearest, Signature, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a call was refused. ``key`` names the cause whatever the sizes; ``call`` shows the
    refused call beside the nearest one of warm-up, argument by argument (path, now, warm)."""

    key: str
    cause: str
    advice: str
    differences: tuple[Difference, ...]
    call: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardFamily:
    """A form that guards take, what it means, and what to do about it."""

    pattern: re.Pattern[str]
    words: Callable[[re.Match[str]], str]
    advice: str


_MARK_DYNAMIC = (
    "add a batch with this size to the warm-up, or keep the size out of Python decisions "
    "(dictionary keys, comparisons, int()) inside the compiled region"
)
# In the order in which they tell most: what appears or vanishes before what changes its size.
GUARD_FAMILIES = (
    GuardFamily(
        pattern=re.compile(r"GLOBAL_STATE changed: (?P<what>.+)"),
        words=lambda m: f"the process state changed: {m['what']}",
        advice="serve in the state in which you warm up, or warm up in both",
    ),
    GuardFamily(
        pattern=re.compile(r"^(?P<name>.+?) is (?P<what>not None|None)$"),
        words=lambda m: (
            f"{m['name']} was {m['what'].replace('not None', 'a value')} when this was compiled, "
            "and is not now"
        ),
        advice="always pass the argument, or add a batch with it to the warm-up",
    ),
    GuardFamily(
        pattern=re.compile(r"^(?P<name>(?!.*\.size\(\)).+?) == (?P<old>.+)$"),
        words=lambda m: f"{m['name']} was compiled as exactly {m['old']}",
        advice="keep the value out of the compiled region, or pass it as a tensor",
    ),
    GuardFamily(
        pattern=re.compile(r"^(?P<one>.+?\.size\(\)\[\d+\]) == (?P<two>.+?\.size\(\)\[\d+\])$"),
        words=lambda m: (
            f"{m['one']} and {m['two']} were equal when this was compiled, and are not now"
        ),
        advice="warm up with sizes that are not equal by accident",
    ),
    GuardFamily(
        pattern=re.compile(r"^(?P<name>.+?\.size\(\)\[\d+\]) == (?P<old>\d+)$"),
        words=lambda m: f"{m['name']} was compiled as exactly {m['old']}",
        advice=_MARK_DYNAMIC,
    ),
    GuardFamily(
        pattern=re.compile(r"^(?P<low>\d+) <= (?P<name>.+?)\.size\(\)\[(?P<dim>\d+)\]$"),
        words=lambda m: (
            f"size {m['dim']} of {m['name']} is below {m['low']}: 0 and 1 are specialised"
        ),
        advice="add a batch with this size 1 to the warm-up, or mark the dimension unbacked",
    ),
    GuardFamily(
        pattern=re.compile(
            r"tensor '(?P<name>.+)' (?P<what>size|stride) mismatch at index (?P<dim>\d+)\. "
            r"expected (?P<old>\d+), actual (?P<new>\d+)"
        ),
        words=lambda m: (
            f"{m['what']} {m['dim']} of {m['name']} was compiled as exactly {m['old']} and is now "
            f"{m['new']}"
        ),
        advice=_MARK_DYNAMIC,
    ),
)


def explain(
    guards: tuple[str, ...], signature: Signature | None, warmed: Iterable[Signature]
) -> Explanation:
    """Find the cause of a refusal."""
    match = nearest(signature, warmed) if signature is not None else None
    found = _explain(guards, match)
    if signature is None or match is None:
        return found
    return replace(found, call=side_by_side(signature, match.warm))


def side_by_side(now: Signature, warm: Signature) -> tuple[dict[str, str], ...]:
    """Describe every argument of two calls, and the process state where it differs."""
    rows = []
    for path in dict.fromkeys([*warm.aspects, *now.aspects]):
        if path != STATE:
            rows.append((path, now.describe(path), warm.describe(path)))
            continue
        old, new = warm.aspects[path], now.aspects[path]
        rows += [(name, str(new[name]), str(old[name])) for name in new if new[name] != old[name]]
    return tuple({"path": path, "now": new, "warm": old} for path, new, old in rows)


def _explain(guards: tuple[str, ...], match: Nearest | None) -> Explanation:
    differences = _decisive(match) if match else ()
    if differences:
        return Explanation(
            key=" & ".join(sorted(difference.key for difference in differences)),
            cause=_join([str(difference) for difference in differences]),
            advice=_advice(differences[0]),
            differences=(*differences, *(match.sizes if match else ())),
        )
    sizes = match.sizes if match else ()
    guards = tuple(map(_plain_names, guards))
    if static := _static_size(guards):
        return Explanation(
            key=_undigited(guards[0]), cause=static, advice=_MARK_DYNAMIC, differences=sizes
        )
    for family in GUARD_FAMILIES:
        for guard in guards:
            if found := family.pattern.search(guard):
                return Explanation(
                    key=_undigited(guard),
                    cause=family.words(found),
                    advice=family.advice,
                    differences=sizes,
                )
    if guards:
        return Explanation(
            key=_undigited(guards[0]),
            cause=f"an unknown guard failed: {guards[0]}",
            advice="read the guard: what it names has changed since warm-up",
            differences=sizes,
        )
    return Explanation(
        key="never compiled",
        cause="this code was never compiled during warm-up",
        advice="add this batch to the warm-up",
        differences=sizes,
    )


_SIZE_MISMATCH = re.compile(
    r"tensor '(?P<name>.+)' size mismatch at index (?P<dim>\d+)\. "
    r"expected (?P<old>\d+), actual (?P<new>\d+)"
)


def _static_size(guards: tuple[str, ...]) -> str | None:
    """Name the size that every compiled variant holds to another value, if there is one."""
    first = _SIZE_MISMATCH.search(guards[0]) if guards else None
    if first is None:
        return None
    place = (first["name"], first["dim"], first["new"])
    found = [m for m in map(_SIZE_MISMATCH.search, guards) if m and m.group(1, 2, 4) == place]
    if len(found) < len(guards):
        return None
    known = ", ".join(sorted({m["old"] for m in found}, key=int))
    name, dim, new = place
    return (
        f"size {dim} of {name} was compiled as exactly {known} and is now {new}: the compiled "
        "code treats it as static"
    )


def _plain_names(guard: str) -> str:
    """Write arguments as the caller does: ``kwargs['mask']`` becomes ``mask``."""
    return re.sub(r"kwargs\['(\w+)'\]", r"\1", guard)


def _decisive(match: Nearest) -> tuple[Difference, ...]:
    """Arguments that appear, vanish or change type outweigh sizes of 1 and strides."""
    heavy = tuple(d for d in match.causes if not _is_light(d))
    return heavy or match.causes


def _is_light(difference: Difference) -> bool:
    return difference.aspect.startswith("size ") or difference.aspect == "layout"


def _advice(difference: Difference) -> str:
    if difference.path == STATE:
        return (
            f"serve with the same {difference.aspect} as in warm-up (restore it where it is "
            "changed), or warm up with both"
        )
    if difference.aspect == "presence":
        name = difference.path
        return (
            f"always pass {name}, with zeros or an empty tensor where there is nothing, or add "
            "this batch to the warm-up"
        )
    if difference.aspect.startswith("size "):
        return "add a batch with this size to the warm-up (0 and 1 are specialised)"
    if difference.aspect == "layout":
        return f"call .contiguous() on {difference.path}, or add this batch to the warm-up"
    return f"keep {difference.aspect} of {difference.path} constant, or warm up with both"


def _join(parts: list[str], most: int = 3) -> str:
    shown = "; ".join(parts[:most])
    return shown if len(parts) <= most else f"{shown}; and {len(parts) - most} more"


def _undigited(text: str) -> str:
    return re.sub(r"\d+", "N", text)
