"""`vlm-ci junit` on files: what is refused, what survives, and real files of pytest."""

from __future__ import annotations

from pathlib import Path

import junit_files as xml
import pytest
from junit_files import case, suite

from vlm_ci.cli import main

pytest_plugins = ["pytester"]

BOMB = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol">'
    + "".join(
        f'<!ENTITY {new} "{f"&{old};" * 10}">'
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]><testsuites><testsuite name='&i;'/></testsuites>"
)
WHOLE = "<testsuites>" + suite(case("test_x", "failure")) + "</testsuites>"
REFUSED = {
    "empty": (b"", "the file is empty"),
    "blank": (b" \n", "the file is empty"),
    "entity bomb": (BOMB.encode(), "it has a DOCTYPE"),
    "doctype": (b"<!DOCTYPE testsuites><testsuites/>", "it has a DOCTYPE"),
    "doctype in UTF-16": ("<!DOCTYPE testsuites><testsuites/>".encode("utf-16"), "DOCTYPE"),
    "outside file": (
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><testsuites>&x;</testsuites>',
        "it has a DOCTYPE",
    ),
    "entity": (b"<testsuites>&x;</testsuites>", "it uses an entity that XML does not define"),
    "truncated": (WHOLE[:-30].encode(), "the XML is truncated"),
    "truncated in an attribute": (WHOLE[:60].encode(), "the XML is truncated"),
    "text": (b"12 passed in 3 s", "not XML: syntax error at line 1, column 1"),
    "bytes": (b"PK\x03\x04\x00\x00", "not XML"),
    "crossed": (b"<testsuites><a></testsuites></a>", "not XML: mismatched tag"),
    "two roots": (b"<testsuites/><testsuites/>", "not XML: junk after document element"),
    "page": (b"<html><body/></html>", "not a JUnit file: its root is <html>"),
    "coverage": (b'<coverage version="1"/>', "not a JUnit file: its root is <coverage>"),
    "namespace": (b'<j:testsuites xmlns:j="urn:x"/>', "its root is <j:testsuites>"),
    "deep": (b"<testsuite>" * 20_000 + b"</testsuite>" * 20_000, "50 levels deep"),
    "no name": (b"<testsuite><testcase/></testsuite>", "a <testcase> without a name"),
    "time": (
        b'<testsuite><testcase name="a" time="fast"/></testsuite>',
        "the time of a is no number",
    ),
    "nan": (b'<testsuite><testcase name="a" time="nan"/></testsuite>', "time of a is no number"),
    "shard": (suite(vlm_ci__shard="4/3").encode(), 'vlm_ci.shard must be "I/N"'),
    "attempt": (suite(vlm_ci__attempt="x").encode(), "vlm_ci.attempt must be a whole number"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for each test, with a file that is right."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.xml").write_text(WHOLE)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run the command, which has to refuse with one line, and return it."""
    assert main(["junit", *args]) == 4
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_one_message(folder: Path, capsys: pytest.CaptureFixture[str], name: str):
    content, words = REFUSED[name]
    (folder / "bad.xml").write_bytes(content)
    for command in (["merge", "good.xml", "bad.xml", "-o", "ALL.xml"], ["failed", "bad.xml"]):
        shown = refused(capsys, *command)
        assert shown.startswith("vlm-ci: bad.xml: ")
        assert words in shown
    assert not (folder / "ALL.xml").exists()


def test_wrong_arguments(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "counts.txt").write_text("tests/test_a.py: 3\n")
    (folder / "mixed.txt").write_text("tests/test_a.py::test_x\nnot one\n")
    merge = ("merge", "good.xml", "-o", "ALL.xml")
    wrong = {
        ("failed", "absent.xml"): "absent.xml: there is no such file",
        ("failed", "."): ".: cannot read it: Is a directory",
        ("merge", "good.xml", "./good.xml", "-o", "ALL.xml"): "good.xml is named twice",
        ("merge", "good.xml", "-o", "."): "-o .: a folder; name a file",
        ("merge", "good.xml", "-o", "good.xml/x"): "good.xml/x: cannot write it",
        (*merge, "--expect", "absent.txt"): "absent.txt: cannot read it as a list of node ids",
        (*merge, "--expect", "counts.txt"): "counts.txt has no node ids",
        (*merge, "--expect", "mixed.txt"): "mixed.txt: line 2 is no node id: 'not one'",
        (*merge, "--shards", "2"): "--shards 2: no file says which shard it is",
    }
    for command, words in wrong.items():
        assert words in refused(capsys, *command)
    xml.write(folder / "a.xml", suite(vlm_ci__shard="1/3"))
    xml.write(folder / "b.xml", suite(vlm_ci__shard="2/4"))
    shown = refused(capsys, "merge", "a.xml", "b.xml", "-o", "ALL.xml")
    assert "shards of different runs: 1/3 in a.xml, 2/4 in b.xml" in shown
    shown = refused(capsys, "merge", "a.xml", "--shards", "2", "-o", "ALL.xml")
    assert "--shards 2, but the files are shards of different runs: 1/3 in a.xml" in shown
    assert main(["junit", "marge"]) == 4
    assert "did you mean 'merge'" in capsys.readouterr().err


def test_nothing_ran_is_exit_code_5(folder: Path):
    xml.write(folder / "none.xml", suite())
    assert main(["junit", "merge", "none.xml", "-o", "ALL.xml"]) == 5


def test_texts_times_and_properties_survive(folder: Path):
    captured = "<system-out>o &lt;1&gt;</system-out><system-err>e é\t2</system-err>"
    kept = case("test_a", extra=captured, seconds=1.25, k="v & w", file="tests/test_a.py")
    red = case(
        "test_b", "failure", message="first\nsecond", text="line 1\n  line 2", extra=captured
    )
    xml.write(folder / "1.xml", suite(kept, red, at=1, host="one"))
    xml.write(folder / "2.xml", suite(case("test_b", seconds=2), at=2, host="two"))
    assert main(["junit", "merge", "1.xml", "2.xml", "-o", "new/ALL.xml"]) == 0
    merged = xml.cases(folder / "new/ALL.xml")
    first = merged["test_a"]
    assert (first.get("time"), first.get("file")) == ("1.25", "tests/test_a.py")
    assert xml.properties(first) == {"k": "v & w"}
    assert (first.findtext("system-out"), first.findtext("system-err")) == ("o <1>", "e é\t2")
    flaky = merged["test_b"].find("flakyFailure")
    assert flaky.findtext("stackTrace") == "line 1\n  line 2"
    assert flaky.findtext("system-out") == "o <1>"
    (one,) = xml.root(folder / "new/ALL.xml")
    assert (one.get("name"), one.get("tests"), one.get("time")) == ("pytest", "2", "3.25")
    assert one.get("timestamp") == "2026-01-01T00:00:01+00:00"
    hosts = [entry.get("value") for entry in one.iterfind("properties/property")]
    assert hosts == ["one", "two"]


def test_merging_step_by_step_is_merging_at_once(folder: Path):
    green, red = case("test_x"), case("test_x", "failure")
    parts = [
        suite(red, case("test_y"), at=1, vlm_ci__commit="abc"),
        suite(case("test_z"), at=9, vlm_ci__commit="abc"),
        suite(red, at=5, vlm_ci__commit="abc"),  # started before the other shard
        suite(green, at=12, vlm_ci__commit="abc"),
    ]
    names = [xml.write(folder / f"{n}.xml", part) for n, part in enumerate(parts)]
    assert main(["junit", "merge", *names, "-o", "once.xml"]) == 0
    assert main(["junit", "merge", *names[:2], "-o", "steps.xml"]) == 1
    for name in names[2:]:
        main(["junit", "merge", "steps.xml", name, "-o", "steps.xml"])
    once, steps = xml.cases(folder / "once.xml"), xml.cases(folder / "steps.xml")
    assert once.keys() == steps.keys()
    for name in once:
        assert xml.verdict(once[name]) == xml.verdict(steps[name])
        assert len(once[name].findall("flakyFailure")) == len(steps[name].findall("flakyFailure"))
    assert xml.properties(once["test_x"])["vlm_ci.history"] == "failed, failed, passed"
    assert xml.properties(steps["test_x"])["vlm_ci.history"] == "failed, failed, passed"
    assert "both on commit abc" in xml.properties(steps["test_x"])["vlm_ci.flaky"]
    # an attempt that comes late, but ran before, changes nothing
    late = xml.write(folder / "late.xml", suite(red, at=3, vlm_ci__commit="abc"))
    assert main(["junit", "merge", "steps.xml", late, "-o", "steps.xml"]) == 0
    assert len(xml.cases(folder / "steps.xml")["test_x"].findall("flakyFailure")) == 3


def test_a_merged_file_keeps_number_and_commit_of_each_test(folder: Path):
    red, green = case("test_x", "failure"), case("test_x")
    first = xml.write(folder / "1.xml", suite(red, vlm_ci__attempt="1", vlm_ci__commit="abc"))
    third = xml.write(folder / "3.xml", suite(red, vlm_ci__attempt="3", vlm_ci__commit="def"))
    assert main(["junit", "merge", first, third, "-o", "ALL.xml"]) == 1
    second = xml.write(folder / "2.xml", suite(green, vlm_ci__attempt="2", vlm_ci__commit="def"))
    assert main(["junit", "merge", "ALL.xml", second, "-o", "two.xml"]) == 1
    fourth = xml.write(folder / "4.xml", suite(green, vlm_ci__attempt="4", vlm_ci__commit="xyz"))
    assert main(["junit", "merge", "ALL.xml", fourth, "-o", "four.xml"]) == 0
    assert "vlm_ci.flaky" not in xml.properties(xml.cases(folder / "four.xml")["test_x"])


# -- real files ------------------------------------------------------------------------------------

PROJECT = """
import pytest

@pytest.fixture
def bad():
    yield
    raise RuntimeError("teardown")

@pytest.mark.parametrize("p", ["a b", "it's \\"q\\"", "x::y/z.py", "é[1]", "\\x1b", "a&b<c>"])
def test_p(p):
    print("seen", p)
    assert p in ("a b",)

class TestOuter:
    class TestInner:
        def test_deep(self): pass

def test_teardown(bad): assert 0

@pytest.mark.xfail
def test_xfail(): assert 0

@pytest.mark.skip(reason="no")
def test_skip(): pass

class Base:
    def test_inherited(self): assert 0
"""
SHARDING = """
import os

def pytest_runtest_setup(item):
    if "SHARD" in os.environ:
        item.user_properties.append(("vlm_ci.shard", os.environ["SHARD"]))
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with names and outcomes of every sort; the current folder is its own."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeconftest(SHARDING)
    for name, content in (
        ("unit/test_odd.py", PROJECT),
        ("unit/test_inherits.py", "from test_odd import Base\nclass TestHere(Base): pass\n"),
    ):
        path = pytester.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return pytester


OPTIONS = ("-p", "no:cacheprovider", "-p", "no:vlm_ci", "-q")


def collected(project: pytest.Pytester) -> list[str]:
    shown = project.runpytest_inprocess("--collect-only", *OPTIONS)
    (project.path / "expect.txt").write_text(shown.stdout.str(), encoding="utf-8")
    return [line for line in shown.outlines if "::" in line]


def outcomes(path: Path) -> dict[tuple[str, str], str]:
    """Return the worst verdict of each test: pytest writes two cases where a teardown fails."""
    found: dict[tuple[str, str], str] = {}
    for one in xml.root(path).iter("testcase"):
        found.setdefault((one.attrib["classname"], one.attrib["name"]), xml.verdict(one))
    return found


@pytest.mark.parametrize("family", ["xunit1", "xunit2"])
def test_three_shards_are_one_run(
    project: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    family: str,
):
    options = (*OPTIONS, "-o", f"junit_family={family}")
    ids = collected(project)
    assert len(ids) == 11
    project.runpytest_inprocess(*options, "--junitxml=whole.xml")
    for shard in range(3):
        monkeypatch.setenv("SHARD", f"{shard + 1}/3")
        project.runpytest_inprocess(*options, f"--junitxml={shard}.xml", *ids[shard::3])
    merge = ["junit", "merge", "-o", "ALL.xml", "--expect", "expect.txt"]
    assert main([*merge, "0.xml", "1.xml", "2.xml"]) == 1
    assert outcomes(Path("ALL.xml")) == outcomes(Path("whole.xml"))
    assert len(xml.cases(Path("ALL.xml"))) == 11
    # what failed, run again as it is printed
    capsys.readouterr()
    assert main(["junit", "failed", "ALL.xml"]) == 0
    failed = capsys.readouterr().out.splitlines()
    broken = {key for key, verdict in outcomes(Path("ALL.xml")).items() if verdict == "failure"}
    assert len(failed) == len(broken) == 7
    again = project.runpytest_inprocess(*options, "--junitxml=again.xml", *failed)
    again.assert_outcomes(failed=7, errors=1)
    assert outcomes(Path("again.xml")).keys() == broken
    # one shard is lost
    capsys.readouterr()
    assert main([*merge, "0.xml", "2.xml"]) == 1
    shown = capsys.readouterr().out
    assert "missing shard  2/3" in shown
    assert [line[15:] for line in shown.splitlines() if line.startswith("missing  ")] == ids[1::3]


def test_a_worker_that_died_is_the_infrastructures(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SHARD", "1/2")
    project.makepyfile(
        test_dies="import os\ndef test_lives(): pass\ndef test_dies(): os._exit(3)\n"
    )
    project.runpytest_inprocess(*OPTIONS, "-n1", "--junitxml=one.xml", "test_dies.py")
    capsys.readouterr()
    assert main(["junit", "failed", "--infrastructure", "one.xml"]) == 0
    assert capsys.readouterr().out == "test_dies.py::test_dies\n"
    assert main(["junit", "failed", "--product", "one.xml"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "shard 2/2 has no file" in shown.err  # the property of a test survives xdist


def test_a_module_that_cannot_be_collected_is_run_again(
    project: pytest.Pytester, capsys: pytest.CaptureFixture[str]
):
    (project.path / "unit/test_broken.py").write_text("import no_such_module\n")
    project.runpytest_inprocess(*OPTIONS, "--junitxml=one.xml")
    capsys.readouterr()
    assert main(["junit", "failed", "one.xml"]) == 0
    assert capsys.readouterr().out == "unit/test_broken.py\n"
