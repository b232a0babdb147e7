"""Guards in words: parses what a refusal names and looks it up in the table of guard families.

It imports no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vlm_ci.watch.guards import arguments, sizes, state, tensors, values
from vlm_ci.watch.guards.family import GuardFamily, fill
from vlm_ci.watch.guards.state import STATE_ADVICE
from vlm_ci.watch.guards.text import (
    Guard,
    lacks_line,
    parse,
    plain,
    short_path,
    undigited,
    with_lines,
)

__all__ = [
    "GUARD_FAMILIES",
    "STATE_ADVICE",
    "Guard",
    "GuardFamily",
    "Words",
    "in_words",
    "lacks_line",
    "parse",
    "plain",
    "short_path",
    "undigited",
    "with_lines",
]

# In the order in which they tell most: what appears or vanishes before what changes its size.
# A guard belongs to the first family that it fits.
GUARD_FAMILIES: tuple[GuardFamily, ...] = (
    *state.FAMILIES,
    *arguments.FAMILIES,
    *tensors.FAMILIES,
    *values.FAMILIES,
    *sizes.FAMILIES,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A guard in words: what failed, what to do, and the family's name.

    ``subject`` is what the guard is about ("mask"; "" for the process); ``value`` is what it was
    compiled as, "" where the family holds no value; ``rank`` is the family's place in the table;
    ``recorded`` is as in the family.
    """

    words: str
    advice: str
    family: str
    subject: str
    value: str
    rank: int
    recorded: bool


def in_words(guard: Guard) -> Words | None:
    """Return a guard in words by the first family that it fits, None for an unknown guard."""
    text = plain(guard)
    for rank, family in enumerate(GUARD_FAMILIES):
        match = re.search(family.pattern, text)
        if match and (family.when is None or family.when(guard)):
            groups, words = match.groupdict(), fill(family.words, match)
            return Words(
                words=words,
                advice=fill(family.advice, match),
                family=family.name,
                subject=groups.get("name") or "",
                value=(groups.get("old") or "") if "exactly" in words else "",
                rank=rank,
                recorded=family.recorded,
            )
    return None
