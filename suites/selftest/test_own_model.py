"""A model of one's own: bad models are refused in words, and right ones do as they should."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vlm_ci
from conftest import ROOT
from vlm_ci.errors import UsageError
from vlm_ci.targets import loading, models

EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the examples, as a reader has one."""
    ignored = shutil.ignore_patterns("__pycache__", ".*", "vlm-ci-out")
    return shutil.copytree(EXAMPLES, tmp_path_factory.mktemp("page") / "examples", ignore=ignored)


@pytest.fixture
def examples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """That folder as the current one; its modules are forgotten afterwards."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


# -- way 2: models that are none ---------------------------------------------------------------


class Replaced:
    """The example's family, with other members."""

    def __init__(self, family: Any, **given: Any) -> None:
        self._family, self._given = family, given

    def __getattr__(self, name: str) -> Any:
        given = self.__dict__["_given"]
        return given[name] if name in given else getattr(self.__dict__["_family"], name)


def zero(*args: Any) -> Any:
    raise ZeroDivisionError("division by zero")


BAD_MODELS = {
    "no name": ({"name": " "}, "name must be a non-empty str, not ' '"),
    "nothing to build from": (
        {"config": {}},
        "it has neither config nor checkpoint: give config={…} or checkpoint=",
    ),
    "two things to build from": ({"checkpoint": "x"}, "it has both config and checkpoint"),
    "a config that is no dict": ({"config": [1]}, "config must be a dict like a config.json"),
    "no model_type": (
        {"config": {"text_config": {}}},
        "config has no 'model_type': write 'model_type': 'internvl'",
    ),
    "another model_type": (
        {"config": {"model_type": "llava"}},
        "config has model_type 'llava'; family internvl takes 'internvl'",
    ),
    "a checkpoint that is not there": (
        {"config": {}, "checkpoint": "absent"},
        "cannot read the configuration of checkpoint 'absent'",
    ),
    "a class": ({"family": dict}, "family is the class dict: pass dict()"),
    "no family": ({"family": 3}, "is of type int without name, model_type, envelope, geometry,"),
    "a config that lacks something": (
        {"config": {"model_type": "internvl"}},
        "internvl.envelope(config) raised KeyError: 'vision_config' at own_family.py:",
    ),
}


