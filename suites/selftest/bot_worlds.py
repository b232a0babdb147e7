"""Scenarios of the bot: a recorded event, the world around it, and what has to come of it."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fake_github
from fake_github import FakeGitHub, World

from vlm_ci.bot import engine
from vlm_ci.cli import main

engine.SETTLE = 0.0  # nothing is under way here but what a test holds back

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "github"
SCENARIOS = sorted((FOLDER / "scenarios").glob("*.json"))
POLICY = (FOLDER / "policy.toml").read_text()
KEYS = {"says", "comment", "world", "deliveries", "expect"}
COMMENT = 50
LENGTH = 65_536


@dataclass
class Scenario:
    """One file of ``fixtures/github/scenarios``."""

    says: str
    comment: dict[str, Any]
    expect: dict[str, Any]
    world: dict[str, Any] = field(default_factory=dict)
    deliveries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def body(self) -> str:
        body = self.comment["body"]
        filler = self.comment.get("filler", "")
        times = (LENGTH - len(body)) // len(filler) if filler else 0
        return body + filler * times


def load(path: Path) -> Scenario:
    return Scenario(**json.loads(path.read_text()))


def event(scenario: Scenario, now: datetime) -> dict[str, Any]:
    """Return the payload of the comment, in the form in which GitHub sends it."""
    payload = json.loads((FOLDER / "issue_comment.json").read_text())
    given = scenario.comment
    moment = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    payload["action"] = given.get("action", "created")
    payload["comment"] |= {
        "id": COMMENT,
        "body": scenario.body,
        "created_at": moment,
        "updated_at": moment,
    }
    payload["comment"]["user"]["login"] = given.get("author", "alice")
    payload["comment"]["user"]["type"] = "Bot" if given.get("bot") else "User"
    if given.get("issue"):
        del payload["issue"]["pull_request"]
    return payload


def world(scenario: Scenario, now: datetime) -> World:
    """Return the fake's state before the event."""
    given = copy.deepcopy(scenario.world)
    runs = [fake_github.run(one.pop("id"), **one) for one in given.pop("runs", [])]
    before = given.pop("runs_before", 0)
    quiet = {"conclusion": "success", "jobs": ["success"]}
    runs = [fake_github.run(1000 + i, **quiet) for i in range(before)] + runs
    policy = given.pop("policy", [])
    if policy:
        assert policy[0] in POLICY
    text = None if policy is None else POLICY.replace(*policy) if policy else POLICY
    comments = given.pop("comments", [])
    if not scenario.comment.get("deleted"):
        body = scenario.comment.get("now_says", scenario.body)
        comments.append(
            {"id": COMMENT, "login": scenario.comment.get("author", "alice"), "body": body}
        )
    roles = {"alice": "write"} | given.pop("roles", {})
    for fault in given.get("faults", []):
        if "reset" in fault:
            moment = int(datetime.now(UTC).timestamp()) + fault.pop("reset")
            fault["headers"] = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(moment)}
    return World(now=now, policy=text, runs=runs, comments=comments, roles=roles, **given)


@dataclass
class Played:
    """What came of a scenario."""

    github: FakeGitHub
    exits: list[int]
    waits: list[float]
    planned: list[tuple[str, str]]
    dry_changes: int


def now() -> datetime:
    return (datetime.now(UTC) - timedelta(seconds=2)).replace(microsecond=0)


def play(scenario: Scenario, folder: Path, waits: list[float], monkeypatch: Any) -> Played:
    """Let the event happen on a fake GitHub: as a dry run, then as often as it is delivered."""
    moment = now()
    path = folder / "event.json"
    path.write_text(json.dumps(event(scenario, moment)))
    monkeypatch.setenv("GITHUB_TOKEN", fake_github.TOKEN)
    monkeypatch.setenv("GITHUB_REPOSITORY", fake_github.REPOSITORY)
    state = world(scenario, moment)
    faults, state.faults = state.faults, []
    audit = folder / "audit.jsonl"
    common = ["bot", "--event", str(path)]
    with FakeGitHub(state).serving() as github:
        planned: list[tuple[str, str]] = []
        if scenario.expect["calls"] and not scenario.expect.get("differs"):
            main([*common, "--api-url", github.url, "--dry-run", "--audit", str(folder / "dry")])
            planned = calls_of(folder / "dry")
        dry_changes = len(github.changes)
        state.faults = faults
        exits = []
        for delivery in scenario.deliveries or [{"exit": scenario.expect["exit"]}]:
            github.dead = False
            for name, value in delivery.get("world", {}).items():
                setattr(state, name, value)
            monkeypatch.setenv("GITHUB_RUN_ATTEMPT", str(delivery.get("attempt", 1)))
            exits.append(main([*common, "--api-url", github.url, "--audit", str(audit)]))
    os.environ.pop("GITHUB_RUN_ATTEMPT", None)
    return Played(github=github, exits=exits, waits=waits, planned=planned, dry_changes=dry_changes)


def calls_of(audit: Path) -> list[tuple[str, str]]:
    records = [json.loads(line) for line in audit.read_text().splitlines()]
    place = f"/repos/{fake_github.REPOSITORY}"
    return [
        (call["method"], call["path"].removeprefix(place))
        for record in records
        for call in record["calls"]
    ]


def commands_only(changes: list[tuple[str, str, Any]]) -> list[tuple[str, str, Any]]:
    """Return the changes without the bot's own reactions and status comment."""
    return [
        change
        for change in changes
        if "/reactions" not in change[1] and "comments" not in change[1]
    ]
