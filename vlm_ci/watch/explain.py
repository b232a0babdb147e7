"""The cause of a refused call: what differs from warm-up, and what would help.

The difference between the call's signature and warm-up's comes first; guard text is evidence, and
the cause only where no difference explains the refusal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vlm_ci.watch.guards import Guard, Words, in_words, plain, undigited
from vlm_ci.watch.guards.family import ADD
from vlm_ci.watch.guards.sizes import SPECIALISATION, STATIC, STATIC_ADVICE, STATIC_SIZE
from vlm_ci.watch.signatures import STATE, Difference, Nearest, Signature, nearest
from vlm_ci.watch.wording import advise, breaks, say, side_by_side, sizes_of

if TYPE_CHECKING:
    from collections.abc import Iterable

_Worded = tuple[tuple[Guard, Words | None], ...]
_Found = tuple[Guard, Words]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a call was refused.

    ``key`` names the cause whatever the sizes; ``call`` shows the refused call beside the nearest
    one of warm-up, argument by argument (path, now, warm); ``words`` are the guards in words, in
    torch's order; ``line`` is the user's line behind the guard that decided, else behind the first
    guard that has one ("path:LINE in FUNCTION: SOURCE").
    """

    key: str
    cause: str
    advice: str
    differences: tuple[Difference, ...]
    call: tuple[dict[str, str], ...] = ()
    words: tuple[str, ...] = ()
    line: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    """All that is known of a refusal: its guards with words, its signature, those of warm-up."""

    worded: _Worded
    now: Signature | None
    warmed: tuple[Signature, ...]
    match: Nearest | None

    @property
    def sizes(self) -> tuple[Difference, ...]:
        return self.match.sizes if self.match else ()


def explain(
    guards: Iterable[Guard | str], signature: Signature | None, warmed: Iterable[Signature]
) -> Explanation:
    """Find the cause of a refusal. A guard given as text is one without a line."""
    failed = tuple(g if isinstance(g, Guard) else Guard(text=g) for g in guards)
    named = tuple(_named(guard, signature) for guard in failed)
    worded = tuple((guard, in_words(guard)) for guard in named)
    warmed = tuple(warmed)
    match = nearest(signature, warmed) if signature is not None else None
    refused = _Refused(worded=worded, now=signature, warmed=warmed, match=match)
    found, decided = _explain(refused)
    lines = [guard.line for guard in (*decided, *failed) if guard.line]
    return replace(
        found,
        words=tuple(
            words.words if words else f"unknown guard: {guard.text}"
            for guard, (_, words) in zip(failed, worded, strict=True)
        ),
        line=lines[0] if lines else "",
        call=side_by_side(signature, match.warm) if signature and match else (),
    )


def _named(guard: Guard, signature: Signature | None) -> Guard:
    """Name what a wrapper calls ``args[0]`` as the function inside it does."""
    if signature is None:
        return guard
    paths = [path for path in signature.aspects if path != STATE and "[" not in path]

    def name(match: re.Match[str]) -> str:
        index = int(match[1])
        return paths[index] if index < len(paths) else match[0]

    return replace(guard, text=re.sub(r"(?<![\w.])(?:L\['args'\]|args)\[(\d+)\]", name, guard.text))


def _explain(refused: _Refused) -> tuple[Explanation, tuple[Guard, ...]]:
    """Return the cause and the guards that decided it."""
    worded, match = refused.worded, refused.match
    guards = tuple(guard for guard, _ in worded)
    differences = _decisive(match) if match else ()
    telling = [(g, w) for g, w in worded if w and not _refuted(g, w, match)]
    static = _static_size(telling, worded)
    if static and all(map(_is_light, differences)) and not _names(differences, telling[0][0]):
        return (
            Explanation(
                key=_key(*telling[0]),
                cause=static,
                advice=STATIC_ADVICE,
                differences=refused.sizes,
            ),
            (telling[0][0],),
        )
    if not differences:
        return _by_guards(refused, telling)
    key = " & ".join(sorted(difference.key for difference in differences))
    cause = _join([say(difference, refused.warmed) for difference in differences])
    advice = advise(differences)
    about = tuple(guard for guard in guards if _names(differences, guard))
    if compared := _compared(differences, worded):
        guard, words = compared
        key, advice, about = f"{key}, {_key(guard, words)}", words.advice, (guard,)
        cause += "" if words.value else f" ({words.words})"
    differences = (*differences, *refused.sizes)
    return Explanation(key=key, cause=cause, advice=advice, differences=differences), about


