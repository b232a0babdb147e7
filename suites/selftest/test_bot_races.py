"""Two handlings at once, on one fake GitHub: each thing is done once."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import bot_worlds
import fake_github
import pytest
from bot_worlds import Scenario
from fake_github import FakeGitHub

from vlm_ci.bot import comment, job


def handle(github: FakeGitHub, event: Path, attempt: str = "1") -> tuple[list, bool, str]:
    return job.run(
        event=str(event),
        dry_run=False,
        policy=None,
        facts=None,
        api=github.url,
        environment={"GITHUB_TOKEN": fake_github.TOKEN, "GITHUB_RUN_ATTEMPT": attempt},
    )


def both(github: FakeGitHub, events: list[Path], attempts: list[str]) -> list[object]:
    """Handle two events at the same time; return what each gave, or raised."""
    outcomes: list[object] = [None, None]

    def one(place: int) -> None:
        try:
            outcomes[place] = handle(github, events[place], attempts[place])
        except Exception as error:
            outcomes[place] = error

    threads = [threading.Thread(target=one, args=(place,)) for place in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return outcomes


def start(tmp_path: Path, **world: object) -> tuple[FakeGitHub, Path]:
    scenario = Scenario(
        says="",
        comment={"body": "/rerun-failed-ci"},
        expect={},
        world={"runs": [{"id": 1, "fails": True}], **world},
    )
    now = bot_worlds.now()
    path = tmp_path / "event.json"
    path.write_text(json.dumps(bot_worlds.event(scenario, now)))
    return FakeGitHub(bot_worlds.world(scenario, now)), path


def reruns(github: FakeGitHub) -> int:
    return sum("rerun" in path for _, path, _ in github.changes)


# Both are held back until both have asked, so that neither sees what the other does.
MEETINGS = [
    {"on": "GET .*/comments/50/reactions", "times": 2, "barrier": 2},
    {"on": "POST .*/comments/50/reactions", "times": 2, "barrier": 2},
]


@pytest.mark.parametrize("meeting", MEETINGS, ids=["looking", "claiming"])
def test_two_deliveries_of_one_comment_run_it_again_once(tmp_path: Path, meeting):
    github, path = start(tmp_path, faults=[dict(meeting)])
    with github.serving():
        outcomes = both(github, [path, path], ["1", "1"])
    assert github.problems == []
    verdicts = sorted(one[0][0].verdict for one in outcomes)
    assert verdicts == ["allowed", "ignored"], outcomes
    assert reruns(github) == 1


@pytest.mark.parametrize(
    "meeting",
    [*MEETINGS[:1], {"on": "DELETE .*/reactions/5", "times": 2, "barrier": 2}],
    ids=["looking", "deleting"],
)
def test_two_that_take_over_one_claim_run_it_again_once(tmp_path: Path, meeting):
    old = {
        "id": 5,
        "comment": 50,
        "content": "eyes",
        "login": fake_github.BOT,
        "minutes": -1,
    }
    github, path = start(tmp_path, faults=[dict(meeting)], reactions=[old])
    with github.serving():
        outcomes = both(github, [path, path], ["2", "2"])
    assert github.problems == []
    assert sorted(one[0][0].verdict for one in outcomes) == ["allowed", "ignored"], outcomes
    assert reruns(github) == 1


def test_two_identical_comments_run_it_again_once_and_both_are_answered(tmp_path: Path):
    meeting = {"on": "POST .*/rerun-failed-jobs", "times": 2, "barrier": 2}
    github, path = start(tmp_path, runs=[{"id": 1}], faults=[meeting])
    event = json.loads(path.read_text())
    event["comment"]["id"] = 51
    other = tmp_path / "other.json"
    other.write_text(json.dumps(event))
    github.world.comments.append({"id": 51, "login": "alice", "body": "/rerun-failed-ci"})
    with github.serving():
        outcomes = both(github, [path, other], ["1", "1"])
    assert github.problems == []
    steps = [one[0][0].steps[0].outcome for one in outcomes]
    assert sorted(steps)[1] == "done"
    assert "already running" in sorted(steps)[0]
    assert github.world.runs[0]["run_attempt"] == 2
    mine = [one["body"] for one in github.world.comments if one["login"] == fake_github.BOT]
    entries = {entry.key for body in mine for entry in comment.read(body).entries}
    assert entries == {(50, 1), (51, 1)}


class Overtaken(FakeGitHub):
    """Somebody else runs the run again, and it fails, while the status comment is written."""

    def _post_comment(self, number: str, *, query: object, body: object) -> object:
        self.world.runs[0]["run_attempt"] += 1
        return super()._post_comment(number, query=query, body=body)


def test_a_run_that_failed_again_after_the_decision_is_not_run_again_once_more(tmp_path: Path):
    github, path = start(tmp_path)
    with Overtaken(github.world).serving() as github:
        records, failed, failure = handle(github, path)
    assert github.problems == []
    assert reruns(github) == 0
    assert [step.outcome for step in records[0].steps] == [
        "not done: it was run again in the meantime"
    ]
    assert (failed, failure) == (True, "")


def test_two_comments_at_once_share_one_budget(tmp_path: Path):
    meeting = {"on": "GET .*/actions/runs", "times": 2, "barrier": 2}
    policy = ["pull_request = 5", "pull_request = 1"]
    github, path = start(tmp_path, runs=[{"id": 1}, {"id": 2}], faults=[meeting], policy=policy)
    event = json.loads(path.read_text())
    event["comment"] |= {"id": 51, "body": "/rerun-test tests/a.py::test_x"}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(event))
    body = event["comment"]["body"]
    github.world.comments.append({"id": 51, "login": "alice", "body": body})
    with github.serving():
        outcomes = both(github, [path, other], ["1", "1"])
    assert github.problems == []
    steps = [step.outcome for one in outcomes for record in one[0] for step in record.steps]
    assert steps.count("done") <= 1, steps
    made = bot_worlds.commands_only(github.changes)
    assert len(made) == steps.count("done"), made


STATUS = f"{comment.MARKER}\n<!-- vlm-ci-bot-state {{}} -->\n"


class Held(FakeGitHub):
    """The first change of the status comment is on its way until somebody lets it in."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        self.sent, self.let, self.written = (threading.Event() for _ in range(3))

    def _fault(self, method: str, path: str) -> object:
        if method == "PATCH" and not self.sent.is_set():
            self.sent.set()
            assert self.let.wait(timeout=60)
            threading.current_thread().name = "held"
        return super()._fault(method, path)

    def _patch_comment(self, number: str, *, query: object, body: object) -> object:
        answer = super()._patch_comment(number, query=query, body=body)
        if threading.current_thread().name == "held":
            self.written.set()
        return answer


