"""What one comment may make the bot fetch and read has an end."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bot_worlds
import fake_github
import pytest
from bot_worlds import Scenario
from fake_github import FakeGitHub

from vlm_ci.bot import artifacts, comment, job
from vlm_ci.bot.ledger import Entry, Ledger, Step, joined, with_entry


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


def entry(number: int, *, spends: bool, text: str = "x") -> Entry:
    steps = (Step(kind="rerun", name="n", run=number, outcome="done"),) if spends else ()
    return Entry(
        comment=number,
        number=1,
        text=text,
        by="alice",
        at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number),
        verdict="allowed",
        reason="",
        steps=steps,
    )


def test_two_status_comments_count_an_old_entry_once():
    first, second = Ledger(), with_entry(Ledger(), entry(1, spends=True))
    for number in range(2, 60):
        first = with_entry(joined([first, second]), entry(number, spends=number == 20))
        assert joined([first, second]).spent == 1 + (number >= 20)
    assert len(first.entries) == 30


def test_a_comment_that_is_too_long_counts_what_it_leaves_out_once():
    first, second = Ledger(), with_entry(Ledger(), entry(1, spends=True))
    for number in range(2, 12):
        ledger = with_entry(joined([first, second]), entry(number, spends=False, text="y" * 9000))
        first = comment.read(comment.render(ledger, "octo/engine", 7, "https://github.com"))
        assert joined([first, second]).spent == 1
    assert len(first.entries) < 10
