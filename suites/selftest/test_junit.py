"""`vlm-ci junit`: which attempt stands, what is flaky, what is missing, what to run again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import junit_files as xml
import pytest
from junit_files import OOM, case, suite

from vlm_ci.cli import main
from vlm_ci.failures import KINDS
from vlm_ci.junit import identity, rules

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for each test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Tool:
    """Runs the command and reads what it wrote."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.out = self.err = ""

    def __call__(self, *args: str) -> int:
        self._capsys.readouterr()
        code = main(["junit", *args])
        self.out, self.err = self._capsys.readouterr()
        return code

    def merge(self, *attempts: str, options: tuple[str, ...] = ()) -> int:
        """Write each suite as a file of its own and merge them in this order."""
        names = [
            xml.write(self.folder / f"{number}.xml", one) for number, one in enumerate(attempts)
        ]
        return self("merge", *names, "-o", "ALL.xml", *options)

    @property
    def cases(self):
        return xml.cases(self.folder / "ALL.xml")

    def of(self, name: str) -> dict[str, str]:
        return xml.properties(self.cases[name])


@pytest.fixture
def tool(folder: Path, capsys: pytest.CaptureFixture[str]) -> Tool:
    return Tool(folder, capsys)


RED, GREEN = case("test_x", "failure"), case("test_x")


# -- the order of attempts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (suite(RED), suite(GREEN), "passed"),
        (suite(GREEN), suite(RED), "failure"),
        # the timestamp is asked before the order of the arguments
        (suite(RED, at=9), suite(GREEN, at=1), "failure"),
        (suite(GREEN, at=9), suite(RED, at=1), "passed"),
        # a timestamp on one side alone says nothing
        (suite(RED, at=9), suite(GREEN), "passed"),
        # the number is asked before both
        (suite(GREEN, at=1, vlm_ci__attempt="2"), suite(RED, at=9, vlm_ci__attempt="1"), "passed"),
        (suite(RED, vlm_ci__attempt="10"), suite(GREEN, vlm_ci__attempt="9"), "failure"),
        # a case's own number is asked before its suite's
        (
            suite(case("test_x", "failure", vlm_ci__attempt="3"), vlm_ci__attempt="1"),
            suite(GREEN, vlm_ci__attempt="2"),
            "failure",
        ),
        # one attempt in two files: the worse stands
        (suite(RED, vlm_ci__attempt="1"), suite(GREEN, vlm_ci__attempt="1"), "failure"),
        # a skip proves nothing, an expected failure does
        (suite(RED), suite(case("test_x", "skipped")), "failure"),
        (suite(GREEN), suite(case("test_x", "skipped")), "passed"),
        (suite(RED), suite(case("test_x", "xfailed")), "skipped"),
    ],
)
def test_which_attempt_stands(tool: Tool, first: str, second: str, verdict: str):
    code = tool.merge(first, second)
    assert xml.verdict(tool.cases["test_x"]) == verdict
    assert code == (1 if verdict == "failure" else 0)


def test_the_number_may_stand_in_the_file_name(tool: Tool, folder: Path):
    names = [
        xml.write(folder / "shard-1-attempt-2.xml", suite(GREEN, at=1)),
        xml.write(folder / "shard-1-attempt-1.xml", suite(RED, at=9)),
    ]
    assert tool("merge", *names, "-o", "ALL.xml") == 0
    assert tool.of("test_x")["vlm_ci.history"] == "failed, passed"


def test_several_suites_of_one_file_are_attempts(tool: Tool, folder: Path):
    name = xml.write(folder / "both.xml", suite(RED, at=1), suite(GREEN, at=2))
    assert tool("merge", name, "-o", "ALL.xml") == 0
    assert tool.of("test_x")["vlm_ci.history"] == "failed, passed"


def test_a_test_and_its_teardown_are_one_attempt(tool: Tool):
    teardown = case("test_x", "error", message='failed on teardown with "RuntimeError"', seconds=2)
    assert tool.merge(suite(RED, teardown)) == 1
    assert [child.tag for child in tool.cases["test_x"] if child.text] == ["failure", "error"]
    whole = xml.root(tool.folder / "ALL.xml")
    assert (whole.get("tests"), whole.get("failures"), whole.get("errors")) == ("1", "1", "0")
    assert tool.cases["test_x"].get("time") == "2.5"


# -- flaky, infrastructure, verdicts ---------------------------------------------------------------


def test_failed_and_passed_on_one_commit_is_flaky(tool: Tool):
    assert tool.merge(suite(RED, vlm_ci__commit="abc"), suite(GREEN, vlm_ci__commit="abc")) == 0
    said = "failed on attempt 1, passed on attempt 2; both on commit abc"
    assert tool.of("test_x")["vlm_ci.flaky"] == said
    assert f"flaky          tests/test_a.py::test_x: {said}" in tool.out
    assert tool.cases["test_x"].find("flakyFailure/stackTrace").text == "assert 0"


