"""`vlm-ci report` for GitHub: Markdown, annotations, and a merged JUnit file beside them."""

from __future__ import annotations

import json
from pathlib import Path

import junitparser
import msgspec
import pytest
from click.testing import CliRunner, Result
from sample_results import failure, result

from vlm_ci.cli import main
from vlm_ci.cli.base import cli
from vlm_ci.failures import replay_command
from vlm_ci.junit import commands, words
from vlm_ci.report.properties import properties

JUNIT = """<testsuite name="s"><testcase classname="tests.test_a" name="test_b">
<failure message="recompile: x">text</failure></testcase>
<testcase classname="tests.test_a" name="test_c"/></testsuite>"""


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a red and a clean run, which is the current one and the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/model.py").write_text("")
    for name, run in (
        ("red", result(failures=[failure(path="")])),
        ("clean", result(target="llava-tiny")),
    ):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "result.json").write_bytes(msgspec.json.encode(run))
    return tmp_path


def report(*args: str) -> Result:
    return CliRunner().invoke(cli, ["report", *args])


def test_markdown_goes_to_a_file(results: Path):
    done = report("out", "--markdown", "page.md")
    assert done.exit_code == 0, done.output
    assert done.output == "wrote page.md\n"
    text = (results / "page.md").read_text()
    assert text.startswith("## ❌ vlm-ci: failed, 1 cause in 1 of 2 runs\n")
    assert "| `out/clean` |" in text
    report("out", "--markdown", "page.md")
    assert (results / "page.md").read_text() == text  # written anew


@pytest.mark.parametrize("given", [(), ("summary.md",)], ids=["default", "named"])
def test_the_summary_of_a_step_is_appended_to(results: Path, monkeypatch, given: tuple[str, ...]):
    summary = results / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    summary.write_text("before\n")
    assert report("out", "--markdown", *given).exit_code == 0
    assert summary.read_text().startswith("before\n\n## ❌ vlm-ci: failed")


def test_without_a_step_markdown_needs_a_file(results: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", "out", "--markdown"]) == 4
    assert "--markdown needs a FILE: GITHUB_STEP_SUMMARY is not set here" in capsys.readouterr().err
    assert main(["report", "--markdown", "out"]) == 4
    assert "--markdown out: it is a folder; name a file" in capsys.readouterr().err
    assert main(["report", "out", "--junit", "x.xml"]) == 4
    assert "--junit needs --markdown" in capsys.readouterr().err


def test_annotations_are_printed_alone(results: Path):
    done = report("out", "--annotations")
    (line,) = done.output.splitlines()
    assert line.startswith("::error file=engine/model.py,line=7,title=vlm-ci%3A recompile in qwen3")


def test_a_merged_junit_file_adds_what_needs_a_look(results: Path):
    (results / "a.xml").write_text(JUNIT)
    (results / "expected.txt").write_text(
        "tests/test_a.py::test_b\ntests/test_a.py::test_c\ntests/test_a.py::test_gone\n"
    )
    merged = ["junit", "merge", "a.xml", "-o", "ALL.xml", "--expect", "expected.txt"]
    assert main(merged) == 1
    assert report("out/clean", "--junit", "ALL.xml", "--markdown", "page.md").exit_code == 0
    text = (results / "page.md").read_text()
    assert text.startswith("## ❌ vlm-ci: failed, 1 missing test, 1 failed test\n")
    rows = [line for line in text.splitlines() if line.startswith(("| `missing`", "| `failed`"))]
    assert rows == [
        "| `missing` | `tests/test_a.py::test_gone` | – |",
        "| `failed` | `tests/test_a.py::test_b` | `recompile: x` |",
    ]


def test_the_properties_of_a_red_run_survive_a_merge(tmp_path: Path):
    first, second = failure(), failure(kind="mismatch", key="m", path="failures/02-m", frame="")
    run = result(failures=[first, second])
    listed = properties(run, "out dir")
    assert ("vlm_ci_failures", "recompile, mismatch") in listed
    assert ("vlm_ci_verdict", "failed") in listed
    assert ("vlm_ci_seed", "3") in listed
    assert ("vlm_ci_results", "out dir") in listed
    causes = [value for name, value in listed if name == "vlm_ci_cause"]
    assert causes == [f"recompile: {first.cause}", f"mismatch: {second.cause}"]
    replays = [value for name, value in listed if name == "vlm_ci_replay"]
    assert replays == [replay_command(first, "out dir"), replay_command(second, "out dir")]
    assert replays[0] == "vlm-ci replay 'out dir/failures/01-recompile'"
    assert "vlm_ci_replay" not in dict(properties(run, "out", replayable=False))

    suite, case = junitparser.TestSuite("s"), junitparser.TestCase("test_b", "tests.test_a")
    holder = junitparser.Properties()
    for name, value in listed:
        holder.append(junitparser.Property(name, value))
    case.append(holder)
    case.result = [junitparser.Failure("recompile: x")]
    suite.add_testcase(case)
    file = junitparser.JUnitXml()
    file.add_testsuite(suite)
    file.write(str(tmp_path / "a.xml"))
    assert main(["junit", "merge", str(tmp_path / "a.xml"), "-o", str(tmp_path / "ALL.xml")]) == 1
    (test,) = commands.read(tmp_path / "ALL.xml").tests
    kept = [pair for pair in test.case.properties if pair in listed]
    assert kept == listed
    (note,) = words.notes(commands.read(tmp_path / "ALL.xml"))
    assert (note.sort, note.text.startswith("recompile: x")) == ("failed", True)


def test_a_workflow_command_in_a_cause_is_none_in_the_log(results: Path, monkeypatch):
    hostile = result(failures=[failure(path="", cause="x\n::set-output name=a::b")])
    (results / "out/red/result.json").write_bytes(msgspec.json.encode(hostile))
    assert json.loads((results / "out/red/result.json").read_text())["verdict"] == "failed"
    assert "\n::set-output" in report("out/red").output
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert "\n::set-output" not in report("out/red").output
