"""Qwen2.5-VL: prompts as its processor writes them, positions in seconds, windowed attention."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor

from vlm_ci import families
from vlm_ci.checker import check
from vlm_ci.families.base import IMAGE, PADDING, TEXT, VIDEO
from vlm_ci.targets import models
from vlm_ci.targets.loading import load_target
from vlm_ci.traffic.spec import Batch, Image, Item, Text, Video, batch
from vlm_ci.warmup import Plan

NAME = "qwen2.5-vl-tiny"
CPU = torch.device("cpu")
SIDE = 8  # pixels along one side of a merged token
WINDOW = 2  # merged tokens along one side of a window
PATCHES = 4  # patches of a merged token
SPECIAL = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")  # from 500 up


@pytest.fixture(scope="module")
def source():
    return models.find(NAME)


@pytest.fixture(scope="module")
def model(source):
    return source.build(device=CPU, dtype=torch.float32)


def encode(source, part: Batch):
    return source.family.encode(source.config, part, device=CPU, dtype=torch.float32)


def mixed(seed: int) -> Batch:
    """A batch of one to four requests with texts, images and videos of any allowed size.

    The last one ends with an image, because the model computes positions in 3-D only where there
    is something to see.
    """
    draw = random.Random(seed)

    def item() -> Item:
        kind = draw.randrange(3)
        if kind == 0:
            return Text(draw.randint(1, 12))
        if kind == 1:
            return Image(SIDE * draw.randint(1, 6), SIDE * draw.randint(1, 6))
        return Video(draw.randint(1, 6), SIDE * draw.randint(1, 3), SIDE * draw.randint(1, 3))

    rows = [[item() for _ in range(draw.randint(1, 4))] for _ in range(draw.randint(1, 4))]
    rows[-1].append(Image(2 * SIDE, SIDE))
    return batch(*rows, seed=seed, padding=draw.choice(["left", "right"]))


def words_before(geometry, item: Item) -> int:
    """How many ordinary tokens the family puts before an image or a video and its delimiters."""
    return 0 if isinstance(item, Text) else geometry.positions(item) - patches(item) // PATCHES - 2


def patches(item: Item) -> int:
    """The patches of an image or a video, counted from its pixels."""
    assert not isinstance(item, Text)
    groups = (item.frames + 1) // 2 if isinstance(item, Video) else 1
    return groups * (item.height // 4) * (item.width // 4)


@pytest.fixture(scope="module")
def processor():
    """The real processor with a tokenizer of 500 words, and stand-ins for what resizes pixels."""
    words = [f"w{index}" for index in range(500)]
    vocabulary = {word: index for index, word in enumerate((*words, *SPECIAL))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    processor = object.__new__(Qwen2_5_VLProcessor)  # __init__ wants torchvision's classes
    processor.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    processor.image_token, processor.video_token = "<|image_pad|>", "<|video_pad|>"
    processor.image_token_id, processor.video_token_id = 500, 501
    processor.image_processor = SimpleNamespace(merge_size=2)
    return processor


def stand_in(frames_per_second: list[float]):
    """A video processor that says which grids its videos have."""

    class Videos:
        merge_size = temporal_patch_size = 2

        def __call__(self, videos, **_):
            grids = [[(len(v) + 1) // 2, v.shape[1] // 4, v.shape[2] // 4] for v in videos]
            metadata = [SimpleNamespace(sampled_fps=value) for value in frames_per_second]
            return {"video_grid_thw": np.array(grids), "video_metadata": metadata}

    return Videos()


@pytest.mark.parametrize("seed", range(12))
def test_prompts_are_what_the_processor_writes(seed: int, source, processor):
    part = mixed(seed)
    encoded = encode(source, part)
    geometry = source.family.geometry(source.config)
    spacing = encoded.inputs.get("second_per_grid_ts", torch.empty(0)).tolist()
    images = [item for item in part.items() if isinstance(item, Image)]
    videos = [item for item in part.items() if isinstance(item, Video)]

    prompts = []
    for row, request in zip(encoded.inputs["input_ids"], part.requests, strict=True):
        drawn = iter([f"w{int(index)}" for index in row if 0 < index < 500])
        prompt = []
        for item in request.items:
            count = item.tokens if isinstance(item, Text) else words_before(geometry, item)
            prompt += [next(drawn) for _ in range(count)]
            if not isinstance(item, Text):
                pad = "image_pad" if isinstance(item, Image) else "video_pad"
                prompt.append(f"<|vision_start|><|{pad}|><|vision_end|>")
        assert next(drawn, None) is None
        prompts.append(" ".join(prompt))

    grids = {"image_grid_thw": np.array([[1, i.height // 4, i.width // 4] for i in images])}
    for_images = [processor.replace_image_token(grids, index) for index in range(len(images))]
    processor.video_processor = stand_in([2 / seconds for seconds in spacing])
    video_inputs, for_videos = {}, []
    if videos:
        pixels = [np.zeros((v.frames, v.height, v.width, 3)) for v in videos]
        video_inputs, for_videos = processor._process_videos(pixels)
    texts, _ = processor.get_text_with_replacements(prompts, for_images, for_videos)
    expected = processor.tokenizer(texts)["input_ids"]
    types = processor.create_mm_token_type_ids(expected)

    held = encoded.token_kinds != PADDING
    for index in range(len(part.requests)):
        mine = {name: encoded.inputs[name][index] for name in ("input_ids", "mm_token_type_ids")}
        assert mine["input_ids"][held[index]].tolist() == expected[index]
        assert mine["mm_token_type_ids"][held[index]].tolist() == types[index]
        assert not mine["mm_token_type_ids"][~held[index]].any()
    assert encoded.inputs["image_grid_thw"].tolist() == grids["image_grid_thw"].tolist()
    if videos:
        assert encoded.inputs["video_grid_thw"].tolist() == video_inputs["video_grid_thw"].tolist()
        assert spacing == pytest.approx(video_inputs["second_per_grid_ts"])


@pytest.mark.parametrize("seed", range(12))
def test_positions_follow_the_items(seed: int, source, model):
    part = mixed(seed)
    encoded = encode(source, part)
    taken = {n: v for n, v in encoded.inputs.items() if not n.startswith("pixel_values")}
    positions, _ = model.model.get_rope_index(**taken)
    seconds = iter(encoded.inputs.get("second_per_grid_ts", torch.empty(0)).tolist())
    for row, request in enumerate(part.requests):
        expected = expected_positions(source, request.items, seconds)
        held = encoded.token_kinds[row] != PADDING
        assert positions[:, row, held].T.tolist() == expected


def expected_positions(source, items, seconds) -> list[list[int]]:
    """Time, row and column of each token; a frame is ``tokens_per_second`` apart for a second."""
    per_second = source.config["vision_config"]["tokens_per_second"]
    geometry = source.family.geometry(source.config)
    found: list[list[int]] = []
    here = 0

    def text(tokens: int) -> None:
        nonlocal here
        found.extend([here + index] * 3 for index in range(tokens))
        here += tokens

    for item in items:
        if isinstance(item, Text):
            text(item.tokens)
            continue
        text(words_before(geometry, item) + 1)
        rows, columns = item.height // SIDE, item.width // SIDE
        step, groups = 0, 1
        if isinstance(item, Video):
            step, groups = int(per_second * next(seconds)), (item.frames + 1) // 2
        found.extend(
            [here + step * group, here + row, here + column]
            for group in range(groups)
            for row in range(rows)
            for column in range(columns)
        )
        here += max(rows, columns)
        text(1)
    return found


def test_seconds_differ_between_videos_and_move_the_logits(source, model):
    part = batch(*[[Video(6, SIDE, SIDE), Text(3)] for _ in range(8)])
    inputs = encode(source, part).inputs
    assert set(inputs["second_per_grid_ts"].tolist()) == {1.0, 2.0}
    with torch.inference_mode():
        logits = model(**inputs, use_cache=False).logits
        swapped = 3 - inputs["second_per_grid_ts"]
        other = model(**{**inputs, "second_per_grid_ts": swapped}, use_cache=False).logits
    assert (logits - other).abs().amax(dim=(1, 2)).min() > 1e-3


def test_token_types_are_taken_into_account(source, model):
    inputs = encode(source, batch([Text(3), Image(2 * SIDE, 3 * SIDE), Text(3)])).inputs
    with torch.inference_mode():
        logits = model(**inputs, use_cache=False).logits
        del inputs["mm_token_type_ids"]
        without = model(**inputs, use_cache=False).logits
    assert (logits - without)[:, -1].abs().max() > 1e-3


@pytest.mark.parametrize(
    "item", [Image(8, 8), Image(24, 40), Image(48, 8), Video(1, 8, 16), Video(5, 24, 16)]
)
def test_the_model_takes_the_placeholders_and_no_other_number(item: Item, source, model):
    encoded = encode(source, batch([Text(2), item, Text(2)]))
    inputs = dict(encoded.inputs)
    kind = IMAGE if isinstance(item, Image) else VIDEO
    pixels = inputs[encoded.pixel_inputs["image" if kind == IMAGE else "video"]]
    assert len(pixels) == patches(item)
    assert pixels.shape[1] == 3 * 2 * 4 * 4
    assert int((encoded.token_kinds == kind).sum()) == patches(item) // PATCHES
    place = tuple((encoded.token_kinds == TEXT).nonzero()[0])
    inputs["input_ids"][place] = 500 if kind == IMAGE else 501
    with torch.inference_mode(), pytest.raises((ValueError, RuntimeError), match="do not match"):
        model(**inputs, use_cache=False)


def segments(model, inputs) -> list[list[int]]:
    """The lengths of what attends to itself in each vision block, in patches."""
    seen = []

    def remember(_, args, kwargs):
        seen.append(kwargs["cu_seqlens"].diff().tolist())

    hooks = [
        block.register_forward_pre_hook(remember, with_kwargs=True)
        for block in model.model.visual.blocks
    ]
    try:
        with torch.inference_mode():
            model(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def windows(item: Image | Video) -> list[int]:
    """The windows of an item in patches: WINDOW × WINDOW merged tokens, less at the far edges."""
    rows, columns = item.height // SIDE, item.width // SIDE
    groups = (item.frames + 1) // 2 if isinstance(item, Video) else 1
    return groups * [
        min(WINDOW, rows - row) * min(WINDOW, columns - column) * PATCHES
        for row in range(0, rows, WINDOW)
        for column in range(0, columns, WINDOW)
    ]


@pytest.mark.parametrize(
    "item", [Image(8, 8), Image(16, 16), Image(32, 32), Image(24, 40), Video(5, 24, 16)]
)
def test_blocks_alternate_between_windows_and_frames(item: Image | Video, source, model):
    inputs = encode(source, batch([Text(2), item])).inputs
    groups = (item.frames + 1) // 2 if isinstance(item, Video) else 1
    frames = groups * [patches(item) // groups]
    assert segments(model, inputs) == [windows(item), frames, windows(item), frames]


def test_the_envelope_reaches_every_kind_of_window(source):
    envelope = source.family.envelope(source.config)
    for kind, sides in (("image", envelope.image_sides), ("video", envelope.video_sides)):
        found = set()
        for height in sides:
            for width in sides:
                item = Image(height, width) if kind == "image" else Video(1, height, width)
                sizes = windows(item)
                found.add("one" if len(sizes) == 1 else "ragged" if len(set(sizes)) > 1 else "full")
        assert found >= {"one", "ragged"}
        assert kind == "video" or "full" in found


ONE_WINDOW = [Image(8, 8), Image(8, 16), Image(16, 16), Video(1, 16, 8), Video(5, 16, 16)]
SEVERAL = [Image(8, 24), Image(24, 24), Image(32, 32), Image(48, 8), Video(1, 24, 8)]


@pytest.mark.parametrize("item", ONE_WINDOW + SEVERAL)
def test_windows_change_the_logits_where_there_are_several(item: Item, source, model):
    without = copy.deepcopy(model)
    without.model.visual.fullatt_block_indexes = range(len(without.model.visual.blocks))
    inputs = encode(source, batch([Text(2), item, Text(3)])).inputs
    with torch.inference_mode():
        logits = model(**inputs, use_cache=False).logits
        full = without(**inputs, use_cache=False).logits
    if item in ONE_WINDOW:
        torch.testing.assert_close(logits, full)
    else:
        assert (logits - full)[:, -1].abs().max() > 0.1


@pytest.mark.parametrize("only_windows", [True, False])
def test_a_patch_reaches_its_window_or_its_image(only_windows: bool, source, model):
    tower = copy.deepcopy(model.model.visual)
    if only_windows:
        tower.fullatt_block_indexes = ()
    rows, columns = 3, 5  # merged tokens; windows of 2 × 2, 2 × 1, 1 × 2 and 1 × 1
    part = batch([Image(SIDE * rows, SIDE * columns), Image(SIDE, SIDE)])
    inputs = encode(source, part).inputs
    changed = inputs["pixel_values"].clone()
    row, column = 1, 3  # in the second window
    changed[PATCHES * (row * columns + column)] *= -1
    with torch.inference_mode():
        before, after = (
            tower(pixels, grid_thw=inputs["image_grid_thw"]).pooler_output
            for pixels in (inputs["pixel_values"], changed)
        )
    moved = (before - after).abs().amax(dim=1) > 1e-5
    reached = {divmod(int(index), columns) for index in moved.nonzero()}
    expected = {(r, c) for r in (0, 1) for c in (2, 3)}
    everything = {(r, c) for r in range(rows) for c in range(columns)}
    assert reached == (expected if only_windows else everything)


def test_configurations_of_published_checkpoints_are_read(tmp_path):
    published = {
        "model_type": "qwen2_5_vl",
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "num_hidden_layers": 36,
        "max_position_embeddings": 128000,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "in_chans": 3,
            "out_hidden_size": 2048,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
    }
    AutoConfig.for_model(**published).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path).to_dict()
    family = families.load("qwen2.5-vl")
    assert family.geometry(config).token_side == 28
    assert family.envelope(config).image_sides == [28, 56, 84, 112, 140, 168]
    part = batch([Text(3), Image(56, 84), Video(3, 28, 28)])
    inputs = family.encode(config, part, device=CPU, dtype=torch.float32).inputs
    assert inputs["pixel_values"].shape == (24, 1176)
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert int((inputs["input_ids"] == 151655).sum()) == 6


@pytest.mark.nightly
@pytest.mark.slow
def test_compiled_blocks_need_a_graph_for_each_number_of_windows():
    one = [batch([Image(8 * n, 16), Text(3)], seed=n) for n in (1, 2)]
    two = [batch([Image(24, 8 * n), Text(3)], seed=n) for n in (1, 2)]
    target = load_target(NAME, recipe="vision")
    try:
        result = check(target, examples=5, warmup=Plan(name="few windows", batches=(*one, *two)))
    finally:
        target.close()
    assert {failure.kind for failure in result.failures} == {"recompile"}
    assert any("len(" in guard for failure in result.failures for guard in failure.guards)
    found = [failure.traffic for failure in result.failures if failure.traffic is not None]
    assert found
    for session in found:  # shrunk to images or videos that have another number of windows
        visual = [item for item in session.batches[-1].items() if not isinstance(item, Text)]
        assert sum(len(windows(item)) for item in visual) > 2