def test_without_a_commit_the_same_one_is_assumed_aloud(tool: Tool):
    assert tool.merge(suite(RED, vlm_ci__commit="abc"), suite(GREEN)) == 0
    assert "the same commit is assumed" in tool.of("test_x")["vlm_ci.flaky"]
    assert "a file states its commit by the property vlm_ci.commit" in tool.out


def test_passed_on_another_commit_is_not_flaky(tool: Tool):
    assert tool.merge(suite(RED, vlm_ci__commit="abc"), suite(GREEN, vlm_ci__commit="def")) == 0
    assert "vlm_ci.flaky" not in tool.of("test_x")
    assert tool.of("test_x")["vlm_ci.note"] == "failed on commit abc, passed on commit def"
    assert "flaky" not in tool.out


@pytest.mark.parametrize("kinds", ["mismatch", "stall, recompile", "vacuous"])
def test_a_verdict_is_never_retried_into_green(tool: Tool, kinds: str):
    red = case("test_x", "failure", message=f"{kinds}: its text", vlm_ci_failures=kinds)
    note = f"failed with {kinds.removeprefix('stall, ')} on attempt 1: not a flake"
    assert tool.merge(suite(red), suite(GREEN)) == 1
    assert xml.verdict(tool.cases["test_x"]) == "failure"
    assert tool.cases["test_x"].find("failure").text == f"{kinds}: its text"
    assert tool.of("test_x")["vlm_ci.note"] == note
    assert tool.of("test_x")["vlm_ci.history"] == "failed, passed"
    assert note in tool.out
    # a further merge of the merged file, with a further green attempt
    more = xml.write(tool.folder / "more.xml", suite(GREEN))
    assert tool("merge", "ALL.xml", more, "-o", "ALL.xml") == 1
    assert tool.of("test_x")["vlm_ci.note"] == note
    assert tool.of("test_x")["vlm_ci.history"] == "failed, passed, passed"


def test_another_failure_does_not_hide_a_verdict(tool: Tool):
    red = case("test_x", "failure", message="mismatch: text", vlm_ci_failures="mismatch")
    assert tool.merge(suite(red), suite(RED), suite(GREEN)) == 1
    assert tool.cases["test_x"].find("failure").get("message") == "mismatch: text"
    assert tool.cases["test_x"].find("rerunFailure").get("message") == "assert 0"
    assert tool.merge(suite(red), suite(RED)) == 1
    more = xml.write(tool.folder / "more.xml", suite(GREEN))
    assert tool("merge", "ALL.xml", more, "-o", "ALL.xml") == 1
    assert tool.of("test_x")["vlm_ci.note"] == "failed with mismatch on attempt 1: not a flake"


def test_what_may_be_the_machines_may_be_retried(tool: Tool):
    assert set(KINDS) > rules.RETRIABLE
    for kind in sorted(rules.RETRIABLE):
        red = case("test_x", "failure", vlm_ci_failures=kind)
        assert tool.merge(suite(red), suite(GREEN)) == 0, kind


CRASH = "worker 'gw0' crashed while running 'tests/test_a.py::test_x'"
STATED = {
    "runner-lost": "The runner has received a shutdown signal.",
    "interrupted": identity.STOPPED,
    "gpu-out-of-memory": OOM,
    "host-out-of-memory": "MemoryError: Unable to allocate 8 GiB",
    "disk-full": "OSError: [Errno 28] No space left on device",
    "driver": "RuntimeError: No CUDA GPUs are available",
    "worker-crashed": f'failed on setup with "{CRASH}"',
}


@pytest.mark.parametrize("rule", [name for name, _, _ in rules.RULES])
def test_infrastructure_is_told_apart_by_rule(tool: Tool, rule: str):
    broken = case("test_x", "error", message=STATED[rule])
    assert tool.merge(suite(broken, case("test_y", "failure"))) == 1
    assert f"infrastructure tests/test_a.py::test_x: rule {rule} matched" in tool.out
    assert tool.of("test_x")["vlm_ci.infrastructure"].startswith(f"{rule}: ")
    assert "vlm_ci.infrastructure" not in tool.of("test_y")
    assert tool("failed", "ALL.xml") == 0
    assert tool.out == "tests/test_a.py::test_x\ntests/test_a.py::test_y\n"
    assert tool("failed", "ALL.xml", "--infrastructure") == 0
    assert tool.out == "tests/test_a.py::test_x\n"
    assert tool("failed", "ALL.xml", "--product") == 0
    assert tool.out == "tests/test_a.py::test_y\n"
    assert tool.merge(suite(broken), suite(GREEN)) == 0
    assert "flaky" not in tool.out + str(tool.of("test_x"))
    assert (
        f"recovered      tests/test_a.py::test_x: infrastructure: {rule} on attempt 1" in tool.out
    )


