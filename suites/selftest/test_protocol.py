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
from fakes import FLOAT32, TWO, Fake, answer, kinds_of, top_k
from toy import ENVELOPE, ToyTarget

import vlm_ci
from vlm_ci.checker import Checker, CheckSettings, Silent, check
from vlm_ci.errors import UsageError
from vlm_ci.failures import Failure, finding
from vlm_ci.parity.canary import apply_canary
from vlm_ci.parity.comparison import compare
from vlm_ci.search import Search
from vlm_ci.targets.answers import ProtocolError, checked
from vlm_ci.targets.loading import load_target
from vlm_ci.targets.protocol import Capabilities, Output, Stats, TargetInfo
from vlm_ci.traffic.spec import Batch, Image, Session, Text, batch
from vlm_ci.warmup import Plan


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


@pytest.mark.parametrize("beside_findings", [False, True], ids=["alone", "beside findings"])
def test_bad_input_that_a_search_meets_comes_out_at_once_and_is_not_shrunk(beside_findings: bool):
    refused: list[Session] = []

    def check_session(session: Session) -> None:
        if any("image" in part.modalities for part in session.batches):
            refused.append(session)
            raise UsageError("this image is not there")
        if beside_findings:
            cause = f"{len(session.batches)} batches"
            raise finding(Failure(kind="crash", cause=cause, advice="", key=cause, traffic=session))

    with pytest.raises(UsageError, match="this image is not there"):
        Search(ENVELOPE).run(check_session, examples=100, seed=0)
    assert len(refused) == 1


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


def test_the_checks_of_an_answer_cost_next_to_nothing():
    part = batch(*[Text(12)] * 4)
    output = answer(part)
    target = checked(Fake(run_eager=lambda part: output))
    target.run_eager(part)
    started = time.process_time()
    for _ in range(200):
        target.run_eager(part)
        target.stats()
    assert (time.process_time() - started) / 200 < 0.002


def test_public_names_of_the_protocol():
    for name in ("Capabilities", "Output", "Stats", "Target", "TargetInfo"):
        assert hasattr(vlm_ci, name)
