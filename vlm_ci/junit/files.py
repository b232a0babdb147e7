"""Reading and writing of JUnit files, with junitparser: the only I/O of this package."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from math import isfinite, nan
from typing import TYPE_CHECKING, Any
from xml.parsers import expat

from junitparser import (
    Attr,
    Error,
    Failure,
    JUnitXml,
    Properties,
    Property,
    Skipped,
    SystemErr,
    SystemOut,
    xunit2,
)

from vlm_ci.errors import UsageError
from vlm_ci.junit import grouping, identity
from vlm_ci.junit.records import (
    ATTEMPT,
    COMMIT,
    ERROR,
    FAILED,
    FLAKY,
    HISTORY,
    INFRASTRUCTURE,
    MISSING,
    NODE_ID,
    NOTE,
    PARTS,
    PASSED,
    SHARD,
    SKIPPED,
    TIMESTAMP,
    WRITTEN,
    XFAILED,
    Case,
    Merged,
    MergedSuite,
    Problem,
    Suite,
    Test,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEEPEST = 50  # levels of elements; JUnit files have six
_ATTEMPT_IN_NAME = re.compile(r"(?<![a-z])attempt[-_]?(\d+)(?!\d)", re.IGNORECASE)
_ROOTS = ("testsuites", "testsuite")


class _Case(xunit2.TestCase):
    file = Attr()


class _Suite(xunit2.TestSuite):
    testcase = _Case


class _Report(JUnitXml):
    testsuite = _Suite


class _Refusal(Exception):
    """Why a file is refused; raised out of the parser's callbacks."""