SOURCE = f"    raise Error('{OOM}')\nE   ValueError: 3"
PRODUCT = {
    "an assertion": case("test_x", "failure", message=f"AssertionError: assert {OOM!r} in text"),
    "source code": case("test_x", "failure", message="ValueError: 3", text=SOURCE),
    "one of two": case("test_x", "error", message=OOM, extra='<failure message="assert 0"/>'),
    "a verdict": case("test_x", "failure", message=OOM, vlm_ci_failures="mismatch"),
    "an illegal access": case("test_x", "failure", message="CUDA error: an illegal memory access"),
}


@pytest.mark.parametrize("name", PRODUCT)
def test_what_only_looks_like_infrastructure_is_the_products(tool: Tool, name: str):
    assert tool.merge(suite(PRODUCT[name])) == 1
    assert "infrastructure" not in tool.out + str(tool.of("test_x"))


# -- what is missing -------------------------------------------------------------------------------


def test_an_expected_test_that_is_missing_is_a_failure(tool: Tool, folder: Path):
    odd = 'tests/test_a.py::TestA::test_p[it\'s "a b" x::y/z.py]'
    (folder / "expect.txt").write_text(f"tests/test_a.py::test_x\n{odd}\n\n2 tests collected\n")
    assert tool.merge(suite(GREEN), options=("--expect", "expect.txt")) == 1
    assert f"missing        {odd}" in tool.out
    whole = xml.root(folder / "ALL.xml")
    assert (whole.get("tests"), whole.get("errors")) == ("2", "1")
    assert tool("failed", "ALL.xml") == 0
    assert tool.out == f"{odd}\n"
    late = case('test_p[it\'s "a b" x::y/z.py]', where="tests.test_a.TestA")
    late_file = xml.write(folder / "late.xml", suite(late))
    assert tool("merge", "ALL.xml", late_file, "-o", "ALL.xml") == 0
    assert len(tool.cases) == 2


def test_a_missing_shard_is_a_failure_that_names_it(tool: Tool, folder: Path):
    one = suite(case("test_1"), vlm_ci__shard="1/3")
    three = suite(case("test_3", vlm_ci__shard="3/3"))  # as pytest-xdist lets it through
    for options in ((), ("--shards", "3")):
        assert tool.merge(one, three, options=options) == 1
        assert "missing shard  2/3" in tool.out
    assert "shard 2/3 has no file" in tool.cases["2/3"].find("error").get("message")
    assert tool("failed", "ALL.xml") == 0
    assert tool.out == ""
    assert "shard 2/3 has no file: run it again as a whole" in tool.err
    two = xml.write(folder / "two.xml", suite(case("test_2"), vlm_ci__shard="2/3"))
    assert tool("merge", "ALL.xml", two, "-o", "ALL.xml") == 0
    assert set(tool.cases) == {"test_1", "test_2", "test_3"}


def test_a_module_that_could_be_collected_later(tool: Tool):
    red = case("tests.test_a", "error", message="collection failure", where="")
    other = suite(GREEN, vlm_ci__shard="2/2", vlm_ci__attempt="2")
    first = suite(red, vlm_ci__shard="1/2", vlm_ci__attempt="1")
    assert tool.merge(first, other) == 1  # another shard proves nothing
    assert tool("failed", "ALL.xml") == 0
    assert tool.out == "tests/test_a.py\n"
    assert tool.merge(first, other, suite(GREEN, vlm_ci__shard="1/2", vlm_ci__attempt="2")) == 0
    assert tool.of("tests.test_a")["vlm_ci.history"] == "error, passed"


# -- node ids --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "file", "present", "nodeid"),
    [
        ("tests.test_a", "", (), "tests/test_a.py::test_x"),
        ("tests.test_a.TestA.TestB", "", (), "tests/test_a.py::TestA::TestB::test_x"),
        ("Tests.test_a.testsOf", "", ("Tests/test_a.py",), "Tests/test_a.py::testsOf::test_x"),
        ("docs.page.md", "", ("docs/page.md",), "docs/page.md::test_x"),
        ("tests.v3.11.test_a", "tests/v3.11/test_a.py", (), "tests/v3.11/test_a.py::test_x"),
        # inherited from another file, which pytest names
        ("tests.test_a.TestA", "base.py", ("tests/test_a.py",), "tests/test_a.py::TestA::test_x"),
        ("test_a.TestA", "sub/test_a.py", (), "sub/test_a.py::TestA::test_x"),
        ("TestA", "sub/test_a.py", (), "sub/test_a.py::TestA::test_x"),
    ],
)
def test_node_ids(tool: Tool, where: str, file: str, present: tuple[str, ...], nodeid: str):
    for name in present:
        Path(name).parent.mkdir()
        Path(name).touch()
    xml.write(Path("one.xml"), suite(case("test_x", "failure", where=where, file=file)))
    assert tool("failed", "one.xml") == 0
    assert tool.out == f"{nodeid}\n"


