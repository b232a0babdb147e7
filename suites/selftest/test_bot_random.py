"""Random comments and random policies: never an exception, never a call that the policy denies."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase

import fake_github
import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_ci.bot import commands, decide
from vlm_ci.bot.commands import FORMS, parse
from vlm_ci.bot.comment import read, render
from vlm_ci.bot.entries import entry_of, misunderstood
from vlm_ci.bot.facts import Actor, Cause, Event, Facts, PullRequest, Run
from vlm_ci.bot.ledger import Ledger, with_entry
from vlm_ci.bot.policy import ROLES, Budget, Policy, Rule

NOW = datetime(2026, 5, 1, tzinfo=UTC)
SEEN: Counter[str] = Counter()
RUNNERS = {"l4": "gpu-l4", "h100": "gpu-h100"}
MANY = settings(max_examples=10_000, deadline=None, database=None)

WORDS = [
    *(f"/{name}" for name in FORMS),
    "/Rerun-failed-ci",
    "/rerun-f\u0430iled-ci",
    "/ci-status\u200b",
    "--anyway",
    "--repeat 3",
    "--repeat 99999",
    "--runner h100",
    "--runner l4",
    "--sha " + fake_github.HEAD,
    "--dry-run",
    "--help",
    fake_github.HEAD,
    "c" * 40,
    "tests/a.py::test_x[a-1]",
    "`tests/a.py::T::t[a b]`",
    "$(id)",
    "> ",
    "- ",
    "    ",
    "```",
    "<!--",
    "-->",
    "<!-- vlm-ci-bot-state {} -->",
    '<!-- vlm-ci-bot-state {"before":-9} -->',
    "<b>",
    "\n",
    "\n\n",
    "\r\n",
    "*",
    "_",
    "`",
    "[x](y)",
    "|",
]
STARTS = [
    *(f"/{name}" for name in FORMS),
    f"/rerun-failed-ci {fake_github.HEAD}",
    f"/tag-and-rerun-ci {fake_github.HEAD} --anyway",
    "/rerun-test tests/a.py::test_x[a-1]",
    f"/rerun-test `tests/a.py::T::t[a b]` --sha {fake_github.HEAD}",
]


def some_body(pick: random.Random, text: str) -> str:
    """Return a random comment around a text of Hypothesis's, often with a command."""
    pieces = [text]
    for _ in range(pick.randint(0, 6)):
        pieces.insert(pick.randint(0, len(pieces)), pick.choice(WORDS))
    start = pick.choice(STARTS) + pick.choice(["\n", "\n\n", " ", ""])
    return (start if pick.random() < 0.7 else "") + pick.choice(["", " "]).join(pieces)


LOGINS = ("alice", "bob", "mallory")
TEAMS = ("octo/gpu", "octo/core")


def some_policy(pick: random.Random) -> Policy:
    """Return a random policy. Plain random numbers: Hypothesis would take most of the time here."""
    rules = [
        Rule(
            commands=tuple(pick.sample(list(FORMS), pick.randint(1, 5))),
            users=tuple(pick.sample(LOGINS, pick.randint(0, 1))),
            teams=tuple(pick.sample(TEAMS, pick.randint(0, 1))),
            role=pick.choice([None, *ROLES]),
            author=pick.random() < 0.5,
            runners=pick.choice([(), ("*",), ("l4",), ("h*",)]),
        )
        for _ in range(pick.randint(0, 5))
    ]
    budget = Budget(
        run=pick.randint(0, 3), pull_request=pick.choice([0, 2, 9]), repeat=pick.randint(1, 5)
    )
    runners = RUNNERS if pick.random() < 0.9 else {}
    return Policy(schema=1, allow=tuple(rules), runners=runners, budget=budget)


def some_run(pick: random.Random) -> Run:
    return Run(
        id=pick.randint(1, 9),
        workflow=pick.randint(1, 9),
        name=pick.choice(["unit", "", "a`b", "<!-- x -->"]),
        event=pick.choice(["pull_request"] * 5 + ["push", "schedule"]),
        status=pick.choice(["completed"] * 5 + ["in_progress"]),
        conclusion=pick.choice(["failure"] * 5 + ["cancelled", "success", "action_required", None]),
        attempt=pick.choice([1, 1, 1, 2, 3, 4, 60]),
        created_at=NOW + timedelta(minutes=pick.choice([-50_000, -60, -60, -60, -30, -30, 10])),
        head_sha=pick.choice([fake_github.HEAD] * 5 + ["c" * 40]),
        head_branch="topic",
        head_repository=pick.choice(["octo/engine"] * 3 + ["mallory/engine"]),
        url="",
        failed_jobs=pick.randint(0, 2),
        cause=pick.choice([None, None, Cause(kind="real", says="x"), Cause(kind="failed")]),
    )


