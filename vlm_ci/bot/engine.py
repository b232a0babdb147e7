"""One comment from its claim to its answer: decides nothing, and speaks to GitHub by the hub only.

Before the first call the status comment says which calls are to be made; whoever takes over after a
crash looks at each, and makes only what has not happened.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from vlm_ci.bot import claims, comment, gathering, reruns
from vlm_ci.bot.decide import continues, decide
from vlm_ci.bot.entries import entry_of, ignored, misunderstood, reaction, record_of, undecided
from vlm_ci.bot.facts import HubError, Refused, Unclear
from vlm_ci.bot.ledger import (
    APPROVE,
    DISPATCH,
    DONE,
    LABEL,
    MADE_BEFORE,
    RERUN,
    RERUN_FAILED,
    SPENDING,
    Entry,
    Ledger,
    Step,
    joined,
    with_entry,
)
from vlm_ci.bot.words import code

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from vlm_ci.bot.commands import Command, Misunderstood, Parsed
    from vlm_ci.bot.facts import Event, Hub
    from vlm_ci.bot.policy import Policy
    from vlm_ci.bot.records import Record

TRIES = 3
SETTLE = 2.0  # seconds in which what another handling is just writing arrives


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Handles one comment. ``attempt`` is that of the workflow's run; ``server`` is GitHub's
    address for people; ``records`` has what was decided, also where GitHub failed later."""

    event: Event
    policy: Policy
    hub: Hub
    clock: Callable[[], datetime]
    sleep: Callable[[float], None]
    attempt: int = 1
    server: str = "https://github.com"
    records: list[Record] = field(default_factory=list)

    def handle(self, parsed: Parsed, *, dry_run: bool) -> list[Record]:
        """Do what a comment asks for, and return a record of each decision.

        Raises:
            HubError: GitHub does not answer; handled again, the comment is taken up where it broke
                off.
        """
        body = self.hub.comment_body(self.event.comment)
        if body is None:
            return [ignored(self.event, "the comment was deleted", self.clock(), dry_run=dry_run)]
        if not dry_run:
            reason = claims.claim(
                self.event, self.hub, self.policy.bot, attempt=self.attempt, now=self.clock()
            )
            if reason:
                return [ignored(self.event, reason, self.clock(), dry_run=dry_run)]
        edited = body != self.event.body
        for command in parsed.commands:
            self.records.append(self._command(command, edited, dry_run))
        for line in parsed.misunderstood:
            self.records.append(self._misunderstood(line, dry_run))
        if not dry_run:
            self.hub.react(self.event.comment, reaction(self.records))
        return self.records

    def without_policy(self, parsed: Parsed, why: str) -> list[Record]:
        """Answer that nothing can be decided; what was begun before stays as it is.

        Raises:
            HubError: GitHub does not answer.
        """
        now = self.clock()
        reason = claims.claim(self.event, self.hub, self.policy.bot, attempt=self.attempt, now=now)
        if reason:
            return [ignored(self.event, reason, now, dry_run=False)]
        ledger = joined([ledger for _, ledger in self._statuses()])
        for command in parsed.commands:
            entry = undecided(self.event, command, why, now)
            if ledger.find(*entry.key) is None:
                self._save(entry)
            self.records.append(record_of(self.event, entry, dry_run=False))
        self.hub.react(self.event.comment, claims.CONFUSED)
        return self.records

    # -- one command -------------------------------------------------------------------------------

    def _command(self, command: Command, edited: bool, dry_run: bool) -> Record:
        ledger = joined([ledger for _, ledger in self._statuses()])
        before = ledger.find(self.event.comment, command.number)
        if before is not None and before.state == "done" and not dry_run:
            return record_of(self.event, before, dry_run=dry_run)
        facts = gathering.facts(
            command,
            self.event,
            self.hub,
            self.policy,
            ledger=ledger,
            now=self.clock(),
            edited=edited,
        )
        if (
            before is not None
            and not dry_run
            and continues(before, command, self.event, self.policy, facts)
        ):
            before = self._perform(before, taken_over=True)
            self._save(before)
            return record_of(self.event, before, dry_run=dry_run)
        decision = decide(command, self.event, self.policy, facts)
        rehearsed = dry_run or command.dry_run
        entry = entry_of(self.event, command, decision, facts, dry_run=rehearsed)
        if not dry_run:
            if entry.steps and not rehearsed:
                self._announce(msgspec.structs.replace(entry, state="started"))
                entry = self._perform(self._within_budget(entry), taken_over=False)
            self._save(entry)
        return record_of(self.event, entry, dry_run=rehearsed, facts=facts)

    def _misunderstood(self, one: Misunderstood, dry_run: bool) -> Record:
        entry = misunderstood(self.event, one, self.clock())
        if not dry_run:
            self._save(entry)
        return record_of(self.event, entry, dry_run=dry_run)

    # -- calls -------------------------------------------------------------------------------------

    def _perform(self, entry: Entry, *, taken_over: bool) -> Entry:
        """Make the calls of an entry, each once, and return the entry with their outcomes."""
        steps: list[Step] = []
        for step in entry.steps:
            if step.outcome:
                steps.append(step)
                continue
            outcome = self._one(step, entry, taken_over)
            steps.append(msgspec.structs.replace(step, outcome=outcome))
        return msgspec.structs.replace(entry, steps=tuple(steps), state="done")

    def _announce(self, entry: Entry) -> None:
        """Write what is about to be done, and wait until it stays.

        Another handling that has read the status comment before this one wrote, and writes after
        it looked, takes the entry out. So whatever spends budget looks again after a pause, and
        starts over where the entry is gone. What remains: a change of the comment that is under
        way for longer than the pause.

        Raises:
            HubError: it cannot be written, or others take it out again and again.
        """
        for _ in range(TRIES):
            self._save(entry)
            if not any(step.kind in SPENDING for step in entry.steps):
                return
            self.sleep(SETTLE)
            if self._stands(entry, self._statuses()):
                return
        raise HubError("other handlings write the status comment again and again")

    def _within_budget(self, entry: Entry) -> Entry:
        """Give up the steps for which another comment, decided at that time, has left no budget.

        Each has written what it is about to do, and has seen it stay (``_announce``), before it
        looks, so that one at least sees the other; where both do, both give way, which spends too
        little. Too much is spent only where a change of the comment took longer than that pause.
        """
        ledger = joined([ledger for _, ledger in self._statuses()])
        others = tuple(one for one in ledger.entries if one.key != entry.key)
        left = reruns.unspent(self.policy, msgspec.structs.replace(ledger, entries=others))
        steps: list[Step] = []
        for step in entry.steps:
            if step.kind in SPENDING:
                left -= 1
                if left < 0:
                    outcome = f"not done: {reruns.spent(self.policy, ledger)}"
                    step = msgspec.structs.replace(step, outcome=outcome)
            steps.append(step)
        return msgspec.structs.replace(entry, steps=tuple(steps))

    def _one(self, step: Step, entry: Entry, taken_over: bool) -> str:
        if taken_over and self._happened(step, entry):
            return MADE_BEFORE
        # A label counts for the whole pull request, so that the head is looked at just before.
        head = self.hub.pull_request(self.event.number).head_sha
        if head != entry.sha:
            return f"not done: the head moved to {head[:12]}"
        if step.kind in (RERUN, RERUN_FAILED) and self._happened(step, entry):
            return "not done: it was run again in the meantime"
        for _ in range(TRIES):
            try:
                self._call(step)
            except Refused as refused:
                return f"GitHub refused: {refused}"
            except Unclear as unclear:
                if self._happened(step, entry):
                    return DONE
                if step.kind == DISPATCH:  # it may still come, and a second one costs a GPU
                    return f"unclear whether it started: {unclear}"
            else:
                return DONE
        raise HubError(f"GitHub fails again and again on {step.kind} of {code(step.name)}")

    def _call(self, step: Step) -> None:
        if step.kind in (RERUN, RERUN_FAILED):
            self.hub.rerun(step.run, only_failed=step.kind == RERUN_FAILED)
        elif step.kind == LABEL:
            self.hub.add_label(self.event.number, step.name)
        elif step.kind == APPROVE:
            self.hub.approve(step.sha, step.name)
        else:
            self.hub.dispatch(step.name, step.ref, step.inputs)

    def _happened(self, step: Step, entry: Entry) -> bool:
        """Whether a call was made after all; one that may be repeated counts as not made."""
        if step.kind in (RERUN, RERUN_FAILED):
            return self.hub.run(step.run).attempt > step.attempt
        if step.kind == DISPATCH:
            runs = self.hub.dispatched(step.name, entry.at)
            wanted = step.inputs["request"]
            return any(run.title.split()[-1:] == [wanted] for run in runs)  # before it: a node id
        return False

    # -- the status comment ------------------------------------------------------------------------

    def _statuses(self) -> list[tuple[int, Ledger]]:
        found = self.hub.statuses(self.event.number, self.policy.bot)
        read = [(number, comment.read(body)) for number, body in sorted(found)]
        return [(number, ledger) for number, ledger in read if ledger is not None]

    @staticmethod
    def _stands(entry: Entry, found: list[tuple[int, Ledger]]) -> bool:
        return any(entry in ledger.entries for _, ledger in found)

    def _save(self, entry: Entry) -> None:
        """Write an entry into the status comment, and look whether it stands there: the handling of
        another comment may have written at the same time.

        Raises:
            HubError: it cannot be written.
        """
        place: int | None = None
        for _ in range(TRIES + 1):
            found = self._statuses()
            if place is not None and self._stands(entry, found):
                return
            ledger = with_entry(joined([ledger for _, ledger in found]), entry)
            body = comment.render(ledger, self.event.repository, self.event.number, self.server)
            place = found[0][0] if found else None
            place = self.hub.write_status(self.event.number, place, body)
