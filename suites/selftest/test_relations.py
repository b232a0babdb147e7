"""The relations: each shows its own bug, none shows anything in a healthy twin, each says when it
does not apply."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from exact import Exact, served, watcher_of
from hypothesis import HealthCheck, Phase, given, seed, settings

from vlm_ci import bugs
from vlm_ci.errors import UsageError
from vlm_ci.parity.comparison import TOLERANCES, compare
from vlm_ci.parity.relations import (
    RELATIONS,
    WARM_UP_ORDER,
    RelationChecker,
    Violation,
    check_warm_up_order,
)
from vlm_ci.targets.loading import load_target
from vlm_ci.traffic import strategies
from vlm_ci.traffic.envelope import Envelope
from vlm_ci.traffic.spec import Batch, Text, batch
from vlm_ci.warmup import find_plan
from vlm_ci.watch import internals

TINY = ("llava-tiny", "qwen2.5-vl-tiny", "qwen3-vl-tiny")
BUGS = [bug for bug in bugs.all_bugs() if bug.relation]
BUG_OF = {bug.relation: bug for bug in BUGS}

# Traffic to which a relation applies: most batches of a session have one request and no image.
CORNERS = {
    "alone": "batch-2",
    "permuted": "batch-3-or-more",
    "padding-side": "ragged",
    "more-padding": "ragged",
    "poisoned-padding": "ragged",
    "beside": "mixed-across-requests",
    "image-order": "two-or-more-images",
    "pixels": "two-or-more-images",
    "split": "batch-3-or-more",
    "twice": "batch-1",
}


def uncompiled(parts: Any, compile_module: Any) -> None:
    """A recipe that compiles nothing: relations hold of eager code too, without a warm-up."""


@contextmanager
def loaded(name: str, **given: Any) -> Iterator[Any]:
    target = load_target(name, **{"recipe": f"{__name__}:uncompiled", **given})
    try:
        yield target
    finally:
        target.close()


@contextmanager
def planted(relation: str, *, repaired: bool, **given: Any) -> Iterator[Any]:
    bug = BUG_OF[relation]
    mutate = bugs.change(bug.name, repaired=repaired)
    with loaded(bug.target, mutate=mutate, in_both=bug.in_both, **given) as target:
        yield target


def draw(envelope: Envelope, corner: str, count: int) -> list[Batch]:
    """Draw batches of one corner, the same each time."""
    found: list[Batch] = []

    @seed(0)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategies.corner_batches(corner, envelope))
    def collect(part: list[Batch]) -> None:
        found.extend(part)

    collect()
    return found[:count]


def tiered(names: Iterable[str], by_day: Collection[str]) -> list[Any]:
    nightly = pytest.mark.nightly
    return [name if name in by_day else pytest.param(name, marks=nightly) for name in names]


def search(target: Any, checker: RelationChecker, relation: str, count: int) -> Violation | None:
    for part in draw(target.envelope, CORNERS[relation], count):
        if found := served(target, checker, part, [relation]):
            return found
    return None


# -- red and green ----------------------------------------------------------------------------


def test_each_relation_has_a_bug_of_its_own():
    assert {bug.relation for bug in BUGS} == {*RELATIONS, WARM_UP_ORDER.name}
    assert len(BUGS) == len(BUG_OF)
    for relation in (*RELATIONS.values(), WARM_UP_ORDER):
        assert relation.says
        assert relation.because


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_shows_its_own_bug_where_eager_has_it_too(relation: str):
    with planted(relation, repaired=False) as target:
        checker = RelationChecker(target, watcher_of(target))
        found = search(target, checker, relation, 20)
        assert found is not None
        assert found.relation == relation
        assert found.ratio > 1
        assert found.text.startswith(f"{relation}: {RELATIONS[relation].says}")
        assert found.batches
        assert checker.books[relation].judged > 0
        if BUG_OF[relation].in_both:
            for part in draw(target.envelope, CORNERS[relation], 3):
                answers = target.run_compiled(part), target.run_eager(part)
                assert compare(*answers, TOLERANCES["float32"]).passes


# Their repairs compute something of their own; those of the others compute nothing.
REPAIRED_BY_DAY = ("alone", "image-order", "more-padding", "padding-side", "poisoned-padding")


@pytest.mark.parametrize("relation", tiered(RELATIONS, REPAIRED_BY_DAY))
def test_the_repaired_twin_keeps_the_relation(relation: str):
    with planted(relation, repaired=True) as target:
        checker = RelationChecker(target, watcher_of(target))
        assert search(target, checker, relation, 4) is None
        assert checker.books[relation].judged == 4
        assert checker.worst[relation] < 0.5


@pytest.mark.parametrize("name", tiered(TINY, ["llava-tiny", "qwen3-vl-tiny"]))
def test_a_healthy_model_keeps_all_relations(name: str):
    with loaded(name) as target:
        checker = RelationChecker(target, watcher_of(target))
        for corner in ("batch-2", "two-or-more-images", "mixed-across-requests", "ragged"):
            for part in draw(target.envelope, corner, 1):
                assert served(target, checker, part) is None
        for relation, books in checker.books.items():
            assert books.judged > 0, relation
            assert not books.left_out, relation
        assert max(checker.worst.values()) < 0.5


def warm(target: Any) -> None:
    plan = find_plan(None, target.envelope)
    compiles = -1
    while target.stats().compiles != compiles:
        compiles = target.stats().compiles
        for part in plan.batches:
            target.warm_up(part)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", TINY)
def test_a_healthy_compiled_model_keeps_all_relations(name: str):
    with loaded(name, recipe="decoder-layers") as target:
        warm(target)
        checker = RelationChecker(target, watcher_of(target))
        compiles = target.stats().compiles
        for corner in sorted(set(CORNERS.values())):
            for part in draw(target.envelope, corner, 10):
                with internals.strict():
                    output = target.run_compiled(part)
                assert checker.check(part, output, RELATIONS) is None
        assert target.stats().compiles == compiles
        for relation, books in checker.books.items():
            assert books.judged > 0, relation


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("repaired", [False, True])
@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_judges_a_compiled_twin(relation: str, repaired: bool):
    with planted(relation, repaired=repaired, recipe=BUG_OF[relation].recipe) as target:
        warm(target)
        checker = RelationChecker(target, watcher_of(target))
        compiles = target.stats().compiles
        with internals.strict():
            found = search(target, checker, relation, 20)
        assert (found is None) == repaired
        assert checker.books[relation].judged > 0
        assert target.stats().compiles == compiles


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("repaired", [False, True])
def test_a_constant_of_the_first_batch_shows(repaired: bool):
    name = WARM_UP_ORDER.name
    with planted(name, repaired=repaired, recipe=BUG_OF[name].recipe) as target:
        plan = find_plan(None, target.envelope).batches
        traffic = draw(target.envelope, "batch-2", 5) + draw(target.envelope, "ragged", 5)
        found = check_warm_up_order(target, plan, traffic)
        assert (found is None) == repaired


# -- poison ----------------------------------------------------------------------------------


def test_padding_can_be_poisoned_where_the_embeddings_are_not_compiled():
    ragged = batch(Text(4), Text(9))
    target = Exact()
    target.run_poisoned = None  # type: ignore[assignment, method-assign]
    assert RELATIONS["poisoned-padding"].off(target, ragged) == "the target has no run_poisoned"
    for recipe, module in (("whole", "model"), ("language-model", "model.language_model")):
        with loaded("llava-tiny", recipe=recipe) as twin:
            reason = f"the embeddings are inside {module}, which is compiled"
            assert RELATIONS["poisoned-padding"].off(twin, ragged) == reason
            with pytest.raises(UsageError, match="cannot poison padding: the embeddings are"):
                twin.run_poisoned(ragged, 1e4)


def test_poison_reaches_padding_and_leaves_no_trace():
    ragged = batch(Text(4), Text(9))
    with loaded("llava-tiny") as target:
        before = target.run_compiled(ragged)
        poisoned = target.run_poisoned(ragged, 1e4)
        after = target.run_compiled(ragged)
        padded = before.token_kinds == -1
        assert torch.equal(before.logits, after.logits)
        assert not torch.equal(before.logits[padded], poisoned.logits[padded])
        torch.testing.assert_close(before.logits[~padded], poisoned.logits[~padded])
        embeddings = target._compiled.get_input_embeddings()
        assert not embeddings._forward_hooks
        seen = []
        with embeddings.register_forward_hook(lambda *args: seen.append(args[2])):
            target.run_poisoned(ragged, 100.0)
        (embedded,) = seen  # this hook came first: the poison is put in after it
        scale = embedded[~padded].square().mean().sqrt()
        inputs = []
        core = target._compiled.model.language_model
        stock = core.forward

        def look(*args: Any, **given: Any) -> Any:
            inputs.append(given["inputs_embeds"])
            return stock(*args, **given)

        core.forward = look
        target.run_poisoned(ragged, 100.0)
        torch.testing.assert_close(
            inputs[0][padded].abs(), (100 * scale).expand_as(inputs[0][padded])
        )
        assert torch.equal(inputs[0][~padded], embedded[~padded])
