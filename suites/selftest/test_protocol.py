"""The Target protocol at its door: every breach has one message, and findings stay findings."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy import ENVELOPE, VOCABULARY, ToyTarget

import vlm_ci
from vlm_ci.checker import Checker, CheckSettings, Silent, check
from vlm_ci.errors import UsageError
from vlm_ci.parity.canary import apply_canary
from vlm_ci.parity.comparison import TOLERANCES, compare, moved
from vlm_ci.targets.answers import ProtocolError, checked
from vlm_ci.targets.loading import load_target
from vlm_ci.targets.protocol import Capabilities, Output, Stats, TargetInfo
from vlm_ci.traffic.spec import Batch, Image, Text, batch
from vlm_ci.warmup import Plan

FLOAT32 = TOLERANCES["float32"]
TWO = batch(Text(3), Text(5))


def kinds_of(part: Batch, fill: int = 0) -> torch.Tensor:
    return torch.full((len(part.requests), ENVELOPE.padded_length(part)), fill, dtype=torch.int8)


def answer(part: Batch, **given: Any) -> Output:
    """A right answer, but for what is given."""
    kinds = kinds_of(part)
    return Output(**{"logits": torch.randn(*kinds.shape, 8), "token_kinds": kinds, **given})


def top_k(part: Batch, **given: Any) -> Output:
    """A right answer of the two most likely tokens, but for what is given."""
    shape = (*kinds_of(part).shape, 2)
    values = torch.tensor([-0.5, -2.0]).expand(shape).clone()
    return answer(
        part,
        **{"logits": values, "token_ids": torch.tensor([3, 7]).expand(shape).clone(), **given},
    )


class Fake:
    """A target without a model, each member of which can be replaced."""

    def __init__(self, **given: Any) -> None:
        self.name = "fake"
        self.envelope = ENVELOPE
        self.capabilities = Capabilities()
        self.run_eager = self.run_compiled = answer
        self.warm_up = lambda part: None
        self.stats = lambda: Stats(compiles=0)
        self.reset = self.close = lambda: None
        for name, value in given.items():
            setattr(self, name, value)


def raise_not_implemented(*args: Any) -> Any:
    raise NotImplementedError


def rising() -> Any:
    counter = itertools.count()
    return lambda: Stats(compiles=next(counter))


MEMBERS = {
    "no name": ({"name": ""}, "its name is ''; it must be a non-empty str"),
    "a number for a name": ({"name": 3}, "its name is 3"),
    "no envelope": ({"envelope": None}, "its envelope is None; it must be a vlm_ci.Envelope(…)"),
    "envelope as dict": ({"envelope": {}}, "its envelope is something of type dict"),
    "capabilities as dict": (
        {"capabilities": {"in_process": True}},
        "it must be a vlm_ci.Capabilities(…)",
    ),
    "no method": ({"run_eager": 3}, "its run_eager is 3; it must be a method"),
    "perturbed is no method": ({"run_perturbed": None}, "its run_perturbed is None"),
    "unknown logits": (
        {"capabilities": Capabilities(logits="topk")},
        'capabilities.logits is \'topk\'; it must be "full" or "top-k"',
    ),
    "in_process as text": (
        {"capabilities": Capabilities(in_process="no")},
        "capabilities.in_process is 'no'; it must be True or False",
    ),
    "unknown context": (
        {"capabilities": Capabilities(contexts=("inference",))},
        "capabilities.contexts is ('inference',); it must be a tuple of some of inference_mode,",
    ),
    "contexts as text": (
        {"capabilities": Capabilities(contexts="no_grad")},
        "capabilities.contexts is 'no_grad'; it must be a tuple",
    ),
    "contexts too few": (
        {"capabilities": Capabilities(contexts=("no_grad",))},
        "its envelope asks for the context inference_mode, and capabilities.contexts has only "
        "no_grad",
    ),
    "info as dict": ({"info": {}}, "it must be a vlm_ci.TargetInfo(…)"),
    "unknown dtype": (
        {"info": TargetInfo(name="x", recipe="", backend="", device="cpu", dtype="fp8")},
        "its info.dtype is 'fp8'; it must be one of float32, bfloat16, float16, float64",
    ),
}


@pytest.mark.parametrize(("given", "message"), MEMBERS.values(), ids=MEMBERS)
def test_attributes_are_checked_before_anything_runs(given: dict, message: str):
    with pytest.raises(ProtocolError) as caught:
        check(Fake(**given), examples=1)
    assert message in str(caught.value)
    assert "breaks the protocol" in str(caught.value)


def test_what_is_no_target_at_all_is_told_what_it_lacks():
    with pytest.raises(ProtocolError, match="without envelope, capabilities, run_eager"):
        check(SimpleNamespace(name="half"), examples=1)


ANSWERS = {
    "nothing": (lambda part: None, "returned None; it must be a vlm_ci.Output("),
    "a tuple": (lambda part: (1, 2), "returned a tuple of 2; it must be a vlm_ci.Output("),
    "a tensor": (
        lambda part: torch.zeros(2, 3),
        "returned a float32 tensor [2, 3]; it must be a vlm_ci.Output(",
    ),
    "a list of logits": (
        lambda part: answer(part, logits=[[0.0]]),
        "logits that are a list of 1; they must be a torch.Tensor",
    ),
    "whole numbers": (
        lambda part: answer(part, logits=torch.zeros(2, 5, 8, dtype=torch.int64)),
        "logits that are a int64 tensor [2, 5, 8]; they must be floating point",
    ),
    "two dimensions": (
        lambda part: answer(part, logits=torch.zeros(2, 8)),
        "logits that are a float32 tensor [2, 8]; they must be [requests, padded length, vocab",
    ),
    "empty": (
        lambda part: answer(part, logits=torch.zeros(2, 0, 8)),
        "logits that are a float32 tensor [2, 0, 8]",
    ),
    "kinds of another type": (
        lambda part: answer(part, token_kinds=kinds_of(part).long()),
        "token_kinds that are a int64 tensor [2, 5] on cpu; they must be an int8 tensor",
    ),
    "kinds missing": (
        lambda part: answer(part, token_kinds=None),
        "token_kinds that are None; they must be an int8 tensor [requests, padded length]",
    ),
    "ids without top-k": (
        lambda part: top_k(part),
        "token_ids, though capabilities.logits is 'full'",
    ),
}


@pytest.mark.parametrize("method", ["run_eager", "run_compiled"])
@pytest.mark.parametrize(("given", "message"), ANSWERS.values(), ids=ANSWERS)
def test_what_is_no_answer_is_refused(method: str, given: Any, message: str):
    target = checked(Fake(**{method: given}))
    with pytest.raises(ProtocolError) as caught:
        getattr(target, method)(TWO)
    text = str(caught.value)
    assert text.startswith(f"target 'fake' breaks the protocol: {method} returned ")
    assert message in text


SHAPES = {
    "a row too few": (
        lambda part: answer(batch(*part.requests[0].items)),
        "1 rows for a batch of 2 requests",
    ),
    "rows too short": (
        lambda part: answer(batch(Text(4), Text(4))),
        "rows of 4 positions for a batch whose longest request takes 5",
    ),
    "shapes that disagree": (
        lambda part: answer(part, logits=torch.zeros(2, 6, 8)),
        "logits that are a float32 tensor [2, 6, 8] and token_kinds that are a int8 tensor [2, 5]",
    ),
    "an unknown kind": (
        lambda part: answer(part, token_kinds=kinds_of(part, 3)),
        "token_kinds from 3 to 3; they must be among -1 padding, 0 text, 1 image, 2 video",
    ),
    "padding everywhere": (
        lambda part: answer(part, token_kinds=kinds_of(part, -1)),
        "token_kinds that are padding everywhere",
    ),
}


@pytest.mark.parametrize(("given", "message"), SHAPES.values(), ids=SHAPES)
def test_the_reference_has_to_answer_the_whole_batch(given: Any, message: str):
    with pytest.raises(ProtocolError) as caught:
        checked(Fake(run_eager=given)).run_eager(TWO)
    assert message in str(caught.value)
    checked(Fake(run_compiled=given)).run_compiled(TWO)  # left to the comparison: a finding


TOP_K = {
    "no ids": (lambda part: answer(part), "no token_ids (logits are a float32 tensor [2, 5, 8])"),
    "ids of another type": (
        lambda part: top_k(part, token_ids=torch.zeros(2, 5, 2, dtype=torch.int32)),
        "token_ids that are a int32 tensor [2, 5, 2]; they must be int64",
    ),
    "another shape": (
        lambda part: top_k(part, token_ids=torch.zeros(2, 5, 3, dtype=torch.int64)),
        "of the shape of the logits [2, 5, 2]",
    ),
    "raw logits": (
        lambda part: top_k(part, logits=torch.full((2, 5, 2), 4.5)),
        "a log-probability of 4.5; log-probabilities are at most 0",
    ),
    "an id twice": (
        lambda part: top_k(part, token_ids=torch.ones(2, 5, 2, dtype=torch.int64)),
        "a token id twice among the top k of one position",
    ),
    "a negative id": (
        lambda part: top_k(part, token_ids=torch.tensor([-1, 2]).expand(2, 5, 2)),
        "the token id -1; token ids are at least 0",
    ),
}


@pytest.mark.parametrize(("given", "message"), TOP_K.values(), ids=TOP_K)
def test_top_k_answers_are_held_to_their_promise(given: Any, message: str):
    target = Fake(capabilities=Capabilities(logits="top-k"), run_eager=given)
    with pytest.raises(ProtocolError) as caught:
        checked(target).run_eager(TWO)
    assert message in str(caught.value)


STATS = {
    "nothing": (lambda: None, "stats returned None; it must be a vlm_ci.Stats("),
    "a dict": (lambda: {"compiles": 1}, "stats returned something of type dict"),
    "a negative count": (lambda: Stats(regions=-1), "stats().regions is -1; it must be at least 0"),
    "a fraction": (
        lambda: Stats(compiles=1.5),
        "stats().compiles is 1.5; it must be a whole number or None",
    ),
    "a truth": (lambda: Stats(compiles=True), "stats().compiles is True"),
    "seconds as text": (
        lambda: Stats(forward_seconds="1"),
        "stats().forward_seconds is '1'; it must be a number of seconds or None",
    ),
    "not a number": (lambda: Stats(forward_seconds=math.nan), "it must be at least 0"),
    "an exception": (lambda: {}["compiles"], "stats raised KeyError: 'compiles' at test_protocol"),
}


@pytest.mark.parametrize(("given", "message"), STATS.values(), ids=STATS)
def test_counts_are_checked(given: Any, message: str):
    with pytest.raises(ProtocolError) as caught:
        check(Fake(stats=given), examples=1)
    assert message in str(caught.value)


def test_counts_never_fall_but_may_begin_anew_after_a_reset():
    counts = iter([Stats(compiles=3), Stats(compiles=2)])
    target = checked(Fake(stats=lambda: next(counts)))
    target.stats()
    with pytest.raises(ProtocolError, match=r"stats\(\).compiles was 3 and is 2 now"):
        target.stats()
    counts = iter([Stats(regions=3), Stats()])
    target = checked(Fake(stats=lambda: next(counts)))
    target.stats()
    with pytest.raises(ProtocolError, match=r"stats\(\).regions was 3 and is None now"):
        target.stats()
    counts = iter([Stats(compiles=3), Stats(compiles=0)])
    target = checked(Fake(stats=lambda: next(counts)))
    target.stats()
    target.reset()
    assert target.stats().compiles == 0


def test_a_target_out_of_process_has_to_count_its_compilations():
    target = Fake(capabilities=Capabilities(in_process=False), stats=Stats)
    with pytest.raises(ProtocolError, match="nothing here sees what another process compiles"):
        check(target, examples=1)
    checked(Fake(stats=Stats)).stats()  # in process the watch counts


@pytest.mark.parametrize("method", ["warm_up", "reset", "close"])
def test_methods_that_are_not_implemented(method: str):
    target = checked(Fake(**{method: raise_not_implemented}))
    with pytest.raises(ProtocolError, match=f"{method} raised NotImplementedError at test_prot"):
        getattr(target, method)(*([TWO] if method == "warm_up" else []))


def test_an_operator_without_a_kernel_is_a_crash_and_no_breach():
    def warm_up(part: Batch) -> None:
        raise_not_implemented()  # as torch does deep inside a model

    result = check(Fake(warm_up=warm_up), examples=1)
    assert [failure.kind for failure in result.failures] == ["crash"]


def test_loading_checks_a_factory_and_what_its_target_closes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "door.py").write_text(
        "import vlm_ci\n"
        "from test_protocol import Fake, raise_not_implemented\n"
        "class Slots(Fake):\n"
        "    __slots__ = ()\n"
        "class Tight:\n"
        "    __slots__ = ()\n"
        "    name, envelope, capabilities = 'tight', vlm_ci.Envelope(), vlm_ci.Capabilities()\n"
        "    def run(self, *args): ...\n"
        "    run_eager = run_compiled = warm_up = stats = reset = close = run\n"
        "NUMBER = 3\n"
        "def nameless(): return Fake(name='')\n"
        "def open_ended(): return Fake(close=raise_not_implemented)\n"
        "def failing(): return 1 / 0\n"
    )
    for attribute, message in (
        ("NUMBER", "is a int: it must be a vlm_ci.Model, or a function that returns a target"),
        ("nameless", "its name is ''"),
        ("failing", "raised ZeroDivisionError: division by zero at door.py:13"),
        ("Tight", "takes no further attributes"),
    ):
        with pytest.raises(UsageError, match=message):
            load_target(f"door:{attribute}")
    target = load_target("door:open_ended")
    with pytest.raises(ProtocolError, match="close raised NotImplementedError"):
        target.close()
    target.close = lambda: None


def test_every_way_into_a_run_goes_through_the_door():
    settings = CheckSettings(plan=Plan(name="one", batches=(TWO,)), examples=1)
    target = Fake(stats=lambda: None)
    with pytest.raises(ProtocolError, match="stats returned None"):
        Checker(target, settings, Silent()).run()  # as the command line and the plugin do


def test_a_breach_that_only_the_search_meets_ends_the_run():
    target = ToyTarget()
    serve = target.run_compiled

    def run_compiled(part: Batch) -> Output | None:
        return None if "image" in part.modalities else serve(part)

    target.run_compiled = run_compiled
    try:
        with pytest.raises(ProtocolError, match="run_compiled returned None"):
            check(target, examples=20, warmup="text-only")
    finally:
        target.close()


# -- what stays a finding ----------------------------------------------------------------------


def test_compiled_rows_that_are_missing_are_a_mismatch():
    def drop(call: Any, ids: torch.Tensor, part: Batch) -> torch.Tensor:
        return call(ids)[:1]

    target = ToyTarget(drop)
    try:
        result = check(target, examples=10)
    finally:
        target.close()
    assert [failure.kind for failure in result.failures] == ["mismatch"]
    assert "compiled logits have shape [1, 1, 32], eager ones [2, 1, 32]" in (
        result.failures[0].cause
    )


def test_disagreement_about_what_stands_where_is_a_mismatch():
    one = answer(TWO, token_kinds=kinds_of(TWO, 1))
    with pytest.raises(ValueError, match=r"request 0, token 0 is image in the compiled answer and"):
        compare(one, replace(one, token_kinds=kinds_of(TWO)), FLOAT32)
    with pytest.raises(ValueError, match="is padding in the compiled answer and text in eager's"):
        compare(replace(one, token_kinds=kinds_of(TWO, -1)), answer(TWO), FLOAT32)


def test_an_eager_twin_that_fails_at_once_is_told_where():
    target = ToyTarget(change_eager=lambda logits: logits / 0 + {}["scale"])
    target.run_perturbed = target.run_eager
    try:
        with pytest.raises(UsageError, match=r"run_eager raised KeyError: 'scale' at test_protoco"):
            check(target, examples=1)
    finally:
        target.close()


def test_a_canary_that_answers_otherwise_is_refused():
    longer = batch([Image(8, 8), Text(9)])
    for perturbed, message in (
        (lambda part, modality: answer(longer), "run_perturbed does not answer like run_eager"),
        (lambda part, modality: None, "run_perturbed returned None; it must be a vlm_ci.Output"),
        (raise_not_implemented, "leave the method out where that cannot be done"),
    ):
        with pytest.raises(ProtocolError, match=message):
            apply_canary(Fake(run_perturbed=perturbed), FLOAT32)


# -- top-k answers -----------------------------------------------------------------------------


def few(*pairs: tuple[int, float]) -> Output:
    """The answer for one position: token ids with their log-probabilities."""
    ids, values = zip(*pairs, strict=True)
    return Output(
        logits=torch.tensor([[values]], dtype=torch.float32),
        token_ids=torch.tensor([[ids]]),
        token_kinds=torch.zeros(1, 1, dtype=torch.int8),
    )


INF = math.inf
EXPECTED = few((3, -0.5), (7, -2.0), (1, -3.0))
CASES = {
    "the same": (EXPECTED, True),
    "another order": (few((1, -3.0), (3, -0.5), (7, -2.0)), True),
    "within tolerance": (few((3, -0.5005), (7, -2.0), (1, -3.0)), True),
    "one value beyond it": (few((3, -0.51), (7, -2.0), (1, -3.0)), False),
    "just below the cut": (few((3, -0.5), (7, -2.0), (9, -3.0005)), True),
    "just above the cut": (few((3, -0.5), (7, -2.0), (9, -2.9995)), True),
    "far above the cut": (few((3, -0.5), (7, -2.0), (9, -2.9)), False),
    # Eager's third token is missing, though it stands above everything that came.
    "a token was lost": (few((3, -0.5), (7, -2.0), (9, -9.0)), False),
    "the first was lost": (few((9, -0.5), (7, -2.0), (1, -3.0)), False),
    "fewer of them": (few((3, -0.5), (7, -2.0)), True),
    "fewer, and not the largest": (few((3, -0.5), (1, -3.0)), False),
    "more of them": (few((3, -0.5), (7, -2.0), (1, -3.0), (9, -4.0)), True),
    "more, one too large": (few((3, -0.5), (7, -2.0), (1, -3.0), (9, -2.5)), False),
    "a probability that became 0": (few((3, -0.5), (7, -2.0), (1, -INF)), False),
    "nan": (few((3, -0.5), (7, -2.0), (1, math.nan)), False),
    "+inf": (few((3, INF), (7, -2.0), (1, -3.0)), False),
}


@pytest.mark.parametrize(("actual", "passes"), CASES.values(), ids=CASES)
def test_the_top_k_rule(actual: Output, passes: bool):
    assert compare(actual, EXPECTED, FLOAT32).passes is passes
    assert compare(EXPECTED, actual, FLOAT32).passes is passes  # neither side is special


def test_a_probability_of_0_equals_itself_and_nothing_else():
    zero = few((3, 0.0), (7, -INF))
    assert compare(zero, zero, FLOAT32).ratio == 0
    assert compare(few((3, 0.0), (9, -INF)), zero, FLOAT32).passes  # 7 and 9 are both at 0
    assert compare(few((3, 0.0), (7, -80.0)), zero, FLOAT32).ratio == INF
    assert compare(few((3, 0.0), (9, -80.0)), zero, FLOAT32).ratio == INF
    assert compare(zero, zero, FLOAT32).nonfinite is None
    assert compare(few((3, math.nan), (7, -1.0)), zero, FLOAT32).nonfinite == "compiled"


def test_a_token_named_twice_is_no_answer():
    twice = few((3, -0.5), (3, -0.5), (7, -2.0))
    for one, other in ((twice, EXPECTED), (EXPECTED, twice)):
        with pytest.raises(ValueError, match="names a token twice"):
            compare(one, other, FLOAT32)


def test_full_logits_are_compared_with_the_top_of_them():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 50) * 3
    full = Output(logits=logits, token_kinds=kinds_of(TWO))
    best = logits.log_softmax(dim=-1).topk(4, dim=-1)
    top = Output(logits=best.values, token_ids=best.indices, token_kinds=kinds_of(TWO))
    assert compare(top, full, FLOAT32).passes
    assert compare(full, top, FLOAT32).passes
    wrong = replace(top, logits=top.logits - 0.1)
    assert not compare(wrong, full, FLOAT32).passes
    assert not compare(replace(top, token_ids=(top.token_ids + 1) % 50), full, FLOAT32).passes


def test_moved_says_by_how_many_nats():
    assert moved(EXPECTED, EXPECTED) == 0
    assert moved(EXPECTED, few((3, -0.75), (7, -2.0), (1, -3.0))) == pytest.approx(0.25)
    # Token 9 is new: it stands at least 1.5 above eager's smallest.
    assert moved(few((9, -1.5), (7, -2.0), (1, -3.0)), EXPECTED) == pytest.approx(2.5)


class TopToy(ToyTarget):
    """The toy engine behind an interface that gives the three most likely tokens."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self.capabilities = Capabilities(logits="top-k")

    def _top(self, output: Output) -> Output:
        best = output.logits.log_softmax(dim=-1).topk(3, dim=-1)
        return replace(output, logits=best.values, token_ids=best.indices)

    def run_eager(self, part: Batch) -> Output:
        return self._top(super().run_eager(part))

    def run_compiled(self, part: Batch) -> Output:
        return self._top(super().run_compiled(part))

    def run_perturbed(self, part: Batch, modality: str) -> Output:
        ids, kinds = self._ids(part)
        with torch.inference_mode():
            return self._top(Output(logits=self._eager(VOCABULARY - 1 - ids), token_kinds=kinds))


