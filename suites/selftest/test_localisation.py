"""Where a mismatch begins: planted faults are named, and looking leaves no trace."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
from small_twin import small_twin
from toy import ToyTarget

from vlm_ci.errors import UsageError
from vlm_ci.parity.localisation import Localised, localise, regions
from vlm_ci.parity.localisation.judging import FACTOR, Rows
from vlm_ci.targets import backends
from vlm_ci.targets.answers import checked
from vlm_ci.targets.executions import run_again
from vlm_ci.traffic.spec import CONTEXTS, Batch, Image, Request, Session, Text, batch
from vlm_ci.watch import internals

MIXED = Batch((Request((Text(3), Image(8, 8), Text(2))), Request((Text(9), Image(8, 8)))), seed=1)
NIGHTLY = pytest.mark.nightly
BACKENDS = ["eager", *(pytest.param(name, marks=NIGHTLY) for name in ("aot_eager", "inductor"))]
BY_DAY_AND_NIGHT = [
    name if name in ("inference_mode", "thread") else pytest.param(name, marks=NIGHTLY)
    for name in CONTEXTS
]
PLACE = 1, 3  # a text token behind no image, of a row without padding


@contextmanager
def served(
    mutate: Callable[[Any], None] | None = None, *batches: Batch, **given: Any
) -> Iterator[Any]:
    """A small twin that is warm for these batches."""
    target = small_twin(mutate, **given)
    try:
        for _ in range(2):
            for one in batches or (MIXED,):
                target.warm_up(one)
        target.watcher.end_step()
        yield target
    finally:
        target.close()


def found(mutate: Callable[[Any], None], place: tuple[int, int] = PLACE, **given: Any) -> Localised:
    with served(mutate, **given) as target:
        return localise(target, Session((MIXED,)), *place)


def torch_counters() -> dict[str, dict[str, int]]:
    return {name: dict(count) for name, count in internals.dynamo_utils.counters.items() if count}


# -- faults of the model's code ----------------------------------------------------------------


def test_a_leaf_that_computes_something_else_is_named():
    def mutate(model: Any) -> None:
        down = model.layers[1].mlp.down
        down.forward = lambda x: torch.nn.functional.linear(x, down.weight, down.bias) * 1.01

    said = found(mutate)
    assert (said.module, said.stage, said.region) == ("layers.1.mlp.down", "model code", "")
    assert said.note.startswith("its inputs agree; its error is ")


def test_a_block_that_gets_another_mask_is_named_with_the_argument_and_who_made_it():
    def mutate(model: Any) -> None:
        def forward(self: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return type(self).forward(self, hidden, mask.roll(1, dims=-1))

        model.layers[1].forward = MethodType(forward, model.layers[1])

    said = found(mutate)
    assert (said.module, said.stage) == ("layers.1.attention", "model code")
    assert said.note == "its inputs differ already: mask, made in the forward of layers.1"


def test_a_block_that_computes_its_leaves_inputs_wrongly_is_named_itself():
    def mutate(model: Any) -> None:
        model.layers[0].attention.scale *= 1.1

    said = found(mutate)
    assert (said.module, said.stage) == ("layers.0.attention", "model code")
    assert said.note.startswith("its inputs agree")


def test_values_that_are_changed_between_two_layers_name_the_second_and_the_parent():
    def mutate(model: Any) -> None:
        def forward(self: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return type(self).forward(self, hidden, mask)

        first = model.layers[0]

        class Shifted(torch.nn.ModuleList):
            def __iter__(self) -> Any:
                yield first
                yield lambda hidden, mask: model.layers[1](hidden.roll(1, dims=1), mask)

        model.layers.__class__ = Shifted

    said = found(mutate, recipe="vision")
    assert said.module == "layers.1.norm"
    assert said.note == "its inputs differ already: input, made in the forward of Model"


def test_a_module_that_the_compiled_twin_does_not_call_is_named():
    def mutate(model: Any) -> None:
        kept: list[torch.Tensor] = []

        def features(pixels: torch.Tensor) -> torch.Tensor:
            if not kept:
                kept.append(model.visual(pixels))
            return kept[0]

        model.features = features

    other = Batch(MIXED.requests, seed=2)
    with served(mutate, other, MIXED) as target:
        said = localise(target, Session((other, MIXED)), 1, 9)
    assert (said.module, said.stage) == ("visual", "model code")
    assert said.note.startswith("eager alone calls it in the forward of Model")


def test_a_fault_that_an_earlier_batch_of_the_session_makes_is_found():
    def mutate(model: Any) -> None:
        norm, last = model.layers[0].norm, [0]

        def forward(x: torch.Tensor) -> torch.Tensor:
            before, last[0] = last[0], x.shape[0]
            stock = torch.nn.functional.layer_norm(x, (16,), norm.weight, norm.bias)
            return stock * (1.5 if before == 1 else 1.0)

        norm.forward = forward

    alone = batch(Text(4))
    with served(mutate, MIXED, alone, MIXED, recipe="vision") as target:
        target.run_compiled(MIXED)
        said = localise(target, Session((alone, MIXED)), *PLACE)
        assert (said.module, said.stage) == ("layers.0.norm", "model code")
        target.run_compiled(MIXED)
        said = localise(target, Session((MIXED,)), *PLACE)
    assert said == Localised(note=said.note)
    assert said.note.startswith("served again it does not show: ")


# -- faults of the compiler --------------------------------------------------------------------


def perturbed(compile_graph: Any, where: Callable[[Any], bool]) -> Any:
    """A backend whose code adds a little to its first output, where its inputs say so."""

    def compile_wrongly(graph: Any, inputs: Any) -> Any:
        compiled = compile_graph(graph, inputs)

        def run(*args: Any) -> Any:
            first, *rest = compiled(*args)
            return (first + 0.01 * where(args), *rest)

        return run

    return compile_wrongly


@pytest.mark.parametrize(
    ("backend", "wrong", "stage", "words"),
    [
        pytest.param(
            "aot_eager", {"aot_eager"}, "AOTAutograd", "there is no Inductor", marks=NIGHTLY
        ),
        ("inductor", {"aot_eager", "inductor"}, "AOTAutograd", "aot_eager is wrong too"),
        ("inductor", {"inductor"}, "Inductor", "aot_eager is right"),
    ],
)
def test_a_compiler_that_changes_what_a_graph_computes_is_named(
    backend: str, wrong: set[str], stage: str, words: str, monkeypatch: pytest.MonkeyPatch
):
    real, weights = backends.resolve, []

    def resolve(options: Any) -> Any:
        # Inductor itself takes ten times as long, and is not what is tried here.
        graphs = real(backends.CompileOptions(backend="aot_eager"))
        if options.backend not in wrong:
            return graphs
        return perturbed(graphs, lambda args: any(one is weights[0] for one in args))

    monkeypatch.setattr(backends, "resolve", resolve)
    with served(lambda model: weights.append(model.layers[1].mlp.up.weight), backend=backend) as t:
        before, events, counters = t.stats(), len(t.watcher.events), torch_counters()
        said = localise(t, Session((MIXED,)), *PLACE)
        assert t.stats().compiles == before.compiles
        assert not t.watcher.events[events:]
        assert torch_counters() == counters
    assert (said.module, said.stage) == ("layers.1", stage)
    # Dynamo captures a Python float anew once AOTAutograd has seen that it varies.
    assert said.region.startswith("graph 2, forward (")
    assert words in said.note


def test_a_compiler_that_changes_the_graph_itself_is_named(monkeypatch: pytest.MonkeyPatch):
    def compile_graph(graph: Any, inputs: Any) -> Any:
        for node in graph.graph.nodes:
            if node.target is operator.add:
                node.target = operator.sub
        graph.recompile()
        return graph

    monkeypatch.setattr(backends, "resolve", lambda options: compile_graph)
    with served(backend="aot_eager") as target:
        said = localise(target, Session((MIXED,)), *PLACE)
    assert (said.module, said.stage) == ("layers.0", "AOTAutograd")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_that_is_not_what_the_code_says_is_laid_to_dynamo(backend: str):
    def mutate(model: Any) -> None:
        def forward(self: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            if torch.compiler.is_compiling():
                mask = mask.roll(1, dims=-1)
            return type(self).forward(self, hidden, mask)

        model.layers[1].forward = MethodType(forward, model.layers[1])

    said = found(mutate, backend=backend)
    assert (said.module, said.stage) == ("layers.1", "Dynamo")
    assert said.note.startswith("its inputs agree")


def test_what_was_made_so_while_compiling_is_told_from_model_code_that_is_wrong_too():
    """Uncompiled the twin is a little wrong, compiled a lot: the compiled part is told."""

    def mutate(model: Any) -> None:
        def forward(self: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            factor = 1.5 if torch.compiler.is_compiling() else 1.0001
            return type(self).forward(self, hidden * factor, mask)

        model.layers[1].forward = MethodType(forward, model.layers[1])

    assert found(mutate).stage == "Dynamo"


@NIGHTLY
def test_inductor_that_is_right_stays_far_below_the_factor():
    with served(backend="inductor") as target:
        with target.recording() as executions:
            target.run_compiled(MIXED)
        bench = regions.Bench(
            context=MIXED.context,
            device=torch.device("cpu"),
            rows=Rows(target.run_eager(MIXED).token_kinds),
            reference=target.reference(),
            factor=FACTOR,
        )
        assert len(executions) == 2
        for execution in executions:
            captured = target.graphs[execution.graph]
            plain = bench.serving(partial(run_again, captured, execution))
            lifted = regions.lifted_run(captured, execution, bench)
            assert 0.0 < regions.difference(execution, plain, lifted, bench) < FACTOR / 2


# -- no trace ----------------------------------------------------------------------------------


@pytest.mark.parametrize("context", BY_DAY_AND_NIGHT)
def test_looking_leaves_no_trace(context: str):
    def mutate(model: Any) -> None:
        model.layers[0].attention.scale *= 5.0  # autocast's own error is large

    mixed = Batch(MIXED.requests, context=context)
    with served(mutate, mixed) as target:
        calls = [each._compiled_call_impl for each in target.compiled_modules.values()]
        counters = torch_counters()
        first = target.run_compiled(mixed).logits
        before, events, step = target.stats(), list(target.watcher.events), target.watcher.step
        executed = target.watcher.executed
        said = localise(target, Session((mixed,)), *PLACE)
        assert (said.module, said.stage) == ("layers.0.attention", "model code")
        assert target.watcher.events == events
        assert (target.watcher.step, target.watcher.executed) == (step, executed)
        assert target.stats().compiles == before.compiles
        assert torch_counters() == counters
        assert calls == [each._compiled_call_impl for each in target.compiled_modules.values()]
        for twin in target.twins():
            for module in twin.modules():
                assert not module._forward_hooks
                assert not module._forward_pre_hooks
        with internals.strict():
            again = target.run_compiled(mixed).logits
        assert not target.watcher.refusals
        assert torch.equal(again, first)


# -- what cannot be told -----------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clean_session_does_not_show(backend: str):
    with served(backend=backend) as target:
        said = localise(target, Session((MIXED,)), *PLACE)
    assert said == Localised(note=said.note)
    assert said.note.startswith("served again it does not show: the token is off by ")


def test_a_target_that_shows_no_modules_says_so():
    target = ToyTarget()
    said = localise(target, Session((batch(Text(3)),)), 0, 0)
    assert said == Localised(note=said.note)
    assert said.note.startswith("the target shows no modules")


def test_a_checked_target_shows_its_modules():
    with served() as target:
        assert "does not show" in localise(checked(target), Session((MIXED,)), *PLACE).note


def test_what_the_model_raises_becomes_a_note():
    def mutate(model: Any) -> None:
        def forward(self: Any, ids: torch.Tensor, **inputs: Any) -> Any:
            if self.broken:
                raise ZeroDivisionError("odd batch")
            return type(self).forward(self, ids, **inputs)

        model.broken = False
        model.forward = MethodType(forward, model)

    with served(mutate) as target:
        target.twins()[1].broken = True
        said = localise(target, Session((MIXED,)), *PLACE)
        assert said == Localised(note=said.note)
        assert said.note.startswith("served again it raised ZeroDivisionError: odd batch")


def test_a_session_that_is_refused_says_so():
    with served(None, batch(Text(1))) as target:
        said = localise(target, Session((MIXED,)), *PLACE)
        assert said == Localised(note="served again it was refused")
        assert not target.watcher.refusals  # it belongs to no step


@pytest.mark.parametrize(
    ("place", "words"), [((0, 0), "is padding"), ((2, 0), "2 requests of 10 places")]
)
def test_a_place_that_holds_no_token_is_refused(place: tuple[int, int], words: str):
    with served() as target, pytest.raises(UsageError, match=words):
        localise(target, Session((MIXED,)), *place)


def test_without_a_wider_type_the_tolerance_judges():
    def mutate(model: Any) -> None:
        model.layers[1].attention.scale *= 1.1

    said = found(mutate, dtype=torch.float64)
    assert (said.module, said.stage) == ("layers.1.attention", "model code")
    assert said.note.endswith("there is no wider type to judge by")