@pytest.mark.parametrize(("given", "message"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_what_is_no_model_is_refused(given: dict, message: str, examples: Path):
    import own_family

    right = {
        "name": "mine",
        "family": own_family.MODEL.family,
        "config": own_family.MODEL.config,
    }
    with pytest.raises(UsageError) as caught:
        vlm_ci.Model(**{**right, **given})
    assert message in str(caught.value)


BAD_FAMILIES = {
    "a name that is none": ({"name": ""}, "family.name must be a non-empty str"),
    "no method": ({"parts": 3}, "family.parts must be a method, not 3"),
    "no envelope": ({"envelope": lambda config: None}, "returned a NoneType: it must return a vlm"),
    "another geometry": (
        {"geometry": lambda config: vlm_ci.Geometry()},
        "has another geometry than internvl.geometry(config)",
    ),
}


@pytest.mark.parametrize(("given", "message"), BAD_FAMILIES.values(), ids=BAD_FAMILIES)
def test_what_is_no_family_is_refused(given: dict, message: str, examples: Path):
    from own_family import MODEL

    with pytest.raises(UsageError) as caught:
        vlm_ci.Model(name="mine", family=Replaced(MODEL.family, **given), config=MODEL.config)
    assert message in str(caught.value)


def encoded(**given: Any) -> Any:
    """Return a way to encode that changes the example's."""

    def change(family: Any) -> Any:
        def encode(config: Any, batch: Any, *, device: Any, dtype: Any) -> Any:
            right = family.encode(config, batch, device=device, dtype=dtype)
            return vlm_ci.Encoded(
                inputs=given.get("inputs", lambda inputs: inputs)(right.inputs),
                token_kinds=given.get("kinds", lambda kinds: kinds)(right.token_kinds),
                pixel_inputs=given.get("pixels", right.pixel_inputs),
            )

        return encode

    return change


BAD_ENCODINGS = {
    "an exception": (lambda family: lambda *args, **rest: zero(), "encode raised ZeroDivisionErro"),
    "a dict": (lambda family: lambda *args, **rest: {}, "encode returned a dict: it must return a"),
    "too few positions": (
        encoded(kinds=lambda kinds: kinds[:, 1:]),
        "returned token_kinds of shape [3, 9]; by the geometry it is [3, 10]",
    ),
    "positions left blank": (
        encoded(kinds=lambda kinds: kinds.masked_fill(kinds == 0, -1)),
        "filled 4 positions of row 0; by the geometry its request takes 10",
    ),
    "images marked as text": (
        encoded(kinds=lambda kinds: kinds.clamp(max=0)),
        "marked 0 positions of row 0 as image; by the geometry it holds 4",
    ),
    "the other side": (
        encoded(kinds=lambda kinds: kinds.flip(1)),
        "padded row 1 on another side than the left",
    ),
    "another type": (
        encoded(kinds=lambda kinds: kinds.long()),
        "returned token_kinds that are a int64 tensor [3, 10], not an int8 tensor on the CPU",
    ),
    "no pixels named": (
        encoded(pixels={}),
        "names pixel_inputs for []; this batch holds ['image'], and the canary changes",
    ),
    "pixels that are not there": (
        encoded(pixels={"image": "images"}),
        "names 'images' as the pixels of each image, and inputs has no such entry",
    ),
    "an input that is no tensor": (
        encoded(inputs=lambda inputs: {**inputs, "size": 3}),
        "returned an input 'size' that is 3, not a tensor",
    ),
    "values that are not seeded": (
        encoded(inputs=lambda inputs: {**inputs, "noise": torch.rand(3)}),
        "gave other values for 'noise' when it was asked again",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD_ENCODINGS.values(), ids=BAD_ENCODINGS)
def test_an_encoding_is_tried_before_the_model_is_built(
    change: Any, message: str, examples: Path, monkeypatch: pytest.MonkeyPatch
):
    import own_family

    family = Replaced(own_family.MODEL.family, encode=change(own_family.MODEL.family))
    model = vlm_ci.Model(name="mine", family=family, config=own_family.MODEL.config)
    monkeypatch.setattr(own_family, "MODEL", model)
    monkeypatch.setattr(models.Model, "build", zero)  # is not reached
    with pytest.raises(UsageError) as caught:
        vlm_ci.load_target("own_family:MODEL")
    assert message in str(caught.value)
    assert str(caught.value).startswith("model 'mine': internvl.encode ")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda model: model.visual, "parts(model) raised AttributeError: 'InternVLForCondition"),
        (lambda model: {}, "parts(model) returned a dict: it must return a vlm_ci.Parts("),
        (
            lambda model: vlm_ci.Parts(
                whole=model, language_model=model.model, decoder_layers=None, vision_blocks=()
            ),
            "parts(model).decoder_layers is a NoneType, not a tuple of modules",
        ),
        (
            lambda model: vlm_ci.Parts(
                whole=model, language_model="model", decoder_layers=(), vision_blocks=()
            ),
            "parts(model).language_model holds a str, not a torch.nn.Module",
        ),
    ],
)
def test_parts_that_are_none_are_refused(parts: Any, message: str, examples: Path, monkeypatch):
    import own_family

    family = Replaced(own_family.MODEL.family, parts=parts)
    model = vlm_ci.Model(name="mine", family=family, config=own_family.MODEL.config)
    monkeypatch.setattr(own_family, "MODEL", model)
    with pytest.raises(UsageError) as caught:
        vlm_ci.load_target("own_family:MODEL")
    assert message in str(caught.value)


