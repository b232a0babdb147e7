"""What a JUnit file says and what a merge makes of it, as plain records. Performs no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

PASSED, FAILED, ERROR, SKIPPED, XFAILED = "passed", "failed", "error", "skipped", "xfailed"
OUTCOMES = (PASSED, FAILED, ERROR, SKIPPED, XFAILED)
BROKEN = (FAILED, ERROR)

# Properties that are read, of a suite or of a case (the case's own wins).
ATTEMPT, COMMIT, SHARD = "vlm_ci.attempt", "vlm_ci.commit", "vlm_ci.shard"
PART = "vlm_ci.part"  # "I/N": this case is one of N parts of its test
TIMESTAMP = "vlm_ci.timestamp"
TESTS = "vlm_ci.tests"  # of a suite alone: how many tests its session set out to run
KINDS = "vlm_ci_failures"  # what the plugin found, see vlm_ci/report/properties.py
# Properties that a merge writes on cases, and reads again where a merged file is merged further.
HISTORY, FLAKY, NOTE = "vlm_ci.history", "vlm_ci.flaky", "vlm_ci.note"
INFRASTRUCTURE, NODE_ID, MISSING = "vlm_ci.infrastructure", "vlm_ci.nodeid", "vlm_ci.missing"
PARTS = "vlm_ci.parts"  # what a merge knows of each part of a test
WRITTEN = (HISTORY, FLAKY, NOTE, INFRASTRUCTURE, NODE_ID, MISSING, PARTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One failure or error of a case. ``out`` and ``err`` are what was captured with it, where it
    belongs to an earlier attempt."""

    outcome: str
    message: str = ""
    text: str = ""
    type: str = ""
    out: str = ""
    err: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One ``<testcase>``. ``earlier`` are problems of earlier attempts that an earlier merge kept;
    ``element`` is the file's own element, for ``files`` alone, or None for a case made here."""

    name: str
    classname: str = ""
    file: str = ""
    outcome: str = PASSED
    seconds: float = 0.0
    problems: tuple[Problem, ...] = ()
    earlier: tuple[Problem, ...] = ()
    properties: tuple[tuple[str, str], ...] = ()
    out: str = ""
    err: str = ""
    element: Any = field(default=None, compare=False)

    def value(self, name: str) -> str:
        """Return the last value of a property, or an empty text."""
        for key, value in reversed(self.properties):
            if key == name:
                return value
        return ""

    @property
    def broken(self) -> bool:
        """Whether it failed, in the test or around it."""
        return self.outcome in BROKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One ``<testsuite>`` of one file. ``attempt`` is the number that it states, if any;
    ``shards`` are the pairs I, N that it states, of which a merged file has several."""

    source: str
    name: str = ""
    hostname: str = ""
    timestamp: datetime | None = None
    attempt: int | None = None
    commit: str = ""
    shards: tuple[tuple[int, int], ...] = ()
    properties: tuple[tuple[str, str], ...] = ()
    out: str = ""
    err: str = ""
    cases: tuple[Case, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """One test after the merge. ``case`` is the attempt that stands and ``problems`` its failures;
    ``earlier`` the failures of the others. ``rule`` names the rule of an infrastructure failure,
    ``matched`` what it matched. ``missing`` is "test" or "shard" for what is in no file; ``parts``
    is what ``parts.py`` keeps of a test that was split over shards, ``unproven`` which of its parts
    were skipped although others ran."""

    __test__ = False  # not a test of pytest's

    case: Case
    nodeid: str
    problems: tuple[Problem, ...] = ()
    earlier: tuple[Problem, ...] = ()
    history: tuple[str, ...] = ()
    flaky: str = ""
    note: str = ""
    sticky: bool = False
    recovered: bool = False
    rule: str = ""
    matched: str = ""
    missing: str = ""
    parts: str = ""
    unproven: str = ""
    attempt: int | None = None
    commit: str = ""
    timestamp: datetime | None = None

    @property
    def outcome(self) -> str:
        """One of ``OUTCOMES``."""
        return self.case.outcome

    @property
    def broken(self) -> bool:
        """Whether it counts against the run."""
        return self.case.broken


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedSuite:
    """Tests of all suites of one name. ``timestamp`` is the earliest; ``hostname`` is there where
    all agree."""

    name: str
    hostname: str = ""
    timestamp: datetime | None = None
    properties: tuple[tuple[str, str], ...] = ()
    out: str = ""
    err: str = ""
    tests: tuple[Test, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What a merge returns. ``unexpected`` counts tests that the list of expected ones lacks."""

    suites: tuple[MergedSuite, ...]
    files: int
    unexpected: int = 0

    @property
    def tests(self) -> list[Test]:
        """All tests, in the order of the suites."""
        return [test for suite in self.suites for test in suite.tests]
