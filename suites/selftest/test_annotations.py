"""Annotations: the line that is to blame, escaping, and what becomes of more than ten."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from sample_results import failure, full, result

from vlm_ci.report import actions, annotations, escaping
from vlm_ci.report.actions import Checkout
from vlm_ci.report.annotations import Place
from vlm_ci.report.markdown import Run
from vlm_ci.result import BaselineUse, Change, Result, Tolerated

COMMAND = re.compile(r"::(?P<level>error|warning) (?P<fields>.*?)::(?P<message>.*)")


def undone(line: str) -> tuple[str, dict[str, str], str]:
    """Read a workflow command as GitHub's runner does (actions/runner, ActionCommand.cs)."""
    assert line.startswith("::")
    end = line.index("::", 2)
    name, _, listed = line[2:end].partition(" ")
    fields = dict(pair.split("=", 1) for pair in listed.split(",") if pair)

    def plain(text: str, *, field: bool) -> str:
        text = text.replace("%0D", "\r").replace("%0A", "\n")
        text = text.replace("%3A", ":").replace("%2C", ",") if field else text
        return text.replace("%25", "%")

    message = plain(line[end + 2 :], field=False)
    return name, {key: plain(value, field=True) for key, value in fields.items()}, message


class Everything:
    """A source that has every file and every test."""

    def locate(self, path: str, line: int) -> Place | None:
        return Place(path=path, line=line)

    def find_test(self, nodeid: str) -> Place | None:
        return Place(path="tests/test_vlm.py", line=5)


class Nothing(Everything):
    """A checkout without the file that is to blame."""

    def locate(self, path: str, line: int) -> Place | None:
        return None


def commands(*results: Result, source: Everything | None = None) -> list[str]:
    return annotations.commands([(one, "out") for one in results], source or Everything())


def test_a_failure_stands_at_the_line_that_gave_rise_to_it():
    found = failure(line="engine/model.py:9 in forward: if embeds is not None:")
    [line] = commands(result(failures=[found]))
    name, fields, message = undone(line)
    assert name == "error"
    assert fields == {
        "file": "engine/model.py",
        "line": "9",
        "title": "vlm-ci: recompile in qwen3-vl-tiny",
    }
    assert message.splitlines() == [
        "recompile: input_deepstack_embeds is present, in warm-up it was None",
        "advice: warm up with an image",
        "replay: vlm-ci replay out/failures/01-recompile",
    ]


def test_without_a_line_the_frame_is_taken():
    [line] = commands(result(failures=[failure()]))
    assert undone(line)[1]["file"] == "engine/model.py"
    assert undone(line)[1]["line"] == "7"
    [quoted] = commands(result(failures=[failure(frame="'run' (/a/b/model.py:28)")]))
    assert undone(quoted)[1]["file"] == "/a/b/model.py"


def test_outside_the_checkout_the_test_is_annotated_and_the_place_named():
    [line] = commands(result(failures=[failure()]), source=Nothing())
    _, fields, message = undone(line)
    assert (fields["file"], fields["line"]) == ("tests/test_vlm.py", "5")
    assert message.splitlines()[-1] == "place: engine/model.py:7, which is not of this checkout"
    [line] = commands(result(failures=[failure()], test=""), source=Nothing())
    assert set(undone(line)[1]) == {"title"}


def test_tolerated_findings_and_improvements_are_warnings():
    run = result(
        failures=[failure(), failure(kind="baseline", cause="compiles rose")],
        tolerated=[Tolerated(failure=failure(kind="stall", cause="slow"), policy="warn", count=4)],
        baseline=BaselineUse(
            changes=[
                Change(field="breaks", before="4", after="2", worse=False),
                Change(field="compiles", before="4", after="9", worse=True),
            ]
        ),
    )
    told = [(undone(line)[0], undone(line)[2]) for line in commands(run)]
    level, text = told[1]
    assert level == "error"
    assert text.startswith("baseline: compiles rose\n")
    assert "replay" not in text  # that takes the whole run again
    assert told[2] == ("warning", "stall: slow\ntolerated 4 times by the policy warn")
    assert told[3] == ("warning", "breaks was 4 and is 2")


def test_one_cause_of_two_shards_is_one_annotation():
    assert len(commands(result(failures=[failure()]), result(failures=[failure()]))) == 1
    other = result(failures=[failure()], target="llava-tiny")
    assert len(commands(result(failures=[failure()]), other)) == 2


