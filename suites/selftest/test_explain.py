"""Explanations of refused calls: what the call's signature tells beyond the guards."""

from __future__ import annotations

import re

import pytest
import refused
import torch
from refusals import explained, small

from vlm_ci.watch import internals
from vlm_ci.watch.explain import explain
from vlm_ci.watch.guards import Guard, in_words
from vlm_ci.watch.signatures import Binder

T = torch.ones
call = refused.call


def take(hidden, mask=None, features=None, **extra):
    """A callable whose arguments are recorded."""


HIDDEN = torch.zeros(2, 7, 4)
MASK = torch.ones(2, 7)


def record(*args, **kwargs):
    return Binder(take)(args, kwargs)


@pytest.mark.parametrize(
    ("now", "cause", "key", "advice"),
    [
        (
            lambda: record(HIDDEN, MASK, features=[HIDDEN]),
            "features is a list of 1; in warm-up it was not passed",
            "features: not passed -> list",
            "always pass features, with zeros or an empty tensor",
        ),
        (
            lambda: record(HIDDEN, None),
            "mask is None; in warm-up it was a float32 tensor [2, 7] on cpu",
            "mask: float32 tensor -> None",
            "always pass mask",
        ),
        (
            lambda: record(HIDDEN, (MASK,)),
            "mask is a tuple of 1; in warm-up it was a float32 tensor [2, 7] on cpu",
            "mask: float32 tensor -> tuple",
            "always pass mask with one type",
        ),
        (
            lambda: record(HIDDEN.double(), MASK),
            "hidden: dtype is float64; in warm-up it was float32",
            "hidden: dtype",
            "cast hidden to float32",
        ),
        (
            lambda: record(HIDDEN[0], MASK),
            "hidden: rank is 2; in warm-up it was 3",
            "hidden: rank",
            "always give hidden 3 dimensions",
        ),
        (
            lambda: record(HIDDEN.clone().requires_grad_(), MASK),
            "hidden: requires_grad is True",
            "hidden: requires_grad",
            "enter torch.no_grad()",
        ),
        (
            lambda: record(refused.inference_tensor(), MASK),
            "hidden was made inside inference_mode (an inference tensor); in warm-up outside",
            "hidden: inference & hidden: rank",
            "enter torch.inference_mode() around every call",
        ),
        (
            lambda: record(HIDDEN, MASK[:, :1]),
            "mask: size 1 is 1, which Dynamo specialises; in warm-up it was 2 or more (7, 9)",
            "mask: layout & mask: size 1",
            "mask",
        ),
        (
            lambda: record(HIDDEN.transpose(0, 1), MASK),
            "hidden: layout is strides ordered [1, 0, 2]; in warm-up it was contiguous",
            "hidden: layout",
            "call .contiguous() on hidden",
        ),
    ],
)
def test_cause_is_what_differs_from_the_nearest_warm_call(now, cause, key, advice):
    warm = [record(HIDDEN, MASK), record(torch.zeros(3, 9, 4), torch.ones(3, 9))]
    explanation = explain(("an unrelated guard",), now(), warm)
    assert cause in explanation.cause
    assert explanation.key == key
    assert advice in explanation.advice


@pytest.mark.parametrize(
    ("within", "cause", "advice"),
    [
        (torch.no_grad, "grad mode is False; in warm-up it was True", "enter torch.no_grad()"),
        (
            torch.inference_mode,
            "inference mode is True; in warm-up it was False",
            "enter torch.inference_mode() around every call",
        ),
        (
            lambda: torch.autocast("cpu", torch.bfloat16),
            "autocast is bfloat16 on cpu; in warm-up it was off",
            "enter the same torch.autocast(...) around warm-up and around serving",
        ),
    ],
    ids=["grad mode", "inference mode", "autocast"],
)
def test_process_state_is_a_cause_with_its_own_advice(within, cause, advice):
    explanation = explained(small(refused.plus, (call(T(3)),), call(T(3)), within=within))
    assert cause in explanation.cause
    assert advice in explanation.advice
    assert explanation.words == (
        f"the process state changed: {'autocast' if 'autocast' in advice else 'grad mode'}",
    )
    assert not re.search(r"\d", explanation.key)


def test_an_argument_that_differs_outweighs_sizes_and_gives_its_line():
    explanation = explained(small(refused.optional, (call(T(7)), call(T(9))), call(T(1), T(1))))
    assert explanation.key == "m: not passed -> float32 tensor"
    assert explanation.line.endswith("in optional: if m is None:")


def test_what_a_guard_compares_decides_the_advice_for_a_number():
    explanation = explained(small(refused.many, (call(T(3), 5), call(T(3), 7)), call(T(3), 20)))
    assert explanation.key == "n: value, number bounds: n <= N"
    assert explanation.cause == (
        "n is 20; in warm-up it was 5, 7 (n <= 10 held when this was compiled, and does not now)"
    )
    assert "pad to the bucket" in explanation.advice
    explanation = explained(small(refused.times, (call(T(3), True),), call(T(3), False)))
    assert explanation.cause == "n is False; in warm-up it was True"
    assert explanation.key == "n: value, flag: n == True"


def test_a_size_of_1_is_no_cause_where_the_guards_blame_another_size():
    warm, now = record(HIDDEN, MASK), record(HIDDEN[:1], torch.ones(2, 9))
    texts = [f"tensor 'mask' size mismatch at index 1. expected {n}, actual 9" for n in (7, 8)]
    assert explain(texts, now, [warm]).cause.startswith(
        "size 1 of mask was compiled as exactly 7, 8 and is now 9"
    )
    texts[1] = "2 <= hidden.size()[0]"
    assert explain(texts, now, [warm]).key == "hidden: size 0"


