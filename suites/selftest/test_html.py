"""The page of a report: what it shows, that it is valid, that nothing of a record acts in it."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from report_records import BATCH, EVENTS, both, green, mismatch, record, red
from tinyhtml5.parser import HTMLParser

from vlm_ci.failures import Failure
from vlm_ci.picture import Picture, Row
from vlm_ci.report.html import page
from vlm_ci.report.records import Records, RunRecord
from vlm_ci.result import BaselineUse, Change
from vlm_ci.traffic.spec import Session
from vlm_ci.watch.events import Event

HTML, SVG = "{http://www.w3.org/1999/xhtml}", "{http://www.w3.org/2000/svg}"


class Parsed:
    """A page as a browser's parser reads it; what it had to mend is an error."""

    def __init__(self, text: str) -> None:
        parser = HTMLParser()
        self.root = parser.parse(text)
        self.errors = parser.errors

    def all(self, tag: str) -> list[ElementTree.Element]:
        """Return the elements of a tag, of HTML or SVG."""
        return [one for one in self.root.iter() if str(one.tag).partition("}")[2] == tag]

    def text(self) -> str:
        """Return the text of the page, blanks made even; the style sheet left out."""
        for style in self.all("style"):
            style.text = ""
        return " ".join(" ".join(self.root.itertext()).split())


def of(*runs: RunRecord, problems: tuple[str, ...] = ()) -> Parsed:
    """Return the page of some runs, which has to be valid."""
    parsed = Parsed(page(Records(runs=runs, problems=problems)))
    assert parsed.errors == []
    return parsed


@pytest.fixture(scope="module")
def whole() -> Parsed:
    """The page of a red and a green run."""
    return Parsed(page(both()))


def test_the_page_is_valid(whole: Parsed):
    assert whole.errors == []


def test_the_check_of_validity_can_fail():
    assert Parsed(page(both()).replace("</table>", "</div></table>", 1)).errors


@pytest.mark.parametrize(
    "shown",
    [
        "2 runs, 2 causes found",
        "other/result.json is broken: no JSON",
        "qwen3-vl-tiny, decoder-layers",
        "suite.py::test_mixed",
        "shard 1/4, commit 0123abcd , attempt 2",
        "torch 9.9 is outside what vlm_ci was tested with",
        "plan default: 9 batches, 2 rounds, 5 compiles (0 graphs, 0 graph breaks)",
        "2.13.0",
        "recompile features is a float32 tensor; in warm-up it was not passed",
        "always pass features",
        "forward (model.py:3)",
        "features was None when this was compiled",
        "if features is not None:",
        "vlm-ci replay out/failures/01-recompile",
        "python out/failures/01-recompile/repro.py",
        "run in a fresh process, it shows this cause",
        "import torch",
        "request 0, token 10 (image)",
        "module layers.1",
        "Batch 1 of 2",
        "Batch 2 of 2",
        "image 56×84",
        "video 4 × 56×56",
        "3 of 21",  # tokens above the limit, in the strip
        "warm-up compiles 4 5 worse",
        "it was written with torch 2.12",
        "1 graphs came from it",
        "stall: slow (warn, 3 times)",
    ],
)
def test_what_stands_in_the_records_is_shown(whole: Parsed, shown: str):
    assert shown in whole.text()


def test_the_table_has_a_row_for_each_run(whole: Parsed):
    overview = whole.all("table")[0]
    heads = [" ".join(one.itertext()) for one in overview.iter(f"{HTML}th")][:12]
    cells = [
        [" ".join(" ".join(cell.itertext()).split()) for cell in row]
        for row in overview.iter(f"{HTML}tr")
    ][1:]
    assert heads[1:] == [
        *("Verdict", "Backend", "Device", "Type", "Examples", "Batches", "Warm-up compiles"),
        *("Compiles after", "Refused calls", "Worst ÷ allowed", "Causes"),
    ]
    figures = ["eager", "cpu", "float32", "20", "61", "5", "0", "0", "0.042"]
    assert [row[1:] for row in cells] == [["failed", *figures, "2"], ["clean", *figures, "0"]]


def test_a_green_run_has_a_timeline_and_no_failures():
    shown = of(green())
    assert "Timeline" in shown.text()
    assert "1 run, nothing found" in shown.text()
    assert not shown.all("article")


def test_a_run_that_kept_no_events_has_no_timeline():
    shown = of(replace(green(), events=()))
    assert "Timeline" not in shown.text()


@pytest.mark.parametrize(
    ("known", "verdict"),
    [
        (("clean", "failed"), "failed"),
        (("clean", "vacuous"), "vacuous"),
        (("interrupted", "clean"), "interrupted"),
        (("clean", "clean"), "clean"),
        (("of another version",), "incomplete"),
    ],
)
def test_the_worst_verdict_is_that_of_the_page(known: tuple[str, ...], verdict: str):
    shown = of(*(green(verdict=one) for one in known))
    (title,) = (one for one in shown.all("title") if one.tag.startswith(HTML))
    assert (title.text or "").startswith(f"vlm-ci: {verdict}, ")


# -- it is one page, for everybody ------------------------------------------------------------


