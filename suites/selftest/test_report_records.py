"""vlm-ci report: what lies on disk is read back, what is broken is said, the rest is shown."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from report_records import EVENTS, event, green, mismatch, on_disk, recompile, red, result

from vlm_ci.cli import main
from vlm_ci.errors import UsageError
from vlm_ci.failures import ENDED, Script, render
from vlm_ci.report import pages, records
from vlm_ci.report.records import RunRecord
from vlm_ci.report.writing import write
from vlm_ci.result import Growth, Synthesis, Traffic, Verification
from vlm_ci.watch.events import Event, lines


def rewrite(path: Path, **changes: object) -> None:
    content = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**content, **changes}))


def test_a_run_comes_back_as_it_was(tmp_path: Path):
    written = red()
    folder = on_disk(written, tmp_path / "out")
    (read,) = records.read([tmp_path]).runs
    assert read.folder == folder
    assert read.events == written.events
    assert [one.failure for one in read.failures] == [one.failure for one in written.failures]
    assert read.failures[0].script == "import torch\n"
    assert read.failures[1].failure.picture is not None
    assert read.failures[0].folder == str(folder / "failures/01-recompile")


def test_results_are_found_at_any_depth_and_each_once(tmp_path: Path):
    first, second = on_disk(green(), tmp_path / "a/b"), on_disk(red(), tmp_path / "c")
    found = records.read([tmp_path, first, second / "result.json"])
    assert [run.folder for run in found.runs] == [first, second]
    assert found.problems == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "there is no "),
        (".", "holds no result.json: name a folder that a run wrote"),
        ("notes.txt", "notes.txt is broken: "),
        ("other.json", "its schema is 'other/1', not 'vlm-ci/result/1'"),
        ("list.json", "its schema is None"),
        ("binary.json", "is broken"),
        ("old.json", "is broken: Object missing required field `command`"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, name: str, message: str):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "other.json").write_text('{"schema": "other/1"}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "old.json").write_text('{"schema": "vlm-ci/result/1"}')
    with pytest.raises(UsageError, match=re.escape(message)):
        records.read([tmp_path / name])


def test_of_a_broken_result_the_failures_are_shown(tmp_path: Path):
    folder = on_disk(red(), tmp_path / "out")
    (folder / "result.json").write_text('{"schema": "vlm-ci')
    found = records.read([folder])
    (run,) = found.runs
    assert (run.result.verdict, run.result.target) == ("failed", "qwen3-vl-tiny")
    assert [one.failure.kind for one in run.failures] == ["recompile", "mismatch"]
    assert "result.json is broken" in found.problems[0]
    assert "from the failure files alone" in run.result.warnings[0]


def test_of_broken_failures_and_events_the_rest_is_shown(tmp_path: Path):
    folder = on_disk(red(), tmp_path / "out")
    (folder / "failures/01-recompile/failure.json").write_text("{")
    (folder / "failures/02-mismatch/failure.json").unlink()
    (folder / "failures/01-recompile/repro.py").unlink()
    with (folder / "events.jsonl").open("a") as stream:
        stream.write("no event\n{}\n")
    found = records.read([folder])
    (run,) = found.runs
    assert [one.failure.cause for one in run.failures] == [recompile().cause, mismatch().cause]
    assert run.events == EVENTS
    assert len(found.problems) == 4
    assert "line 12 is broken" in found.problems[-1]
    assert "(and 1 more lines)" in found.problems[-1]


def test_a_record_names_no_file_outside_of_its_folder(tmp_path: Path):
    (tmp_path / "secret.py").write_text("a secret")
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures/failure.json").write_text("a secret")
    script = Script(path="../secret.py", reproduced=True)
    folder = on_disk(red(recompile(repro=None)), tmp_path / "out")
    for changes in ({"path": "../failures"}, {"path": "", "repro": script}, {"repro": script}):
        failure = msgspec.structs.replace(recompile(), **changes)
        rewrite(folder / "result.json", failures=[msgspec.to_builtins(failure)])
        found = records.read([folder])
        assert "secret" not in found.runs[0].failures[0].script
        if changes != {"path": "", "repro": script}:
            assert "outside" in found.problems[0]


# -- the file of events -----------------------------------------------------------------------


def test_events_that_are_too_many_are_counted_where_they_stood():
    events = [event("compile", i, step=i) for i in range(50)]
    events += [event("refusal", 50 + i, "strict", step=i) for i in range(150)]
    assert msgspec.json.decode(lines(events[:1]), type=Event) == events[0]
    kept = [msgspec.json.decode(line, type=Event) for line in lines(events, 6_000).splitlines()]
    assert len(lines(events, 6_000)) < 6_400
    (at,) = (index for index, one in enumerate(kept) if one.kind == "left-out")
    assert kept[:at] == events[:at]
    assert kept[at + 1 :] == events[-(len(kept) - at - 1) :]
    gone = events[at : -(len(kept) - at - 1)]
    assert kept[at].evidence["events"] == len(gone) == 200 - len(kept) + 1
    assert sum(kept[at].evidence["kinds"].values()) == len(gone)
    assert (kept[at].time, kept[at].evidence["until"]) == (gone[0].time, gone[-1].time)


def test_one_event_that_is_too_long_is_counted_too():
    long = event("refusal", 1.0, evidence={"guards": ["x" * 1_000]})
    assert b'"events":3' in lines([long] * 3, 500)


# -- the command ------------------------------------------------------------------------------


def test_report_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    on_disk(red(), tmp_path / "out/red")
    on_disk(green(), tmp_path / "out/green")
    file = tmp_path / "new/folder/page.html"
    assert main(["report", str(tmp_path / "out"), "--html", str(file)]) == 0
    assert capsys.readouterr().out == f"wrote {file}\n"
    text = file.read_text()
    assert "features is a float32 tensor" in text
    assert [path.name for path in file.parent.iterdir()] == ["page.html"]


def test_report_without_an_option_is_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    on_disk(red(), tmp_path / "vlm-ci-out")
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 0
    out = capsys.readouterr().out
    assert "verdict        failed, 2 causes, results in vlm-ci-out" in out


def test_report_says_what_is_broken_and_shows_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    on_disk(green(), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/result.json").write_text("{")
    file = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "--html", str(file)]) == 4
    assert f"vlm-ci: {tmp_path}/b/result.json is broken" in capsys.readouterr().err
    assert "b/result.json is broken" in file.read_text()
    assert "1 run, nothing found" in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no nowhere: name folders of results, or result.json files"),
        (["out", "--html", "out"], "cannot write the report to out: it is a folder"),
        (["out", "--html", "out/result.json/x"], "cannot write the report to out/result.json/x"),
    ],
)
def test_report_refuses_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
):
    on_disk(green(), tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 4
    err = capsys.readouterr().err
    assert err.startswith(f"vlm-ci: {message}")
    assert len(err.splitlines()) == 1


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "page.html"
    write(file, "old")

    def fail(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(UsageError, match="No space left on device"):
        write(file, "new")
    assert file.read_text() == "old"


# -- the page at the end of a run -------------------------------------------------------------


def test_the_page_lies_where_all_runs_lie(tmp_path: Path):
    base = tmp_path / "out"
    first, second = on_disk(green(), base / "a"), on_disk(red(), base / "b")
    assert pages.keep([first, second], base) == str(base / "report.html")
    assert "2 runs" in (base / "report.html").read_text()
    assert pages.keep([first], tmp_path / "elsewhere") == str(first / "report.html")


def test_the_page_of_an_earlier_run_is_replaced_and_anything_else_left_alone(tmp_path: Path):
    folder = on_disk(green(), tmp_path)
    page = folder / "report.html"
    page.write_text("a page of another tool")
    assert pages.keep([folder], folder) == f"none: {page} is no page of vlm-ci's: it was left alone"
    assert page.read_text() == "a page of another tool"
    page.unlink()
    assert pages.keep([folder], folder) == pages.keep([folder], folder) == str(page)


def test_a_page_that_cannot_be_made_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = on_disk(green(), tmp_path)

    def fail(self: object) -> str:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("vlm_ci.report.html.page", fail)
    assert pages.keep([folder], folder) == "none: ZeroDivisionError: oops"
    assert pages.keep([tmp_path / "gone"], folder).startswith("none: there is no ")


BOOKS = Synthesis(
    status="bounded",
    plan="plan.json",
    batches=3,
    graphs=7,
    compiles=5,
    curve=[Growth(examples=100, graphs=7, batches=3)],
    verifications=[Verification(process=12, seeds=[1], examples=50, batches=99, held=True)],
)


@pytest.mark.parametrize(
    ("books", "words"),
    [
        (BOOKS, "bounded: the plan holds"),
        (
            msgspec.structs.replace(BOOKS, status="unbounded", growing=["text length"]),
            "unbounded: the number of graphs grows with the text length",
        ),
        (msgspec.structs.replace(BOOKS, status="unfinished"), "unfinished: no plan was found"),
    ],
)
def test_a_warm_up_is_reported_as_one(tmp_path: Path, capsys, books: Synthesis, words: str):
    made = result(command="warmup", test="", synthesis=books, traffic=Traffic())
    on_disk(RunRecord(folder=tmp_path, result=made), tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert f"verdict        {words}" in shown
    assert "plan           3 batches, 7 graphs, 5 compiles" in shown
    page, text = tmp_path / "page.html", tmp_path / "page.md"
    assert main(["report", str(tmp_path), "--html", str(page), "--markdown", str(text)]) == 0
    for written in (page.read_text(), text.read_text()):
        assert words in written
    assert "graphs after examples: 7 after 100" in page.read_text()
    assert "### Warm-up plans" in text.read_text()
    assert "50 examples in 61 batches" in text.read_text()


def test_the_session_of_a_process_that_ended_is_not_called_small(tmp_path: Path):
    ended = recompile(kind="crash", key=ENDED, cause="the process ended")
    folder = on_disk(red(ended), tmp_path / "out")
    assert "2 batches, the session that was being served:" in render(ended)
    page, text = tmp_path / "page.html", tmp_path / "page.md"
    assert main(["report", str(folder), "--html", str(page), "--markdown", str(text)]) == 0
    for written in (page.read_text(), text.read_text()):
        assert "smallest" not in written
        assert "as small as it gets" not in written
        assert "was being served" in written
