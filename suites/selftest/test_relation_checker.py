"""Relations on targets without a model: when they are off, what is left out, the choice."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from exact import ROWS, Exact, served, watcher_of
from toy import ENVELOPE, ToyTarget

from vlm_ci.errors import UsageError
from vlm_ci.parity.relations import (
    RELATIONS,
    Books,
    RelationChecker,
    check_warm_up_order,
)
from vlm_ci.targets.protocol import Output
from vlm_ci.traffic.spec import Batch, Image, Text, batch
from vlm_ci.watch import internals


def off(relation: str, part: Batch, target: Any = None, **envelope: Any) -> str:
    target = target or Exact()
    target.envelope = msgspec.structs.replace(target.envelope, **envelope)
    return RELATIONS[relation].off(target, part)


ONE, EQUAL = batch(Text(4)), batch(Text(4), Text(4))


@pytest.mark.parametrize(
    ("relation", "part", "envelope", "reason"),
    [
        ("alone", ONE, {}, "the batch has one request"),
        ("alone", ROWS, {"requests": (2, 4)}, "the envelope asks for at least 2 requests a batch"),
        ("permuted", ONE, {}, "the batch has one request"),
        ("split", ONE, {}, "the batch has one request"),
        ("padding-side", ROWS, {"padding": ("left",)}, "the envelope has no right padding"),
        ("padding-side", EQUAL, {}, "no row of the batch is padded"),
        ("more-padding", EQUAL, {}, "no row of the batch is padded"),
        ("more-padding", ROWS, {"max_tokens": 16}, "longer than max_tokens, 16"),
        ("poisoned-padding", EQUAL, {}, "no row of the batch is padded"),
        ("beside", batch(Image(8, 8)), {}, "no request of the batch is text only"),
        ("beside", ONE, {"requests": (1, 1)}, "the envelope allows one request a batch"),
        ("beside", ONE, {"modalities": ("text",)}, "no request with an image or a video"),
        ("image-order", batch([Image(8, 8)], [Image(8, 8)]), {}, "no request has two images"),
    ],
)
def test_off_with_a_reason(relation: str, part: Batch, envelope: dict[str, Any], reason: str):
    assert reason in off(relation, part, **envelope)
    target = Exact()
    target.envelope = msgspec.structs.replace(ENVELOPE, **envelope)
    checker = RelationChecker(target, watcher_of(target))
    before = len(target.served)
    assert checker.check(part, Exact().run_compiled(part), [relation]) is None
    assert len(target.served) == before
    assert sum(checker.books[relation].off.values()) == 1
    assert checker.books[relation].judged == 0
    assert checker.choose(part, [relation]) == ""


def test_a_target_that_ignores_the_seeds_of_items_is_not_judged():
    target = ToyTarget(lambda call, ids, part: call(ids))
    try:
        checker = RelationChecker(target, watcher_of(target))
        target.warm_up(ROWS)
        with internals.strict():
            assert served(target, checker, ROWS) is None
        (reason,) = checker.books["alone"].off
        assert "does not honour the seeds of items" in reason
        assert "the seed of the batch changes items" in reason
        assert all(books.judged == 0 for books in checker.books.values())
        assert checker.choose(ROWS, RELATIONS) == ""
    finally:
        target.close()

    class Constant(Exact):
        def run_compiled(self, part: Batch) -> Output:
            output = super().run_compiled(part)
            logits = torch.arange(output.logits.shape[1]).float()[None, :, None]
            return Output(logits=logits.expand_as(output.logits), token_kinds=output.token_kinds)

    constant = Constant()
    checker = RelationChecker(constant, watcher_of(constant))
    assert served(constant, checker, ROWS) is None
    (reason,) = checker.books["alone"].off
    assert "nothing moves when they change" in reason


def test_a_target_with_state_is_not_taken_for_one_that_ignores_seeds():
    for period in (2, 1000):

        class Counting(Exact):
            def run_compiled(self, part: Batch, period: int = period) -> Output:
                output = super().run_compiled(part)
                return Output(
                    logits=output.logits + 5 * (len(self.served) % period),
                    token_kinds=output.token_kinds,
                )

        target = Counting()
        found = served(target, RelationChecker(target, watcher_of(target)), ROWS, ["twice"])
        assert found is not None, period
        assert found.relation == "twice"


# -- left out ---------------------------------------------------------------------------------


def test_a_variant_that_cannot_be_served_is_left_out():
    class Refusing(Exact):
        def run_compiled(self, part: Batch) -> Output:
            if len(part.requests) == 1:
                raise RuntimeError(
                    "Detected recompile when torch.compile stance is 'fail_on_recompile'"
                )
            if len(part.requests) == 2:
                raise ZeroDivisionError
            return super().run_compiled(part)

    target = Refusing()
    checker = RelationChecker(target, watcher_of(target))
    assert served(target, checker, ROWS, ["alone", "split"]) is None
    assert checker.books["alone"].left_out == {"it would compile": 3}
    assert checker.books["split"].left_out == {"it would compile": 1}
    assert checker.books["alone"].judged == checker.books["split"].judged == 0
    two = msgspec.structs.replace(ENVELOPE, requests=(2, 4))
    target.envelope = two
    assert served(target, checker, ROWS, ["split"]) is None
    assert "outside the envelope: 1 requests are outside [2, 4]" in checker.books["split"].left_out


def test_a_target_that_pads_as_it_likes_is_left_out():
    class Stubborn(Exact):
        def run_compiled(self, part: Batch) -> Output:
            plain = msgspec.structs.replace(part, padding="left", extra_padding=0)
            return super().run_compiled(plain)

    target = Stubborn()
    checker = RelationChecker(target, watcher_of(target))
    assert served(target, checker, ROWS, ["padding-side", "more-padding"]) is None
    for relation in ("padding-side", "more-padding"):
        assert checker.books[relation].left_out == {"the target's rows stand where they stood": 1}
        assert checker.books[relation].judged == 0


def test_a_geometry_that_does_not_add_up_leaves_image_order_out():
    target = Exact()
    output = target.run_compiled(ROWS)
    checker = RelationChecker(target, watcher_of(target))
    checker._seeds[ROWS.modalities] = ""
    target.run_compiled = (
        lambda part: Exact().run_compiled(  # type: ignore[method-assign]
            msgspec.structs.replace(part, requests=part.requests[:1] * len(part.requests))
            if len(part.requests[0].items) > 2
            else batch(*[Text(4)] * len(part.requests))
        )
    )
    checker.check(ROWS, output, ["image-order"])
    reason = "the envelope's geometry does not say where an item's tokens stand"
    assert checker.books["image-order"].left_out[reason] > 0


def test_a_breach_of_the_protocol_is_passed_on():
    class Broken(Exact):
        def run_compiled(self, part: Batch) -> Output:
            if len(part.requests) == 1:
                raise UsageError("a breach")
            return super().run_compiled(part)

    target = Exact()
    target.run_poisoned = lambda part, value: None  # type: ignore[assignment, method-assign]
    with pytest.raises(UsageError, match="run_poisoned returned None"):
        served(target, RelationChecker(target, watcher_of(target)), ROWS, ["poisoned-padding"])
    target = Broken()
    with pytest.raises(UsageError, match="a breach"):
        served(target, RelationChecker(target, watcher_of(target)), ROWS, ["alone"])


# -- beside the step, and the choice ----------------------------------------------------------


def test_the_step_stays_as_it_was():
    target = Exact()
    watcher = watcher_of(target)
    watcher.begin_step()
    output = target.run_compiled(ROWS)
    watcher.region_executed(3)
    watcher.record("refusal")
    watcher.end_step()
    step, executed, regions = watcher.step, watcher.executed, watcher.regions
    assert RelationChecker(target, watcher).check(ROWS, output, RELATIONS) is None
    assert (watcher.phase, watcher.step, watcher.executed, watcher.regions) == (
        "strict",
        step,
        executed,
        regions,
    )
    assert not torch.is_inference_mode_enabled()


def test_the_answer_may_be_overwritten_by_the_next_one():
    class Reusing(Exact):
        buffer = torch.zeros(4, 64, 8)

        def run_compiled(self, part: Batch) -> Output:
            output = super().run_compiled(part)
            rows, length, _ = output.logits.shape
            self.buffer[:rows, :length] = output.logits
            return Output(logits=self.buffer[:rows, :length], token_kinds=output.token_kinds)

    target = Reusing()
    checker = RelationChecker(target, watcher_of(target))
    assert served(target, checker, ROWS) is None
    assert all(books.judged for books in checker.books.values())


def test_the_choice_follows_from_the_batch_alone():
    target = Exact()
    checker = RelationChecker(target, watcher_of(target))
    parts = [msgspec.structs.replace(ROWS, seed=number) for number in range(300)]
    chosen = [checker.choose(part, RELATIONS) for part in parts]
    assert set(chosen) == set(RELATIONS)
    assert max(chosen.count(name) for name in RELATIONS) < 300 / 4
    other = RelationChecker(target, watcher_of(target))
    assert [other.choose(part, reversed(list(RELATIONS))) for part in parts] == chosen
    # A smaller batch keeps its relation, as long as that applies.
    smaller = [
        msgspec.structs.replace(part, requests=(part.requests[0], part.requests[1]))
        for part in parts
    ]
    assert [checker.choose(part, RELATIONS) for part in smaller] == chosen
    for part in parts[:50]:
        single = msgspec.structs.replace(part, requests=part.requests[1:2])
        assert RELATIONS[checker.choose(single, RELATIONS)].off(target, single) == ""


# -- the order of the warm-up -----------------------------------------------------------------


class Remembering(Exact):
    """Keeps something of the batch that was warmed first, until it is reset."""

    first: Batch | None = None
    resets = 0

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def warm_up(self, part: Batch) -> None:
        self.first = self.first or part

    def reset(self) -> None:
        self.first = None
        self.resets += 1

    def run_compiled(self, part: Batch) -> Output:
        output = super().run_compiled(part)
        if part == ONE:
            raise ZeroDivisionError
        kept = len(self.first.requests) if self.first else 0
        return Output(logits=output.logits + self.share * kept, token_kinds=output.token_kinds)


def test_the_order_of_the_warm_up_changes_nothing():
    plan = (ONE, ROWS)
    for share in (0.0, 1.0):
        target, books = Remembering(share), Books()
        found = check_warm_up_order(target, plan, [ONE, EQUAL, ROWS], books)
        assert books.left_out == {"it raised ZeroDivisionError": 1}
        assert target.resets == 3
        assert target.first is None
        if share:
            assert found is not None
            assert (found.relation, found.batches) == ("warm-up-order", (EQUAL,))
            assert found.text.startswith("warm-up-order: outputs are the same")
        else:
            assert found is None
            assert books.judged == 2
