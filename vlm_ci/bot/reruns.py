"""Which runs of a pull request's head are run again, and why the others are not. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from vlm_ci.bot.ledger import RERUN, RERUN_FAILED, Skipped, Step
from vlm_ci.bot.words import code

if TYPE_CHECKING:
    from vlm_ci.bot.commands import Command
    from vlm_ci.bot.facts import Facts, Run
    from vlm_ci.bot.ledger import Kind, Ledger
    from vlm_ci.bot.policy import Policy

# GitHub's own limits
OLDEST = timedelta(days=30)
MOST_RERUNS = 50
# What a pull request's own workflows run for; a schedule or a dispatch may have the same commit.
EVENTS = ("pull_request", "pull_request_target", "push")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run again; ``reason`` says why nothing is, where ``steps`` is empty."""

    steps: list[Step]
    skipped: list[Skipped]
    notes: list[str]
    reason: str = ""


def own(facts: Facts) -> list[Run]:
    """Return the runs that belong to the pull request's head."""
    head = facts.pull_request
    return [
        run
        for run in facts.runs
        if run.head_sha == head.head_sha
        and run.event in EVENTS
        and run.head_branch == head.head_branch
        and run.head_repository.lower() == head.head_repository.lower()
        and (not run.pull_requests or head.number in run.pull_requests)
    ]


def newest(facts: Facts) -> list[Run]:
    """Return the newest of those runs for each workflow and event, by name."""
    last: dict[tuple[int, str], Run] = {}
    for run in sorted(own(facts), key=lambda run: (run.created_at, run.id)):
        last[run.workflow, run.event] = run
    return sorted(last.values(), key=lambda run: (run.name, run.event, run.id))


def moved_at(facts: Facts) -> datetime | None:
    """Return when the head became what it is, as far as GitHub's own clock tells (its list of
    pushes, the first run of the head): dates in a commit are whatever its author wrote."""
    times = [run.created_at for run in own(facts)]
    first = [min(times)] if times else []
    forced = facts.pull_request.moved_at
    return max([*first, *([forced] if forced else [])], default=None)


def plan(command: Command, policy: Policy, facts: Facts) -> Plan:
    """Return the runs to run again."""
    runs = newest(facts)
    left = unspent(policy, facts.ledger)
    made = Plan(steps=[], skipped=[], notes=[])
    for run in runs:
        if run.status == "completed" and run.conclusion in ("success", "neutral", "skipped"):
            continue
        reason = _obstacle(run, command, policy, facts)
        if not reason and len(made.steps) >= left:
            reason = spent(policy, facts.ledger)
        if reason:
            made.skipped.append(Skipped(name=run.name, run=run.id, reason=reason))
            continue
        # A run that never started has no failed jobs: GitHub then runs only the whole again.
        kind: Kind = RERUN_FAILED if run.failed_jobs else RERUN
        made.steps.append(Step(kind=kind, name=run.name, run=run.id, attempt=run.attempt))
        made.notes.extend(_evidence(run))
    if made.steps:
        return made
    return Plan(
        steps=[], skipped=made.skipped, notes=[], reason=_nothing(made.skipped, runs, facts)
    )


def overview(facts: Facts) -> tuple[str, ...]:
    """Return a line for each of the newest runs."""
    lines = [
        f"{code(run.name)} ({run.event}, attempt {run.attempt}): "
        f"{run.conclusion if run.status == 'completed' else run.status}{_why(run)}"
        for run in newest(facts)
    ]
    return tuple(lines) or ("there are no runs",)


def unspent(policy: Policy, ledger: Ledger) -> int:
    """Return how many reruns and tests the pull request has left, none where nobody knows."""
    return 0 if ledger.lost else policy.budget.pull_request - ledger.spent


def spent(policy: Policy, ledger: Ledger) -> str:
    """Return what is said where the pull request's budget is spent."""
    if ledger.lost:
        return (
            "the budget counts as spent: what the bot has done stands in its comment, and cannot "
            "be read; a maintainer deletes that comment to begin anew"
        )
    count = policy.budget.pull_request
    return f"the budget of {count} reruns in one pull request is spent"


def _why(run: Run) -> str:
    cause = run.cause
    if cause is None or not run.failed:
        return ""
    likely = {"real": "likely real", "infrastructure": "infrastructure"}.get(cause.kind, "")
    text = "; ".join(part for part in (likely, cause.says) if part)
    return f" ({text})" if text else ""


def _obstacle(run: Run, command: Command, policy: Policy, facts: Facts) -> str:
    """Return why a run is not run again, or an empty text."""
    reruns = run.attempt - 1
    if run.status != "completed":
        return f"is {run.status} (attempt {run.attempt}): comment again when it has ended"
    if run.conclusion == "action_required":
        return "waits for a maintainer to approve it"
    if not run.failed:
        return f"ended as {run.conclusion}, which is not run again"
    if facts.now - run.created_at > OLDEST:
        return "is older than 30 days, and GitHub runs nothing older again: push a commit"
    if reruns >= MOST_RERUNS:
        return f"was run again {reruns} times, and GitHub allows {MOST_RERUNS}: push a commit"
    if reruns >= policy.budget.run:
        return f"was run again {reruns} times, and the policy allows {policy.budget.run}"
    if run.cause is not None and run.cause.kind == "real" and not command.anyway:
        return f"is likely real: {run.cause.says}; --anyway runs it again all the same"
    return ""


def _evidence(run: Run) -> list[str]:
    cause = run.cause
    if cause is None or not cause.says:
        return []
    lines = [f"{code(run.name)}: {cause.says}"]
    if cause.kind == "real":  # found by vlm_ci, which keeps what failed beside the JUnit files
        lines.append(f"{code(run.name)} replays the recorded failing sessions first")
    return lines


def _nothing(skipped: list[Skipped], runs: list[Run], facts: Facts) -> str:
    head = facts.pull_request.head_sha[:12]
    if not runs:
        return f"the head {head} has no runs"
    if not skipped:
        return f"nothing failed on the head {head}"
    return "nothing is run again; see each run"
