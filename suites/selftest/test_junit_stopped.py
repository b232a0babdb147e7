"""Merging the file of a session that was interrupted: the others count, and it is no silence."""

from __future__ import annotations

from pathlib import Path

import junit_files as xml
import pytest
from junit_files import case, suite

from vlm_ci.cli import main

pytest_plugins = ["pytester"]

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


def test_pytest_writes_such_a_file(pytester: pytest.Pytester, capsys):
    pytester.makepyfile("def test_1(): pass\ndef test_2(): raise KeyboardInterrupt")
    pytester.runpytest_subprocess("--junitxml=a.xml", "-p", "no:cacheprovider")
    assert main(["junit", "merge", "a.xml", "-o", "ALL.xml"]) == 1
    assert set(xml.cases(pytester.path / "ALL.xml")) == {"test_1", "interrupted session"}


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
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
