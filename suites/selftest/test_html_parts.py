"""The parts of the page: differences, the timeline, batches, and how large it gets."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from report_records import EVENTS, event, green, mismatch, recompile, red
from test_html import SVG, of

from vlm_ci.picture import Picture, Row
from vlm_ci.report.html import page
from vlm_ci.report.html.differences import arguments, parts
from vlm_ci.report.html.timeline import timeline
from vlm_ci.report.records import Records
from vlm_ci.result import Canary, Parity, Worst
from vlm_ci.traffic.spec import Batch, Image, Request, Session, Text, Video
from vlm_ci.watch.events import Event


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
