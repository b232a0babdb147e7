"""Explanations of refused calls: guards in words, the user's line, the cause and its key."""

from __future__ import annotations

import dataclasses
import gc
import re
from pathlib import Path

import pytest
import refused
import torch

from vlm_ci.watch import internals
from vlm_ci.watch.explain import explain
from vlm_ci.watch.guards import GUARD_FAMILIES, Guard, in_words, parse
from vlm_ci.watch.signatures import Binder

# torch.func, which one of the cases calls, imports what torch itself calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
T = torch.ones
call = refused.call
CASES = {case.name: case for case in refused.CASES}
_known = {}


def refusal_of(case):
    """Provoke a case's refusal: once only, for it may change what it calls."""
    if case.name not in _known:
        _known[case.name] = provoke(case)
    return _known[case.name]


def provoke(case):
    """Warm a function up and return the refusal, the refused call's signature, the warm ones."""
    module = isinstance(case.function, torch.nn.Module)
    bind = Binder(case.function.forward if module else case.function)
    internals.reset()
    compiled = torch.compile(case.function, backend=case.backend, dynamic=case.dynamic)
    for args, kwargs in case.warm:
        compiled(*args, **kwargs)
    warm = [bind(*arguments) for arguments in case.warm]
    refusals = []
    if case.before:
        case.before()
    args, kwargs = case.now
    with internals.reporting_refusals(refusals.append), internals.strict(), case.within():
        now = bind(args, kwargs)
        with pytest.raises(RuntimeError, match="fail_on_recompile"):
            compiled(*args, **kwargs)
    internals.reset()
    return refusals[0], now, warm


def explained(case):
    """Explain a refusal as a run does: the guards, and the signatures of warm-up."""
    refusal, now, warm = provoke(case)
    return explain(refusal.failed, now, warm)


def small(function, warm, now, **more):
    """A case of which only the calls matter."""
    return refused.case("", function, warm, now, "", "", **more)


# -- every form of guard -----------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_is_explained_by_its_guards(name):
    case = CASES[name]
    if not case.refused:
        pytest.skip(f"torch {torch.__version__} sets no guard for it")
    refusal, _, _ = refusal_of(CASES[name])
    explanation = explain(refusal.failed, None, [])
    assert case.words in explanation.cause
    assert case.advice in explanation.advice
    assert len(explanation.words) == len(refusal.guards) > 0
    assert not [words for words in explanation.words if words.startswith("unknown guard")]
    assert explanation.key
    assert not re.search(r"\d", explanation.key)
    if case.line == "":
        assert explanation.line == ""
    if not case.line:
        return
    path, number, source = re.fullmatch(r"(.+):(\d+) in \S+: (.+)", explanation.line).groups()
    assert path == "suites/selftest/refused.py"
    assert case.line in source
    assert Path(refused.__file__).read_text().splitlines()[int(number) - 1].strip() == source