def test_one_name_in_two_files_is_two_tests(tool: Tool):
    def one(outcome: str, file: str) -> str:
        return case("test_x", outcome, where="test_a", file=file)

    both = suite(one("failure", "a/test_a.py"), one("failure", "b/test_a.py"))
    assert tool.merge(both, suite(one("passed", "b/test_a.py"))) == 1
    assert tool("failed", "ALL.xml") == 0
    assert tool.out == "a/test_a.py::test_x\n"


def test_a_case_without_a_file_is_the_one_that_has_its_name(tool: Tool):
    inherited = case("test_x", "failure", where="tests.test_a.TestA", file="lib/base.py")
    assert tool.merge(suite(inherited), suite(case("test_x", where="tests.test_a.TestA"))) == 0
    assert tool.of("test_x")["vlm_ci.history"] == "failed, passed"


def test_nothing_is_printed_where_nothing_failed(tool: Tool):
    xml.write(Path("one.xml"), suite(GREEN, case("test_s", "skipped")))
    assert tool("failed", "one.xml") == 0
    assert (tool.out, tool.err) == ("", "")


# -- size and speed --------------------------------------------------------------------------------


def test_ten_thousand_cases_are_merged_fast_and_none_is_lost(tool: Tool, folder: Path):
    def some(numbers: range, outcome: str) -> list[str]:
        return [case(f"test_{n}[a b]", outcome, where=f"tests.test_{n % 90}") for n in numbers]

    names = [
        xml.write(folder / f"{first}.xml", suite(*some(range(first, 10_000, 3), "failure"), at=1))
        for first in range(3)
    ]
    names.append(xml.write(folder / "again.xml", suite(*some(range(0, 10_000, 4), "passed"), at=2)))
    started = time.process_time()  # this process alone: other tests share the cores
    assert tool("merge", *names, "-o", "ALL.xml") == 1
    seconds = time.process_time() - started
    assert tool.cases.keys() == {f"test_{n}[a b]" for n in range(10_000)}
    whole = xml.root(folder / "ALL.xml")
    assert (whole.get("tests"), whole.get("failures")) == ("10000", "7500")
    assert "10000 tests from 4 files: 2500 passed, 7500 failed, 0 skipped, 2500 flaky" in tool.out
    assert seconds < 5


def test_it_starts_fast_and_loads_neither_torch_nor_pytest(folder: Path):
    xml.write(folder / "one.xml", suite(GREEN))
    script = (
        "import sys; from vlm_ci.cli import main; code = main(['junit', 'failed', 'one.xml']);"
        "print([n for n in ('torch', 'transformers', 'hypothesis', 'pytest', 'msgspec')"
        " if n in sys.modules]); sys.exit(code)"
    )
    seconds = []
    for _ in range(5):
        started = os.times()
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        ended = os.times()
        seconds.append(ended.children_user - started.children_user)
        assert done.stdout == "[]\n"
    assert min(seconds) < 0.5


# -- the page --------------------------------------------------------------------------------------


def test_the_page_shows_what_happens(tool: Tool, folder: Path):
    page = (ROOT / "docs/junit.md").read_text()
    red = case("test_mixed[a b]", "failure", message="recompile: x", vlm_ci_failures="recompile")
    first = suite(
        red, case("test_load", "error", message=OOM), case("test_order", "failure"),
        case("test_size"), vlm_ci__shard="1/2", vlm_ci__commit="5d1f0c2", at=1,
    )  # fmt: skip
    again = suite(
        *(case(name) for name in ("test_mixed[a b]", "test_order")),
        case("test_load", "error", message=OOM), vlm_ci__commit="5d1f0c2", at=2,
    )  # fmt: skip
    xml.write(folder / "shard-1.xml", first)
    xml.write(folder / "again.xml", again)
    blocks = re.findall(r"^```console\n\$ vlm-ci junit (.*?)\n(.*?)^```$", page, re.DOTALL | re.M)
    assert [command.split()[0] for command, _ in blocks] == ["merge", "failed"]
    for command, shown in blocks:
        assert tool(*command.split()) in (0, 1)
        assert tool.out == shown


def test_the_page_lists_every_rule_and_retriable_kind():
    page = (ROOT / "docs/junit.md").read_text()
    assert re.findall(r"^\| `([\w-]+)` \| ", page, re.M) == [name for name, _, _ in rules.RULES]
    for name, meaning, _ in rules.RULES:
        assert f"| `{name}` | {meaning} |" in page
    for kind in rules.RETRIABLE:
        assert f"`{kind}`" in page
