"""The transformers twin on real models: weights, strictness, one live target, checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from vlm_ci import families
from vlm_ci.checker import check
from vlm_ci.errors import UsageError
from vlm_ci.families.base import KIND_NAMES
from vlm_ci.parity.canary import apply_canary
from vlm_ci.parity.comparison import TOLERANCES
from vlm_ci.targets import models
from vlm_ci.targets.loading import load_target
from vlm_ci.targets.transformers_twin import checksum, share_weights
from vlm_ci.traffic.spec import CONTEXTS, Image, Text, Video, batch
from vlm_ci.warmup import Plan
from vlm_ci.watch import internals

TINY = ("qwen3-vl-tiny", "qwen2.5-vl-tiny", "llava-tiny")
CPU = torch.device("cpu")


@pytest.fixture
def load():
    """Load a target; it is closed when the test is over."""
    opened = []

    def load(name: str = "qwen3-vl-tiny", **options):
        target = load_target(name, **options)
        opened.append(target)
        return target

    yield load
    for target in opened:
        target.close()


def mixed(name: str, seed: int = 0, padding: str = "left"):
    side = models.find(name).family.envelope(models.find(name).config).image_sides[0]
    rows = [[Text(5), Image(side, side), Text(3)], [Text(4)]]
    if name.startswith("qwen"):
        rows.append([Video(3, side, 2 * side), Image(3 * side, 2 * side)])
    return batch(*rows, seed=seed, padding=padding)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_encoding_is_seeded_and_agrees_with_the_envelope(name: str, padding: str):
    source = models.find(name)
    family, envelope = source.family, source.family.envelope(source.config)

    def encode(value):
        return family.encode(source.config, value, device=CPU, dtype=torch.float32)

    part = mixed(name, padding=padding)
    one, same, other = encode(part), encode(part), encode(mixed(name, seed=1, padding=padding))
    for key, value in one.inputs.items():
        assert torch.equal(value, same.inputs[key])
    assert not torch.equal(one.inputs["pixel_values"], other.inputs["pixel_values"])
    assert one.token_kinds.shape == (len(part.requests), envelope.padded_length(part))
    for row, request in zip(one.token_kinds, part.requests, strict=True):
        held = {KIND_NAMES[int(kind)] for kind in row if kind >= 0}
        assert held == request.modalities | {"text"}
        assert int((row >= 0).sum()) == envelope.row_tokens(request)
        blank = int((row < 0).sum())
        pad = row[:blank] if padding == "left" else row[len(row) - blank :]
        assert bool((pad < 0).all())
    ids = one.inputs["input_ids"]
    images = int((one.token_kinds == 1).sum())
    assert int((ids == source.config["image_token_id"]).sum()) == images > 0


@pytest.mark.parametrize("name", TINY)
def test_twins_share_weights_and_agree(name: str, load):
    target = load(name)
    eager, compiled = target._eager, target._compiled
    shared = dict(eager.named_parameters())
    assert shared
    for key, parameter in compiled.named_parameters():
        assert parameter is shared[key]
    assert eager is not compiled
    part = mixed(name)
    with torch.compiler.set_stance("force_eager"):
        out = target.run_compiled(part)
    torch.testing.assert_close(out.logits, target.run_eager(part).logits)


@pytest.mark.parametrize("name", TINY)
def test_images_and_videos_move_the_logits(name: str, load):
    outcomes = apply_canary(load(name), TOLERANCES["float32"])
    assert [outcome.modality for outcome in outcomes] == (
        ["image", "video"] if name.startswith("qwen") else ["image"]
    )
    assert all(outcome.shows and outcome.largest_change > 1 for outcome in outcomes)


def test_a_model_blind_to_images_is_vacuous(load):
    target = load()
    for block in (target._eager, target._compiled):
        block.model.get_image_features = _blind(block.model.get_image_features)
    plan = Plan(name="text", batches=(batch(Text(5)), batch(Text(3), Text(6)), batch(Text(1))))
    result = check(target, examples=1, warmup=plan)
    assert [failure.kind for failure in result.failures] == ["vacuous", "vacuous"]
    assert result.verdict == "vacuous"
    assert "changing every image moves no logit" in result.failures[0].cause
    assert result.parity.canary.applied == 2
    assert result.parity.canary.moved == 0  # videos go through the same encoder


def _blind(encode):
    def features(pixels, *args, **kwargs):
        return encode(torch.ones_like(pixels), *args, **kwargs)

    return features


def test_a_second_target_is_refused_while_one_is_alive(load):
    first = load("llava-tiny")
    with pytest.raises(UsageError, match="target llava-tiny is still alive"):
        load_target("llava-tiny")
    first.close()
    load("llava-tiny")
    with pytest.raises(UsageError, match="is closed"):
        first.run_eager(batch(Text(3)))


def test_an_unwarmed_target_of_the_same_class_is_refused_by_strict():
    warm = load_target("qwen3-vl-tiny")
    part = mixed("qwen3-vl-tiny")
    warm.warm_up(part)
    assert warm.stats().compiles
    with internals.strict():
        warm.run_compiled(part)
    warm.close()

    cold = load_target("qwen3-vl-tiny")
    try:
        cold.watcher.begin("strict")
        cold.watcher.begin_step()
        with pytest.raises(RuntimeError, match="fail_on_recompile"), internals.strict():
            cold.run_compiled(part)
        assert cold.watcher.refusals
        assert cold.stats().compiles == 0
    finally:
        cold.close()


def test_closing_and_resetting_forget_what_was_compiled(load):
    target = load("llava-tiny")
    part = batch(Text(5))
    target.warm_up(part)
    first = target.stats().compiles
    assert first
    target.warm_up(part)
    assert target.stats().compiles == first
    target.reset()
    assert target.stats().compiles == 0
    target.warm_up(part)
    assert target.stats().compiles == first


def test_regions_are_counted_in_each_step(load):
    target = load("llava-tiny")
    part = batch(Text(5))
    target.warm_up(part)
    before = target.stats().regions
    target.run_compiled(part)
    assert target.stats().regions - before == 4  # one for each decoder layer


def test_layers_that_dynamo_skips_are_an_eager_fallback(load):
    def mutate(model):
        for layer in model.model.language_model.layers[1:]:
            layer.forward = torch._dynamo.disable(layer.forward)

    result = check(load("llava-tiny", mutate=mutate), examples=10)
    assert {failure.kind for failure in result.failures} == {"eager-fallback"}
    assert "layers.*" in result.failures[0].cause


def test_layers_that_a_modality_passes_by_are_an_eager_fallback(load):
    def mutate(model):
        language_model = model.model.language_model
        plain = share_weights(language_model)
        compiled = language_model.forward

        def forward(inputs_embeds, **kwargs):
            serve = plain if inputs_embeds.shape[1] == 32 else compiled  # two images alone
            return serve(inputs_embeds=inputs_embeds, **kwargs)

        language_model.forward = forward

    plan = Plan(
        name="text",
        batches=(
            batch(Text(5)),
            batch(Text(3), Text(6)),
            batch(Text(1)),
            batch(Text(4), Text(4)),
            batch(Text(1), Text(1)),
        ),
    )
    target = load("llava-tiny", mutate=mutate)
    result = check(target, examples=60, warmup=plan)
    assert {failure.kind for failure in result.failures} == {"eager-fallback"}


def test_refusals_are_seen_in_another_thread(load):
    target = load("llava-tiny", recipe="decoder-layers")
    target.watcher.begin_step()
    with pytest.raises(RuntimeError, match="fail_on_recompile"), internals.strict():
        target.run_compiled(batch(Text(5), context="thread"))
    assert target.watcher.refusals


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_context_runs(context: str, load):
    target = load("llava-tiny")
    out = target.run_eager(batch(Text(5), [Image(16, 16)], context=context))
    assert out.logits.isfinite().all()
    assert not out.logits.requires_grad


def test_mutate_changes_the_compiled_twin_only(load):
    def mutate(model):
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 2)

    target = load("llava-tiny", mutate=mutate)
    part = batch(Text(5))
    expected = target.run_eager(part).logits
    torch.testing.assert_close(target.run_compiled(part).logits, 2 * expected)


def test_writing_into_shared_weights_is_refused():
    def mutate(model):
        with torch.no_grad():
            model.lm_head.weight[3, 5] += 1

    with pytest.raises(UsageError, match="wrote into weights that both twins share"):
        load_target("llava-tiny", mutate=mutate)


def test_writing_into_shared_weights_while_serving_is_refused(load):
    def mutate(model):
        serve = model.model.forward

        def forward(*args, **inputs):
            model.lm_head.weight.data[0, 0] += 1
            return serve(*args, **inputs)

        model.model.forward = forward

    with pytest.raises(UsageError, match="while it served"):
        check(load("llava-tiny", mutate=mutate), examples=2)


def test_checksum_sees_one_bit_and_a_swap():
    model = torch.nn.Linear(4, 4)
    before = checksum(model)
    assert checksum(copy.deepcopy(model)) == before
    swapped = copy.deepcopy(model)
    with torch.no_grad():
        swapped.weight.copy_(swapped.weight.flip(0))
    assert checksum(swapped) != before
    assert share_weights(model).weight is model.weight


def test_recompile_limit_is_set_recorded_and_restored(load):
    before = torch._dynamo.config.recompile_limit
    target = load("llava-tiny", recompile_limit=3)
    assert torch._dynamo.config.recompile_limit == 3
    assert target.info.options["recompile_limit"] == 3
    target.close()
    assert torch._dynamo.config.recompile_limit == before


@pytest.mark.parametrize("name", TINY)
def test_a_checkpoint_answers_like_the_model_it_was_saved_from(name: str, tmp_path: Path, load):
    source = models.find(name)
    model = source.build(device=CPU, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)  # not what the seed alone would give
    model.save_pretrained(tmp_path)
    target = load(f"{source.family.name}:{tmp_path}")
    part = mixed(name)
    encoded = source.family.encode(source.config, part, device=CPU, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(**encoded.inputs, use_cache=False).logits
    torch.testing.assert_close(target.run_eager(part).logits, expected)
    assert target.envelope == source.family.envelope(source.config)


def test_a_checkpoint_of_another_family_is_refused(tmp_path: Path):
    models.find("llava-tiny").build(device=CPU, dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is a 'llava' model; family qwen3-vl takes 'qwen3_vl'"):
        load_target(f"qwen3-vl:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qwen3-vl:/no/such/folder", "cannot read the configuration of checkpoint"),
        ("qwen3-vl:", "names no checkpoint"),
        ("qwen3-vl-tny", "did you mean 'qwen3-vl-tiny'"),
        ("toy:broken_factory", "returned something of type object without name, envelope"),
        ("toy:factry", "did you mean 'factory'"),
        ("no_such_module:factory", "cannot import 'no_such_module'"),
    ],
)
def test_unusable_targets_are_refused(name: str, message: str):
    with pytest.raises(UsageError, match=message):
        load_target(name)


def test_a_factory_brings_its_own_target(load):
    assert load("toy:factory").name == "toy"


def test_families_have_distinct_names_and_types():
    loaded = [families.load(name) for name in families.names()]
    assert [family.name for family in loaded] == list(families.names())
    assert len({family.model_type for family in loaded}) == len(loaded)
