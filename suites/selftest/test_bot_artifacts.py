"""Artifacts of a run, which anybody's code may have written."""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from pathlib import Path

import pytest
from fake_github import zipped

from vlm_ci.bot import artifacts

CASE = '<testcase classname="tests.test_a" name="{name}">{inside}</testcase>'
KIND = '<properties><property name="vlm_ci_failures" value="{}"/></properties>'
FAIL = '<failure message="{0}">E  {0}</failure>'


def junit(inside: str = "", name: str = "test_x") -> str:
    case = CASE.format(name=name, inside=inside)
    return f'<testsuites><testsuite name="pytest">{case}</testsuite></testsuites>'


@pytest.mark.parametrize(
    ("inside", "kind"),
    [
        (KIND.format("recompile") + FAIL.format("x"), "real"),
        (KIND.format("crash, mismatch") + FAIL.format("x"), "real"),
        (KIND.format("crash") + FAIL.format("x"), "failed"),
        (FAIL.format("CUDA out of memory"), "infrastructure"),
        (FAIL.format("AssertionError"), "failed"),
        ("", "unknown"),
    ],
)
def test_the_cause(inside: str, kind: str):
    assert artifacts.cause([("junit-1", zipped({"a.xml": junit(inside)}))]).kind == kind


def test_a_verdict_of_an_earlier_attempt_stays():
    first = junit(KIND.format("mismatch") + FAIL.format("x"))
    archives = [
        ("junit-1-attempt-2", zipped({"a.xml": junit()})),
        ("junit-1-attempt-1", zipped({"a.xml": first})),
    ]
    assert artifacts.cause(archives).kind == "real"


def test_no_artifact_no_cause():
    assert artifacts.cause([]) == artifacts.Cause(kind="unknown")


def _link() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        member = zipfile.ZipInfo("a.xml")
        member.external_attr = 0o120777 << 16
        archive.writestr(member, "/etc/passwd")
    return packed.getvalue()


def _encrypted() -> bytes:
    packed = bytearray(zipped({"a.xml": junit()}))
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        packed[packed.index(sign) + place] |= 1
    return bytes(packed)