def some_facts(pick: random.Random) -> Facts:
    return Facts(
        now=NOW,
        default_branch="main",
        actor=Actor(
            login=pick.choice(LOGINS),
            role=pick.choice(["none", *ROLES]),
            author=pick.random() < 0.5,
            teams={team: pick.choice([None, False, True]) for team in TEAMS},
        ),
        pull_request=PullRequest(
            number=7,
            state="open" if pick.random() < 0.9 else "closed",
            author=pick.choice(LOGINS),
            head_sha=fake_github.HEAD,
            head_branch="topic",
            head_repository=pick.choice(["octo/engine", "octo/engine", "mallory/engine", ""]),
            base_repository="octo/engine",
            labels=pick.choice([(), ("run-ci",)]),
        ),
        runs=tuple(some_run(pick) for _ in range(pick.randint(0, 4))),
        ledger=Ledger(before=pick.randint(0, 3), approved=pick.choice([(), (fake_github.HEAD,)])),
        edited=pick.random() < 0.05,
    )


def event(body: str, author: str) -> Event:
    return Event(
        repository="octo/engine",
        action="created",
        number=7,
        pull_request=True,
        comment=50,
        body=body,
        author=author,
        bot=False,
        created_at=NOW,
        updated_at=NOW,
    )


def allowed(policy: Policy, command: commands.Command, facts: Facts, runner: str) -> bool:
    """The policy once more, written as the page states it and not as the code does."""
    actor, head = facts.actor, facts.pull_request
    fork = head.head_repository != head.base_repository
    for rule in policy.allow:
        if command.name not in rule.commands:
            continue
        if command.name == "rerun-test" and not any(fnmatchcase(runner, p) for p in rule.runners):
            continue
        if actor.login in rule.users:
            return True
        if rule.role and actor.role != "none" and ROLES.index(actor.role) >= ROLES.index(rule.role):
            return True
        if any(actor.teams.get(team) for team in rule.teams):
            return True
        approved = command.name == "rerun-failed-ci" and head.head_sha in facts.ledger.approved
        if rule.author and actor.author and (not fork or approved or command.name == "ci-status"):
            return True
    return False


@MANY
@given(text=st.text(max_size=20), seed=st.integers(0, 2**32))
def _one(text: str, seed: int) -> None:
    pick = random.Random(seed)
    body = some_body(pick, text)
    policy, facts = some_policy(pick), some_facts(pick)
    happened = event(body, facts.actor.login)
    parsed = parse(body)
    for command in parsed.commands:
        _is_a_line(command, body)
        decision = decide.decide(command, happened, policy, facts)
        SEEN.update([command.name, decision.verdict, *(step.kind for step in decision.steps)])
        _check(command, decision, policy, facts)
        entry = entry_of(happened, command, decision, facts, dry_run=False)
        facts = msgspec.structs.replace(facts, ledger=with_entry(facts.ledger, entry))
    for line in parsed.misunderstood:
        entry = misunderstood(happened, line, NOW)
        facts = msgspec.structs.replace(facts, ledger=with_entry(facts.ledger, entry))
    if not facts.ledger.entries:
        return
    shown = render(facts.ledger, "octo/engine", 7, "https://github.com")
    assert len(shown) <= 65_536
    assert read(shown) == facts.ledger


def test_no_random_comment_raises_or_makes_a_call_that_the_policy_denies():
    SEEN.clear()
    _one()
    # It would prove nothing if few of them were commands.
    for name in (*FORMS, "allowed", "denied", "answered", "rerun-failed", "label"):
        assert SEEN[name] >= 10, SEEN
    for name in ("approve", "dispatch", "rerun"):
        assert SEEN[name] >= 3, SEEN


def _is_a_line(command: commands.Command, body: str) -> None:
    assert command.text in body.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert command.text.startswith(f"/{command.name}")
    plain = command.text.replace("\t", " ")
    assert plain.isascii()
    assert plain.isprintable()


def _check(
    command: commands.Command, decision: decide.Decision, policy: Policy, facts: Facts
) -> None:
    if not decision.steps:
        return
    assert decision.verdict == "allowed"
    assert not command.help
    assert not facts.edited
    assert facts.pull_request.state == "open"
    runner = command.runner or next(iter(policy.runners), "")
    assert allowed(policy, command, facts, runner)
    head = facts.pull_request.head_sha
    assert command.sha in ("", head)
    if facts.pull_request.fork:
        assert command.sha == head
    spending = [step for step in decision.steps if step.kind not in ("label", "approve")]
    assert not spending or len(spending) + facts.ledger.spent <= policy.budget.pull_request
    for step in decision.steps:
        if step.kind.startswith("rerun"):
            place = (step.run, step.attempt)
            run = next(one for one in facts.runs if (one.id, one.attempt) == place)
            assert run.head_sha == head
            assert run.attempt <= policy.budget.run
            assert run.created_at >= NOW - timedelta(days=30)
        if step.kind == "dispatch":
            assert step.inputs["runner"] == policy.runners[runner]
            assert command.repeat <= policy.budget.repeat
