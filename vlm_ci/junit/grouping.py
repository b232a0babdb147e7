"""All records of each test, across files. Performs no I/O."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from vlm_ci.errors import UsageError
from vlm_ci.junit import identity
from vlm_ci.junit.records import (
    ATTEMPT,
    COMMIT,
    MISSING,
    PART,
    SHARD,
    TESTS,
    TIMESTAMP,
    Case,
    Suite,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# What a file states is repeated and counted up to: no honest one states more.
MOST_SHARDS = 10_000
LONGEST = 80  # characters of a number

Key = tuple[str, str, str]  # classname, name, and the file where it is needed


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A case with what is known of when it ran. ``place`` is its suite's place among all; ``part``
    is which part of its test it is, None for all of it."""

    case: Case
    suite: Suite
    place: int
    number: int | None
    timestamp: datetime | None
    commit: str
    shard: tuple[int, int] | None = None
    part: tuple[int, int] | None = None


def with_unfinished(suite: Suite) -> Suite:
    """Return a suite with the error that stands for tests which its session set out to run and
    which it does not have: a session that is stopped between two tests, as by ``-x``, says nothing.
    """
    stated = [value for name, value in suite.properties if name == TESTS]
    if len(stated) != 1 or not _decimal(stated[0]):
        return suite
    absent = int(stated[0]) - len(suite.cases)
    if absent <= 0 or any(map(identity.is_interruption, suite.cases)):
        return suite
    text = f"the session ended early: {absent} of its {int(stated[0])} tests are in no file"
    return replace(suite, cases=(*suite.cases, identity.interruption(suite.shards, text)))


def by_test(suites: Sequence[Suite]) -> dict[Key, list[Record]]:
    """Return the records of each test, in the order of the suites.

    What an earlier merge made for a missing test is none. A case without a file belongs to the one
    with a file that has its classname and name, where there is exactly one.

    Raises:
        UsageError: the attempt of a case is no number.
    """
    found: dict[Key, list[Record]] = defaultdict(list)
    files: dict[tuple[str, str], set[str]] = defaultdict(set)
    cases = [
        (place, suite, case)
        for place, suite in enumerate(suites)
        for case in suite.cases
        if not case.value(MISSING)
    ]
    for _, _, case in cases:
        files[case.classname, case.name].add(identity.distinct(case))
    for place, suite, case in cases:
        file, others = identity.distinct(case), files[case.classname, case.name] - {""}
        if not file and len(others) == 1:
            (file,) = others
        found[case.classname, case.name, file].append(_record(place, suite, case))
    _add_collected(found, suites)
    _add_finished(found, suites)
    return dict(found)


def shards(suites: Iterable[Suite], told: int | None) -> tuple[int, set[int]]:
    """Return how many shards there have to be, and which there are.

    Raises:
        UsageError: the suites state another number than they were told, or several.
    """
    stated: dict[tuple[int, int], str] = {}
    for suite in suites:
        for shard in suite.shards:
            stated.setdefault(shard, suite.source)
        for case in suite.cases:
            for name, value in case.properties:  # a test in parts has several
                if name == SHARD:
                    stated.setdefault(shard_of(value, suite.source), suite.source)
    if told is not None and not stated:
        raise UsageError(
            f"--shards {told}: no file says which shard it is; each needs the property {SHARD} "
            f'with a value such as "1/{told}"'
        )
    counts = {count for _, count in stated} | ({told} if told is not None else set())
    if len(counts) > 1:
        said = ", ".join(f"{i}/{n} in {source}" for (i, n), source in sorted(stated.items()))
        asked = f"--shards {told}, but " if told is not None else ""
        raise UsageError(f"{asked}the files are shards of different runs: {said}")
    return (counts.pop() if counts else 0), {index for index, _ in stated}


