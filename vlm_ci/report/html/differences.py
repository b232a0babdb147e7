"""Two calls side by side, what differs marked. Pure: rows of a failure in, parts of text out."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LONGEST = 2_000  # characters of one side that are compared word by word

Parts = tuple[tuple[str, bool], ...]  # a piece of text, and whether the other side lacks it


class Argument(NamedTuple):
    """One argument: ``now`` in the refused call, ``warm`` in the nearest call of warm-up.

    ``differs`` says in what: "kind", or "size" where the numbers alone differ; empty where it is
    the same.
    """

    path: str
    now: Parts
    warm: Parts
    differs: str


def arguments(call: Sequence[Mapping[str, str]]) -> tuple[Argument, ...]:
    """Return the arguments of two calls: what differs in kind first, then in size."""
    rows = [_argument(row) for row in call]
    return tuple(sorted(rows, key=lambda row: ("kind", "size", "").index(row.differs)))


def _argument(row: Mapping[str, str]) -> Argument:
    now, warm = row.get("now", ""), row.get("warm", "")
    left, right = parts(now, warm)
    differs = "kind"
    if _without_numbers(now) == _without_numbers(warm):
        differs = "size" if now != warm else ""
    return Argument(row.get("path", ""), left, right, differs)


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+(?=[,\]])", "N", text)


def parts(now: str, warm: str) -> tuple[Parts, Parts]:
    """Cut two texts into the words that they share and those that they do not.

    Texts that share less than half of their words are marked as a whole.
    """
    if now == warm or not (now and warm) or max(len(now), len(warm)) > LONGEST:
        return ((now, now != warm),), ((warm, now != warm),)
    left, right = (re.findall(r"\w+|\s+|[^\w\s]", text) for text in (now, warm))
    matcher = SequenceMatcher(None, left, right, autojunk=False)
    if matcher.ratio() < 0.5:
        return ((now, True),), ((warm, True),)
    nows: list[tuple[str, bool]] = []
    warms: list[tuple[str, bool]] = []
    for tag, first, end, other, other_end in matcher.get_opcodes():
        for pieces, words in ((nows, left[first:end]), (warms, right[other:other_end])):
            if words:
                pieces.append(("".join(words), tag != "equal"))
    return tuple(nows), tuple(warms)