def test_a_config_that_transformers_refuses_is_told_in_one_message(examples: Path, monkeypatch):
    import own_family

    config = {**own_family.MODEL.config, "text_config": {"model_type": "no-such-model"}}
    model = vlm_ci.Model(name="mine", family=own_family.MODEL.family, config=config)
    monkeypatch.setattr(own_family, "MODEL", model)
    with pytest.raises(UsageError, match="'mine': transformers cannot build it from its config: "):
        vlm_ci.load_target("own_family:MODEL")


def test_options_apply_to_a_model_and_not_to_a_factory(examples: Path):
    assert not loading.is_factory("own_family:MODEL")
    assert loading.is_factory("engine_in_process:factory")
    assert not loading.is_factory("llava:folder")
    assert not loading.is_factory("llava-tiny")
    target = vlm_ci.load_target("own_family:MODEL", recipe="vision", dtype="float64")
    try:
        assert target.info.recipe == "vision"
        assert target.run_eager(vlm_ci.batch(vlm_ci.Text(3))).logits.dtype == torch.float64
    finally:
        target.close()
    with pytest.raises(UsageError, match=r"is a function, not a vlm_ci\.Model"):
        models.find("engine_in_process:factory")


def test_a_checkpoint_of_the_users_is_a_model_too(examples: Path, tmp_path: Path, monkeypatch):
    import own_family

    module = own_family.MODEL.build(device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        module.model.language_model.norm.weight.mul_(1.5)  # not what the seed alone would give
    module.save_pretrained(tmp_path)
    model = vlm_ci.Model(name="mine", family=own_family.MODEL.family, checkpoint=str(tmp_path))
    monkeypatch.setattr(own_family, "MINE", model, raising=False)
    part = vlm_ci.batch([vlm_ci.Image(16, 16), vlm_ci.Text(3)])
    answers = []
    for name in ("own_family:MODEL", "own_family:MINE"):
        target = vlm_ci.load_target(name)
        answers.append(target.run_eager(part).logits)
        target.close()
    torch.testing.assert_close(answers[1], 1.5 * answers[0])
    with pytest.raises(UsageError, match="is a 'internvl' model; family other takes 'other'"):
        vlm_ci.Model(
            name="mine",
            family=Replaced(own_family.MODEL.family, name="other", model_type="other"),
            checkpoint=str(tmp_path),
        )


# -- way 3b: the pipe --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.nightly
def test_an_engine_that_complains_is_quoted_and_one_that_dies_replaced(examples: Path):
    child = (examples / "engine_child.py").read_text()
    deadly = "        ids = torch.zeros(len(prompts), length, dtype=torch.long)\n"
    assert deadly in child
    (examples / "engine_child.py").write_text(
        child.replace(deadly, deadly + "        if len(prompts) == 3:\n            sys.exit(7)\n")
    )
    import engine_over_pipe

    target = engine_over_pipe.factory()
    try:
        for part in (vlm_ci.batch(vlm_ci.Text(5)), vlm_ci.batch(vlm_ci.Text(4), vlm_ci.Text(2))):
            target.warm_up(part)
        target.run_compiled(vlm_ci.batch(vlm_ci.Text(4)))
        before = target.stats()
        assert before.compiles >= 1
        with pytest.raises(RuntimeError, match="the engine said: KeyError: 'prompts'"):
            target._ask(call="run", compiled=True)
        assert target.stats() == before
        with pytest.raises(RuntimeError, match="the engine died with exit code 7"):
            target.run_compiled(vlm_ci.batch(*[vlm_ci.Text(2)] * 3))
        assert target.stats() == before
        target.run_compiled(vlm_ci.batch(vlm_ci.Text(4)))
        after = target.stats()
        assert after.compiles == before.compiles
        assert after.regions == before.regions + 1
    finally:
        target.close()
        (examples / "engine_child.py").write_text(child)
