"""The policy: who may use which command on which runners, and how often. Performs no I/O.

The file is TOML and is read from the default branch: a pull request cannot change its own rights.
"""

from __future__ import annotations

import tomllib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from vlm_ci.bot.commands import FORMS
from vlm_ci.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vlm_ci.bot.facts import Actor

PATH = ".github/vlm-ci-bot.toml"
ROLES = ("read", "triage", "write", "maintain", "admin")  # each holds the ones before it
Role = Literal["read", "triage", "write", "maintain", "admin"]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often: reruns of one run, reruns and tests of one pull request, ``--repeat`` at most."""

    run: Count = 3
    pull_request: Count = 20
    repeat: Positive = 20


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[[allow]]``: whoever it names may use its commands on its runners.

    ``teams`` are ``ORG/SLUG``; ``role`` means this permission in the repository or a higher one;
    ``author`` is whoever opened the pull request; ``runners`` are patterns such as ``h100*``.
    """

    commands: tuple[Text, ...]
    users: tuple[Text, ...] = ()
    teams: tuple[Text, ...] = ()
    role: Role | None = None
    author: bool = False
    runners: tuple[Text, ...] = ()


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A policy file. ``runners`` are the names that ``--runner`` knows, the first being the
    default, with the label that the workflow gives to ``runs-on``."""

    schema: Literal[1]
    allow: tuple[Rule, ...]
    bot: Text = "github-actions[bot]"
    label: Text = "run-ci"
    workflow: Text = "gpu.yml"
    artifacts: tuple[Text, ...] = ("junit*", "vlm-ci-*")
    runners: dict[Text, Text] = {}
    budget: Budget = Budget()

    def rules(self, command: str) -> list[Rule]:
        """Return the rules that speak of a command."""
        return [rule for rule in self.allow if command in rule.commands]

    def teams(self, command: str) -> list[str]:
        """Return the teams whose members a command needs to know."""
        return list(dict.fromkeys(team for rule in self.rules(command) for team in rule.teams))


def read(content: bytes, source: str) -> Policy:
    """Return the policy that a file states.

    Raises:
        UsageError: it is not TOML, or says something that means nothing.
    """
    try:
        stated = tomllib.loads(content.decode("utf-8-sig"))
        policy = msgspec.convert(stated, Policy)
    except UnicodeDecodeError:
        raise UsageError(f"{source}: not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source}: not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise UsageError(f"{source}: {error}; docs/bot.md lists what a policy may say") from None
    for number, rule in enumerate(policy.allow, 1):
        _check(policy, rule, f"{source}: [[allow]] number {number}")
    return policy


def _check(policy: Policy, rule: Rule, where: str) -> None:
    try:
        for command in rule.commands:
            if command not in FORMS:
                raise unknown_name("command", command, FORMS)
        for pattern in rule.runners:
            if not any(fnmatchcase(name, pattern) for name in policy.runners):
                raise unknown_name("runner", pattern, policy.runners)
        for team in rule.teams:
            if team.count("/") != 1 or not all(team.split("/")):
                raise UsageError(f"a team is ORG/SLUG, not {team!r}")
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    if not (rule.users or rule.teams or rule.role or rule.author):
        raise UsageError(f"{where} names nobody: give users, teams, role or author")


def grant(
    policy: Policy, command: str, actor: Actor, *, runner: str = "", vouched: bool = True
) -> str:
    """Return why somebody may use a command, or an empty text.

    ``vouched`` says whether having opened the pull request counts: the author of a fork cannot
    approve its code.
    """
    for rule in policy.rules(command):
        if runner and not any(fnmatchcase(runner, pattern) for pattern in rule.runners):
            continue
        why = _matches(rule, actor, vouched)
        if why:
            return why
    return ""


def _matches(rule: Rule, actor: Actor, vouched: bool) -> str:
    if actor.login.lower() in (user.lower() for user in rule.users):
        return "named in the policy"
    if rule.role is not None and actor.role in ROLES[ROLES.index(rule.role) :]:
        return f"has the role {actor.role}"
    if rule.author and actor.author and vouched:
        return "opened the pull request"
    teams: Mapping[str, bool | None] = actor.teams
    return next((f"is in the team {team}" for team in rule.teams if teams.get(team)), "")


def wanted(policy: Policy, command: str, *, runner: str = "") -> str:
    """Return in words who may use a command, for a denial."""
    names: dict[str, None] = {}
    for rule in policy.rules(command):
        if runner and not any(fnmatchcase(runner, pattern) for pattern in rule.runners):
            continue
        names |= dict.fromkeys(f"user {user}" for user in rule.users)
        names |= dict.fromkeys(f"team {team}" for team in rule.teams)
        names |= {f"role {rule.role} or higher": None} if rule.role else {}
        names |= {"the pull request's author": None} if rule.author else {}
    return ", ".join(names) or "nobody"
