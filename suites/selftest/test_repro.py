"""Standalone repros: short, without vlm_ci, run before they are kept, marked where they fail."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from repros import MODEL, ONE, WARM, check_form, failure_of, file_of, refusal
from repros import recorded as recorded
from repros import without_vlm_ci as without_vlm_ci

from vlm_ci import Image, Text, batch, evidence, repro, session
from vlm_ci.evidence import FailureFile
from vlm_ci.failures import Failure
from vlm_ci.repro import causes, literals

# -- a real failure ------------------------------------------------------------------------------


def test_a_recompile_reproduces_without_vlm_ci(recorded: Path, without_vlm_ci):
    """What it prints is torch's own reason."""
    file = evidence.read(recorded / "failure.json").file
    made = repro.write(file, recorded, timeout=240)
    assert made.reproduced, made
    assert made.path == recorded / "repro.py"
    assert made.note == ""
    check_form(made.path)
    assert "Detected recompile" in made.output
    assert re.search(r"2 <= .*\.size\(\)\[1\]", made.output)
    assert file.failure is not None
    assert causes.difference(file.failure, 1, made.output) == ""


@pytest.mark.nightly
def test_a_repaired_fault_is_marked(recorded: Path, tmp_path: Path, without_vlm_ci):
    """The failing batch is part of the warm-up: nothing is refused any more."""
    file = evidence.read(recorded / "failure.json").file
    made = repro.write(msgspec.structs.replace(file, plan=(ONE,)), tmp_path / "new", timeout=240)
    assert not made.reproduced
    assert made.path is not None
    check_form(made.path)
    first = made.path.read_text().splitlines()[0]
    assert first == "# DOES NOT REPRODUCE: nothing was compiled again"
    assert made.note == "nothing was compiled again"
    assert made.output == "nothing was compiled again\n"


# -- the same cause ------------------------------------------------------------------------------


PRESENCE = failure_of(
    "recompile",
    "model.language_model: position_ids: None -> int64 tensor",
    frame="wrapper (transformers/utils/generic.py:1019) in model.language_model",
    guards=(
        "tensor 'kwargs['attention_mask']' size mismatch at index 1. expected 1, actual 3",
        "kwargs['position_ids'] is None",
    ),
    difference=(
        {"path": "position_ids", "aspect": "presence", "warm": "None", "now": "int64 tensor [3]"},
        {"path": "attention_mask", "aspect": "size 1", "warm": "11", "now": "3"},
    ),
)
LIMIT = "torch._dynamo hit config.recompile_limit (8)\n   function: '{}' (/site-packages/a/b.py:9)"
GENERIC = "transformers/utils/generic.py"


CRASH = msgspec.structs.replace(
    failure_of("crash", "the compiled twin ValueError: no"),
    cause="the compiled twin raised ValueError: no",
)


@pytest.mark.parametrize(
    ("guards", "function", "why"),
    [
        (["kwargs['position_ids'] is None"], "wrapper", ""),
        (["tensor 'x' stride mismatch", "kwargs['position_ids'] is None"], "wrapper", ""),
        # Any short warm-up on one token gives this one: it does not tell the cause.
        (
            ["tensor 'kwargs['attention_mask']' size mismatch at index 1. expected 1, actual 9"],
            "wrapper",
            "another guard failed: tensor 'kwargs['attention_mask']' size mismatch",
        ),
        (["kwargs['position_ids'] is None"], "forward", "torch refused forward ("),
        ([], "wrapper", "the frame was never compiled"),
    ],
)
def test_the_same_cause_is_the_same_frame_and_a_telling_guard(guards, function, why):
    said = causes.difference(PRESENCE, 1, refusal(function, GENERIC, *guards))
    assert said.startswith(why)
    assert bool(said) is bool(why)


@pytest.mark.parametrize(
    ("failure", "telling"),
    [
        (PRESENCE, {"kwargs['position_ids'] is None"}),
        (
            failure_of(
                "recompile",
                "layers.*: hidden_states: size 1",
                guards=("expected type of 'mask' to be a tensor", "2 <= args[0].size()[1]"),
                difference=(
                    {"path": "hidden_states", "aspect": "size 1", "warm": "26", "now": "1"},
                ),
            ),
            {"N <= args[N].size()[N]"},
        ),
        (
            failure_of(
                "recompile",
                "blocks.*: len(___stackN[N]) == N",
                guards=("len(___stack0[0]) == 3", "len(___stack0[0]) == 2", "x is None"),
            ),
            {"len(___stackN[N]) == N"},
        ),
        (
            failure_of("recompile", "", guards=("tensor 'x' size mismatch at index 0",)),
            {"tensor 'x' size mismatch at index N"},
        ),
    ],
)
def test_guards_that_tell_the_cause(failure: Failure, telling: set[str]):
    assert causes.telling(failure) == telling