def test_an_overwritten_entry_is_written_again_before_anything_is_done(tmp_path: Path, monkeypatch):
    """B reads, A writes and looks, B writes: neither has seen the other, until A looks again."""
    ours = {"id": 3, "login": fake_github.BOT, "body": STATUS}
    policy = ["pull_request = 5", "pull_request = 1"]
    github, path = start(tmp_path, comments=[ours], policy=policy)
    event = json.loads(path.read_text())
    event["comment"] |= {"id": 51, "body": "/rerun-test tests/a.py::test_x"}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(event))
    github.world.comments.append({"id": 51, "login": "alice", "body": event["comment"]["body"]})
    waits: list[float] = []
    first = threading.current_thread()

    def sleep(seconds: float) -> None:
        if threading.current_thread() is first:
            waits.append(seconds)
            held.let.set()
            assert held.written.wait(timeout=60)

    monkeypatch.setattr("vlm_ci.bot.job.time", SimpleNamespace(sleep=sleep), raising=False)
    later: list[object] = []
    with Held(github.world).serving() as held:
        second = threading.Thread(target=lambda: later.append(handle(held, other)))
        second.start()
        assert held.sent.wait(timeout=60)
        outcome = handle(held, path)
        held.let.set()
        second.join(timeout=60)
    assert held.problems == []
    made = bot_worlds.commands_only(held.changes)
    assert len(made) <= 1, made
    assert len(waits) == 2, "it starts over where its entry is gone"
    mine = next(one["body"] for one in held.world.comments if one["login"] == fake_github.BOT)
    assert {entry.key for entry in comment.read(mine).entries} == {(50, 1), (51, 1)}
    steps = [step for one in (outcome, *later) for record in one[0] for step in record.steps]
    assert sum(step.outcome == "done" for step in steps) == len(made)
