"""Files of shards and attempts as one: every test once, and what is missing.

Records in, records out; performs no I/O.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from vlm_ci.junit import grouping, identity, parts
from vlm_ci.junit.records import (
    ERROR,
    MISSING,
    NODE_ID,
    SHARD,
    TESTS,
    Case,
    Merged,
    MergedSuite,
    Problem,
    Suite,
    Test,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

ABSENT = "missing"  # the suite of what is in no file
TEST, WHOLE_SHARD = "test", "shard"  # what can be missing


def merge(
    suites: Sequence[Suite],
    *,
    expected: Sequence[str] | None = None,
    shards: int | None = None,
    is_file: Callable[[str], bool] = lambda path: False,
) -> Merged:
    """Join suites by test; one attempt of each stands (``judging.judge``), and
    those that are split over shards are one test (``parts.judge``).

    ``expected`` are node ids that have to be there, ``shards`` how many shards have to; where the
    suites state their number, it need not be told. ``is_file`` helps to find a classname's file.

    Raises:
        UsageError: the suites disagree about the number of shards, or state something wrong.
    """
    suites = [grouping.with_unfinished(suite) for suite in suites]
    count, present = grouping.shards(suites, shards)
    records = grouping.by_test(suites)
    names = _Names(expected or (), is_file)
    tests: dict[str, list[Test]] = defaultdict(list)
    for suite in suites:
        if not suite.cases or any(not case.value(MISSING) for case in suite.cases):
            tests[suite.name]  # a suite in which nothing ran stays too
    for entry in records.values():
        test, place = parts.judge(entry, names.of(entry[0].case))
        tests[suites[place].name].append(test)
    found = {(classname, name) for classname, name, _ in records}
    absent = [*_absent_tests(suites, found, names), *_absent_shards(count, present)]
    merged = [
        _suite(name, [suite for suite in suites if suite.name == name], tests[name])
        for name in tests
    ]
    if absent:
        merged.append(MergedSuite(name=ABSENT, tests=tuple(absent)))
    return Merged(
        suites=tuple(merged),
        files=len({suite.source for suite in suites}),
        unexpected=len(found - names.exact.keys()) if expected else 0,
    )


class _Names:
    """Node ids of cases: exact where a list of them is there, else made from the classname."""

    def __init__(self, expected: Iterable[str], is_file: Callable[[str], bool]) -> None:
        self.exact: dict[tuple[str, str], list[str]] = defaultdict(list)
        for nodeid in expected:
            self.exact[identity.address(nodeid)].append(nodeid)
        self._is_file = is_file
        self._bases: dict[tuple[str, str], str] = {}

    def of(self, case: Case) -> str:
        """Return the node id of a case."""
        exact = self.exact.get((case.classname, case.name), [])
        if len(exact) == 1:
            return exact[0]
        if case.value(NODE_ID) or not case.classname:
            return case.value(NODE_ID) or identity.node_id(case, self._is_file)
        place = case.classname, case.file
        if place not in self._bases:  # the disk is asked once for each classname
            whole = identity.node_id(case, self._is_file)
            self._bases[place] = whole[: len(whole) - len(case.name)]
        return self._bases[place] + case.name


def _absent_tests(
    suites: Iterable[Suite], found: set[tuple[str, str]], names: _Names
) -> list[Test]:
    """Return the expected tests that no file has, and those that an earlier merge missed."""
    absent = {
        place: _absent(Case(classname=place[0], name=place[1], outcome=ERROR), nodeid, TEST)
        for place, nodeids in names.exact.items()
        for nodeid in nodeids
        if place not in found
    }
    for suite in suites:
        for case in suite.cases:
            place = case.classname, case.name
            if case.value(MISSING) == TEST and place not in found and place not in absent:
                again = Case(classname=place[0], name=place[1], file=case.file, outcome=ERROR)
                absent[place] = _absent(again, names.of(case), TEST)
    return list(absent.values())


def _absent_shards(count: int, present: set[int]) -> list[Test]:
    return [
        _absent(Case(classname=SHARD, name=f"{index}/{count}", outcome=ERROR), "", WHOLE_SHARD)
        for index in range(1, count + 1)
        if index not in present
    ]


def _absent(case: Case, nodeid: str, what: str) -> Test:
    text = identity.legal(
        f"missing: shard {case.name} has no file"
        if what == WHOLE_SHARD
        else f"missing: {nodeid} was expected and is in no file"
    )
    return Test(
        case=case,
        nodeid=nodeid,
        problems=(Problem(outcome=ERROR, message=text, text=text, type=f"missing-{what}"),),
        missing=what,
    )


def _suite(name: str, suites: Sequence[Suite], tests: Sequence[Test]) -> MergedSuite:
    starts = [suite.timestamp for suite in suites if suite.timestamp is not None]
    hosts = {suite.hostname for suite in suites}
    every = (pair for suite in suites for pair in suite.properties)
    properties = dict.fromkeys(pair for pair in every if pair[0] != TESTS)
    return MergedSuite(
        name=name,
        hostname=hosts.pop() if len(hosts) == 1 else "",
        timestamp=min(starts, default=None),
        properties=tuple(properties),
        out="\n".join(suite.out for suite in suites if suite.out),
        err="\n".join(suite.err for suite in suites if suite.err),
        tests=tuple(tests),
    )
