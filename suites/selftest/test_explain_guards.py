"""Guards in words: every form of guard, those of the message of a refusal, the user's line."""

from __future__ import annotations

import dataclasses
import gc
import re
from pathlib import Path

import pytest
import refused
import torch
from refusals import CASES, refusal_of

from vlm_ci.watch import internals
from vlm_ci.watch.explain import explain
from vlm_ci.watch.guards import GUARD_FAMILIES, Guard, in_words, parse

# torch.func, which one of the cases calls, imports what torch itself calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
T = torch.ones


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
