"""Which of several machines runs which tests, and which part of a search. Pure; no torch."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_ci.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Hypothesis spends most examples after its first ten on variations of earlier ones. A search in
# runs of ten draws afresh far more often, which is what it takes for 50 examples to reach every
# corner (measured over 12 seeds: none missed; one run of 50 missed one or two in 4 of the 12).
# A run has a seed of its own, so that it is also the smallest piece that a shard can take.
RUN_LENGTH = 10


@dataclass(frozen=True, slots=True)
class Shard:
    """One of ``count`` machines, or one of ``count`` parts of a test; ``index`` counts from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def takes(self, number: int) -> bool:
        """Whether the thing with this number, from 0, is this shard's: every one is of one."""
        return number % self.count == self.index - 1


def examples_of(part: Shard | None, examples: int) -> int:
    """Return how many of a search's examples a part of it tries; None is all of it."""
    if part is None:
        return examples
    runs = range(part.index - 1, -(-examples // RUN_LENGTH), part.count)
    return sum(min(RUN_LENGTH, examples - run * RUN_LENGTH) for run in runs)


def parse(text: str, name: str = "--shard") -> Shard:
    """Return the shard of ``"I/N"``; ``name`` is how the message calls the option.

    Raises:
        UsageError: it has another form, or I is not from 1 to N.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
    if match is not None:
        shard = Shard(int(match[1]), int(match[2]))
        if 1 <= shard.index <= shard.count:
            return shard
    raise UsageError(f"{name} must be I/N with I from 1 to N, such as 2/3, not {text!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One test. Those of one ``unit`` (a target, or a file) stay on one machine where they can.

    ``parts`` is how many parts its search has at most, 1 where it cannot be split. ``shared`` says
    that the unit is a target, which several machines may build. ``seconds`` is None where unknown.
    """

    name: str
    unit: str
    shared: bool = False
    parts: int = 1
    seconds: float | None = None


def assign(works: Sequence[Work], count: int) -> list[dict[int, Shard | None]]:
    """Return for each test the shards that run it, and which part each of them runs (None: all).

    Whole targets go to shards first, the longest to the one that has least. Where there are fewer
    targets than shards, the longest target gets the next shard until none is left, and its
    searches are split over its shards. What is no target goes by file to the shard that has least.
    The order of ``works`` decides nothing; a test of unknown duration counts as the mean of the
    known ones.

    pytest-split does this for tests one at a time; it cannot keep a target's together, and a
    target that is warmed on every machine costs more than any balance saves.
    """
    known = [work.seconds for work in works if work.seconds is not None]
    usual = sum(known) / len(known) if known else 1.0
    seconds = [usual if work.seconds is None else work.seconds for work in works]
    units: dict[str, list[int]] = defaultdict(list)
    for number, work in enumerate(works):
        units[work.unit].append(number)
    weights = {unit: sum(seconds[number] for number in one) for unit, one in units.items()}
    # Not by the unit's own name, which may hold a path that differs from machine to machine.
    first = {unit: min(works[number].name for number in one) for unit, one in units.items()}
    order = sorted(units, key=lambda unit: (-weights[unit], first[unit]))
    targets = [unit for unit in order if works[units[unit][0]].shared]
    loads = [0.0] * count
    given: list[dict[int, Shard | None]] = [{} for _ in works]

    def give(numbers: Iterable[int], among: Sequence[int]) -> None:
        """Give tests to the one of these shards that has least."""
        shard = min(among, key=lambda index: (loads[index], index))
        for number in numbers:
            given[number][shard + 1] = None
            loads[shard] += seconds[number]

    everywhere = range(count)
    if len(targets) >= count:
        for unit in order:
            give(units[unit], everywhere)
        return given
    most = {unit: max(len(units[unit]), *(works[n].parts for n in units[unit])) for unit in targets}
    shares = _shares({unit: (weights[unit], most[unit]) for unit in targets}, count)
    begin = 0
    for unit in targets:
        among = range(begin, begin + shares[unit])
        begin += shares[unit]
        for number in sorted(units[unit], key=lambda n: (-seconds[n], works[n].name)):
            parts = min(works[number].parts, len(among))
            if parts == 1:
                give([number], among)
                continue
            chosen = sorted(sorted(among, key=lambda index: (loads[index], index))[:parts])
            for part, index in enumerate(chosen, 1):
                given[number][index + 1] = Shard(part, parts)
                loads[index] += seconds[number] / parts
    for unit in order:
        if unit not in shares:
            give(units[unit], everywhere)
    return given


def _shares(targets: dict[str, tuple[float, int]], count: int) -> dict[str, int]:
    """Return how many shards each target gets: one, then the next to the longest share.

    ``targets`` holds the weight of each, and of how many shards it can make use.
    """
    shares = dict.fromkeys(targets, 1)
    for _ in range(count - len(targets)):
        able = [unit for unit in targets if shares[unit] < targets[unit][1]]
        if not able:
            break
        shares[max(able, key=lambda unit: targets[unit][0] / shares[unit])] += 1
    return shares