def shard_of(value: str, source: str, name: str = SHARD) -> tuple[int, int]:
    """Return I and N of ``"I/N"``, the value of the property ``name``.

    Raises:
        UsageError: it has another form.
    """
    index, _, count = value.partition("/")
    if _decimal(index) and _decimal(count):
        shard = int(index), int(count)
        if 1 <= shard[0] <= shard[1] <= MOST_SHARDS:
            return shard
    raise UsageError(
        f'{source}: {name} must be "I/N" with I from 1 to N, and N at most {MOST_SHARDS}, not '
        f"{value[:LONGEST]!r}"
    )


def number_of(value: str, source: str) -> int | None:
    """Return the number of an attempt, or None for an empty text.

    Raises:
        UsageError: it is no whole number of at least 1.
    """
    if not value:
        return None
    if _decimal(value) and int(value) >= 1:
        return int(value)
    raise UsageError(
        f"{source}: {ATTEMPT} must be a whole number of at least 1, not {value[:LONGEST]!r}"
    )


def _decimal(text: str) -> bool:
    return len(text) <= LONGEST and text.strip().isdecimal()


def moment(value: str | None) -> datetime | None:
    """Return a timestamp of ISO 8601, one without a zone as UTC, or None where it is none."""
    from datetime import UTC

    try:
        parsed = datetime.fromisoformat(value) if value else None
    except ValueError:
        return None
    return parsed.replace(tzinfo=UTC) if parsed is not None and parsed.tzinfo is None else parsed


def _record(place: int, suite: Suite, case: Case) -> Record:
    number = number_of(case.value(ATTEMPT), suite.source)
    shard, part = case.value(SHARD), case.value(PART)
    only = suite.shards[0] if len(suite.shards) == 1 else None
    return Record(
        case=case,
        suite=suite,
        place=place,
        number=number if number is not None else suite.attempt,
        timestamp=moment(case.value(TIMESTAMP)) or suite.timestamp,
        commit=case.value(COMMIT) or suite.commit,
        shard=shard_of(shard, suite.source) if shard else only,
        part=shard_of(part, suite.source, PART) if part else None,
    )


def _add_collected(found: dict[Key, list[Record]], suites: Sequence[Suite]) -> None:
    """A module that could not be collected, and later was: its tests are the proof.

    Only a later attempt by number counts, of the same shard where both say it: another shard runs
    other tests of the module.
    """
    for key, records in found.items():
        if not any(identity.is_collection(record.case) for record in records):
            continue
        places = {record.place for record in records}
        least = min((record.number or 0) for record in records)
        shard = {shard for record in records for shard in record.suite.shards}
        for place, suite in enumerate(suites):
            same = not shard or not suite.shards or shard & set(suite.shards)
            if place in places or not same or least == 0 or (suite.attempt or 0) <= least:
                continue
            if any(_belongs(case.classname, key[1]) for case in suite.cases):
                records.append(_record(place, suite, Case(name=key[1], file=key[2])))
        records.sort(key=lambda record: record.place)


def _add_finished(found: dict[Key, list[Record]], suites: Sequence[Suite]) -> None:
    """A session that was interrupted, and was run again as a whole: what came to its end is the
    proof.

    Only a later attempt by number counts, of the same shard, with all tests of the first and more:
    a rerun of what failed leaves out what never ran.
    """
    for key, records in found.items():
        stopped = [record for record in records if identity.is_interruption(record.case)]
        numbers = [record.number for record in records if record.number is not None]
        if not stopped or len(numbers) < len(records):
            continue
        shards = {shard for record in stopped for shard in record.suite.shards}
        before = {test for record in stopped for test in _tests(record.suite)}
        for place, suite in enumerate(suites):
            if (suite.attempt or 0) <= max(numbers) or set(suite.shards) != shards:
                continue
            ended = not any(map(identity.is_interruption, suite.cases))
            if ended and before < _tests(suite):
                records.append(_record(place, suite, Case(name=key[1])))


def _tests(suite: Suite) -> set[tuple[str, str]]:
    return {
        (case.classname, case.name) for case in suite.cases if not identity.is_interruption(case)
    }


def _belongs(classname: str, module: str) -> bool:
    return classname == module or classname.startswith(f"{module}.")
