"""``vlm-ci bot`` by its files, its messages and its exit codes; no GitHub is asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import bot_worlds
import httpx
import msgspec
import pytest
from bot_worlds import Scenario
from githubkit.exception import RequestError

from vlm_ci.bot import policy, retries
from vlm_ci.bot.records import Record
from vlm_ci.cli import main
from vlm_ci.errors import UsageError

NOWHERE = "http://127.0.0.1:9"  # nobody listens there
POLICY = bot_worlds.FOLDER / "policy.toml"
DRY = ["--dry-run", "--policy", str(POLICY)]


@pytest.fixture
def event(tmp_path: Path) -> Path:
    scenario = Scenario(says="", comment={"body": "/rerun-failed-ci"}, expect={})
    path = tmp_path / "event.json"
    path.write_text(json.dumps(bot_worlds.event(scenario, bot_worlds.now())))
    return path


def bot(event: Path, *args: str) -> int:
    return main(["bot", "--event", str(event), "--api-url", NOWHERE, *args])


def facts(event: Path, folder: Path, **changes: object) -> Path:
    head = {
        "number": 7,
        "state": "open",
        "author": "alice",
        "head_sha": "a" * 40,
        "head_branch": "topic",
        "head_repository": "octo/engine",
        "base_repository": "octo/engine",
    }
    run = {
        "id": 1,
        "workflow": 1,
        "name": "unit",
        "event": "pull_request",
        "status": "completed",
        "conclusion": "failure",
        "attempt": 1,
        "created_at": "2026-01-01T00:00:00Z",
        "head_sha": "a" * 40,
        "head_branch": "topic",
        "head_repository": "octo/engine",
        "url": "",
        "failed_jobs": 1,
    }
    recorded = {
        "now": "2026-01-01T01:00:00Z",
        "default_branch": "main",
        "actor": {"login": "alice", "role": "write"},
        "pull_request": head,
        "runs": [run],
    } | changes
    path = folder / "facts.json"
    path.write_text(json.dumps(recorded))
    return path


def test_a_dry_run_on_recorded_facts_needs_no_network(event: Path, tmp_path: Path, capsys):
    assert bot(event, *DRY, "--facts", str(facts(event, tmp_path))) == 0
    assert capsys.readouterr().out.splitlines() == [
        "/rerun-failed-ci: allowed: has the role write",
        "  POST /repos/octo/engine/actions/runs/1/rerun-failed-jobs: would be called",
    ]


def test_a_denial_is_exit_code_1_and_its_record_can_be_decided_again(
    event: Path, tmp_path: Path, capsys
):
    given = facts(event, tmp_path, actor={"login": "alice", "role": "read"})
    assert bot(event, *DRY, "--facts", str(given), "--audit", "-") == 1
    record = json.loads(capsys.readouterr().out)
    assert record["verdict"] == "denied"
    assert msgspec.convert(record, Record).facts is not None
    again = tmp_path / "again.json"
    again.write_text(json.dumps(record["facts"]))
    assert bot(event, *DRY, "--facts", str(again), "--audit", "-") == 1
    assert json.loads(capsys.readouterr().out) == record


def test_records_are_appended_to_the_audit_file(event: Path, tmp_path: Path):
    audit = tmp_path / "audit.jsonl"
    for _ in range(2):
        given = str(facts(event, tmp_path))
        assert bot(event, *DRY, "--facts", given, "--audit", str(audit)) == 0
    assert [json.loads(line)["verdict"] for line in audit.read_text().splitlines()] == [
        "allowed",
        "allowed",
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "GITHUB_TOKEN is not set"),
        (["--facts", "x.json"], "--facts goes with --dry-run and --policy"),
        (["--dry-run", "--policy", "none.toml"], "none.toml: cannot read it"),
        ([*DRY, "--facts", "none.json"], "none.json: cannot read it"),
        ([*DRY, "--facts", str(POLICY)], "not facts as an audit record has them"),
    ],
)
def test_wrong_usage(event: Path, args: list[str], message: str, capsys, monkeypatch):
    monkeypatch.delenv("GITHUB_TOKEN", raising=False)
    assert bot(event, *args) == 4
    assert message in capsys.readouterr().err


def test_an_audit_file_that_cannot_be_written_is_said_before_anything_is_done(
    event: Path, tmp_path: Path, capsys
):
    assert bot(event, *DRY, "--facts", str(facts(event, tmp_path)), "--audit", str(tmp_path)) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"vlm-ci: {tmp_path}: cannot write it: Is a directory\n"


def test_an_attempt_that_is_no_number(event: Path, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_RUN_ATTEMPT", "first")
    assert bot(event, "--dry-run") == 4
    assert "GITHUB_RUN_ATTEMPT must be a whole number, not 'first'" in capsys.readouterr().err


def test_times_without_a_zone_are_no_event_and_no_facts(event: Path, tmp_path: Path, capsys):
    given = facts(event, tmp_path, now="2026-01-01T01:00:00")
    assert bot(event, *DRY, "--facts", str(given)) == 4
    assert "not facts as an audit record has them" in capsys.readouterr().err
    payload = json.loads(event.read_text())
    payload["comment"]["created_at"] = "2026-01-01T00:00:00"
    event.write_text(json.dumps(payload))
    assert bot(event, "--dry-run") == 4
    assert "not the payload of an issue_comment event" in capsys.readouterr().err


def test_a_runner_that_nobody_knows_is_shown_as_code(event: Path, tmp_path: Path, capsys):
    payload = json.loads(event.read_text())
    payload["comment"]["body"] = "/rerun-test tests/a.py::test_x --runner www.evil.example"
    event.write_text(json.dumps(payload))
    assert bot(event, *DRY, "--facts", str(facts(event, tmp_path))) == 1
    assert "there is no runner `www.evil.example`; known: l4" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"action": 1}', "\0", "\xff"])
def test_what_is_no_event_is_said(tmp_path: Path, content: str, capsys):
    path = tmp_path / "event.json"
    path.write_bytes(content.encode("latin-1"))
    assert bot(path, "--dry-run") == 4
    assert "not the payload of an issue_comment event" in capsys.readouterr().err


def test_another_repository_than_the_jobs(event: Path, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_REPOSITORY", "eve/engine")
    assert bot(event, "--dry-run") == 4
    assert "GITHUB_REPOSITORY says eve/engine" in capsys.readouterr().err


def test_no_network_is_exit_code_3_without_a_traceback(event: Path, capsys, monkeypatch):
    monkeypatch.setattr(retries, "MOST", 0)
    assert bot(event, "--dry-run") == 3
    assert capsys.readouterr().err == "vlm-ci bot: the network failed: ConnectError\n"


def test_a_comment_by_a_deleted_account(event: Path, tmp_path: Path):
    payload = json.loads(event.read_text())
    payload["comment"]["user"] = None
    event.write_text(json.dumps(payload))
    given = facts(event, tmp_path, actor={"login": "ghost"})
    assert bot(event, *DRY, "--facts", str(given)) == 1


def test_deciding_loads_neither_torch_nor_an_http_client(event: Path, tmp_path: Path):
    args = ["bot", "--event", str(event), *DRY, "--facts", str(facts(event, tmp_path))]
    code = f"import sys; from vlm_ci.cli import main; print(main({args})); "
    code += "print([m for m in ('torch', 'githubkit', 'httpx', 'hypothesis') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["0", "[]"]


@pytest.mark.parametrize("missing", ["githubkit", "markdown_it"])
def test_without_what_the_extra_installs(event: Path, missing: str):
    args = ["bot", "--event", str(event), "--dry-run"]
    code = f"import sys; sys.modules[{missing!r}] = None; from vlm_ci.cli import main; "
    code += f"sys.exit(main({args}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stderr == f"vlm-ci: the bot needs {missing}: pip install 'vlm-ci[bot]'\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema = 2\nallow = []", "Invalid enum value 2"),
        ("schema = 1", "missing required field `allow`"),
        ("schema = 1\nallow = []\nlabels = 'x'", "unknown field `labels`"),
        ("schema = ", "not TOML"),
        ("schema = 1\n[[allow]]\ncommands = ['ci-statu']\nauthor = true", "'ci-status'"),
        ("schema = 1\n[[allow]]\ncommands = ['ci-status']", "number 1 names nobody"),
        ("schema = 1\n[[allow]]\ncommands = ['ci-status']\nrole = 'wirte'", "'wirte'"),
        ("schema = 1\n[[allow]]\ncommands = ['ci-status']\nteams = ['gpu']", "ORG/SLUG"),
        (
            "schema = 1\n[[allow]]\ncommands = ['rerun-test']\nauthor = true\nrunners = ['h1*']",
            "unknown runner 'h1*'",
        ),
        ("schema = 1\nallow = []\n[budget]\nrepeat = 0", ">= 1"),
    ],
)
def test_what_a_policy_may_not_say(text: str, message: str):
    with pytest.raises(UsageError, match=r"^policy\.toml: ") as raised:
        policy.read(text.encode(), "policy.toml")
    assert message in str(raised.value)


def test_waits_have_an_end_together():
    retry = retries.Retry()
    request = httpx.Request("GET", NOWHERE)
    lost = RequestError(httpx.ReadError("x", request=request))
    waits = [retry(lost, count).retry_after for count in range(retries.MOST)]
    assert all(timedelta() < wait < timedelta(seconds=4) for wait in waits)
    assert not retry(lost, retries.MOST).do_retry
    retry.waited = retries.TOTAL
    assert not retry(lost, 0).do_retry


def test_what_changes_something_is_sent_again_only_where_it_was_never_sent():
    request = httpx.Request("POST", NOWHERE)
    for error, again in (
        (httpx.ReadError("x", request=request), False),
        (httpx.ReadTimeout("x", request=request), False),
        (httpx.ConnectError("x", request=request), True),
    ):
        assert retries.Retry()(RequestError(error), 0).do_retry is again
