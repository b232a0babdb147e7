"""The facts that a command needs, read from GitHub through the hub. Changes nothing there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from vlm_ci.bot import artifacts, commands, reruns
from vlm_ci.bot.decide import permits
from vlm_ci.bot.facts import Actor, Facts, Refused

if TYPE_CHECKING:
    from datetime import datetime

    from vlm_ci.bot.commands import Command
    from vlm_ci.bot.facts import Event, Hub, PullRequest, Run
    from vlm_ci.bot.ledger import Ledger
    from vlm_ci.bot.policy import Policy

LOOKING_AT_RUNS = (commands.RERUN_FAILED, commands.TAG_AND_RERUN, commands.STATUS)


def facts(
    command: Command,
    event: Event,
    hub: Hub,
    policy: Policy,
    *,
    ledger: Ledger,
    now: datetime,
    edited: bool,
) -> Facts:
    """Return what the decision on a command rests on.

    Raises:
        HubError: GitHub does not answer.
    """
    head = hub.pull_request(event.number)
    head = _dated(head, hub, now)
    rules = policy.rules(command.name)
    login = event.author
    actor = Actor(
        login=login,
        author=head.author.lower() == login.lower(),
        role=hub.role(login) if any(rule.role for rule in rules) else "none",
        teams={team: hub.member(team, login) for team in policy.teams(command.name)},
    )
    found = Facts(
        now=now,
        default_branch=hub.default_branch(),
        actor=actor,
        pull_request=head,
        runs=tuple(hub.runs(head.head_sha)),
        ledger=ledger,
        edited=edited,
    )
    # Whoever is denied, or asks for nothing that needs it, makes the bot fetch nothing.
    if command.name not in LOOKING_AT_RUNS or not permits(command, event, policy, found):
        return found
    looked_at: dict[int, Run] = {}
    left = artifacts.LARGEST_COMMENT
    for run in reruns.newest(found):
        if run.failed:
            archives = hub.archives(run.id, policy.artifacts, left)
            full = any(packed is None for _, packed in archives)
            left = 0 if full else left - sum(len(packed or b"") for _, packed in archives)
            looked_at[run.id] = msgspec.structs.replace(
                run, failed_jobs=hub.failed_jobs(run.id), cause=artifacts.cause(archives)
            )
    runs = tuple(looked_at.get(run.id, run) for run in found.runs)
    return msgspec.structs.replace(found, runs=runs)


def _dated(head: PullRequest, hub: Hub, now: datetime) -> PullRequest:
    """Return a pull request with what GitHub's clock says of its head. A fork's pushes are not for
    the base repository to see, which is why a command on a fork has to name the commit."""
    forced = hub.forced_at(head.number)
    if head.fork:
        return msgspec.structs.replace(head, moved_at=forced)
    try:
        pushes = hub.pushes(head.head_branch)
    except Refused as refused:
        return msgspec.structs.replace(head, moved_at=forced, unseen=str(refused))
    times = [push.at for push in pushes if push.sha == head.head_sha]
    if not times and pushes:  # younger than all that GitHub lists
        times = [now]
    return msgspec.structs.replace(
        head,
        moved_at=max([*times, *([forced] if forced else [])], default=None),
        unseen="" if times else "it lists none",
    )
