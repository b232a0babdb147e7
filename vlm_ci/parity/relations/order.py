"""The relation of the warm-up's order: outputs do not depend on which batch was warmed first.

Resets the target, and serves where compiling is allowed: for between runs, not for a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_ci.parity.relations.comparing import Comparer, LeftOut, Served
from vlm_ci.parity.relations.records import Books, Match, Relation, Violation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlm_ci.targets.protocol import Target
    from vlm_ci.traffic.spec import Batch

MAX_ROUNDS = 8  # of a plan, until a round compiles nothing

WARM_UP_ORDER = Relation(
    name="warm-up-order",
    says="outputs are the same after warming up in the plan's order and in reverse",
    because="what is compiled first is specialised otherwise, and sums in another order",
    off=lambda target, batch: "",
    variants=lambda batch, envelope: iter(()),
)


def check_warm_up_order(
    target: Target, plan: Sequence[Batch], batches: Sequence[Batch], books: Books | None = None
) -> Violation | None:
    """Warm up with a plan in its order and in reverse, and compare what ``batches`` are answered.

    The target is reset before each warm-up and at the end: who goes on warms it up again. Compiling
    is allowed throughout, because a plan in reverse need not cover the traffic. A batch that
    crashes, or whose answers do not fit each other, is left out, which ``books`` count.

    Raises:
        Exception: what a batch of the plan raised.
    """
    books = books if books is not None else Books()
    comparer = Comparer(target)
    try:
        before = _answers(target, plan, batches)
        after = _answers(target, tuple(reversed(plan)), batches)
    finally:
        target.reset()
    for one, other in zip(before, after, strict=True):
        try:
            found = _compare(comparer, one, other)
        except LeftOut as reason:
            books.left_out[str(reason)] += 1
            continue
        books.judged += 1
        if found is not None:
            return found
    return None


def _compare(
    comparer: Comparer, one: Served | LeftOut, other: Served | LeftOut
) -> Violation | None:
    for each in (one, other):
        if isinstance(each, LeftOut):
            raise each
    assert isinstance(one, Served)
    assert isinstance(other, Served)
    worst: Violation | None = None
    for request in range(len(one.rows)):
        match = Match(request=request, in_request=request)
        found = comparer.compare(WARM_UP_ORDER, one, [other], match)
        if found is not None and (worst is None or found.ratio > worst.ratio):
            worst = found
    return worst


def _answers(
    target: Target, plan: Sequence[Batch], batches: Sequence[Batch]
) -> list[Served | LeftOut]:
    target.reset()
    for _ in range(MAX_ROUNDS):
        before = target.stats().compiles
        for batch in plan:
            target.warm_up(batch)
        if before is not None and target.stats().compiles == before:
            break
    return [_serve(target, batch) for batch in batches]


def _serve(target: Target, batch: Batch) -> Served | LeftOut:
    try:
        return Served.of(batch, target.run_compiled(batch))
    except LeftOut as reason:
        return reason
    except Exception as error:  # the search finds it when it serves such a batch
        return LeftOut(f"it raised {type(error).__name__}")
