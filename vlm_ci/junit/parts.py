"""A test that is split over shards: each part judged by itself, then all of them as one test.

Parts are no attempts: where one failed and another passed the test failed, and is not flaky. A part
that is in no file fails the test. Performs no I/O.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vlm_ci.errors import UsageError
from vlm_ci.junit import judging
from vlm_ci.junit.records import (
    ERROR,
    FAILED,
    FLAKY,
    HISTORY,
    KINDS,
    NOTE,
    PART,
    PARTS,
    PASSED,
    SHARD,
    SKIPPED,
    WRITTEN,
    XFAILED,
    Case,
    Problem,
    Test,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from vlm_ci.junit.grouping import Record

WORST = (FAILED, ERROR, XFAILED, PASSED, SKIPPED)
ABSENT = "missing-part"  # the type of the error that stands for a part


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a merged file keeps of one part, so that it can be merged further: ``problems`` and
    ``earlier`` are places among those of the whole test."""

    part: tuple[int, int]
    outcome: str
    attempt: int | None = None
    history: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    flaky: str = ""
    note: str = ""
    commit: str = ""
    problems: tuple[int, ...] = ()
    earlier: tuple[int, ...] = ()


def judge(records: Sequence[Record], nodeid: str) -> tuple[Test, int]:
    """Return a test, and the place of the suite whose record stands.

    A record that is no part, such as that of a rerun on one machine, counts for every part.

    Raises:
        UsageError: the records are parts of different numbers.
    """
    parted = _parted([one for record in records for one in _unfolded(record)])
    counts = {part[1] for _, part in parted if part}
    if not counts:
        return judging.judge(records, nodeid)
    if len(counts) > 1:
        said = ", ".join(f"{i}/{n}" for i, n in sorted({part for _, part in parted if part}))
        raise UsageError(
            f"{nodeid} was split in different ways: {said}; each attempt has to run with the same "
            "--shard, tests and durations"
        )
    (count,) = counts
    judged: dict[int, tuple[Test, int]] = {}
    for index in range(1, count + 1):
        own = [record for record, part in parted if part in (None, (index, count))]
        if own:
            judged[index] = judging.judge(own, nodeid)
    return _joined(judged, count, nodeid)