# Messages for which no small call is known here, as torch writes them.
WRITTEN = {
    "BACKEND_MATCH failure: torch.compile detected different backend callables.": (
        "this code was compiled with another backend object",
        "hand one and the same backend object",
    ),
    "Cache line invalidated because L['self'] got deallocated": (
        "self, for which this was compiled, no longer exists",
        "build the model once and keep it",
    ),
    "not ___dict_contains('a', L['self'].table)": ("self.table held no 'a'", "fill self.table"),
    "x is not None": ("x was a value when this was compiled, and is None now", "always pass"),
    "x.storage_offset() == 0": ("x begins at another place of its memory", ".clone()"),
    "x.size()[1] == 12": ("size 1 of x was compiled as exactly 12", "mark this dimension dynamic"),
    "tensor 'x' Tensor device index mismatch. Expected device index to be 0, actual 1": (
        "a tensor was on another device of this kind",
        "move the inputs to the device",
    ),
    "___check_metadata_139871_c0/0": ("the metadata of a tensor subclass", "one placement"),
    # where torch names no type
    "___check_type_id(L['x'], 94572056648208)": ("x was of type object when", "one type"),
    "hasattr(L['x'], '_dynamo_dynamic_indices') == False": ("carries other marks", "mark the same"),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_written_guard_is_put_in_words(text):
    words, advice = WRITTEN[text]
    found = in_words(Guard(text=text))
    assert found is not None
    assert words in found.words
    assert advice in found.advice


def test_every_family_is_tried():
    failed = [
        guard for case in CASES.values() if case.refused for guard in refusal_of(case)[0].failed
    ]
    failed += [Guard(text=text) for text in WRITTEN]
    tried = {words.family for guard in failed if (words := in_words(guard))}
    assert {family.name for family in GUARD_FAMILIES} == tried


def test_an_unknown_guard_is_shown_raw_and_called_unknown():
    explanation = explain(["something torch invented"], None, [])
    assert explanation.cause == "an unknown guard failed: something torch invented"
    assert explanation.words == ("unknown guard: something torch invented",)
    known = explain(["something torch invented", "x is None"], None, [])
    assert known.cause == known.words[1] == "x was None when this was compiled, and is not now"
    assert known.words[0] == "unknown guard: something torch invented"


def test_code_that_was_never_compiled_has_no_guard():
    explanation = explain([], None, [])
    assert explanation.cause == "this code was never compiled during warm-up"
    assert explanation.key == "never compiled"
    assert explanation.words == ()
    assert explanation.line == ""


def test_a_freed_class_is_named():
    kinds = [type("Kind", (), {})]
    compiled = torch.compile(refused.descends, backend="eager")
    internals.reset()
    compiled(T(3), kinds[0])
    kinds.clear()
    gc.collect()
    refusals = []
    with (
        internals.reporting_refusals(refusals.append),
        internals.strict(),
        pytest.raises(RuntimeError),
    ):
        compiled(T(3), refused.Box)
    internals.reset()
    explanation = explain(refusals[0].failed, None, [])
    assert explanation.cause == "kind, for which this was compiled, no longer exists"


# -- keys --------------------------------------------------------------------------------------

SIZES = {
    "static size": (
        small(refused.loop, (call(T(3)), call(T(4))), call(T(5))),
        small(refused.loop, (call(T(13)), call(T(11))), call(T(27))),
    ),
    "below 2": (
        small(refused.total, (call(T(3)), call(T(4))), call(T(1))),
        small(refused.total, (call(T(30)), call(T(40))), call(T(1))),
    ),
    "multiple": (
        small(refused.fours, (call(T(8)), call(T(12))), call(T(13))),
        small(refused.fours, (call(T(16)), call(T(32))), call(T(21))),
    ),
    "duck shape": (
        small(refused.both, (call(T(3), T(3)),), call(T(3), T(4)), dynamic=True),
        small(refused.both, (call(T(8), T(8)),), call(T(9), T(5)), dynamic=True),
    ),
    "number": (
        small(refused.many, (call(T(3), 5), call(T(3), 7)), call(T(3), 20)),
        small(refused.many, (call(T(3), 4), call(T(3), 8)), call(T(3), 33)),
    ),
    "argument": (
        small(refused.optional, (call(T(3)),), call(T(3), T(3))),
        small(refused.optional, (call(T(7)),), call(T(7), T(7))),
    ),
    "length": (
        small(refused.entries, (call(T(3), [T(3)]),), call(T(3), [T(3), T(3)])),
        small(refused.entries, (call(T(3), [T(3)] * 4),), call(T(3), [T(3)] * 6)),
    ),
}


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("signed", [True, False], ids=["by signature", "by guards"])
def test_a_cause_has_one_key_whatever_the_sizes(kind, signed):
    keys = set()
    for number, case in enumerate(SIZES[kind]):
        named = dataclasses.replace(case, name=f"{kind}, sizes {number}")
        refusal, now, warm = refusal_of(named)
        keys.add(explain(refusal.failed, now if signed else None, warm).key)
    assert len(keys) == 1


def test_other_causes_have_other_keys():
    names = (
        "grad mode",
        "autocast",
        "was None",
        "keyword appears",
        "dtype",
        "rank",
        "requires_grad",
        "inference tensor",
        "static size",
        "below 2",
        "duck shape",
        "lower bound",
        "multiple",
        "stride",
        "integer",
        "symbolic integer",
        "length",
        "keys",
        "None attribute",
        "integer attribute",
        "string attribute",
    )
    for signed in (True, False):
        keys = {}
        for name in names:
            refusal, now, warm = refusal_of(CASES[name])
            key = explain(refusal.failed, now if signed else None, warm).key
            keys.setdefault(key, []).append(name)
        assert not {key: found for key, found in keys.items() if len(found) > 1}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "tensor 'x' size mismatch at index 0. expected 3, actual 4",
            "tensor 'x' size mismatch at index 1. expected 3, actual 4",
        ),
        ("2 <= x.size()[0]", "2 <= x.size()[1]"),
        ("x.size()[0] == y.size()[1]", "x.size()[1] == y.size()[0]"),
    ],
)
def test_dimensions_are_part_of_the_key_and_sizes_are_not(one, other):
    assert explain([one], None, []).key != explain([other], None, []).key
    assert (
        explain([one], None, []).key
        == explain([re.sub(r"(?<=expected )\d", "7", one)], None, []).key
    )


