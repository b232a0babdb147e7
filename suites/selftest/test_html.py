"""The page of a report: what it shows, that it is valid, that nothing of a record acts in it."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from report_records import BATCH, EVENTS, both, event, green, mismatch, recompile, record, red
from tinyhtml5.parser import HTMLParser

from vlm_ci.failures import Failure
from vlm_ci.picture import Picture, Row
from vlm_ci.report.html import page
from vlm_ci.report.html.differences import arguments, parts
from vlm_ci.report.html.timeline import timeline
from vlm_ci.report.records import Records, RunRecord
from vlm_ci.result import BaselineUse, Canary, Change, Parity, Worst
from vlm_ci.traffic.spec import Batch, Image, Request, Session, Text, Video
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


# -- its parts --------------------------------------------------------------------------------


def test_arguments_that_differ_in_kind_come_first():
    rows = arguments(red().result.failures[0].call)
    assert [(row.path, row.differs) for row in rows] == [
        ("features", "kind"),
        ("ids", "size"),
        ("mask", ""),
    ]
    assert rows[1].now == (
        ("int64 tensor [2, ", False),
        ("13", True),
        ("] on cpu", False),
    )


def test_texts_that_share_little_are_marked_as_a_whole():
    assert parts("a tensor of floats", "None") == (
        (("a tensor of floats", True),),
        (("None", True),),
    )
    long = "x " * 5_000
    assert parts(long, long + "y") == (((long, True),), ((long + "y", True),))


def test_differences_without_a_call_are_shown_too():
    one = recompile(call=(), difference=({"path": "x", "aspect": "size", "warm": "1", "now": "2"},))
    assert "x size" in of(red(one)).text()


def test_a_compilation_is_a_bar_as_long_as_it_took():
    drawn = timeline(EVENTS, "t")
    assert drawn is not None
    root = ElementTree.fromstring(drawn.picture)
    bars = [one for one in root.iter("rect") if one.get("class") == "mark"]
    whole_width = 1120 - 132 - 16  # of five seconds
    assert float(bars[0].attrib["width"]) == pytest.approx(0.9 / 5 * whole_width, abs=0.1)
    assert float(bars[0].attrib["x"]) == pytest.approx(132 + 0.2 / 5 * whole_width, abs=0.1)
    (said,) = (title.text for title in bars[0])
    assert said == "at 0.20 s: compile forward (model.py:3), 0.90 s"


def test_what_is_against_the_run_is_marked_and_counted():
    drawn = timeline([*EVENTS, event("compile", 4.5, "strict")], "t")
    assert drawn is not None
    root = ElementTree.fromstring(drawn.picture)
    bad = [one for one in root.iter("rect") if one.get("class") == "mark bad"]
    assert len(bad) == 3  # the compile, the refusal, the stall
    said = root.find("desc")
    assert said is not None
    assert "compiles: 2, 1 of them after warm-up" in str(said.text)
    assert "Phases: warm-up, then canary, then strict: nothing may compile." in str(said.text)


def test_thousands_of_events_are_few_marks_and_no_row_is_lost_silently():
    many = [
        event("refusal", 3.6 + i / 5_000, "strict", step=i, frame=f"f{i}") for i in range(5_000)
    ]
    drawn = timeline([*EVENTS, *many], "t")
    assert drawn is not None
    assert len(drawn.picture) < 60_000
    assert len(drawn.rows) + drawn.more >= 5_000
    assert (
        "more rows: events.jsonl has all of them"
        in of(replace(green(), events=(*EVENTS, *many))).text()
    )


def test_events_that_were_too_many_for_the_file_are_said():
    cut = event("left-out", 3.6, "strict", evidence={"events": 12_345, "kinds": {}})
    drawn = timeline([*EVENTS, cut], "t")
    assert drawn is not None
    assert drawn.note == "12,345 events were too many to be kept"


@pytest.mark.parametrize(
    "times", [(0.0, 0.0), (-1e308, 1e308), (0.0, 1e12), (float("nan"), 1.0), (5.0, 4.0)]
)
def test_times_that_make_no_sense_break_nothing(times: tuple[float, float]):
    events = tuple(
        Event(kind="compile", time=time, phase="strict", step=1, evidence={"seconds": "x"})
        for time in times
    )
    of(replace(green(), events=events))


@pytest.mark.parametrize(
    "batch",
    [
        Batch(requests=(Request((Image(1, 1),)),)),
        Batch(requests=(Request((Image(28, 28_000),)),), extra_padding=4_000),
        Batch(requests=(Request((Video(500, 2_000, 20),) * 40),) * 70, padding="right"),
        Batch(requests=(Request((Text(100_000), Text(1))),)),
    ],
    ids=["one pixel", "extreme", "many", "long"],
)
def test_extreme_batches_are_drawn_in_bounds(batch: Batch):
    run = red(recompile(traffic=Session((batch,)), repro=None))
    text = page(Records(runs=(run,)))
    assert len(text) < 600_000
    drawn = next(one for one in of(run).all("svg") if "batch" in one.get("aria-labelledby", ""))
    width, height = (float(drawn.attrib[name]) for name in ("width", "height"))
    for box in drawn.iter(f"{SVG}rect"):
        assert float(box.attrib["x"]) >= 0
        assert float(box.attrib["x"]) + float(box.attrib["width"]) <= width + 1
        assert float(box.attrib["y"]) >= 0
        assert float(box.attrib["y"]) + float(box.attrib["height"]) <= height + 1


def test_twenty_failures_with_pictures_fit_into_two_megabytes():
    kinds = ("text",) * 2_000
    rows = tuple(Row(kinds=kinds, ratios=(0.5, 3.0) * 1_000) for _ in range(4))
    picture = Picture(title="the cause", rows=rows)
    many = [
        mismatch(picture=picture, key=str(index), path=f"failures/{index:02d}-mismatch")
        for index in range(20)
    ]
    text = page(Records(runs=(red(*many),)))
    assert len(text.encode()) < 2_000_000
    assert "failures/19-mismatch/strip.svg" in text  # said, where it is left out


def test_a_run_of_nothing_but_names_is_a_page():
    bare = green(options={}, environment={}, parity=Parity(canary=Canary()), recipe="", test="")
    of(replace(bare, events=()))
    worst = Worst(ratio=None, error=None, request=0, token=0, modality="text")
    assert "NaN or Inf" in of(green(parity=Parity(worst=worst))).text()


def test_a_place_that_is_not_as_we_write_it_breaks_nothing():
    of(red(mismatch(location={"worst": 3, "request": "x", "module": ["y"]})))
