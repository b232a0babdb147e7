"""One test: its attempts in order, the one that stands, and what the others say of it.

Performs no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vlm_ci.junit import rules
from vlm_ci.junit.records import (
    BROKEN,
    ERROR,
    FAILED,
    FLAKY,
    HISTORY,
    KINDS,
    NOTE,
    OUTCOMES,
    PASSED,
    SKIPPED,
    XFAILED,
    Case,
    Problem,
    Test,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from vlm_ci.junit.grouping import Record

ASSUMED = "the same commit is assumed"
NO_FLAKE = ": not a flake"
# Of several records of one attempt (a test and its teardown) the first of these stands.
WORST = (FAILED, ERROR, PASSED, XFAILED, SKIPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """One run of a test. ``history`` ends with its own outcome; an earlier merge put more in."""

    label: int
    case: Case
    place: int
    history: tuple[str, ...]
    verdicts: tuple[str, ...]
    rule: str
    matched: str
    number: int | None
    commit: str
    timestamp: datetime | None

    @property
    def broken(self) -> bool:
        return self.case.broken


def judge(records: Sequence[Record], nodeid: str) -> tuple[Test, int]:
    """Return a test, and the place of the suite whose attempt stands.

    The last attempt stands, but for two cases: a skip proves nothing and takes the place of no
    other outcome; a verdict such as a mismatch stays, whatever a rerun says.
    """
    attempts = _attempts(records)
    ran = [one for one in attempts if one.case.outcome != SKIPPED] or attempts
    last = ran[-1]
    judged = [one for one in ran if one.broken and one.verdicts]
    sticky = bool(judged) and not (last.broken and last.verdicts)
    kept = judged[-1] if sticky else last
    flaky = _flaky(attempts, kept)
    note, recovered = _note(attempts, ran, kept, sticky, bool(flaky))
    earlier = [problem for one in attempts for problem in one.case.earlier]
    earlier += [
        _with_output(problem, one.case, first=index == 0)
        for one in attempts
        if one is not kept
        for index, problem in enumerate(one.case.problems)
    ]
    newest = attempts[-1]
    test = Test(
        case=kept.case,
        nodeid=nodeid,
        problems=kept.case.problems,
        earlier=tuple(earlier),
        history=tuple(outcome for one in attempts for outcome in one.history),
        flaky=flaky,
        note=note,
        sticky=kept.broken and bool(kept.verdicts) and newest.history[-1] not in BROKEN,
        recovered=recovered,
        rule=kept.rule,
        matched=kept.matched,
        attempt=newest.number,
        commit=kept.commit,
        timestamp=newest.timestamp,
    )
    return test, kept.place


def _attempts(records: Sequence[Record]) -> list[_Attempt]:
    """Return the attempts in order: by number where every record has one, else by timestamp where
    every record has one, else as the files were named."""
    if len(records) == 1:
        return [_attempt(records, records[0].number, 0)]
    numbered = all(record.number is not None for record in records)
    groups: dict[int, list[Record]] = {}
    for record in records:
        groups.setdefault((record.number or 0) if numbered else record.place, []).append(record)
    order = list(groups)
    if numbered:
        order.sort()
    else:
        started = {key: groups[key][0].timestamp for key in order}
        known = {key: value for key, value in started.items() if value is not None}
        if len(known) == len(order):
            order.sort(key=lambda key: known[key])
    attempts: list[_Attempt] = []
    count = 0
    for key in order:
        one = _attempt(groups[key], key if numbered else None, count)
        count += len(one.history)
        attempts.append(one)
    return attempts


def _attempt(records: Sequence[Record], number: int | None, before: int) -> _Attempt:
    """Return several records of one attempt as one: the worst stands, with all problems."""
    first = min(records, key=lambda record: WORST.index(record.case.outcome))
    case = first.case
    if len(records) > 1:
        others = [record.case for record in records if record is not first]
        every = [record.case for record in records]
        properties = dict.fromkeys(pair for one in (case, *others) for pair in one.properties)
        more = (problem for one in others for problem in one.problems)
        case = replace(
            case,
            seconds=sum(one.seconds for one in every),
            problems=(*case.problems, *(one for one in more if one not in case.problems)),
            earlier=tuple(problem for one in every for problem in one.earlier),
            properties=tuple(properties),
            out="\n".join(dict.fromkeys(one.out for one in every if one.out)),
            err="\n".join(dict.fromkeys(one.err for one in every if one.err)),
        )
    verdicts: tuple[str, ...] = ()
    rule = matched = ""
    if case.broken:
        kinds = ", ".join(value for name, value in case.properties if name == KINDS)
        verdicts = rules.verdicts(kinds)
        rule, matched = ("", "") if verdicts else rules.infrastructure(case.problems, kinds=kinds)
    past: tuple[str, ...] = (case.outcome,)
    own = 1
    written = tuple(one.strip() for one in case.value(HISTORY).split(","))
    if case.outcome in written and all(outcome in OUTCOMES for outcome in written):
        past = written
        own = max(i for i, outcome in enumerate(past, 1) if outcome == case.outcome)
    return _Attempt(
        label=number if number is not None else before + own,
        case=case,
        place=first.place,
        history=past,
        verdicts=verdicts,
        rule=rule,
        matched=matched,
        number=number if number is not None else first.number,
        commit=first.commit,
        timestamp=first.timestamp,
    )


def _flaky(attempts: list[_Attempt], kept: _Attempt) -> str:
    """Return why a test is flaky, or an empty text: the product failed and passed on one commit."""
    if kept.case.outcome not in (PASSED, XFAILED):
        return ""
    failed = [one for one in attempts[: attempts.index(kept)] if one.broken and not one.rule]
    same = [one for one in failed if not (one.commit and kept.commit) or one.commit == kept.commit]
    if not same:
        return next((one.case.value(FLAKY) for one in attempts if one.case.value(FLAKY)), "")
    labels = ", ".join(str(one.label) for one in same)
    sure = kept.commit and all(one.commit for one in same)
    where = f"both on commit {kept.commit}" if sure else f"{ASSUMED}: not every file states one"
    plural = "s" if len(same) > 1 else ""
    return (
        f"failed on attempt{plural} {labels}, {kept.case.outcome} on attempt {kept.label}; {where}"
    )


def _note(
    attempts: list[_Attempt], ran: list[_Attempt], kept: _Attempt, sticky: bool, flaky: bool
) -> tuple[str, bool]:
    """Return what has to be said beside the outcome, and whether the infrastructure recovered."""
    if sticky:
        said = kept.case.value(NOTE)
        fresh = f"failed with {', '.join(kept.verdicts)} on attempt {kept.label}{NO_FLAKE}"
        return (said if said.endswith(NO_FLAKE) else fresh), False
    before = attempts[: attempts.index(kept)]
    failed = [one for one in before if one.broken]
    if kept.case.outcome in (PASSED, XFAILED) and failed and not flaky:
        ruled = [one for one in failed if one.rule]
        if len(ruled) == len(failed):
            said = ", ".join(f"{one.rule} on attempt {one.label}" for one in ruled)
            text = f"infrastructure: {said}; {kept.case.outcome} on attempt {kept.label}"
            return text, True
        commits = ", ".join(dict.fromkeys(one.commit for one in failed if one.commit))
        return f"failed on commit {commits}, {kept.case.outcome} on commit {kept.commit}", False
    if kept.broken and ran[-1] is not attempts[-1]:
        return f"skipped on attempt {attempts[-1].label}, which proves nothing", False
    note = kept.case.value(NOTE)
    return note, note.startswith("infrastructure: ")


def _with_output(problem: Problem, case: Case, *, first: bool) -> Problem:
    return replace(problem, out=case.out, err=case.err) if first else problem