@pytest.mark.parametrize(
    ("failure", "returncode", "output", "why"),
    [
        (failure_of("new-frame", frame="f (a/b.py:3)"), 1, refusal("f", "a/b.py"), ""),
        (failure_of("new-frame"), 1, refusal("f", "a/b.py", "x is None"), "another guard failed"),
        (failure_of("mismatch", "logits"), 1, "worst difference 1, 9 times", ""),
        (failure_of("mismatch", "logits"), 1, "ImportError: no torch", "ImportError: no torch"),
        (failure_of("mismatch", "logits"), 0, "worst difference 0", "worst difference 0"),
        (failure_of("mismatch", "shape"), 1, "compiled logits [1], eager ones [2]", ""),
        (failure_of("nonfinite", "compiled"), 1, "the compiled logits hold NaN or Inf", ""),
        (failure_of("nonfinite", "compiled"), 1, "the eager logits hold NaN or Inf", "the eager"),
        (failure_of("eager-fallback", "none: x"), 1, "0 compiled regions executed of 1", ""),
        (failure_of("eager-fallback", "none: x"), 1, "Traceback\nValueError: x", "ValueError: x"),
        (CRASH, 1, "ValueError: no", ""),
        (CRASH, 1, "ValueError: yes", "ValueError: yes"),
        (CRASH, 1, "KeyError: 1", "KeyError: 1"),
        (failure_of("mismatch", "logits"), 1, "worst difference 0\nOOM", "OOM"),
        (failure_of("crash", "the process ended"), -11, "", ""),
        (failure_of("mismatch", "logits"), -11, "", "it ended with exit code -11"),
        (
            failure_of("limit-hit", frame="f (a/b.py:3)"),
            1,
            LIMIT.format("f"),
            "",
        ),
        (
            failure_of("limit-hit", frame="f (a/b.py:3)"),
            1,
            LIMIT.format("g"),
            "the limit was reached at g",
        ),
    ],
)
def test_each_kind_has_its_own_sign(failure: Failure, returncode: int, output: str, why: str):
    said = causes.difference(failure, returncode, output)
    assert said.startswith(why)
    assert bool(said) is bool(why)


# -- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([[5] * 7 + [9, 8, 2] + [1] * 3], "[[5]*7 + [9, 8, 2] + [1]*3]"),
        ([[1] * 9] * 2, "[[1]*9]*2"),
        ([[0, 0, 0, 7], [1, 1, 7, 7]], "[[0]*3 + [7], [1, 1, 7, 7]]"),
        ([[True, False]], "[[True, False]]"),
        ([1.0, 2.0], "[1.0, 2.0]"),
        ([], "[]"),
    ],
)
def test_lists_are_written_with_repetitions(value: list[object], text: str):
    assert literals.numbers(value) == text
    assert eval(text) == value


def test_inputs_keep_shape_and_type():
    """What a list or a shape alone cannot say is made by a lambda."""
    encoded = MODEL.encode(WARM, device=torch.device("cpu"), dtype=torch.float32)
    odd = {
        "input_ids": encoded.inputs["input_ids"],
        "pixels": torch.randn(4, 5),
        "short": torch.ones(2, 3, dtype=torch.int32),
        "flags": torch.tensor([[True, False]]),
        "seconds": torch.tensor([1.0, 2.0]),
        "flat": torch.zeros(5, 5),
        "none": torch.zeros(0, 3),
        "half": torch.randn(5, 5).half(),
    }
    text = literals.batch(
        replace(encoded, inputs=odd),
        dtype=torch.float32,
        special=literals.special_tokens(MODEL.config),
    )
    made = {
        name: value()
        if callable(value)
        else torch.randn(value)
        if isinstance(value, tuple)
        else torch.tensor(value)
        for name, value in eval(text, {"torch": torch, "dict": dict}).items()
    }
    for name, value in odd.items():
        assert made[name].shape == value.shape, name
        assert made[name].dtype == value.dtype, name
    ids = made["input_ids"][0].tolist()
    assert ids.count(500) == 16  # placeholders stay what they are
    assert len(set(ids)) == 2  # guards do not see which text it is


def test_a_configuration_shrinks_to_what_transformers_does_not_assume():
    from transformers import AutoConfig

    whole = AutoConfig.for_model(**MODEL.config).to_dict()
    short = literals.needed(whole)
    assert AutoConfig.for_model(**short).to_dict() == whole
    assert len(json.dumps(short)) < len(json.dumps(whole)) / 2
    assert "projector_hidden_act" not in short


# -- what cannot be written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"target": "toy:factory"}, "the target is built by toy:factory"),
        ({"loadable": False, "test": "t.py::x"}, "was built by the test t.py::x itself"),
        ({"recipe": "no_such_module:f"}, "cannot import 'no_such_module'"),
        ({"target": "llava:/no/such/folder"}, "cannot read the configuration of checkpoint"),
    ],
)
def test_what_cannot_be_rebuilt_has_a_reason(changes, note: str, tmp_path: Path):
    made = repro.write(file_of(failure_of("recompile"), **changes), tmp_path)
    assert made.path is None
    assert not made.reproduced
    assert note in made.note
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_transformers_refuses(tmp_path: Path, monkeypatch):
    config = {**MODEL.config, "text_config": {"model_type": "llama", "initializer_range": 1e30}}
    monkeypatch.setattr("repros.MODEL", replace(MODEL, config=config))
    made = repro.write(file_of(failure_of("recompile")), tmp_path)
    assert made.path is None
    assert made.note.startswith("transformers cannot build small-llava without weights: ")


