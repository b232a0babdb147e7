"""Pruning: leave batches out of a plan one at a time, each time cold, and keep what is missed."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from vlm_ci.result import Pruned
from vlm_ci.warmup import batch_class

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vlm_ci.synthesis.bench import Bench
    from vlm_ci.traffic.spec import Batch

TIME_LIMIT = 30.0  # seconds; each trial is a cold warm-up of the whole plan


def prune(
    bench: Bench,
    plan: Sequence[Batch],
    judges: Sequence[Batch],
    *,
    time_limit: float = TIME_LIMIT,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[tuple[Batch, ...], Pruned]:
    """Return the plan without what is not needed, and the books.

    A batch is left out where the others, cold and in their order, leave no judge and nothing of
    the plan to be compiled. No trial begins that would probably not end in time: what was not
    tried stays. Afterwards the cache is that of the last trial.
    """
    books = Pruned()
    deadline = time.monotonic() + time_limit
    longest = 0.0
    for candidate in _likeliest(bench, plan):
        started = time.monotonic()
        if candidate not in plan:  # it went with another one
            continue
        if len(plan) == 1 or started + longest > deadline:
            books.untried += 1
            continue
        say(f"trying the plan without batch {plan.index(candidate) + 1} of {len(plan)}")
        others = tuple(batch for batch in plan if batch != candidate)
        left = _without(bench, others, (candidate, *plan, *judges))
        longest = max(longest, time.monotonic() - started)
        if left is None:
            books.needed += 1
            continue
        books.not_needed += 1
        books.compiled_nothing += len(others) - len(left)
        plan = left
    return tuple(plan), books


def _without(
    bench: Bench, others: tuple[Batch, ...], judges: Iterable[Batch]
) -> tuple[Batch, ...] | None:
    """Warm the others up cold; None where something would compile then."""
    warmed = bench.cold(others)
    if not warmed.converged or bench.limit_hits:
        return None
    if any(bench.problem(judge) is not None for judge in judges):
        return None
    useful = tuple(b for b, n in zip(others, warmed.compiles, strict=True) if n)
    return useful or others


def _likeliest(bench: Bench, plan: Sequence[Batch]) -> list[Batch]:
    """Order candidates: those with most others of their class first, the later of them first."""
    classes = [batch_class(batch, bench.envelope) for batch in plan]
    alike = Counter(classes)
    order = sorted(range(len(plan)), key=lambda index: (-alike[classes[index]], -index))
    return [plan[index] for index in order]
