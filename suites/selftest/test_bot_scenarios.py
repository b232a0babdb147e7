"""The bot against a fake GitHub: each file of fixtures/github/scenarios is a case."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import bot_worlds
import fake_github
import httpx
import jsonschema
import pytest
from githubkit_schemas.latest import models

from vlm_ci import schemas

SCHEMA = jsonschema.Draft202012Validator(
    json.loads((schemas.FOLDER / "bot-decision.schema.json").read_text())
)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that githubkit would make; none is made."""
    made: list[float] = []
    monkeypatch.setattr("githubkit.core.time", SimpleNamespace(sleep=made.append))
    return made


@pytest.mark.parametrize("path", bot_worlds.SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path, tmp_path: Path, waits: list[float], monkeypatch, capsys):
    scenario = bot_worlds.load(path)
    expect = scenario.expect
    played = bot_worlds.play(scenario, tmp_path, waits, monkeypatch)
    out, err = capsys.readouterr()
    github = played.github

    assert github.problems == []
    assert played.dry_changes == 0, "a dry run changed something"
    wanted_exits = [one["exit"] for one in scenario.deliveries] or [expect["exit"]]
    assert played.exits == wanted_exits, out + err

    made = bot_worlds.commands_only(github.changes)
    calls = [f"{method} {place}" for method, place, _ in made]
    assert calls == expect["calls"]
    if "body" in expect:
        assert made[-1][2] == expect["body"]
    if played.planned:
        assert [f"{method} {place}" for method, place in played.planned] == calls

    mine = [one["content"] for one in github.world.reactions if one["login"] == fake_github.BOT]
    final = [one for one in mine if one != "eyes"]
    assert final == ([expect["reaction"]] if expect["reaction"] else [])
    statuses = [one["body"] for one in github.world.comments if one["login"] == fake_github.BOT]
    if expect.get("silent"):
        assert statuses == []
    assert len(statuses) <= 1
    shown = "".join(statuses).partition("<!-- vlm-ci-bot-state")[0]
    for text in expect.get("status", []):
        assert text in shown
    for text in expect.get("not_status", []):
        assert text not in shown
    for text in expect.get("error", []):
        assert text in err
    asked = "\n".join(github.calls)
    for text in expect.get("asked", []):
        assert text in asked
    for text in expect.get("not_asked", []):
        assert text not in asked
    if "waits" in expect:
        assert len(waits) == len(expect["waits"])
        for wait, (low, high) in zip(waits, expect["waits"], strict=True):
            assert low <= wait <= high

    audit = (tmp_path / "audit.jsonl").read_text() if (tmp_path / "audit.jsonl").exists() else ""
    for line in audit.splitlines():
        SCHEMA.validate(json.loads(line))
    decided = [json.loads(line)["verdict"] for line in audit.splitlines()]
    assert decided or 3 in played.exits or expect.get("silent"), "no audit record"
    assert fake_github.TOKEN not in out + err + audit + "".join(statuses)


def test_every_scenario_says_what_it_is():
    assert len(bot_worlds.SCENARIOS) >= 40
    for path in bot_worlds.SCENARIOS:
        given = json.loads(path.read_text())
        assert given.keys() <= bot_worlds.KEYS, path.name
        assert given["says"], path.name


def test_the_recorded_event_is_one_of_githubs():
    scenario = bot_worlds.load(bot_worlds.SCENARIOS[0])
    models.WebhookIssueCommentCreated.model_validate(bot_worlds.event(scenario, bot_worlds.now()))


def test_the_fake_refuses_a_query_parameter_that_github_has_not():
    world = fake_github.World(now=bot_worlds.now())
    with fake_github.FakeGitHub(world).serving() as github:
        place = f"{github.url}/repos/{fake_github.REPOSITORY}/activity?"
        headers = {"User-Agent": "x"}
        assert httpx.get(f"{place}ref=refs/heads/topic", headers=headers).status_code == 200
        assert github.problems == []
        assert httpx.get(f"{place}page=2", headers=headers).status_code == 422
    assert "page" in github.problems[0]