def test_a_state_that_was_warmed_too_is_no_cause():
    case = small(refused.loop, (call(T(3)),), call(T(7)))
    bind = Binder(case.function)
    internals.reset()
    compiled = torch.compile(case.function, backend="eager", dynamic=False)
    compiled(T(3))
    with torch.no_grad():
        compiled(T(3))
        warm = [bind((T(3),), {})]
    warm.append(bind((T(3),), {}))
    refusals = []
    with (
        internals.reporting_refusals(refusals.append),
        internals.strict(),
        pytest.raises(RuntimeError),
    ):
        compiled(T(7))
    internals.reset()
    assert "GLOBAL_STATE changed: grad_mode" in refusals[0].guards
    explanation = explain(refusals[0].failed, bind((T(7),), {}), warm)
    assert explanation.cause.startswith("size 0 of x was compiled as exactly 3 and is now 7")


def test_sizes_stand_beside_a_relation_that_failed():
    explanation = explained(
        small(refused.both, (call(T(3), T(3)),), call(T(5), T(4)), dynamic=True)
    )
    assert explanation.cause == (
        "size 0 of y and size 0 of x were equal when this was compiled, and are not now "
        "(both 3 in warm-up; 4 and 5 now)"
    )
    explanation = explained(small(refused.fours, (call(T(8)), call(T(12))), call(T(13))))
    assert explanation.cause.endswith("and is none now (now x.shape[0] = 13)")


def test_guards_that_the_nearest_call_of_warm_up_breaks_too_are_of_other_variants():
    """Batches of 1 were warmed up, and those of 2: what is new is the length."""
    warm = [record(torch.zeros(n, length, 4)) for n, length in ((1, 9), (1, 11), (2, 13))]
    texts = [
        "tensor 'hidden' size mismatch at index 0. expected 1, actual 2",
        "tensor 'hidden' size mismatch at index 1. expected 1, actual 3",
        "tensor 'hidden' size mismatch at index 1. expected 13, actual 3",
        "2 <= hidden.size()[0]",
    ]
    key = "static size: tensor 'hidden' size mismatch at index second. expected N, actual N"
    two = explain(texts[:3], record(torch.zeros(2, 3, 4)), warm)
    assert two.key == key
    assert two.cause.startswith("size 1 of hidden was compiled as exactly 1, 13 and is now 3")
    texts[2] = "tensor 'hidden' size mismatch at index 1. expected 9, actual 3"
    assert explain(texts[1:], record(torch.zeros(1, 3, 4)), warm).key == key


@pytest.mark.parametrize("grad", ["", ", AutogradCPU"])
def test_inference_tensors_are_told_by_the_keys_they_lack(grad):
    few, many = "CPU, BackendSelect", f"CPU, BackendSelect, ADInplaceOrView{grad}"
    for old, new, words in ((few, many, "and is none now"), (many, few, "and was none when")):
        found = in_words(
            Guard(
                text="tensor 'x' dispatch key set mismatch. expected "
                f"DispatchKeySet({old}), actual DispatchKeySet({new})"
            )
        )
        assert found is not None
        assert words in found.words
        assert found.family == "inference tensor"


def test_values_of_all_variants_are_named():
    texts = [f"self.rounds == {n}" for n in (10, 0, 9)] + ["x is None"]
    assert (
        explain(texts[:3], None, []).cause == "self.rounds was compiled as exactly 0 and 9 and 10"
    )
    assert explain(texts[:1], None, []).cause == "self.rounds was compiled as exactly 10"


def test_what_a_thread_changes_in_its_tensors_is_no_cause_of_its_own():
    with torch.inference_mode():
        warm = record(torch.zeros(2, 7, 4), torch.ones(2, 7))
    explanation = explain(["GLOBAL_STATE changed: grad_mode"], record(HIDDEN, MASK), [warm])
    assert explanation.cause == (
        "grad mode is True; in warm-up it was False; "
        "inference mode is False; in warm-up it was True"
    )
    assert explanation.key == "process state: grad mode & process state: inference mode"
    assert "it belongs to a thread: enter it in each thread that serves" in explanation.advice


def test_an_argument_is_named_as_inside_the_wrapper():
    text = "tensor 'args[0]' stride mismatch at index 1. expected 64, actual 256"
    explanation = explain([text], record(HIDDEN, MASK), [])
    assert explanation.words == ("stride 1 of hidden was compiled as exactly 64 and is now 256",)
    assert explain([text], None, []).words[0].startswith("stride 1 of args[0]")
    (beyond,) = explain(["args[7] is None"], record(HIDDEN), []).words
    assert beyond.startswith("args[7] was None")


def test_both_calls_are_shown_side_by_side():
    warm, now = record(HIDDEN, MASK), record(torch.zeros(2, 9, 4), None)
    rows = {row["path"]: (row["now"], row["warm"]) for row in explain((), now, [warm]).call}
    assert rows == {
        "hidden": ("float32 tensor [2, 9, 4] on cpu", "float32 tensor [2, 7, 4] on cpu"),
        "mask": ("None", "float32 tensor [2, 7] on cpu"),
    }
    with torch.inference_mode():
        rows = {row["path"]: row for row in explain((), record(HIDDEN, MASK), [warm]).call}
    assert rows["inference mode"] == {"path": "inference mode", "now": "True", "warm": "False"}
