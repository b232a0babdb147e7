"""What people read: drawings of traffic, the text of a failure, the text of a red test."""

from __future__ import annotations

from vlm_ci import Failure, Geometry, Image, Text, Video, batch, session
from vlm_ci.failures import render
from vlm_ci.report.failures import failure_text
from vlm_ci.traffic.drawing import WIDTH, draw

GEOMETRY = Geometry(token_side=8, image_overhead=2, frame_overhead=4)


def test_a_drawing_has_a_line_for_each_request_to_scale():
    assert draw(session(batch([Text(3), Image(16, 8), Text(2)], Text(12))), GEOMETRY) == [
        "0 [·ttt|####|tt] 9 positions: text 3, image 16×8, text 2",
        "1 [tttttttttttt] 12 positions: text 12",
    ]


def test_padding_is_drawn_on_its_side():
    (short, _) = draw(session(batch(Text(2), Text(5), padding="right")), GEOMETRY)
    assert short == "0 [tt···] 2 positions: text 2"


def test_batches_of_a_session_are_numbered_and_videos_differ_from_images():
    drawn = draw(session(batch(Text(1)), batch([Video(2, 8, 8)])), GEOMETRY)
    assert drawn == [
        "batch 1",
        "0 [t] 1 position: text 1",
        "batch 2",
        "0 [=====] 5 positions: video 2 × 8×8",
    ]


def test_a_long_row_fits_and_every_item_shows():
    row = [Text(3000), Image(8, 8), Text(1)]
    (line,) = draw(session(batch(row)), GEOMETRY)
    body = line[line.index("[") + 1 : line.index("]")]
    assert len(body) <= WIDTH
    assert "|#|t" in body


def test_without_a_geometry_every_item_has_a_mark():
    assert draw(session(batch([Image(8, 8), Text(2)]))) == [
        "0 [#|tt] 3 positions: image 8×8, text 2"
    ]


def failure(**fields: object) -> Failure:
    return Failure(kind="recompile", cause="the cause", advice="the advice", key="k", **fields)


def test_a_failure_shows_what_differs_most_first():
    rows = (
        {"path": "same", "now": "None", "warm": "None"},
        {"path": "size", "now": "float32 tensor [1, 3]", "warm": "float32 tensor [1, 7]"},
        {"path": "features", "now": "list of 3", "warm": "not passed"},
    )
    shown = render(failure(call=rows)).splitlines()
    assert shown[1:5] == [
        "  call                   now                    nearest call in warm-up",
        "             ≠ features  list of 3              not passed",
        "             ~ size      float32 tensor [1, 3]  float32 tensor [1, 7]",
        "               same      None                   None",
    ]


def test_many_arguments_and_guards_are_cut_and_counted():
    rows = tuple({"path": f"a{n}", "now": "None", "warm": "None"} for n in range(20))
    shown = render(failure(call=rows, guards=tuple(map(str, range(5)))))
    assert "and 8 more arguments" in shown
    assert "and 2 more guards" in shown


def test_a_failure_ends_with_the_command_that_replays_it():
    shown = render(failure(path="failures/01-x y"), out="out").splitlines()
    assert shown[-2:] == [
        "  evidence   out/failures/01-x y",
        "  replay     vlm-ci replay 'out/failures/01-x y'",
    ]
    unnamed = render(failure(path="failures/01"), out="out", replayable=False)
    assert "vlm-ci replay" not in unnamed


def test_several_causes_are_counted_on_the_first_line_and_shown_once():
    second = Failure(kind="mismatch", cause="another", advice="a", key="k2")
    text = failure_text([failure(), second], out="out", geometry=None, replayable=True)
    assert text.splitlines()[0] == "recompile: the cause (and 1 more cause)"
    assert text.splitlines().count("recompile: the cause") == 1
    assert text.splitlines().count("mismatch: another") == 1
