"""Decisions as entries of the ledger and as audit records. Performs no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_ci.bot.claims import CONFUSED, DENIED, DONE
from vlm_ci.bot.decide import decide
from vlm_ci.bot.ledger import Entry
from vlm_ci.bot.records import Record, call

if TYPE_CHECKING:
    from datetime import datetime

    from vlm_ci.bot.commands import Command, Misunderstood, Parsed
    from vlm_ci.bot.decide import Decision
    from vlm_ci.bot.facts import Event, Facts
    from vlm_ci.bot.policy import Policy


def entry_of(
    event: Event, command: Command, decision: Decision, facts: Facts, *, dry_run: bool
) -> Entry:
    """Return a decision as an entry of the ledger."""
    return Entry(
        comment=event.comment,
        number=command.number,
        text=command.text,
        by=event.author,
        at=facts.now,
        verdict=decision.verdict,
        reason=decision.reason,
        sha=facts.pull_request.head_sha,
        dry_run=dry_run,
        steps=decision.steps,
        skipped=decision.skipped,
        notes=decision.notes,
    )


def misunderstood(event: Event, one: Misunderstood, now: datetime) -> Entry:
    """Return the entry of a line that is no command."""
    return Entry(
        comment=event.comment,
        number=one.number,
        text=one.line,
        by=event.author,
        at=now,
        verdict="misunderstood",
        reason=one.reason,
    )


def undecided(event: Event, command: Command, why: str, now: datetime) -> Entry:
    """Return the entry of a command that could not be decided on."""
    return Entry(
        comment=event.comment,
        number=command.number,
        text=command.text,
        by=event.author,
        at=now,
        verdict="denied",
        reason=why,
    )


def record_of(event: Event, entry: Entry, *, dry_run: bool, facts: Facts | None = None) -> Record:
    """Return the audit record of an entry."""
    return Record(
        at=entry.at,
        repository=event.repository,
        pull_request=event.number,
        comment=event.comment,
        number=entry.number,
        by=entry.by,
        command=entry.text,
        verdict=entry.verdict,
        reason=entry.reason,
        dry_run=dry_run,
        steps=entry.steps,
        calls=tuple(call(step, event.repository, event.number) for step in entry.steps),
        skipped=entry.skipped,
        notes=entry.notes,
        facts=facts,
    )


def ignored(event: Event, reason: str, now: datetime, *, dry_run: bool) -> Record:
    """Return the record of a comment that nothing was done about."""
    return Record(
        at=now,
        repository=event.repository,
        pull_request=event.number,
        comment=event.comment,
        number=0,
        by=event.author,
        command="",
        verdict="ignored",
        reason=reason,
        dry_run=dry_run,
    )


def rehearse(event: Event, parsed: Parsed, policy: Policy, facts: Facts) -> list[Record]:
    """Return what would be decided on recorded facts."""
    entries = [
        entry_of(event, one, decide(one, event, policy, facts), facts, dry_run=True)
        for one in parsed.commands
    ]
    entries += [misunderstood(event, one, facts.now) for one in parsed.misunderstood]
    return [record_of(event, entry, dry_run=True, facts=facts) for entry in entries]


def failed(record: Record) -> bool:
    """Whether somebody did not get what the comment asks for."""
    if record.verdict in ("denied", "misunderstood"):
        return True
    tried = bool(record.steps) and not record.dry_run
    return tried and not any(step.made for step in record.steps)


def reaction(records: list[Record]) -> str:
    """Return the reaction that ends the handling of a comment."""
    if any(record.verdict == "misunderstood" for record in records):
        return CONFUSED
    return DENIED if any(failed(record) for record in records) else DONE
