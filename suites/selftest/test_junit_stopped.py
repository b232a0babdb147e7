"""Merging the file of a session that was interrupted: the others count, and it is no silence."""

from __future__ import annotations

from pathlib import Path

import junit_files as xml
import pytest
from junit_files import case, suite

from vlm_ci.cli import main

pytest_plugins = ["pytester"]

ONE_WORKER_BY_NIGHT = pytest.mark.parametrize(
    "workers", [(), pytest.param(("-n1",), marks=pytest.mark.nightly)], ids=["alone", "xdist"]
)
STOPPED = '<testcase time="0.000"/>'  # what pytest writes of the test that was running
NAME = "interrupted session of shard 1/2"


def of(index: int, attempt: int, *some: str) -> str:
    """Return the suite of one of two shards."""
    return suite(*some, vlm_ci__shard=f"{index}/2", vlm_ci__attempt=str(attempt))


FIRST, OTHER = of(1, 1, case("test_1"), STOPPED, STOPPED), of(2, 1, case("test_4"))


@pytest.fixture
def merge(tmp_path: Path, monkeypatch, capsys):
    """A function that merges suites, and returns exit code, names of cases, and what was said."""
    monkeypatch.chdir(tmp_path)

    def run(*suites: str):
        files = [xml.write(tmp_path / f"{i}.xml", one) for i, one in enumerate(suites)]
        capsys.readouterr()
        code = main(["junit", "merge", *files, "-o", "ALL.xml"])
        return code, set(xml.cases(tmp_path / "ALL.xml")), capsys.readouterr().out

    return run


def test_an_interrupted_session_fails_and_the_others_count(merge, capsys):
    code, names, out = merge(FIRST, OTHER)
    assert (code, names) == (1, {"test_1", "test_4", NAME})
    assert f"infrastructure {NAME}: rule interrupted matched" in out
    assert main(["junit", "failed", "ALL.xml"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"vlm-ci: {NAME}: run it again as a whole\n")
    assert main(["junit", "merge", "ALL.xml", "-o", "again.xml"]) == 1
    assert set(xml.cases(Path("again.xml"))) == names


def test_it_has_recovered_when_its_shard_was_run_again_as_a_whole(merge):
    whole = (case("test_1"), case("test_2"))
    assert merge(FIRST, OTHER, of(1, 2, case("test_1")))[0] == 1  # what never ran is not there
    assert merge(FIRST, OTHER, of(2, 2, *whole))[0] == 1
    assert merge(FIRST, OTHER, of(1, 1, *whole))[0] == 1
    assert merge(FIRST, OTHER, of(1, 2, *whole, STOPPED))[0] == 1
    code, names, out = merge(FIRST, OTHER, of(1, 2, *whole))
    assert (code, names) == (0, {"test_1", "test_2", "test_4", NAME})
    assert f"recovered      {NAME}: infrastructure: interrupted on attempt 1" in out
    assert "flaky" not in out


def test_a_process_that_died_while_it_served_a_session_is_the_product_s(merge):
    died = "worker 'gw0' crashed while running 'tests/test_a.py::test_x'"
    red = case("test_x", "error", message=died, vlm_ci_failures="crash")
    green = case("test_x")
    out = merge(suite(red))[2]
    assert "failed         tests/test_a.py::test_x" in out
    code, _, out = merge(suite(red), suite(green))
    assert code == 0
    assert "flaky          tests/test_a.py::test_x: failed on attempt 1" in out
    starved = case("test_x", "error", message=xml.OOM, vlm_ci_failures="crash")
    assert (
        "infrastructure: gpu-out-of-memory on attempt 1" in merge(suite(starved), suite(green))[2]
    )


def test_pytest_writes_such_a_file(pytester: pytest.Pytester, capsys):
    pytester.makepyfile("def test_1(): pass\ndef test_2(): raise KeyboardInterrupt")
    pytester.runpytest_subprocess("--junitxml=a.xml", "-p", "no:cacheprovider")
    assert main(["junit", "merge", "a.xml", "-o", "ALL.xml"]) == 1
    assert set(xml.cases(pytester.path / "ALL.xml")) == {"test_1", "interrupted session"}


@ONE_WORKER_BY_NIGHT
def test_a_shard_that_ended_in_its_collection_is_missing(
    pytester: pytest.Pytester, monkeypatch, capsys, workers: tuple[str, ...]
):
    pytester.makepyfile(test_a="def test_1(): pass", test_b="def test_2(): pass")
    pytester.makeconftest(
        "import os, pytest\n"
        "def pytest_collection_modifyitems():\n"
        "    if 'ENDS' in os.environ: raise pytest.UsageError('no')\n"
    )
    options = ("-p", "no:cacheprovider", *workers)
    for index in (1, 2, 3):  # nothing is left for the third, and that is no failure
        pytester.runpytest_subprocess(f"--vlm-shard={index}/3", f"--junitxml={index}.xml", *options)
    assert main(["junit", "merge", "1.xml", "2.xml", "3.xml", "-o", "ALL.xml"]) == 0
    monkeypatch.setenv("ENDS", "1")
    pytester.runpytest_subprocess("--vlm-shard=2/3", "--junitxml=2.xml", *options)
    capsys.readouterr()
    assert main(["junit", "merge", "1.xml", "2.xml", "3.xml", "-o", "ALL.xml"]) == 1
    assert "missing shard  2/3" in capsys.readouterr().out


def test_tests_that_a_session_did_not_come_to_are_missed(merge):
    """A session that is stopped between two tests writes a file like any other."""
    stopped = suite(case("test_1"), vlm_ci__shard="1/2", vlm_ci__attempt="1", vlm_ci__tests="3")
    code, names, out = merge(stopped, OTHER)
    assert (code, names) == (1, {"test_1", "test_4", NAME})
    assert "the session ended early: 2 of its 3 tests are in no file" in out
    assert "infrastructure" not in out
    whole = [case(f"test_{number}") for number in (1, 2, 3)]
    again = suite(*whole, vlm_ci__shard="1/2", vlm_ci__attempt="2", vlm_ci__tests="3")
    assert merge(stopped, OTHER, again)[0] == 0
    assert main(["junit", "merge", "ALL.xml", "-o", "again.xml"]) == 0  # of several shards


@ONE_WORKER_BY_NIGHT
def test_a_session_states_how_many_tests_it_set_out_to_run(
    pytester: pytest.Pytester, capsys, workers: tuple[str, ...]
):
    pytester.makepyfile("def test_1(): pass\ndef test_2(): assert 0\ndef test_3(): pass")
    options = ("--vlm-commit=abc", "--junitxml=a.xml", "-p", "no:cacheprovider", *workers)
    pytester.runpytest_subprocess(*options)
    assert main(["junit", "merge", "a.xml", "-o", "ALL.xml"]) == 1
    assert "ended early" not in capsys.readouterr().out
    assert 'name="vlm_ci.tests" value="3"' in (pytester.path / "a.xml").read_text()
    pytester.runpytest_subprocess(*options, "-x", "-k", "test_2 or test_3")
    assert main(["junit", "merge", "a.xml", "-o", "ALL.xml"]) == 1
    early = "the session ended early: 1 of its 2 tests are in no file"
    assert early in capsys.readouterr().out
    pytester.runpytest_subprocess("--vlm-shard=1/1", "--collect-only", *options)
    assert main(["junit", "merge", "--shards", "1", "a.xml", "-o", "ALL.xml"]) != 0
