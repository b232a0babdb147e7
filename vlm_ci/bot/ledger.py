"""What the bot has done on a pull request, as its status comment keeps it. Performs no I/O."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec

MOST = 30  # entries that the status comment keeps; older ones only count for the budget
RERUN: Final = "rerun"
RERUN_FAILED: Final = "rerun-failed"
LABEL: Final = "label"
APPROVE: Final = "approve"
DISPATCH: Final = "dispatch"
SPENDING = (RERUN, RERUN_FAILED, DISPATCH)
DONE, MADE_BEFORE = "done", "was done already"

Moment = Annotated[datetime, msgspec.Meta(tz=True)]  # with its zone: others cannot be compared
Kind = Literal["rerun", "rerun-failed", "label", "approve", "dispatch"]
Verdict = Literal["allowed", "denied", "answered", "misunderstood", "ignored"]


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call that changes something. ``attempt`` is the run's attempt when it was decided;
    ``outcome`` is empty until the call was tried, then "done", "was done already" or a reason."""

    kind: Kind
    name: str
    run: int = 0
    attempt: int = 0
    sha: str = ""
    ref: str = ""
    inputs: dict[str, str] = {}
    outcome: str = ""

    @property
    def made(self) -> bool:
        """Whether what it is for has happened."""
        return self.outcome in (DONE, MADE_BEFORE)


class Skipped(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a command left alone, and why. ``run`` is 0 where it is no run."""

    name: str
    reason: str
    run: int = 0


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One command of one comment. ``text`` is the command as it is shown; ``state`` is "started"
    from before its first call until after its last."""

    comment: int
    number: int
    text: str
    by: str
    at: Moment
    verdict: Verdict
    reason: str
    state: Literal["started", "done"] = "done"
    sha: str = ""
    dry_run: bool = False
    steps: tuple[Step, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[int, int]:
        """Which command of which comment it is."""
        return self.comment, self.number

    @property
    def order(self) -> tuple[datetime, int, int]:
        """Its place among all entries."""
        return self.at, self.comment, self.number

    @property
    def spent(self) -> int:
        """How many calls count against the pull request's budget: also those not yet tried."""
        if self.dry_run:
            return 0
        tried = (step for step in self.steps if step.kind in SPENDING)
        return sum(step.made or not step.outcome for step in tried)


class Ledger(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The state of a status comment. ``before`` counts what entries that were left out have spent,
    ``until`` is the last of them (time, comment, number): another status comment may still have it;
    ``approved`` are commits of a fork that somebody with the right to do so has named; ``lost``
    says that an earlier state could not be read, so that nobody knows what was spent."""

    entries: tuple[Entry, ...] = ()
    before: int = 0
    until: tuple[Moment, int, int] | None = None
    approved: tuple[str, ...] = ()
    lost: bool = False

    @property
    def spent(self) -> int:
        """Reruns and dispatched tests of this pull request."""
        return self.before + sum(entry.spent for entry in self.entries)

    def find(self, comment: int, number: int) -> Entry | None:
        """Return the entry of a command, or None."""
        return next((one for one in self.entries if one.key == (comment, number)), None)


def with_entry(ledger: Ledger, entry: Entry) -> Ledger:
    """Return the ledger with an entry added, or put in the place of its earlier form."""
    entries = {one.key: one for one in ledger.entries} | {entry.key: entry}
    ordered = sorted(entries.values(), key=lambda one: one.order)
    approvals = [step.sha for step in entry.steps if step.kind == APPROVE and step.made]
    whole = msgspec.structs.replace(
        ledger,
        entries=tuple(ordered),
        approved=tuple(dict.fromkeys([*ledger.approved, *approvals]))[-MOST:],
    )
    return without_oldest(whole, len(ordered) - MOST)


def without_oldest(ledger: Ledger, count: int) -> Ledger:
    """Return the ledger without its oldest entries, which then only count for the budget."""
    if count <= 0:
        return ledger
    old = ledger.entries[:count]
    return msgspec.structs.replace(
        ledger,
        entries=ledger.entries[count:],
        before=ledger.before + sum(one.spent for one in old),
        until=old[-1].order,
    )


def joined(ledgers: list[Ledger]) -> Ledger:
    """Return one ledger for several: two handlings may each have made a status comment."""
    if not ledgers:
        return Ledger()
    until = max((ledger.until for ledger in ledgers if ledger.until), default=None)
    entries: dict[tuple[int, int], Entry] = {}
    for entry in (entry for ledger in ledgers for entry in ledger.entries):
        if until is not None and entry.order <= until:  # the one that left it out has counted it
            continue
        if entry.key not in entries or entries[entry.key].state == "started":
            entries[entry.key] = entry
    return Ledger(
        entries=tuple(sorted(entries.values(), key=lambda one: one.order)),
        before=max(ledger.before for ledger in ledgers),
        until=until,
        approved=tuple(dict.fromkeys(sha for ledger in ledgers for sha in ledger.approved)),
        lost=any(ledger.lost for ledger in ledgers),
    )
