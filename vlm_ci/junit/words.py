"""What a merge says. Pure: records in, lines of text out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_ci.junit.judging import ASSUMED
from vlm_ci.junit.records import COMMIT, ERROR, FAILED, PASSED, SKIPPED, XFAILED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vlm_ci.junit.records import Merged, Test
    from vlm_ci.report.markdown import TestNote

MOST = 50  # lines of one sort; the file has all
WIDTH = 120


def summary(merged: Merged, out: str) -> list[str]:
    """Return what a merge found: a line for each test that needs a look, then the counts."""
    tests = merged.tests
    product = [test for test in tests if test.broken and not (test.rule or test.missing)]
    lines = _block("missing shard", [test.case.name for test in tests if test.missing == "shard"])
    lines += _block("missing", [test.nodeid for test in tests if test.missing == "test"])
    lines += _block("failed", [f"{_name(test)}: {_why(test)}" for test in product])
    lines += _block(
        "infrastructure",
        [
            f"{_name(test)}: rule {test.rule} matched {test.matched!r}"
            for test in tests
            if test.broken and test.rule
        ],
    )
    lines += _block("flaky", [f"{_name(test)}: {test.flaky}" for test in tests if test.flaky])
    lines += _block(
        "recovered", [f"{_name(test)}: {test.note}" for test in tests if test.recovered]
    )
    lines += _block(
        "skipped part", [f"{_name(test)}: {test.unproven}" for test in tests if test.unproven]
    )
    if any(ASSUMED in test.flaky for test in tests):
        lines.append(_line("note", f"a file states its commit by the property {COMMIT}"))
    if merged.unexpected:
        lines.append(
            _line("note", f"{merged.unexpected} tests are not in the list of expected ones")
        )
    lines.append(_line("merged", _counts(merged)))
    lines.append(_line("written", out))
    return lines


def notes(merged: Merged) -> list[TestNote]:
    """Return what a report says of the tests that need a look; what is broken stands first."""
    from vlm_ci.report.markdown import TestNote  # loads what a merge does without

    found = []
    for test in merged.tests:
        if test.missing:
            sort = "missing shard" if test.missing == "shard" else "missing"
            found.append(TestNote(sort=sort, name=test.nodeid or test.case.name))
        elif test.broken:
            sort, why = (
                ("infrastructure", f"rule {test.rule} matched {test.matched!r}")
                if test.rule
                else ("failed", _why(test))
            )
            found.append(TestNote(sort=sort, name=_name(test), text=why))
        elif test.flaky or test.recovered:
            sort = "flaky" if test.flaky else "recovered"
            found.append(TestNote(sort=sort, name=_name(test), text=test.flaky or test.note))
        if test.unproven:
            found.append(TestNote(sort="skipped part", name=_name(test), text=test.unproven))
    return found


def _counts(merged: Merged) -> str:
    tests = merged.tests
    ran = [test.outcome for test in tests if not test.missing]
    parts = [
        f"{ran.count(PASSED)} passed",
        f"{ran.count(FAILED) + ran.count(ERROR)} failed",
        f"{ran.count(SKIPPED) + ran.count(XFAILED)} skipped",
    ]
    shards = sum(test.missing == "shard" for test in tests)
    for count, word in (
        (sum(test.missing == "test" for test in tests), "missing"),
        (shards, "shard missing" if shards == 1 else "shards missing"),
        (sum(bool(test.flaky) for test in tests), "flaky"),
        (sum(test.recovered for test in tests), "recovered"),
    ):
        parts += [f"{count} {word}"] if count else []
    files = f"{merged.files} file{'s' if merged.files != 1 else ''}"
    return f"{len(ran)} tests from {files}: {', '.join(parts)}"


def _name(test: Test) -> str:
    return test.nodeid or f"{test.case.classname}.{test.case.name}"


def _why(test: Test) -> str:
    message = test.problems[0].message or test.problems[0].text
    first = next(iter(message.strip().splitlines()), "")
    text = first if len(first) <= WIDTH else first[: WIDTH - 1] + "…"
    return " ".join(part for part in (text, f"({test.note})" if test.note else "") if part)


def _block(label: str, texts: Iterable[str]) -> list[str]:
    every = list(texts)
    lines = [_line(label, text) for text in every[:MOST]]
    if len(every) > MOST:
        lines.append(_line("", f"and {len(every) - MOST} more"))
    return lines


def _line(label: str, text: str) -> str:
    return f"{label:<14} {text}"