# -- signatures before guards ------------------------------------------------------------------


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


# -- the message -------------------------------------------------------------------------------

MESSAGE = """\
Detected recompile when torch.compile stance is 'fail_on_recompile'. filename: 'a.py'
    triggered by the following guard failure(s):
    - 8/1: 2 <= mask.size()[0]  # mask = mask.to(x)  # kept  # work/a.py:838 in f (user code shown \
is first use of this value--the guard itself is not due user code but due to 0/1 specialization)
    - 8/0: 2 <= mask.size()[0]  # the same
    - 8/2: GLOBAL_STATE changed: grad_mode\x20
    - 8/3: 2 <= x.size()[0] <= 15  # first(x)  # work/a.py:1 in f (user code shown is first use of \
this value--not due user code) and if x.shape[0] > 15:  # work/a.py:7 in g (_dynamo/t.py:26 in h)
    - 8/4: y.size()[0] == x.size()[0]  # duck sizing added this equality because these variables
    - 8/5: y.size()[1] == x.size()[1]  # (unknown var s54, please file a bug)
    - 8/6: self.n == 3         # return 3  # work/a.py:9 in f (HINT: torch.compile considers \
integer attributes of the nn.Module to be static)
    - User stack trace:
    -   File "/srv/deep/in/model/a.py", line 9, in f
    -     return 3 * F.linear(x)
    -   File "/venv/lib/python3.11/site-packages/torch/nn/functional.py", line 20, in linear
    -     return 3
    - 8/7: ids == None  # _dynamo/output_graph.py:1135 in init_ambient_guards
    - 8/8: ___stack0 == 2     # k = n.item()  # work/a.py:3 in torch_dynamo_resume_in_f_at_3
"""


def test_guards_and_lines_are_taken_from_the_message_of_a_refusal():
    found = parse(MESSAGE)
    assert [guard.text for guard in found] == [
        "2 <= mask.size()[0]",
        "GLOBAL_STATE changed: grad_mode",
        "2 <= x.size()[0] <= 15",
        "y.size()[0] == x.size()[0]",
        "y.size()[1] == x.size()[1]",
        "self.n == 3",
        "ids == None",
        "___stack0 == 2",
    ]
    assert [guard.line for guard in found] == [
        "work/a.py:838 in f: mask = mask.to(x)  # kept",
        "",
        "work/a.py:7 in g: if x.shape[0] > 15:",  # the user's comparison, not the first use
        "",
        "",
        "in/model/a.py:9 in f: return 3 * F.linear(x)",  # not torch's own line
        "",
        "work/a.py:3 in f: k = n.item()",
    ]
    assert [words and words.family for words in map(in_words, found[3:6])] == [
        "duck shape",
        "equal sizes",
        "integer attribute",
    ]


def test_a_line_in_the_frame_of_a_package_is_named_from_the_package_down():
    (guard,) = parse("- 0/0: n == 3  # x  # transformers/utils/generic.py:9 in wrapper")
    assert guard.line == "utils/generic.py:9 in wrapper: x" or guard.line.startswith("transformers")
    (guard,) = parse("- 0/0: n == 3  # x  # nn/modules/linear.py:134 in forward")
    assert guard.line == "torch/nn/modules/linear.py:134 in forward: x"


def test_a_refusal_gives_texts_and_the_first_line():
    refusal, _, _ = refusal_of(CASES["static size"])
    assert all(isinstance(text, str) for text in refusal.guards)
    assert refusal.guards == tuple(guard.text for guard in refusal.failed)
    assert refusal.line == next(guard.line for guard in refusal.failed if guard.line)
    assert refusal.frame.startswith("loop (suites/selftest/refused.py:")
    assert dataclasses.is_dataclass(refusal)
