"""Merging a test that is split over shards: its parts are one test, and no attempts."""

from __future__ import annotations

from pathlib import Path

import junit_files as xml
import pytest
from junit_files import case, suite

from vlm_ci.cli import main


def part(index: int, outcome: str = "passed", *, attempt: int = 1, of: int = 3, **more: str) -> str:
    """Return the suite of one shard, with its part of a test."""
    stated = {"vlm_ci__shard": f"{index}/{of}", "vlm_ci__part": f"{index}/{of}", **more}
    stated |= {"vlm_ci__attempt": str(attempt), "vlm_ci__commit": "abc"}
    one = case("test_x", **stated) if outcome == "passed" else case("test_x", outcome, **stated)
    return suite(one, vlm_ci__shard=f"{index}/{of}", vlm_ci__attempt=str(attempt))


@pytest.fixture
def merge(tmp_path: Path, monkeypatch, capsys):
    """A function that merges suites, and returns exit code, the one case, and what was said."""
    monkeypatch.chdir(tmp_path)

    def run(*suites: str, names: tuple[str, ...] = (), out: str = "ALL.xml"):
        files = [xml.write(tmp_path / f"{i}.xml", one) for i, one in enumerate(suites)]
        capsys.readouterr()
        code = main(["junit", "merge", *names, *files, "-o", out])
        found = list(xml.root(tmp_path / out).iter("testcase"))
        (test,) = [one for one in found if one.get("name") == "test_x"]
        return code, test, capsys.readouterr().out

    return run


def test_parts_that_pass_are_one_test_that_passes(merge):
    code, test, out = merge(part(1), part(2), part(3))
    assert (code, xml.verdict(test)) == (0, "passed")
    assert "1 tests from 3 files: 1 passed, 0 failed" in out
    assert float(test.get("time")) > float(xml.root(Path("0.xml")).find(".//testcase").get("time"))


@pytest.mark.parametrize("red", [1, 2, 3])
def test_one_part_that_fails_fails_the_test_and_is_not_flaky(merge, red: int):
    parts = [part(i, "failure" if i == red else "passed") for i in (1, 2, 3)]
    code, test, out = merge(*parts)
    assert (code, xml.verdict(test)) == (1, "failure")
    assert "flaky" not in out
    assert "vlm_ci.history" not in xml.properties(test)


def test_a_part_that_is_missing_fails_the_test_until_it_is_there(merge):
    code, test, out = merge(part(1), part(3), out="two.xml")
    assert (code, xml.verdict(test)) == (1, "error")
    assert "missing: part 2/3 of tests/test_a.py::test_x is in no file" in out
    code, test, _ = merge(part(2), names=("two.xml",))
    assert (code, xml.verdict(test)) == (0, "passed")


def test_a_part_that_passes_in_its_rerun_is_flaky_on_one_commit(merge):
    again = (part(1), part(2, "failure"), part(3), part(2, attempt=2))
    code, test, out = merge(*again)
    assert (code, xml.verdict(test)) == (0, "passed")
    said = "part 2/3: failed on attempt 1, passed on attempt 2; both on commit abc"
    assert xml.properties(test)["vlm_ci.flaky"] == said
    assert said in out
    assert test.find("flakyFailure") is not None


def test_a_merged_file_is_merged_further_as_if_at_once(merge):
    merge(part(1), part(2, "failure"), part(3), out="first.xml")
    code, test, _ = merge(part(2, attempt=2), names=("first.xml",))
    assert (code, xml.verdict(test)) == (0, "passed")
    assert "part 2/3: failed on attempt 1" in xml.properties(test)["vlm_ci.flaky"]


def test_a_verdict_of_one_part_stays_whatever_a_rerun_says(merge):
    red = part(2, "failure", vlm_ci_failures="mismatch")
    for names, files in (((), (part(1), red, part(3), part(2, attempt=2))),):
        code, test, out = merge(*files, names=names)
        assert (code, xml.verdict(test)) == (1, "failure")
        assert "part 2/3: failed with mismatch on attempt 1: not a flake" in out
    merge(part(1), red, part(3), out="first.xml")
    code, test, _ = merge(part(2, attempt=2), part(1, attempt=2), names=("first.xml",))
    assert (code, xml.verdict(test)) == (1, "failure")


def test_a_rerun_of_the_whole_test_is_an_attempt_of_each_part(merge):
    whole = suite(case("test_x", vlm_ci__attempt="2", vlm_ci__commit="abc"), vlm_ci__attempt="2")
    code, test, _ = merge(part(1), part(2, "failure"), whole)
    assert (code, xml.verdict(test)) == (1, "passed")  # 1: shard 3 has no file at all
    assert "part 2/3: failed on attempt 1" in xml.properties(test)["vlm_ci.flaky"]


def test_a_worker_that_died_without_a_word_has_the_part_of_its_shard(merge):
    dead = suite(case("test_x", "error"), vlm_ci__shard="2/3", vlm_ci__attempt="1")
    code, test, out = merge(part(1), dead, part(3), part(2, attempt=2))
    assert (code, xml.verdict(test)) == (0, "passed")
    assert "part 2/3: failed on attempt 1" in out or "part 2/3" in out
    code, test, _ = merge(part(1), dead, part(3))
    assert (code, xml.verdict(test)) == (1, "error")


def test_parts_of_different_splits_are_refused(merge, tmp_path: Path, capsys):
    merge(part(1), part(2), part(3), out="three.xml")
    two = suite(case("test_x", vlm_ci__part="1/2"))
    capsys.readouterr()
    xml.write(tmp_path / "two.xml", two)
    assert main(["junit", "merge", "three.xml", "two.xml", "-o", "ALL.xml"]) == 4
    assert "was split in different ways: 1/2, 1/3, 2/3, 3/3" in capsys.readouterr().err


def test_a_damaged_record_of_parts_is_one_message(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    xml.write(tmp_path / "a.xml", suite(case("test_x", vlm_ci__parts="[[[")))
    assert main(["junit", "merge", "a.xml", "-o", "ALL.xml"]) == 4
    assert "a.xml: vlm_ci.parts of test_x is broken" in capsys.readouterr().err


def test_a_part_that_is_skipped_proves_nothing_and_an_expected_failure_stands(merge):
    code, test, out = merge(part(1), part(2, "skipped"), part(3))
    assert (code, xml.verdict(test)) == (0, "passed")
    assert "skipped part   tests/test_a.py::test_x: part 2/3 was skipped, which proves" in out
    code, test, out = merge(*(part(i, "skipped") for i in (1, 2, 3)))
    assert (code, xml.verdict(test)) == (0, "skipped")
    assert "skipped part" not in out
    code, test, _ = merge(part(1), part(2, "xfailed"), part(3))
    assert (code, xml.verdict(test)) == (0, "skipped")
