"""What one comment may make the bot fetch and read has an end."""

from __future__ import annotations

import json
from pathlib import Path

import bot_worlds
import fake_github
import pytest
from bot_worlds import Scenario
from fake_github import FakeGitHub

from vlm_ci.bot import artifacts, job


def test_all_archives_of_one_comment_have_a_cap_together(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(artifacts, "LARGEST_COMMENT", 250)
    content = b"x" * 100
    runs = [
        {"id": i, "artifacts": [{"name": f"junit-{j}", "content": content} for j in range(2)]}
        for i in (1, 2)
    ]
    scenario = Scenario(
        says="", comment={"body": "/rerun-failed-ci"}, expect={}, world={"runs": runs}
    )
    now = bot_worlds.now()
    path = tmp_path / "event.json"
    path.write_text(json.dumps(bot_worlds.event(scenario, now)))
    with FakeGitHub(bot_worlds.world(scenario, now)).serving() as github:
        (record,), _, failure = job.run(
            event=str(path),
            dry_run=False,
            policy=None,
            facts=None,
            api=github.url,
            environment={"GITHUB_TOKEN": fake_github.TOKEN},
        )
    assert (github.problems, failure) == ([], "")
    assert sum(call.endswith("/zip") for call in github.calls) == 2
    first, second = (run.cause.says for run in record.facts.runs)
    assert "not looked at" not in first
    assert "2 artifacts more were not looked at" in second
    assert len(record.steps) == 2


@pytest.mark.parametrize("claimed", [100, 10])
def test_a_stated_size_that_lies_does_not_help(claimed: int):
    from vlm_ci.bot.github import Client

    one = {"name": "junit-1", "content": b"x" * 100, "size": claimed}
    world = fake_github.World(now=bot_worlds.now(), runs=[fake_github.run(1, artifacts=[one])])
    with FakeGitHub(world).serving() as github:
        with Client(fake_github.REPOSITORY, fake_github.TOKEN, github.url) as hub:
            assert hub.archives(1, ("junit*",), 50) == [("junit-1", None)]
