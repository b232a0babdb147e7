"""The picture of a mismatch: its records, the strip as SVG, the file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import msgspec
import pytest
import torch

from vlm_ci.artifacts import ResultsFolder
from vlm_ci.evidence import FailureFile, read
from vlm_ci.failures import Failure, render
from vlm_ci.families.base import KIND_NAMES
from vlm_ci.picture import LEFT, NARROWEST, WIDTH, Picture, Row, colour, picture_of, strip_svg
from vlm_ci.result import Result, tolerate
from vlm_ci.targets import models
from vlm_ci.traffic.envelope import Geometry
from vlm_ci.traffic.spec import Batch, Image, Text, batch


def kinds_of(model: str, part: Batch) -> list[list[str]]:
    """What a model's family lays out for a batch, token by token."""
    encoded = models.find(model).encode(part, device=torch.device("cpu"), dtype=torch.float32)
    return [[KIND_NAMES[kind] for kind in row] for row in encoded.token_kinds.tolist()]


# -- records ----------------------------------------------------------------------------------


def one_row(*ratios: float | None, kind: str = "text", title: str = "the cause") -> Picture:
    kinds = tuple("padding" if ratio is None else kind for ratio in ratios)
    return Picture(title=title, rows=(Row(kinds=kinds, ratios=ratios),))


def test_a_picture_comes_back_from_json_as_it_was():
    made = one_row(None, 0.5, math.inf, 3.25)
    assert msgspec.json.decode(msgspec.json.encode(made), type=Picture) == made
    assert made.rows[0].ratios == (None, 0.5, math.inf, 3.25)


def test_nan_is_inf_and_padding_has_no_ratio():
    row = Row(kinds=("padding", "text", "text"), ratios=(math.nan, math.nan, None))
    assert row.ratios == (None, math.inf, math.inf)


def test_rounding_keeps_the_side_of_the_limit():
    part = batch(Text(4))
    kinds, ratios = [["text"] * 4], [[1.0001, 0.99999, 1.0, 3.14159]]
    (row,) = picture_of(part, kinds, ratios, Geometry(), title="").rows
    assert row.ratios == (1.0001, 1.0, 1.0, 3.14)
    assert row.above == (0, 3)


@pytest.mark.parametrize(
    ("kinds", "ratios", "message"),
    [
        (("text",), (), "Row.ratios must be as long as kinds: 0, not 1"),
        (("audio",), (1.0,), "Row.kinds must be among padding, text, image, video, not 'audio'"),
    ],
)
def test_a_row_that_cannot_be_is_refused(kinds, ratios, message):
    with pytest.raises(ValueError, match=message):
        Row(kinds=kinds, ratios=ratios)
    with pytest.raises(ValueError, match="must hold at least one token"):
        Picture(title="", rows=())


# -- the drawing ------------------------------------------------------------------------------


class Drawn:
    """A strip read back as XML."""

    def __init__(self, picture: Picture) -> None:
        self.root = ElementTree.fromstring(strip_svg(picture))

    def all(self, tag: str) -> Iterator[ElementTree.Element]:
        return self.root.iter(f"{{http://www.w3.org/2000/svg}}{tag}")

    @property
    def cells(self) -> list[ElementTree.Element]:
        return [box for box in self.all("rect") if box.get("class") == "cell"]

    @property
    def fills(self) -> list[str]:
        return [cell.attrib["fill"] for cell in self.cells]

    @property
    def tooltips(self) -> list[str]:
        return [cell[0].text or "" for cell in self.cells]

    @property
    def texts(self) -> list[str]:
        return [text.text or "" for text in self.all("text")]

    def left(self, text: str) -> float:
        return next(float(one.attrib["x"]) for one in self.all("text") if one.text == text)


def test_a_strip_is_a_document_of_its_own():
    drawn = Drawn(one_row(None, 0.5, 3.0))
    assert drawn.root.tag == "{http://www.w3.org/2000/svg}svg"
    assert drawn.root.get("role") == "img"
    width, height = drawn.root.attrib["width"], drawn.root.attrib["height"]
    assert drawn.root.attrib["viewBox"] == f"0 0 {width} {height}"
    title, description, ground = drawn.root[:3]
    assert title.text == "the cause"
    assert "Request 0: 1 of 2 tokens above the limit" in (description.text or "")
    assert drawn.root.attrib["aria-labelledby"].split() == [title.get("id"), description.get("id")]
    assert (ground.get("width"), ground.get("fill")) == ("100%", "#ffffff")
    assert "sans-serif" in drawn.root.attrib["font-family"]
    # Every fill that is referred to is defined.
    defined = {one.get("id") for one in drawn.root.iter() if one.get("id")}
    used = {one.get("fill", "") for one in drawn.root.iter() if "url(" in one.get("fill", "")}
    assert {name.removeprefix("url(#").removesuffix(")") for name in used} <= defined


