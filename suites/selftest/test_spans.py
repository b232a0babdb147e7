"""Where images and videos stand in the padded rows that each family lays out."""

from __future__ import annotations

import pytest
import torch

from vlm_ci.families.base import KIND_NAMES
from vlm_ci.targets import models
from vlm_ci.traffic.envelope import Geometry
from vlm_ci.traffic.spans import Span, item_spans
from vlm_ci.traffic.spec import Batch, Image, Text, Video, batch

Places = list[list[tuple[str, int, int]]]


def kinds_of(model: str, part: Batch) -> list[list[str]]:
    """What a model's family lays out for a batch, token by token."""
    encoded = models.find(model).encode(part, device=torch.device("cpu"), dtype=torch.float32)
    return [[KIND_NAMES[kind] for kind in row] for row in encoded.token_kinds.tolist()]


def places(model: str, part: Batch, geometry: Geometry | None = None) -> Places:
    """The spans of a batch as (label, first, end); no visual token lies outside them."""
    kinds = kinds_of(model, part)
    found = item_spans(part, kinds, geometry or models.find(model).envelope().geometry)
    for row, spans in zip(kinds, found, strict=True):
        inside = {at for span in spans for at in range(span.first, span.end)}
        assert {row[at] for at in range(len(row)) if at not in inside} <= {"text", "padding"}
        assert all(row[span.first] == row[span.end - 1] == span.kind for span in spans)
    return [[(span.label, span.first, span.end) for span in spans] for spans in found]


def test_an_image_stands_between_its_delimiters():
    assert places("qwen3-vl-tiny", batch([Text(5), Image(16, 24), Text(2)])) == [
        [("image 16×24", 6, 12)]
    ]


def test_a_video_reaches_from_its_first_group_of_frames_to_its_last():
    # Two groups of 2 × 2 tokens, each between delimiters and after two tokens of timestamp.
    row = [Text(1), Video(4, 16, 16), Image(8, 8), Video(1, 8, 8)]
    assert places("qwen3-vl-tiny", batch(row)) == [
        [("video 4 × 16×16", 4, 16), ("image 8×8", 18, 19), ("video 1 × 8×8", 23, 24)]
    ]


def test_a_video_in_one_run_is_one_span():
    assert places("qwen2.5-vl-tiny", batch([Video(4, 16, 16), Image(8, 8)])) == [
        [("video 4 × 16×16", 1, 9), ("image 8×8", 11, 12)]
    ]


def test_images_without_delimiters_are_split():
    row = [Text(2), Image(16, 16), Image(16, 16), Text(1), Image(16, 16)]
    assert places("llava-tiny", batch(row)) == [
        [("image 16×16", 2, 18), ("image 16×16", 18, 34), ("image 16×16", 35, 51)]
    ]


@pytest.mark.parametrize(("padding", "first"), [("left", 9), ("right", 1)])
def test_padding_shifts_the_spans(padding: str, first: int):
    part = batch([Image(8, 8)], Text(11), padding=padding)
    assert places("qwen3-vl-tiny", part) == [[("image 8×8", first, first + 1)], []]


def test_delimiters_may_count_as_visual_tokens():
    row = [Text(1), Image(8, 8), Image(8, 16)]
    kinds = [["text", *["image"] * 7]]
    (spans,) = item_spans(batch(row), kinds, Geometry(token_side=8, image_overhead=2))
    assert [(span.first, span.end) for span in spans] == [(1, 4), (4, 8)]


def test_without_the_right_geometry_each_run_is_an_item():
    row = [Text(2), Image(8, 16), Image(24, 8)]
    assert places("qwen3-vl-tiny", batch(row), Geometry(token_side=4)) == [
        [("image 8×16", 3, 5), ("image 24×8", 7, 10)]
    ]
    # Five tokens in all, but not two and three: runs are as long as they are.
    swapped = batch([Text(2), Image(24, 8), Image(8, 16)])
    kinds = kinds_of("qwen3-vl-tiny", batch(row))
    (spans,) = item_spans(swapped, kinds, Geometry(token_side=8, image_overhead=2))
    assert [(span.first, span.end) for span in spans] == [(3, 5), (7, 10)]


def test_runs_that_are_not_the_items_have_no_sizes():
    row = [Video(4, 16, 16), Image(8, 8)]
    assert places("qwen3-vl-tiny", batch(row), Geometry(token_side=4)) == [
        [("video", 3, 7), ("video", 11, 15), ("image", 17, 18)]
    ]
    # A target may answer with more rows than there are requests.
    kinds = [["text"], ["image", "text"]]
    assert item_spans(batch(Text(1)), kinds, Geometry()) == [
        (),
        (Span(kind="image", label="image", first=0, end=1),),
    ]