def _broken(method: int, sign: bytes, place: int, value: bytes) -> bytes:
    """Return an archive with other bytes at a place after a sign."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        archive.writestr("\u00e4.xml", junit(FAIL.format("x")))
    content = bytearray(packed.getvalue())
    start = content.index(sign) + place
    content[start : start + len(value)] = value
    return bytes(content)


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (_broken(zipfile.ZIP_STORED, b"PK\x05\x06", 16, b"\xff\xff\xff\x7f"), "read as a zip file"),
        (_broken(zipfile.ZIP_STORED, b"PK\x01\x02", 46, b"\xff"), "read as a zip file"),
        (_broken(zipfile.ZIP_LZMA, b"PK\x03\x04", 60, b"\xff" * 9), "packed otherwise"),
        (b"no archive", "cannot be read as a zip file"),
        (b"", "cannot be read as a zip file"),
        (zipped({"a.xml": junit()})[:-30], "cannot be read as a zip file"),
        (zipped({"../a.xml": junit()}), "leads out of the folder"),
        (zipped({"/a.xml": junit()}), "leads out of the folder"),
        (zipped({"C:/a.xml": junit()}), "leads out of the folder"),
        (zipped({"a\\b.xml": junit()}), "leads out of the folder"),
        (_link(), "no plain file"),
        (_encrypted(), "encrypted"),
        (zipped({"a.xml": "<!DOCTYPE a><testsuites/>"}), "DOCTYPE"),
        (zipped({"a.xml": "<html/>"}), "not a JUnit file"),
        (zipped({"a.xml": "<testsuites>"}), "truncated"),
        (zipped({"a.xml": "\0"}), "not XML"),
    ],
)
def test_what_is_refused_is_said(packed: bytes, reason: str):
    cause = artifacts.cause([("junit-1", packed)])
    assert cause.kind == "unknown"
    assert reason in cause.says


def test_sizes_and_counts_have_an_end(monkeypatch: pytest.MonkeyPatch):
    bomb = zipped({"a.xml": " " * (artifacts.LARGEST_FILE + 1)})
    assert len(bomb) < 100_000
    assert "too large" in artifacts.cause([("junit-1", bomb)]).says
    monkeypatch.setattr(artifacts, "MOST_FILES", 2)
    many = zipped({f"{i}.xml": junit(FAIL.format("x"), f"test_{i}") for i in range(5)})
    cause = artifacts.cause([("junit-1", many)])
    assert "2 tests failed" in cause.says
    monkeypatch.setattr(artifacts, "LARGEST_RUN", 100)
    assert "too large" in artifacts.cause([("junit-1", zipped({"a.xml": junit()}))]).says
    monkeypatch.setattr(artifacts, "MOST_MEMBERS", 3)
    assert "more than 3 files" in artifacts.cause([("junit-1", many)]).says
    monkeypatch.setattr(artifacts, "MOST_ARCHIVES", 1)
    assert "more than 1 artifacts" in artifacts.cause([("a", b""), ("b", b"")]).says


def test_nothing_is_written_but_into_a_folder_that_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    name = "x/" * 40 + "-attempt-1.xml"
    assert artifacts.cause([("junit", zipped({name: junit(FAIL.format("x"))}))]).kind == "failed"
    assert list(tmp_path.iterdir()) == []


def test_names_in_an_artifact_are_shown_as_code():
    hostile = "`@all` &lt;!-- \u202e [a](b)"
    cause = artifacts.cause([("junit-1", zipped({"a.xml": junit(FAIL.format("x"), hostile)}))])
    assert "\u202e" not in cause.says
    assert "``tests/test_a.py::`@all` <!-- \\u202e [a](b)``" in cause.says


HOSTILE = "@all [a](https://evil.example) <!-- 1/2"


@pytest.mark.parametrize("where", ["suite", "case"])
@pytest.mark.parametrize("name", ["vlm_ci.shard", "vlm_ci.attempt", "vlm_ci.part", "vlm_ci.parts"])
@pytest.mark.parametrize(
    "value", [HOSTILE, "1/99999999999", "9" * 5000, "1/" + "9" * 5000], ids=range(4)
)
def test_what_a_property_says_is_shown_as_code_and_costs_nothing(where: str, name: str, value: str):
    value = value.replace("<", "&lt;")
    stated = f'<properties><property name="{name}" value="{value}"/></properties>'
    text = junit((stated if where == "case" else "") + FAIL.format("x"))
    if where == "suite":
        text = text.replace("<testcase", f"{stated}<testcase", 1)
    says = artifacts.cause([("junit-1", zipped({"a.xml": text}))]).says
    assert len(says) < 1000
    outside = re.sub(r"(?s)(`+)(?!`).*?(?<!`)\1(?!`)", "", says)
    assert "evil" not in outside
    assert tempfile.gettempdir() not in says


def test_what_was_not_fetched_is_said():
    packed = zipped({"a.xml": junit(FAIL.format("x"))})
    archives = [("junit-1", packed), ("junit-2", None), ("junit-3", None)]
    says = "2 artifacts more were not looked at: 256 MiB are read for one comment"
    cause = artifacts.cause(archives)
    assert cause.kind == "failed"
    assert cause.says == f"1 test failed: `tests/test_a.py::test_x`; {says}"
    assert artifacts.cause(archives[1:]).says == f"not read: {says}"


def test_a_file_of_very_many_failures_is_read_up_to_a_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(artifacts, "MOST_TESTS", 3)
    cases = "".join(CASE.format(name=f"t{i}", inside=FAIL.format("x")) for i in range(5))
    text = f'<testsuites><testsuite name="pytest">{cases}</testsuite></testsuites>'
    cause = artifacts.cause([("junit-1", zipped({"a.xml": text}))])
    assert cause.kind == "unknown"
    assert "has 5 tests, and of one run 3 are read" in cause.says
    one = zipped({"a.xml": junit(FAIL.format("x"))})
    few = artifacts.cause([("junit-1", one), ("junit-2", zipped({"b.xml": text}))])
    assert few.kind == "failed"
    assert "1 test failed" in few.says
