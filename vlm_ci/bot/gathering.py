"""The facts that a command needs, read from GitHub through the hub. Changes nothing there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from vlm_ci.bot import artifacts, commands, reruns
from vlm_ci.bot.facts import Actor, Facts

if TYPE_CHECKING:
    from datetime import datetime

    from vlm_ci.bot.commands import Command
    from vlm_ci.bot.facts import Event, Hub, Run
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
    head = msgspec.structs.replace(head, moved_at=hub.forced_at(event.number))
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
    if command.name not in LOOKING_AT_RUNS:
        return found
    looked_at = {run.id: _look(run, hub, policy) for run in reruns.newest(found) if run.failed}
    runs = tuple(looked_at.get(run.id, run) for run in found.runs)
    return msgspec.structs.replace(found, runs=runs)


def _look(run: Run, hub: Hub, policy: Policy) -> Run:
    return msgspec.structs.replace(
        run,
        failed_jobs=hub.failed_jobs(run.id),
        cause=artifacts.cause(hub.archives(run.id, policy.artifacts)),
    )