def test_a_run_over_top_k_answers_is_judged_like_any_other():
    def shift(call: Any, ids: torch.Tensor, part: Batch) -> torch.Tensor:
        logits = call(ids)
        if "image" in part.modalities:
            logits = logits.clone()
            logits[0, 0, 5] += 1
        return logits

    results = []
    for serve in (None, shift):
        target = TopToy(serve)
        try:
            results.append(check(target, examples=30))
        finally:
            target.close()
    clean, failed = results
    assert clean.verdict == "clean"
    assert clean.parity.canary.moved == clean.parity.canary.applied == 1
    assert clean.parity.tokens_compared > 100
    assert [failure.kind for failure in failed.failures] == ["mismatch"]
    assert failed.failures[0].location == {"request": 0, "token": 0, "modality": "text"}


def test_the_checks_of_an_answer_cost_next_to_nothing():
    part = batch(*[Text(12)] * 4)
    output = answer(part)
    target = checked(Fake(run_eager=lambda part: output))
    target.run_eager(part)
    started = time.perf_counter()
    for _ in range(200):
        target.run_eager(part)
        target.stats()
    assert (time.perf_counter() - started) / 200 < 0.002


def test_public_names_of_the_protocol():
    for name in ("Capabilities", "Output", "Stats", "Target", "TargetInfo"):
        assert hasattr(vlm_ci, name)