def test_each_token_is_a_cell_in_its_place():
    kinds = (("padding", "text", "image"), ("text", "text", "video"))
    rows = tuple(Row(kinds=row, ratios=(0.1, 0.1, 0.1)) for row in kinds)
    cells = Drawn(Picture(title="", rows=rows)).cells
    assert len(cells) == 6
    for row in (cells[:3], cells[3:]):
        assert float(row[0].attrib["x"]) == LEFT
        for one, following in pairwise(row):
            end = float(one.attrib["x"]) + float(one.attrib["width"])
            assert float(following.attrib["x"]) == pytest.approx(end)
            assert one.attrib["y"] == following.attrib["y"]
    assert cells[0].attrib["y"] != cells[3].attrib["y"]


def parts(fill: str) -> tuple[int, int, int]:
    red, green, blue = (int(fill[at : at + 2], 16) for at in (1, 3, 5))
    return red, green, blue


def test_colours_are_of_one_hue_below_the_limit_and_another_above():
    for ratio in (0.0, 0.001, 0.03, 0.3, 0.99, 1.0):
        red, _, blue = parts(colour(ratio))
        assert blue > red, ratio
    for ratio in (1.001, 2.0, 10.0, 99.0, 1e30):
        red, _, blue = parts(colour(ratio))
        assert red > blue, ratio


def test_colours_grow_darker_with_the_ratio_and_end_at_both_ends_of_the_scale():
    scale = [0.01, 0.1, 0.5, 1.0, 1.01, 5.0, 20.0, 100.0]
    # Relative luminance by Rec. 709, gamma left out.
    light = [0.21 * r + 0.72 * g + 0.07 * b for r, g, b in (parts(colour(one)) for one in scale)]
    assert light == sorted(light, reverse=True)
    assert len(set(light)) == len(light)
    assert colour(0.0) == colour(1e-9) == colour(0.01)
    assert colour(100.0) == colour(1e12)


def test_padding_and_nan_have_fills_of_their_own():
    drawn = Drawn(one_row(None, math.nan, 0.5, 5.0))
    assert drawn.fills[:2] == ["url(#vlm-ci-padding)", "url(#vlm-ci-nonfinite)"]
    assert len(set(drawn.fills)) == 4


def test_tooltips_say_what_a_cell_is():
    drawn = Drawn(
        Picture(
            title="",
            rows=(
                Row(kinds=("padding", "text"), ratios=(None, 0.0)),
                Row(kinds=("image", "video"), ratios=(3.24, math.inf)),
            ),
        )
    )
    assert drawn.tooltips == [
        "request 0, token 0 (padding)",
        "request 0, token 1 (text): 0 times what is allowed",
        "request 1, token 0 (image): 3.2 times what is allowed",
        "request 1, token 1 (video): NaN or Inf",
    ]


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (1.0001, "1.0001 times"),
        (1.0, "1 times"),
        (0.0123, "0.012 times"),
        (1234.5, "1,234 times"),
        (2.5e9, "2.5e+09 times"),
    ],
)
def test_numbers_are_short_and_on_their_side_of_the_limit(ratio: float, words: str):
    (tooltip,) = Drawn(one_row(ratio)).tooltips
    assert tooltip == f"request 0, token 0 (text): {words} what is allowed"


def test_the_first_and_the_worst_token_above_the_limit_are_marked():
    drawn = Drawn(one_row(0.1, 1.5, 0.2, 40.0, 2.0))
    assert "first above the limit: token 1 (text), 1.5 times what is allowed" in drawn.texts
    assert "worst: token 3 (text), 40 times what is allowed" in drawn.texts
    assert "3 of 5" in drawn.texts
    tips = [path.attrib["d"].split(" ")[0] for path in drawn.all("path")]
    for token in (1, 3):
        cell = drawn.cells[token]
        middle = float(cell.attrib["x"]) + float(cell.attrib["width"]) / 2
        assert f"M{middle:.1f}" in tips


def test_one_mark_where_the_first_is_the_worst():
    texts = Drawn(one_row(0.1, 9.0, 2.0)).texts
    assert ("first above the limit, and worst: token 1 (text), 9 times what is allowed") in texts
    assert not any(text.startswith("worst:") for text in texts)


def test_of_several_requests_the_worst_of_the_batch_is_named():
    rows = [Row(kinds=("text",) * 2, ratios=ratios) for ratios in ((0.1, 2.0), (3.0, 7.0))]
    clean = Row(kinds=("text",) * 2, ratios=(0.1, 0.1))
    texts = Drawn(Picture(title="", rows=(*rows, clean))).texts
    assert any("worst of this request: token 1" in text for text in texts)
    assert any("worst of the batch: token 1 (text), 7 times" in text for text in texts)
    assert "none" in texts


def test_items_are_labelled_and_outlined():
    part = batch([Text(2), Image(16, 16), Image(16, 16)], Text(3))
    kinds = kinds_of("llava-tiny", part)
    ratios = [[0.1] * len(row) for row in kinds]
    geometry = models.find("llava-tiny").envelope().geometry
    drawn = Drawn(picture_of(part, kinds, ratios, geometry, title=""))
    labels = [one for one in drawn.all("text") if one.text == "image 16×16"]
    for label, token in zip(labels, (2, 18), strict=True):
        cell = drawn.cells[token]
        assert float(label.attrib["x"]) == pytest.approx(float(cell.attrib["x"]), abs=1)
        assert float(label.attrib["y"]) < float(cell.attrib["y"])
    brackets = [path[0].text for path in drawn.all("path") if path.get("class") == "bracket"]
    assert brackets == ["image 16×16: tokens 2 to 17", "image 16×16: tokens 18 to 33"]