def test_nothing_is_fetched_and_no_script_can_run(whole: Parsed):
    for tag in ("script", "link", "img", "iframe", "object", "embed", "base", "form", "image"):
        assert whole.all(tag) == [], tag
    for one in whole.root.iter():
        for name, value in one.attrib.items():
            assert not str(name).startswith("on"), (one.tag, name)
            if str(name) in ("href", "src", "xlink:href"):
                assert value.startswith("#"), value
            assert str(name) != "style"  # the policy would refuse it
    (policy,) = (
        one.get("content") for one in whole.all("meta") if one.get("http-equiv") is not None
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_the_policy_lets_the_style_sheet_pass_as_it_is(whole: Parsed):
    import base64
    import hashlib

    (style,) = Parsed(page(both())).all("style")
    digest = base64.b64encode(hashlib.sha256((style.text or "").encode()).digest()).decode()
    assert f"'sha256-{digest}'" in page(both()).replace("&#39;", "'")


def test_headings_are_in_order(whole: Parsed):
    levels = [
        int(str(one.tag)[-1]) for one in whole.root.iter() if re.fullmatch(f"{HTML}h[1-6]", one.tag)
    ]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_ids_are_unique_and_what_is_named_is_there():
    shown = of(red(mismatch(), mismatch(key="another", path="failures/03-mismatch")), red())
    ids = [one.get("id") for one in shown.root.iter() if one.get("id")]
    assert len(ids) == len(set(ids))
    for one in shown.root.iter():
        named = f"{one.get('aria-labelledby', '')} {one.get('href', '').removeprefix('#')}"
        used = re.findall(r"url\(#([^)]*)\)", " ".join(one.attrib.values()))
        assert {*named.split(), *used} <= set(ids)


def test_every_drawing_has_a_name_and_a_description(whole: Parsed):
    drawings = whole.all("svg")
    assert len(drawings) == 6  # two timelines, three batches, one strip
    for one in drawings:
        assert one.get("role") == "img"
        first, second = list(one)[:2]
        assert (first.tag, second.tag) == (f"{SVG}title", f"{SVG}desc")
        assert first.text
        assert second.text


def test_landmarks_and_boxes_that_scroll_can_be_reached_by_keyboard(whole: Parsed):
    assert len(whole.all("main")) == len(whole.all("header")) == len(whole.all("footer")) == 1
    boxes = [one for one in whole.root.iter() if "scroll" in one.get("class", "").split()]
    assert boxes
    for box in boxes:
        assert (box.get("tabindex"), box.get("role")) == ("0", "region")
        assert box.get("aria-label")
    for table in whole.all("table"):
        assert any(one.get("scope") == "col" for one in table.iter(f"{HTML}th"))


# -- hostile records --------------------------------------------------------------------------

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'onmouseover='alert(1)",
    "</style><style>*{display:none}</style>",
    "</title></desc></svg><b>out</b>",
    "]]><!-- --> &lt;b&gt; \x00\x1b[31m\ud800 {{ 7 * 7 }} {% endif %}",
    "javascript:alert(1)",
)


def hostile_run(text: str) -> RunRecord:
    """Return a run in which every text of a record is ``text``."""
    call = ({"path": text, "now": text, "warm": "x"}, {"path": "p", "now": "None", "warm": text})
    picture = Picture(title=text, rows=(Row(kinds=("text",), ratios=(9.0,)),))
    one = Failure(
        kind="mismatch",
        cause=text,
        advice=text,
        key=text,
        frame=text,
        guards=(text, text),
        words=(text,),
        line=text,
        call=call,
        location={"request": 0, "token": 0, "modality": text, "module": text, "note": text},
        traffic=Session((BATCH,)),
        note=text,
        path="failures/x",
        picture=picture,
    )
    run = red(one)
    changed = msgspec.structs.replace(
        run.result,
        command=text,
        target=text,
        recipe=text,
        backend=text,
        test=text,
        shard=text,
        commit=text,
        warnings=[text],
        options={text: text, "device": text, "dtype": text, "bug": text},
        environment={text: text, "torch": {text: [text]}, "vlm_ci": text},
        baseline=BaselineUse(
            path=text, changes=[Change(field=text, before=text, after=text, worse=False)]
        ),
        verdict=text,
    )
    events = [
        Event(kind=kind, time=i, phase=text, step=1, frame=text, evidence={text: text, "by": text})
        for i, kind in enumerate((text, "compile", "phase", "round", "refusal"))
    ]
    held = record(one, script=text, folder=text)
    return replace(
        run, folder=Path("x/y"), result=changed, failures=(held,), events=(*EVENTS, *events)
    )


@pytest.fixture(scope="module")
def harmless() -> Parsed:
    """The page of the same run with a text that does nothing."""
    return of(hostile_run("harmless"), problems=("harmless",))


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_record_is_text_of_the_page(text: str, harmless: Parsed):
    shown = of(hostile_run(text), problems=(text,))
    # The same elements, whatever the text: no record can add or end one.
    tags = [[str(one.tag) for one in parsed.root.iter()] for parsed in (shown, harmless)]
    assert sorted(set(tags[0])) == sorted(set(tags[1]))
    for tag in ("script", "img", "b", "form", "style", "iframe"):
        assert tags[0].count(f"{HTML}{tag}") == tags[1].count(f"{HTML}{tag}"), tag
    for one in shown.root.iter():
        assert not any(str(name).startswith("on") for name in one.attrib)
        assert one.get("href", "#").startswith("#")
    assert "7 * 7" in shown.text() or "7 * 7" not in text  # no template of a template