def read(path: Path) -> list[Suite]:
    """Return the suites of a JUnit file, nested ones too.

    Raises:
        UsageError: it cannot be read, is empty, is no whole XML, holds a DOCTYPE (and with it could
            hold entities), is no JUnit file, or states something wrong.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot read it: {error.strerror}") from None
    try:
        _refuse(content)
        report = _Report.fromstring(content)
        number = _number(path)
        return [_read_suite(str(path), suite, number) for suite in _walk(report)]
    except _Refusal as refusal:
        raise UsageError(f"{path}: {refusal}") from None
    except (SyntaxError, ValueError) as error:  # ParseError is a SyntaxError, in lxml too
        raise UsageError(f"{path}: not XML that can be read: {error}") from None


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot read it as a list of node ids: {error}") from None


# -- what is refused before anything is built from it --------------------------------------------


def _refuse(content: bytes) -> None:
    """Go through the XML without building or expanding anything.

    Raises:
        _Refusal: it must not be parsed.
    """
    if not content.strip():
        raise _Refusal("the file is empty; a JUnit file has a <testsuites> or a <testsuite>")
    parser = expat.ParserCreate()
    depth = 0

    def doctype(*_: object) -> None:
        raise _Refusal(
            "it has a DOCTYPE, which can define entities; a JUnit file needs none, and it is not "
            "parsed"
        )

    def start(name: str, _: object) -> None:
        nonlocal depth
        if depth == 0 and name not in _ROOTS:
            raise _Refusal(
                f"not a JUnit file: its root is <{name[:40]}>, not <testsuites> or <testsuite>"
            )
        depth += 1
        if depth > DEEPEST:
            raise _Refusal(f"not a JUnit file: elements lie more than {DEEPEST} levels deep")

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1

    parser.StartDoctypeDeclHandler = doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise _Refusal(_broken(error, depth)) from None


def _broken(error: expat.ExpatError, depth: int) -> str:
    codes = expat.errors.codes
    ends = {
        codes[getattr(expat.errors, f"XML_ERROR_{name}")]
        for name in ("NO_ELEMENTS", "UNCLOSED_TOKEN", "PARTIAL_CHAR", "UNCLOSED_CDATA_SECTION")
    }
    words = expat.errors.messages[error.code]
    where = f"line {error.lineno}, column {error.offset + 1}"
    if error.code in ends and depth:
        return f"the XML is truncated: it ends at {where} with {depth} elements still open"
    if error.code == codes[expat.errors.XML_ERROR_UNDEFINED_ENTITY]:
        return f"it uses an entity that XML does not define, at {where}; it is not parsed"
    return f"not XML: {words} at {where}"


# -- reading ---------------------------------------------------------------------------------------


def _walk(parent: Any) -> Iterator[Any]:
    suites = parent if isinstance(parent, _Report) else parent.testsuites()
    for suite in suites:
        yield suite
        yield from _walk(suite)


def _number(path: Path) -> int | None:
    found = _ATTEMPT_IN_NAME.findall(path.stem)
    return int(found[-1]) or None if found else None


def _read_suite(source: str, suite: Any, number: int | None) -> Suite:
    properties = _properties(suite)
    stated = {name: {v for key, v in properties if key == name} for name in (ATTEMPT, COMMIT)}
    # A merged file states the numbers of several attempts; its cases then have their own.
    attempts = {grouping.number_of(value, source) for value in stated[ATTEMPT]} - {None}
    commits = stated[COMMIT]
    shards = tuple(grouping.shard_of(v, source) for name, v in properties if name == SHARD)
    return Suite(
        source=source,
        name=suite.name or "",
        hostname=suite.hostname or "",
        timestamp=grouping.moment(suite.timestamp),
        attempt=(attempts.pop() if len(attempts) == 1 else None) if attempts else number,
        commit=commits.pop() if len(commits) == 1 else "",
        shards=shards,
        properties=properties,
        out=suite.system_out or "",
        err=suite.system_err or "",
        cases=tuple(_read_case(case, shards) for case in suite.iterchildren(_Case)),
    )


def _read_case(case: Any, shards: tuple[tuple[int, int], ...]) -> Case:
    if case.name is None and case.classname is None and case.time is not None:
        return identity.interruption(shards)
    if case.name is None:
        raise _Refusal("not a JUnit file: it has a <testcase> without a name")
    try:
        seconds = case.time or 0.0
    except ValueError:
        seconds = nan
    if not isfinite(seconds):
        raise _Refusal(f"the time of {case.name} is no number")
    problems: list[Problem] = []
    earlier: list[Problem] = []
    skipped = ""
    captured = False
    for entry in case:
        if isinstance(entry, Failure | Error):
            problems.append(_problem(entry, entry.text))
        elif isinstance(entry, xunit2.InterimResult):
            earlier.append(_problem(entry, entry.stack_trace or entry.text))
        elif isinstance(entry, Skipped):
            skipped = XFAILED if entry.type == "pytest.xfail" else SKIPPED
        else:
            captured = True
    broken = FAILED if any(one.outcome == FAILED for one in problems) else ERROR
    return Case(
        name=case.name,
        classname=case.classname or "",
        file=case.file or "",
        outcome=broken if problems else skipped or PASSED,
        seconds=seconds,
        problems=tuple(problems),
        earlier=tuple(earlier),
        properties=_properties(case),
        out=(case.system_out or "") if captured else "",
        err=(case.system_err or "") if captured else "",
        element=case,
    )


def _problem(entry: Any, text: str | None) -> Problem:
    interim = isinstance(entry, xunit2.InterimResult)
    failures = (Failure, xunit2.FlakyFailure, xunit2.RerunFailure)
    return Problem(
        outcome=FAILED if isinstance(entry, failures) else ERROR,
        message=entry.message or "",
        text=text or "",
        type=entry.type or "",
        out=(entry.system_out or "") if interim else "",
        err=(entry.system_err or "") if interim else "",
    )


def _properties(holder: Any) -> tuple[tuple[str, str], ...]:
    return tuple((entry.name or "", entry.value or "") for entry in holder.properties())


# -- writing ---------------------------------------------------------------------------------------


def write(path: Path, merged: Merged) -> None:
    """Write a merge as one JUnit file, whole or not at all.

    The elements of what was read move into it: a merge is written once.

    Raises:
        UsageError: it cannot be written.
    """
    report = _Report("vlm-ci junit merge")
    for suite in merged.suites:
        report.append(_write_suite(suite))
    _count(report, merged.tests)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A stream that can only be written: the serializer is twice as fast as with BytesIO.
        with beside.open("wb") as stream:
            report.write(stream)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise UsageError(f"{path}: cannot write it: {error.strerror}") from None


def _write_suite(merged: MergedSuite) -> Any:
    suite = _Suite(merged.name)
    if merged.hostname:
        suite.hostname = merged.hostname
    if merged.timestamp is not None:
        suite.timestamp = merged.timestamp.isoformat()
    for name, value in merged.properties:
        suite.add_property(name, value)
    told = {name: {v for key, v in merged.properties if key == name} for name in (ATTEMPT, COMMIT)}
    for test in merged.tests:
        suite.append(_write_case(test, merged, told))
    if merged.out:
        suite.system_out = merged.out
    if merged.err:
        suite.system_err = merged.err
    _count(suite, merged.tests)
    return suite


def _count(holder: Any, tests: tuple[Test, ...] | list[Test]) -> None:
    """Set the counts. A case with a failure and an error counts once, as a failure."""
    outcomes = [test.outcome for test in tests]
    holder.tests = len(tests)
    holder.failures = outcomes.count(FAILED)
    holder.errors = outcomes.count(ERROR)
    holder.skipped = outcomes.count(SKIPPED) + outcomes.count(XFAILED)
    holder.time = round(sum(test.case.seconds for test in tests), 3)


def _write_case(test: Test, suite: MergedSuite, told: dict[str, set[str]]) -> Any:
    case = test.case.element
    if case is None:
        case = _Case(identity.legal(test.case.name), test.case.classname, test.case.seconds)
        if test.case.file:
            case.file = test.case.file
        if test.outcome in (SKIPPED, XFAILED):
            case.append(Skipped(type_="pytest.xfail" if test.outcome == XFAILED else "pytest.skip"))
    _write_properties(case, test, suite, told)
    had = sum(isinstance(entry, Failure | Error) for entry in case) if test.problems else 0
    for problem in test.problems[had:]:  # of its teardown, or of a missing test
        entry = (Failure if problem.outcome == FAILED else Error)(problem.message, problem.type)
        entry.text = problem.text
        case.append(entry)
    if test.case.seconds != (case.time or 0.0):
        case.time = round(test.case.seconds, 3)
    for interim in case.interim_result if test.case.earlier else ():
        case.remove(interim)
    for problem in test.earlier:
        case.add_interim_result(_interim(problem, flaky=bool(test.flaky)))
    if test.case.out and case.system_out != test.case.out:
        case.system_out = test.case.out
    if test.case.err and case.system_err != test.case.err:
        case.system_err = test.case.err
    return case


def _write_properties(case: Any, test: Test, suite: MergedSuite, told: dict[str, set[str]]) -> None:
    """Write what the merge says of a case; ``told`` is what the suite states of all its cases."""
    fresh: dict[str, str] = {
        NODE_ID: test.nodeid if test.broken or test.flaky else "",
        HISTORY: ", ".join(test.history) if len(test.history) > 1 else "",
        FLAKY: test.flaky,
        NOTE: test.note,
        INFRASTRUCTURE: f"{test.rule}: {test.matched}" if test.rule else "",
        MISSING: test.missing,
        PARTS: test.parts,
    }
    # What the merged suite no longer says of each case, so that it can be merged further.
    if test.attempt is not None and told[ATTEMPT] != {str(test.attempt)}:
        fresh[ATTEMPT] = str(test.attempt)
    if test.commit and told[COMMIT] != {test.commit}:
        fresh[COMMIT] = test.commit
    if test.timestamp is not None and test.timestamp != suite.timestamp:
        fresh[TIMESTAMP] = test.timestamp.isoformat()
    added = [(name, value) for name, value in fresh.items() if value]
    if not added and not any(name in WRITTEN for name, _ in test.case.properties):
        return
    replaced = {*WRITTEN, *fresh}
    pairs = [pair for pair in test.case.properties if pair[0] not in replaced] + added
    properties = case.child(Properties)
    if properties is None:
        properties = Properties()
        case.append(properties)
    for entry in list(properties):
        if (entry.name or "", entry.value or "") not in pairs:
            properties.remove(entry)
    kept = {(entry.name or "", entry.value or "") for entry in properties}
    for name, value in pairs:
        if (name, value) not in kept:
            properties.add_property(Property(name, identity.legal(value)))


def _interim(problem: Problem, *, flaky: bool) -> Any:
    kinds = {
        (FAILED, True): xunit2.FlakyFailure,
        (ERROR, True): xunit2.FlakyError,
        (FAILED, False): xunit2.RerunFailure,
        (ERROR, False): xunit2.RerunError,
    }
    entry = kinds[problem.outcome, flaky](problem.message, problem.type)
    if problem.text:
        entry.stack_trace = problem.text
    if problem.out:
        entry.append(SystemOut(problem.out))
    if problem.err:
        entry.append(SystemErr(problem.err))
    return entry