@pytest.mark.parametrize("kind", ["vacuous", "hang", "stall", "unbounded", "graph-capture"])
def test_other_kinds_have_no_script(kind: str, tmp_path: Path):
    made = repro.write(file_of(failure_of(kind)), tmp_path)
    assert made.path is None
    assert made.note == f"there is no standalone script for failures of kind {kind}"


def test_a_type_of_model_that_transformers_does_not_know(tmp_path: Path, monkeypatch):
    from transformers.models.auto import modeling_auto

    known = dict(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    del known["llava"]
    monkeypatch.setattr(modeling_auto, "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", known)
    made = repro.write(file_of(failure_of("recompile")), tmp_path)
    assert made.path is None
    assert "transformers itself knows no image-text-to-text model of type 'llava'" in made.note


# -- other kinds, run ----------------------------------------------------------------------------


def run(file: FailureFile, folder: Path) -> repro.Repro:
    made = repro.write(file, folder, timeout=500)
    assert made.path is not None, made.note
    check_form(made.path)
    return made


@pytest.mark.slow
@pytest.mark.nightly
def test_logits_that_are_not_finite(tmp_path: Path, without_vlm_ci, monkeypatch):
    """The root of a negative number is NaN in both twins; the eager one is named."""
    text = {**MODEL.config["text_config"], "rms_norm_eps": -1e9}
    model = replace(MODEL, config={**MODEL.config, "text_config": text})
    monkeypatch.setattr("repros.MODEL", model)
    made = run(file_of(failure_of("nonfinite", "eager")), tmp_path)
    assert made.reproduced, made
    assert made.output == "the eager logits hold NaN or Inf\n"


@pytest.mark.slow
@pytest.mark.nightly
def test_logits_that_differ(tmp_path: Path, without_vlm_ci, monkeypatch):
    """Under no tolerance at all Inductor differs from eager; under the usual one it does not."""
    from vlm_ci.parity.comparison import TOLERANCES, Tolerance

    failure = failure_of("mismatch", "logits", traffic=session(WARM))
    file = file_of(failure, backend="inductor", plan=())
    made = run(file, tmp_path)
    assert not made.reproduced
    assert made.note.startswith("worst difference ")
    monkeypatch.setitem(TOLERANCES, "float32", Tolerance(rtol=0.0, atol=1e-9))
    made = run(file, tmp_path)
    assert made.reproduced, made
    assert made.output.splitlines()[-1].startswith("worst difference ")


@pytest.mark.slow
@pytest.mark.nightly
def test_a_limit_and_what_comes_after_it(tmp_path: Path, without_vlm_ci):
    """With a limit of 1, the second kind of batch reaches it, and from then on runs eagerly."""
    options = {"device": "cpu", "dtype": "float32", "dynamic": True, "recompile_limit": 1}
    plan = (WARM, ONE)
    made = run(file_of(failure_of("limit-hit"), plan=plan, options=options), tmp_path)
    assert made.reproduced, made
    assert "torch._dynamo hit config.recompile_limit (1)" in made.output
    for key, told in (
        ("none: model", "0 compiled regions executed of 1"),
        ("some calls: layers", "1 of 1 calls executed no region"),
    ):
        failure = failure_of("eager-fallback", key, note="the recompile limit (1) was reached at x")
        made = run(file_of(failure, plan=plan, options=options), tmp_path)
        assert made.reproduced, made
        assert told in made.output


@pytest.mark.slow
@pytest.mark.nightly
def test_a_crash(tmp_path: Path, without_vlm_ci):
    """The token of an image is not in the vocabulary: torch's embedding raises."""
    config = {**MODEL.config, "image_token_id": 600}  # outside of the vocabulary
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("repros.MODEL", replace(MODEL, config=config))
        cause = "the eager twin raised IndexError: index out of range in self"
        failure = failure_of("crash", "the eager twin", cause=cause, traffic=session(WARM))
        made = run(file_of(failure), tmp_path)
    assert made.reproduced, made
    assert made.output.startswith("IndexError: ")


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("context", ["no_grad", "grad", "autocast", "thread", "outside_inputs"])
def test_contexts_are_honoured(context: str, tmp_path: Path, without_vlm_ci):
    """A batch of a context that was warmed up passes; one in another context is refused."""
    warm = batch([Text(6), Image(16, 16), Text(4)], context=context)
    same = failure_of("recompile", traffic=session(batch(Text(9), context=context)))
    made = run(file_of(same, plan=(warm, batch(Text(7), context=context))), tmp_path)
    assert made.note == "nothing was compiled again"
    if context in ("thread", "outside_inputs"):
        return  # decoder layers see no difference: what reaches them is made inside the forward
    other = failure_of("recompile", guards=("GLOBAL_STATE",), traffic=session(batch(Text(9))))
    made = run(file_of(other, plan=(warm, batch(Text(7), context=context))), tmp_path)
    assert "Detected recompile" in made.output