def _by_guards(refused: _Refused, telling: list[_Found]) -> tuple[Explanation, tuple[Guard, ...]]:
    worded = refused.worded
    telling = telling or [(guard, words) for guard, words in worded if words]
    decided: tuple[Guard, ...] = ()
    if telling:
        guard, words = min(telling, key=lambda pair: pair[1].rank)
        key, cause, advice = _key(guard, words), _with_values(words, telling), words.advice
        if refused.now is not None and words.family != SPECIALISATION:
            sizes = sizes_of(plain(guard), refused.now, refused.warmed)
            cause += f" ({sizes})" if sizes else ""
        decided = (guard,)
    elif worded:
        guard = worded[0][0]
        key, decided = _key(guard, None), (guard,)
        cause = f"an unknown guard failed: {guard.text}"
        advice = "read the guard: what it names has changed since warm-up"
    else:
        key = "never compiled"
        cause = "this code was never compiled during warm-up"
        advice = ADD
    return Explanation(key=key, cause=cause, advice=advice, differences=refused.sizes), decided


def _with_values(words: Words, found: list[_Found]) -> str:
    """Name all values that the compiled variants hold for one thing."""
    same = [w.value for _, w in found if (w.family, w.subject) == (words.family, words.subject)]
    if not words.value or len(same) < 2:
        return words.words
    values = sorted(dict.fromkeys(same), key=lambda value: (len(value), value))
    return words.words.replace(f"exactly {words.value}", f"exactly {' and '.join(values)}")


def _key(guard: Guard, words: Words | None) -> str:
    """Return what identifies the cause that a guard shows, whatever the sizes."""
    text = undigited(plain(guard))
    return f"{words.family}: {text}" if words else text


def _compared(differences: tuple[Difference, ...], worded: _Worded) -> _Found | None:
    """Return the guard about the one number that differs: it says whether the value was compiled
    in, or compared with something, which the numbers alone do not show."""
    if len(differences) != 1 or differences[0].aspect != "value":
        return None
    known = [(g, w) for g, w in worded if w and _names(differences, g)]
    return min(known, key=lambda pair: pair[1].rank) if known else None


def _refuted(guard: Guard, words: Words, match: Nearest | None) -> bool:
    """Whether a guard belongs to a variant for other calls: the nearest call of warm-up, which was
    compiled, differs from this one in nothing that it asks for, or breaks it too."""
    if match is None:
        return False
    if words.recorded:
        return not words.subject or words.subject in match.warm.aspects
    return breaks(plain(guard), match.warm)


def _static_size(telling: list[_Found], worded: _Worded) -> str | None:
    """Name the size that every compiled variant holds to another value, if there is one."""
    if not telling or telling[0][1].family not in (STATIC, SPECIALISATION):
        return None
    found = [STATIC_SIZE.search(plain(guard)) for guard, _ in telling]
    if found[0] is None:
        return None
    place = found[0].group("name", "dim", "new")
    if any(m is None or m.group("name", "dim", "new") != place for m in found):
        return None
    all_found = [STATIC_SIZE.search(plain(guard)) for guard, _ in worded]
    same = [m for m in all_found if m and m.group("name", "dim", "new") == place]
    if all(m["old"] in ("0", "1") for m in same):
        return None
    known = ", ".join(sorted({m["old"] for m in same}, key=int))
    name, dim, new = place
    return (
        f"size {dim} of {name} was compiled as exactly {known} and is now {new}: the compiled "
        "code treats it as static"
    )


# What an argument takes over from the state of the process in which it was made.
_CONSEQUENCES = ("inference", "requires_grad")


def _decisive(match: Nearest) -> tuple[Difference, ...]:
    """Arguments that appear, vanish or change type outweigh sizes of 1 and strides."""
    causes = match.causes
    if any(d.path == STATE and d.aspect in ("grad mode", "inference mode") for d in causes):
        causes = tuple(d for d in causes if d.aspect not in _CONSEQUENCES)
    # An entry that a longer list adds says nothing that the list's length does not.
    longer = tuple(f"{d.path}[" for d in causes if d.aspect == "length")
    causes = tuple(
        d
        for d in causes
        if not (d.aspect == "presence" and re.search(r"\[\d+\]$", d.path))
        or not d.path.startswith(longer)
    )
    heavy = tuple(d for d in causes if not _is_light(d))
    return heavy or causes


def _is_light(difference: Difference) -> bool:
    return difference.aspect.startswith("size ") or difference.aspect == "layout"


def _names(differences: tuple[Difference, ...], guard: Guard) -> bool:
    """Whether a guard is about an argument (or the state) that differs."""
    text = plain(guard)
    return any(
        text.startswith("GLOBAL_STATE")
        if d.path == STATE
        else re.search(rf"(?<![\w.]){re.escape(d.path)}(?!\w)", text)
        for d in differences
    )


def _join(parts: list[str], most: int = 3) -> str:
    shown = "; ".join(parts[:most])
    return shown if len(parts) <= most else f"{shown}; and {len(parts) - most} more"