def test_labels_of_small_items_side_by_side_do_not_overlap():
    part = batch([Text(900), *[Image(8, 8)] * 5, Text(900)])
    kinds = [["text"] * 900 + ["image"] * 5 + ["text"] * 900]
    ratios = [[0.1] * 1805]
    drawn = Drawn(picture_of(part, kinds, ratios, Geometry(token_side=8), title=""))
    labels = [one for one in drawn.all("text") if one.text == "image 8×8"]
    assert len({one.attrib["y"] for one in labels}) == len(labels) == 5


def test_a_row_of_thousands_of_tokens_fits_and_loses_no_error():
    ratios = [0.05] * 3000
    ratios[1777] = 6.5
    drawn = Drawn(one_row(*ratios))
    widths = [float(cell.attrib["width"]) for cell in drawn.cells]
    assert min(widths[:-1]) >= NARROWEST  # the last one may hold fewer tokens
    last = drawn.cells[-1]
    assert float(last.attrib["x"]) + float(last.attrib["width"]) < WIDTH
    assert max(len(line) for line in drawn.texts) < 150
    above = [
        tip for tip, fill in zip(drawn.tooltips, drawn.fills, strict=True) if fill != colour(0.05)
    ]
    assert len(above) == 1
    assert "at most 6.5 times what is allowed, at token 1777" in above[0]
    assert "first above the limit, and worst: token 1777 (text), 6.5 times what is allowed" in (
        drawn.texts
    )
    assert any("each cell is 7 tokens" in text for text in drawn.texts)
    covered = [tip.split(",")[1].split("(")[0].split()[1:] for tip in drawn.tooltips]
    assert sum(int(one[2]) - int(one[0]) + 1 for one in covered) == 3000


def test_what_xml_cannot_hold_is_replaced_and_the_rest_is_escaped():
    title = 'a < b && "c" \x00\x1b ≠ é \ud800 <script>alert(1)</script>'
    drawn = Drawn(one_row(2.0, title=title))
    shown = 'a < b && "c" �� ≠ é � <script>alert(1)</script>'
    assert drawn.root[0].text == shown
    assert shown in drawn.texts
    assert not list(drawn.root.iter("{http://www.w3.org/2000/svg}script"))


def test_a_long_title_is_wrapped_and_whole_for_screen_readers():
    title = "compiled logits differ " * 60
    drawn = Drawn(one_row(2.0, title=title))
    assert max(map(len, drawn.texts)) <= 125
    assert drawn.root[0].text == title


def test_the_batch_is_counted_in_its_session():
    kinds, ratios = [["text"]], [[2.0]]
    made = picture_of(batch(Text(1)), kinds, ratios, Geometry(), title="", number=2, count=3)
    assert any(text.startswith("batch 2 of 3 in the session") for text in Drawn(made).texts)


# -- on disk ----------------------------------------------------------------------------------


def failure(picture: Picture | None) -> Failure:
    return Failure(kind="mismatch", cause="it differs", advice="look", key="k", picture=picture)


def test_a_failure_with_a_picture_has_a_file(tmp_path: Path, repository: Path):
    result = Result(
        command="run", target="t", recipe="r", backend="b", options={}, environment={}, seed=0
    )
    evidence = FailureFile(
        target="t", recipe="r", backend="b", options={}, warmup="default", failure=None
    )
    made = one_row(None, 0.5, math.inf)
    found = [failure(made), Failure(kind="crash", cause="it raised", advice="look", key="c")]
    tolerate(result, failure(made), "warn")
    ResultsFolder(tmp_path, evidence).save(result, found, [], final=True)

    folder, other = (tmp_path / one.path for one in result.failures)
    assert (folder / "strip.svg").read_text() == strip_svg(made)
    assert not (other / "strip.svg").exists()
    line = f"  picture    {folder}/strip.svg"
    assert line in (folder / "evidence.txt").read_text().splitlines()
    assert "strip.svg" not in (other / "evidence.txt").read_text()
    # The numbers lie with the failure, and only there.
    assert read(folder / "failure.json").failure.picture == made
    stored = json.loads((tmp_path / "result.json").read_bytes())
    assert [one["picture"] for one in stored["failures"]] == [None, None]
    assert stored["tolerated"][0]["failure"]["picture"] is None
    assert result.failures[0].picture == made
    schema = json.loads((repository / "vlm_ci/schemas/failure.schema.json").read_bytes())
    jsonschema.validate(json.loads((folder / "failure.json").read_bytes()), schema)


def test_a_failure_that_lies_nowhere_names_no_file():
    assert "strip.svg" not in render(failure(one_row(2.0)))