def test_beyond_ten_the_rest_is_one():
    ten = [failure(key=f"k{n}", cause=f"cause {n}") for n in range(10)]
    assert len(commands(result(failures=ten))) == 10
    many = [failure(key=f"k{n}", cause=f"cause {n}") for n in range(60)]
    tolerated = [Tolerated(failure=one, policy="warn") for one in many]
    lines = commands(result(failures=many, tolerated=tolerated))
    assert [undone(line)[0] for line in lines] == ["error"] * 10 + ["warning"] * 10
    _, fields, message = undone(lines[9])
    assert fields == {"title": "vlm-ci: 51 more causes"}
    assert "- recompile: cause 9\n" in message
    assert message.endswith("and 21 more")


PIECES = st.sampled_from(
    ["\n::set-output name=a::b", "::error::x", "%0A::warning::y", "%25", "%", ",", ":", "=", "\r",
     "##[error]z", "\u2028", "\x1b", "x", " ", "\n", "a=b,line=9", "]", ";"]
)  # fmt: skip


@given(st.one_of(st.lists(PIECES, min_size=1).map("".join), st.text(min_size=1)))
@example("\n::set-output name=a::b")
@example("%0A::error::x")
def test_text_of_others_gives_no_command_and_no_field(text: str):
    lines = commands(full(text))
    for line in lines:
        assert COMMAND.fullmatch(line)
        assert len(line.splitlines()) == 1
        name, fields, message = undone(line)
        assert name in ("error", "warning")
        assert set(fields) <= {"file", "line", "title"}
        assert fields.get("line", "1").isdecimal()
        assert "\r" not in message
    title = next(undone(line)[1]["title"] for line in lines)
    assert title.startswith("vlm-ci: recompile in")


@given(st.one_of(st.lists(PIECES, min_size=1).map("".join), st.text()))
@example("  ::add-mask::secret")
@example("fine\n\t::error::x\nsee ##[add-path]/bin")
def test_defused_text_holds_no_command(text: str):
    safe = annotations.defused(text)
    assert not any(line.lstrip().startswith("::") for line in re.split("[\r\n]", safe))
    assert "##[" not in safe
    assert annotations.defused("failed  a::b") == "failed  a::b"


def test_a_checkout_finds_files_by_the_ends_of_their_paths(tmp_path: Path):
    for name in (
        *("src/engine/layers/model.py", "src/engine/other/util.py", "src/twin/other/util.py"),
        *(".venv/lib/hidden.py", "env/pyvenv.cfg", "env/lib/engine.py"),
        "lib/site-packages/torch/x.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    checkout = Checkout(tmp_path)
    found = Place(path="src/engine/layers/model.py", line=3)
    assert checkout.locate("engine/layers/model.py", 3) == found
    assert checkout.locate(str(tmp_path / "src/engine/layers/model.py"), 3) == found
    assert checkout.locate("ngine/layers/model.py", 3) is None
    assert checkout.locate("other/util.py", 1) is None  # two of them
    assert checkout.locate("src/twin/other/util.py", 1) == Place(
        path="src/twin/other/util.py", line=1
    )
    for other in ("torch/x.py", "hidden.py", "engine.py", "../model.py", "", "/etc/passwd", "a\0b"):
        assert checkout.locate(other, 1) is None


def test_a_test_is_found_by_its_node_id(tmp_path: Path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_a.py").write_text("x = 1\n\nclass TestA:\n    def test_b(self): ...\n")
    checkout = Checkout(tmp_path)
    path = "tests/test_a.py"
    assert checkout.find_test(f"{path}::TestA::test_b[x::y]") == Place(path=path, line=4)
    assert checkout.find_test(f"{path}::TestA") == Place(path=path, line=3)
    assert checkout.find_test(f"{path}::gone") == Place(path=path, line=0)
    assert checkout.find_test("tests/test_gone.py::x") is None
    (tmp_path / "tests/test_a.py").write_text("def (")
    assert checkout.find_test(f"{path}::TestA") == Place(path=path, line=0)


def test_the_workspace_of_the_job_is_the_checkout(tmp_path: Path):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/model.py").write_text("")
    runs = [Run(result=result(failures=[failure()]), out="out")]
    [line] = actions.annotation_lines(runs, {"GITHUB_WORKSPACE": str(tmp_path)})
    assert line.startswith("::error file=engine/model.py,line=7,title=vlm-ci%3A recompile in ")


@given(st.one_of(st.lists(PIECES, min_size=1).map("".join), st.text(min_size=1)))
@example("100%0A::error::x %25 done")
def test_a_cause_is_read_as_it_was_written(text: str):
    [line] = commands(result(failures=[failure(cause=text)]))
    first = undone(line)[2].split("\n")[0]
    assert first == escaping.one_line(f"recompile: {text}", annotations.MOST_MESSAGE)
