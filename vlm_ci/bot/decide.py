"""The decision: a command, the policy and the facts in; a verdict with its calls out.

Performs no I/O: the same facts give the same decision, which is why the audit record holds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from vlm_ci.bot import commands, reruns
from vlm_ci.bot.ledger import APPROVE, DISPATCH, LABEL, Entry, Skipped, Step, Verdict
from vlm_ci.bot.policy import grant, wanted
from vlm_ci.bot.words import code

if TYPE_CHECKING:
    from vlm_ci.bot.commands import Command
    from vlm_ci.bot.facts import Event, Facts
    from vlm_ci.bot.policy import Policy

APPROVING = (commands.TAG, commands.TAG_AND_RERUN, commands.RERUN_TEST)
LABELLING = (commands.TAG, commands.TAG_AND_RERUN)
RERUNNING = (commands.RERUN_FAILED, commands.TAG_AND_RERUN)


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a command: ``steps`` are the calls to make, in order."""

    verdict: Verdict
    reason: str
    steps: tuple[Step, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()


class _Denied(Exception):
    """Why a command is denied."""


def ignored(event: Event) -> str:
    """Return why a comment is none of the bot's business, or an empty text."""
    if event.action != "created":
        return f"the comment was {event.action}: only a new one counts"
    if not event.pull_request:
        return "the comment stands on an issue, not on a pull request"
    if event.bot:
        return f"{event.author} is a bot"
    if event.updated_at != event.created_at:
        return "the comment was edited: only a new one counts"
    return ""


def decide(command: Command, event: Event, policy: Policy, facts: Facts) -> Decision:
    """Return what becomes of a command. Never raises."""
    try:
        return _decide(command, event, policy, facts)
    except _Denied as denied:
        return Decision(verdict="denied", reason=str(denied))


def permits(command: Command, event: Event, policy: Policy, facts: Facts) -> bool:
    """Whether a command is one to be looked into: by somebody who may use it, on this head. For
    this nothing has to be known of why runs failed."""
    if command.help:
        return False
    try:
        _permitted(command, event, policy, facts)
    except _Denied:
        return False
    return True


def _permitted(command: Command, event: Event, policy: Policy, facts: Facts) -> str:
    """Return why a command may be used here and now.

    Raises:
        _Denied: it may not.
    """
    if facts.edited:
        raise _Denied("the comment was edited before it was read: write a new one")
    why = _granted(command, policy, facts, _runner(command, policy))
    if command.name == commands.STATUS:
        return why
    if facts.pull_request.state != "open":
        raise _Denied(f"the pull request is {facts.pull_request.state}")
    _same_head(command, event, facts)
    return why


def _decide(command: Command, event: Event, policy: Policy, facts: Facts) -> Decision:
    if command.help:
        notes = (commands.FORMS[command.name].says, f"for: {wanted(policy, command.name)}")
        return Decision(verdict="answered", reason=commands.usage(command.name), notes=notes)
    why = _permitted(command, event, policy, facts)
    if command.name == commands.STATUS:
        lines = reruns.overview(facts)
        return Decision(verdict="answered", reason=f"the head is {_head(facts)}", notes=lines)
    if command.name == commands.RERUN_TEST:
        return _test(command, event, policy, facts, why)
    return _label_and_rerun(command, policy, facts, why)


def _unseen(command: Command, facts: Facts) -> list[str]:
    """Return what is said where GitHub did not tell all about the head of a command that names
    no commit."""
    why = facts.pull_request.unseen
    if command.sha or not why:
        return []
    return [
        f"GitHub does not say when the head was pushed ({why}): only a forced push after the "
        "comment, or one that has runs, would have been seen"
    ]


def _granted(command: Command, policy: Policy, facts: Facts, runner: str) -> str:
    """Return why somebody may use the command.

    Raises:
        _Denied: nothing in the policy says so.
    """
    head = facts.pull_request
    # Who sends code from a fork cannot be the one who approves it.
    approved = command.name not in APPROVING and head.head_sha in facts.ledger.approved
    vouched = not head.fork or command.name == commands.STATUS or approved
    actor = facts.actor
    why = grant(policy, command.name, actor, runner=runner, vouched=vouched)
    if why:
        return why
    on = f" on {runner}" if runner else ""
    text = f"{actor.login} may not use /{command.name}{on}; who may: "
    text += wanted(policy, command.name, runner=runner)
    if actor.author and not vouched and grant(policy, command.name, actor, runner=runner):
        text += "; the author of a fork may not approve its code"
    unknown = [team for team in policy.teams(command.name) if actor.teams.get(team, False) is None]
    if unknown:
        text += f"; who is in {', '.join(unknown)} could not be read with this token"
    raise _Denied(text)


def _same_head(command: Command, event: Event, facts: Facts) -> None:
    """Check that the command means the commit that is the head now.

    Raises:
        _Denied: it names another one; or it names none, and the head moved after the comment, or
            the code comes from a fork.
    """
    head = facts.pull_request
    if not head.head_repository:
        raise _Denied("the fork is gone: there is nothing to run")
    option = "--sha SHA" if command.name == commands.RERUN_TEST else "SHA"
    if command.sha and command.sha != head.head_sha:
        raise _Denied(f"the command names {command.sha[:12]}, and the head is {_head(facts)}")
    if command.sha:
        return
    if head.fork:
        raise _Denied(
            "the code comes from a fork: name the commit that you have looked at, with all its 40 "
            f"digits: /{command.name} … {option}"
        )
    moved = reruns.moved_at(facts)
    if moved is not None and moved > event.created_at:
        raise _Denied(
            f"the head moved to {_head(facts)} after the comment: write a new one, or name the "
            f"commit: {option}"
        )


def _head(facts: Facts) -> str:
    return facts.pull_request.head_sha[:12]


def _approval(facts: Facts) -> list[Step]:
    head = facts.pull_request
    if not head.fork:
        return []
    return [Step(kind=APPROVE, name=f"approved by {facts.actor.login}", sha=head.head_sha)]


def _label_and_rerun(command: Command, policy: Policy, facts: Facts, why: str) -> Decision:
    steps: list[Step] = []
    skipped: list[Skipped] = []
    notes = _unseen(command, facts)
    if command.name != commands.RERUN_FAILED:
        steps += _approval(facts)
        if policy.label in facts.pull_request.labels:
            notes.append(f"the label {policy.label} is there already")
        else:
            steps.append(Step(kind=LABEL, name=policy.label, sha=facts.pull_request.head_sha))
    if command.name in RERUNNING:
        plan = reruns.plan(command, policy, facts)
        steps += plan.steps
        skipped += plan.skipped
        notes += plan.notes
        if not plan.steps and command.name == commands.RERUN_FAILED:
            return Decision(
                verdict="denied", reason=plan.reason, skipped=tuple(skipped), notes=tuple(notes)
            )
        if not plan.steps:
            notes.append(plan.reason)
    elif any(step.kind == LABEL for step in steps):
        notes.append(
            "a label that a bot adds starts no workflow: the next push does, or /rerun-failed-ci, "
            "whose gates read the labels anew"
        )
    return Decision(
        verdict="allowed",
        reason=why,
        steps=tuple(steps),
        skipped=tuple(skipped),
        notes=tuple(notes),
    )


def _runner(command: Command, policy: Policy) -> str:
    """Return the runner that a command means, or an empty text where it needs none.

    Raises:
        _Denied: the policy knows no such runner.
    """
    if command.name != commands.RERUN_TEST:
        return ""
    if not policy.runners:
        raise _Denied("the policy names no [runners], so that no test can be run by itself")
    runner = command.runner or next(iter(policy.runners))
    if runner not in policy.runners:
        raise _Denied(f"there is no runner {code(runner)}; known: {', '.join(policy.runners)}")
    return runner


def _test(command: Command, event: Event, policy: Policy, facts: Facts, why: str) -> Decision:
    budget = policy.budget
    if command.repeat > budget.repeat:
        raise _Denied(f"--repeat is at most {budget.repeat} by the policy, not {command.repeat}")
    if reruns.unspent(policy, facts.ledger) <= 0:
        raise _Denied(reruns.spent(policy, facts.ledger))
    step = _dispatch(command, event, policy, facts, facts.pull_request.head_sha)
    notes = _unseen(command, facts)
    if policy.label not in facts.pull_request.labels:
        notes.append(
            f"the pull request has no label {policy.label}: a gate that asks for it fails the "
            "test; /tag-run-ci-label adds it"
        )
    return Decision(
        verdict="allowed", reason=why, steps=(*_approval(facts), step), notes=tuple(notes)
    )


def _dispatch(command: Command, event: Event, policy: Policy, facts: Facts, sha: str) -> Step:
    inputs = {
        "nodeid": command.node_id,
        "runner": policy.runners[_runner(command, policy)],
        "repeat": str(command.repeat),
        "replay": "true" if command.replay else "false",
        "sha": sha,
        "pull_request": str(facts.pull_request.number),
        "request": request(event, command),
    }
    return Step(kind=DISPATCH, name=policy.workflow, ref=facts.default_branch, inputs=inputs)


def continues(entry: Entry, command: Command, event: Event, policy: Policy, facts: Facts) -> bool:
    """Whether an entry that is half done is what this command came to, and may still come to.

    Others can write as the bot does, or edit its comment: what stands there gives no right.
    """
    try:
        _granted(command, policy, facts, _runner(command, policy))
    except _Denied:
        return False
    if (entry.by, entry.text, entry.dry_run) != (event.author, command.text, command.dry_run):
        return False
    return all(_fits(step, entry, command, event, policy, facts) for step in entry.steps)


def _fits(
    step: Step, entry: Entry, command: Command, event: Event, policy: Policy, facts: Facts
) -> bool:
    if step.kind == LABEL:
        return command.name in LABELLING and step.name == policy.label
    if step.kind == APPROVE:
        return command.name in APPROVING and step.sha == entry.sha == command.sha
    if step.kind == DISPATCH:
        wanted = _dispatch(command, event, policy, facts, entry.sha)
        return command.name == commands.RERUN_TEST and (
            msgspec.structs.replace(step, outcome="") == wanted
        )
    if facts.pull_request.head_sha != entry.sha:  # then nothing is called any more
        return command.name in RERUNNING
    return command.name in RERUNNING and any(run.id == step.run for run in reruns.own(facts))


def request(event: Event, command: Command) -> str:
    """Return the name by which a dispatched run is found again: it stands in the run's title."""
    return f"comment-{event.comment}-{command.number}"
