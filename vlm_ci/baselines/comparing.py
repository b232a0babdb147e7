"""A run against its baseline: what became worse, what became better. Pure: records in and out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_ci.baselines.records import VERSIONS
from vlm_ci.failures import Failure
from vlm_ci.result import Change

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vlm_ci.baselines.records import Entry, WorstRatio

# The worst ratio is a maximum over random traffic. Eight seeds of Inductor on a tiny model came to
# 0.45 to 0.77 of what is allowed, the largest 1.7 times the smallest (docs/baselines.md). Where
# both twins agree to the bit it was 0 in 64,000 batches; code that rounds otherwise came to 0.3 and
# more at once.
FACTOR = 2.0
LEAST_ALLOWED = 0.1
# A maximum over many more tokens is larger without anything being wrong.
MOST_TOKENS = 10
MOST_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``changes`` are those for the worse first; ``notes`` say what was not compared; ``versions``
    is the note about other versions, empty where they are the same."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    versions: str = ""


def compare(before: Entry, now: Entry) -> Comparison:
    """Compare a run with the entry of the same setup; only a rise is worse.

    With another torch, transformers or Python the same code may be cut into other frames and
    graphs: then batches, rounds, graph breaks and the worst ratio are compared, breaks by their
    reasons as long as torch, which words them, is the same. With another Python breaks are not
    compared: one whole language model has four in 3.11 and five in 3.12.
    """
    changes = [
        *_count("batches", before.batches, now.batches),
        *_count("rounds", before.rounds, now.rounds),
    ]
    notes: list[str] = []
    versions = ""
    if before.same_versions(now):
        changes += _count("compiles", before.compiles, now.compiles)
        changes += _count("graphs", before.graphs, now.graphs)
        changes += _counts("frames", before.frames, now.frames)
        changes += _captures(before, now, notes)
    else:
        then = ", ".join(f"{name} {before.made_with.get(name)}" for name in VERSIONS)
        breaks = "" if before.same_versions(now, "python") else "graph breaks, "
        versions = (
            f"the baseline was written with {then}: compiles, graphs, {breaks}frames and captures "
            "are not compared; --update-baselines adds one for the versions of this run"
        )
    if before.same_versions(now, "torch", "python"):
        changes += _counts("breaks", before.breaks, now.breaks)
    elif before.same_versions(now, "python"):
        changes += _count("breaks", sum(before.breaks.values()), sum(now.breaks.values()))
    changes += _ratio(before.logits, now.logits, notes)
    changes.sort(key=lambda change: not change.worse)
    return Comparison(changes=tuple(changes), notes=tuple(notes), versions=versions)


def allowed(ratio: float) -> float:
    """Return how large the worst ratio may be where it was ``ratio``."""
    return max(FACTOR * ratio, LEAST_ALLOWED)


def failure_of(changes: Sequence[Change], path: str) -> Failure | None:
    """Return the failure that changes for the worse are, None where there is none."""
    worse = [change for change in changes if change.worse]
    if not worse:
        return None
    named = [f"{one.field} {one.before} → {one.after}" for one in worse[:MOST_NAMED]]
    rest = len(worse) - len(named)
    return Failure(
        kind="baseline",
        cause=f"compiling is worse than in the baseline: {', '.join(named)}"
        + (f" and {rest} more" if rest else ""),
        advice="find what changed in the model, its warm-up or the compiler since; if it is meant, "
        f"let --update-baselines rewrite {path} and commit it",
        key=", ".join(sorted(change.field for change in worse)),
        difference=tuple(
            {"path": one.field, "aspect": "count", "warm": one.before, "now": one.after}
            for one in worse
        ),
    )


def _count(field: str, before: int, now: int) -> Iterator[Change]:
    if before != now:
        yield Change(field=field, before=str(before), after=str(now), worse=now > before)


def _counts(field: str, before: Mapping[str, int], now: Mapping[str, int]) -> Iterator[Change]:
    for name in sorted(before.keys() | now.keys()):
        yield from _count(f"{field}[{name}]", before.get(name, 0), now.get(name, 0))


def _captures(before: Entry, now: Entry, notes: list[str]) -> Iterator[Change]:
    if before.captures is not None and now.captures is not None:
        yield from _count("captures", before.captures, now.captures)
    elif before.captures is not None:
        notes.append("captures are not compared: nothing here can see them")


def _ratio(before: WorstRatio | None, now: WorstRatio | None, notes: list[str]) -> Iterator[Change]:
    if before is None:
        return
    if now is None or now.ratio > 1:
        notes.append(
            "the worst ratio is not compared: "
            + ("the logits are wrong as they are" if now is not None else "there is none")
        )
    elif now.reference != before.reference:
        notes.append(
            f"the worst ratio is not compared: it was judged by {before.reference}, and now by "
            f"{now.reference}"
        )
    elif now.ratio > allowed(before.ratio):
        if now.tokens > MOST_TOKENS * before.tokens:
            notes.append(
                f"the worst ratio is not compared: it was {before.ratio:.2g} over {before.tokens} "
                f"tokens, and is {now.ratio:.2g} over {now.tokens}"
            )
        else:
            yield Change(
                field="ratio", before=f"{before.ratio:.2g}", after=f"{now.ratio:.2g}", worse=True
            )
    elif before.ratio > allowed(now.ratio) and now.tokens >= before.tokens:
        yield Change(
            field="ratio", before=f"{before.ratio:.2g}", after=f"{now.ratio:.2g}", worse=False
        )