def _parted(records: Sequence[Record]) -> list[tuple[Record, tuple[int, int] | None]]:
    """Return each record with its part. One that states none, because its worker died before it
    could, has the part that the same shard had in another attempt."""
    by_shard: dict[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
    for record in records:
        if record.part and record.shard:
            by_shard[record.shard].add(record.part)
    found = []
    for record in records:
        part = record.part
        known = by_shard[record.shard] if record.shard else set()
        if part is None and len(known) == 1:
            (part,) = known
        found.append((record, part))
    return found


def _joined(judged: dict[int, tuple[Test, int]], count: int, nodeid: str) -> tuple[Test, int]:
    """Return the parts as one test: the worst stands, with the problems of all."""
    tests = {index: test for index, (test, _) in judged.items()}
    stands = min(
        tests,
        key=lambda index: (
            WORST.index(tests[index].outcome),
            bool(tests[index].rule),  # what is the product's before what is the machine's
            not (tests[index].flaky or tests[index].recovered),
            index,
        ),
    )
    absent = [
        _absent(f"{index}/{count}", nodeid) for index in range(1, count + 1) if index not in tests
    ]
    of_all = tests.values()
    problems = list(dict.fromkeys(one for test in of_all for one in test.problems))
    earlier = list(dict.fromkeys(one for test in of_all for one in test.earlier))
    kept = tests[stands]
    broken = [test for test in of_all if test.broken]
    outcome = ERROR if absent and not kept.broken else kept.outcome
    case = _case(tests.values(), kept.case, outcome)
    case = replace(case, problems=(*problems, *absent), earlier=tuple(earlier))
    ruled = broken and all(test.rule for test in broken) and not absent
    folded = [
        _folded((index, count), test, problems, earlier) for index, test in sorted(tests.items())
    ]
    import msgspec  # here, because most merges hold no test in parts

    test = replace(
        kept,
        case=case,
        problems=case.problems,
        earlier=case.earlier,
        flaky="" if case.broken else _told(tests, count, "flaky"),
        note=_told(tests, count, "note"),
        sticky=any(test.sticky for test in of_all),
        recovered=not case.broken and any(test.recovered for test in of_all),
        rule=kept.rule if ruled else "",
        matched=kept.matched if ruled else "",
        parts=msgspec.json.encode(folded).decode(),
        unproven=_unproven(tests, count) if outcome == PASSED else "",
        attempt=max((test.attempt for test in of_all if test.attempt), default=None),
    )
    return test, judged[stands][1]


def _case(tests: Iterable[Test], kept: Case, outcome: str) -> Case:
    """Return one case for all parts. It has no element: what it says is in no file as it is."""
    cases = list({id(test.case): test.case for test in tests}.values())
    pairs = dict.fromkeys(pair for case in cases for pair in case.properties if pair[0] != PART)
    return replace(
        kept,
        outcome=outcome,
        seconds=sum(case.seconds for case in cases),
        properties=tuple(pairs),
        out="\n".join(dict.fromkeys(case.out for case in cases if case.out)),
        err="\n".join(dict.fromkeys(case.err for case in cases if case.err)),
        element=None,
    )


def _absent(part: str, nodeid: str) -> Problem:
    text = f"missing: part {part} of {nodeid} is in no file"
    return Problem(outcome=ERROR, message=text, text=text, type=ABSENT)


def _unproven(tests: dict[int, Test], count: int) -> str:
    """Say which parts of a test were skipped: what they would have tried, nobody did."""
    skipped = [f"{index}/{count}" for index, test in tests.items() if test.outcome == SKIPPED]
    return f"part {', '.join(skipped)} was skipped, which proves nothing" if skipped else ""


def _told(tests: dict[int, Test], count: int, field: str) -> str:
    texts = {index: getattr(test, field) for index, test in tests.items()}
    if len(set(texts.values())) == 1 and len(texts) == count:
        return str(next(iter(texts.values())))
    return "; ".join(f"part {index}/{count}: {text}" for index, text in texts.items() if text)


def _folded(
    part: tuple[int, int], test: Test, problems: list[Problem], earlier: list[Problem]
) -> Kept:
    return Kept(
        part=part,
        outcome=test.outcome,
        attempt=test.attempt,
        history=test.history,
        kinds=tuple(value for name, value in test.case.properties if name == KINDS),
        flaky=test.flaky,
        note=test.note,
        commit=test.commit,
        problems=tuple(problems.index(one) for one in test.problems),
        earlier=tuple(earlier.index(one) for one in test.earlier),
    )


def _unfolded(record: Record) -> list[Record]:
    """Return the parts of a case that an earlier merge joined, or the record itself."""
    text = record.case.value(PARTS)
    if not text:
        return [record]
    import msgspec

    try:
        stored = msgspec.json.decode(text, type=list[Kept])
    except (msgspec.DecodeError, RecursionError):
        source = record.suite.source
        raise UsageError(f"{source}: {PARTS} of {record.case.name} is broken") from None
    unread = {*WRITTEN, KINDS, SHARD, PART}
    pairs = tuple(pair for pair in record.case.properties if pair[0] not in unread)
    shards = tuple(pair for pair in record.case.properties if pair[0] == SHARD)
    found = []
    for number, kept in enumerate(stored):
        own: dict[str, Any] = {
            HISTORY: ", ".join(kept.history) if len(kept.history) > 1 else "",
            FLAKY: kept.flaky,
            NOTE: kept.note,
            KINDS: ", ".join(kept.kinds),
        }
        case = replace(
            record.case,
            outcome=kept.outcome,
            seconds=0.0 if number else record.case.seconds,
            problems=_at(kept.problems, record.case.problems),
            earlier=_at(kept.earlier, record.case.earlier),
            properties=(
                *pairs,
                *(() if number else shards),
                *((name, value) for name, value in own.items() if value),
            ),
            out="" if number else record.case.out,
            err="" if number else record.case.err,
            element=None,
        )
        found.append(
            replace(
                record,
                case=case,
                number=kept.attempt,
                commit=kept.commit or record.commit,
                part=kept.part,
                shard=None,
            )
        )
    return found


def _at(places: Iterable[int], problems: Sequence[Problem]) -> tuple[Problem, ...]:
    return tuple(problems[place] for place in places if 0 <= place < len(problems))
