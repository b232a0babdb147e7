"""The scripts of the workflows: who may use a GPU, what is read, what the night's issue says."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / ".github/scripts"
SHA, OTHER = "a" * 40, "b" * 40
BOT = "github-actions[bot]"


@pytest.fixture(scope="module", autouse=True)
def path() -> Iterator[None]:
    """The scripts stand in no package, and name each other as they lie."""
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))
    for name in ("api", "gate", "collect", "evidence", "nightly_issue"):
        sys.modules.pop(name, None)


@pytest.fixture
def gate() -> ModuleType:
    return importlib.import_module("gate")


@pytest.fixture
def nightly() -> ModuleType:
    return importlib.import_module("nightly_issue")


def pull(**changed: Any) -> dict[str, Any]:
    """Return a pull request of a fork, as GitHub states it."""
    head = {"sha": SHA, "repo": {"full_name": "somebody/engine"}}
    stated = {
        "number": 7,
        "state": "open",
        "labels": [{"name": "run-ci"}],
        "head": head,
        "base": {"repo": {"full_name": "octo/engine"}},
    }
    return {**stated, **changed}


def status(state: str = "success", by: str | None = BOT, context: str = "vlm-ci/approved") -> Any:
    return {"state": state, "context": context, "creator": {"login": by} if by else None}


def judged(gate: ModuleType, pull: dict[str, Any], *statuses: Any) -> tuple[bool, str]:
    """Return whether a commit passes, and if it is trusted or why it does not."""
    try:
        passed = gate.judge(pull, statuses, sha=SHA, label="run-ci", approvers=[BOT])
    except gate.Refused as error:
        return False, str(error)
    assert passed.sha == SHA
    return True, "trusted" if passed.trusted else "not trusted"


OWN = {"head": {"sha": SHA, "repo": {"full_name": "octo/engine"}}}
MOVED = {"head": {"sha": OTHER, "repo": {"full_name": "octo/engine"}}}
GONE = {"head": {"sha": SHA, "repo": None}}


@pytest.mark.parametrize(
    ("changed", "statuses", "passes", "says"),
    [
        pytest.param(OWN, [], True, "trusted", id="own branch"),
        pytest.param({}, [status()], True, "not trusted", id="fork, approved"),
        pytest.param({}, [], False, "it has none", id="fork, not approved"),
        pytest.param({}, [status(by="somebody")], False, "success by somebody", id="by another"),
        pytest.param({}, [status(by=None)], False, "success by nobody", id="by nobody"),
        pytest.param(
            {}, [status("failure"), status()], False, "failure by github", id="taken back"
        ),
        pytest.param({}, [status("pending")], False, "pending by", id="pending"),
        pytest.param({}, [status(context="ci")], False, "it has none", id="another status"),
        pytest.param(GONE, [], False, "comes from a fork", id="fork deleted, not approved"),
        pytest.param(MOVED, [status()], False, f"{OTHER} is: run that one", id="head moved"),
        pytest.param({"state": "closed"}, [status()], False, "7 is closed", id="closed"),
        pytest.param({**OWN, "labels": []}, [], False, "no label run-ci", id="no label"),
        pytest.param(
            {"labels": [{"name": "run-ci-later"}]}, [status()], False, "no label", id="near label"
        ),
    ],
)
def test_who_may_use_a_gpu(
    gate: ModuleType, changed: dict[str, Any], statuses: list[Any], passes: bool, says: str
) -> None:
    passed, said = judged(gate, pull(**changed), *statuses)
    assert passed is passes
    assert says in said


def decided(gate: ModuleType, **environment: str) -> str:
    given = {
        "GITHUB_REPOSITORY": "octo/engine",
        "GITHUB_SHA": SHA,
        "PULL_REQUEST": "",
        "SHA": SHA,
        "LABEL": "run-ci",
        "APPROVERS": BOT,
    }
    try:
        return str(gate.decide({**given, **environment}))
    except gate.Refused as error:
        return f"refused: {error}"


def test_a_commit_of_no_pull_request_is_the_run_s_own(gate: ModuleType) -> None:
    assert "trusted=True" in decided(gate)
    assert "name the pull request" in decided(gate, SHA=OTHER)


@pytest.mark.parametrize("sha", ["main", "a" * 39, "A" * 40, f"{SHA}\n", f"--{'a' * 38}"])
def test_only_a_full_sha_is_a_commit(gate: ModuleType, sha: str) -> None:
    assert "no full commit SHA" in decided(gate, SHA=sha, PULL_REQUEST="7")


@pytest.mark.parametrize("number", ["7/../8", "٧", "7?x", "-7", "x"])
def test_only_a_number_names_a_pull_request(gate: ModuleType, number: str) -> None:
    assert "no number of a pull request" in decided(gate, PULL_REQUEST=number)


def script(name: str, *args: str, cwd: Path, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / name), *args],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_gate_that_gets_no_answer_is_closed(tmp_path: Path) -> None:
    gh = tmp_path / "gh"
    gh.write_text("#!/bin/sh\necho 'HTTP 502\nsorry' >&2\nexit 1\n")
    gh.chmod(0o755)
    environment = {
        **{"GITHUB_REPOSITORY": "octo/engine", "GITHUB_SHA": SHA, "PULL_REQUEST": "7"},
        **{"SHA": SHA, "LABEL": "", "APPROVERS": BOT, "SHARDS": "2"},
        **{"PATH": f"{tmp_path}:/usr/bin:/bin", "GITHUB_OUTPUT": str(tmp_path / "out")},
    }
    code, said = script("gate.py", cwd=tmp_path, **environment)
    assert code == 1
    assert said.count("\n") == 1
    assert "HTTP 502%0Asorry" in said
    assert not (tmp_path / "out").exists()
    code, said = script("gate.py", cwd=tmp_path, **{**environment, "SHARDS": "257"})
    assert (code, "257 shards" in said) == (1, True)


def test_the_artifacts_of_shards_are_looked_at_before_they_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    file = folder / "one/junit-shard-1-attempt-1-turn-1.xml"
    file.parent.mkdir(parents=True)
    file.write_text("<testsuites/>")
    (folder / "one/result.json").write_text("{}")
    assert script("collect.py", "shards", cwd=tmp_path) == (0, f"{file.relative_to(tmp_path)}\n")

    (folder / "link").symlink_to("/etc/passwd")
    code, said = script("collect.py", "shards", cwd=tmp_path)
    assert (code, "neither a file nor a folder" in said) == (1, True)
    (folder / "link").unlink()

    (folder / "two\nlines").write_text("")
    code, said = script("collect.py", "shards", cwd=tmp_path)
    assert (code, "control characters" in said) == (1, True)
    (folder / "two\nlines").unlink()

    os.mkfifo(folder / "pipe")
    code, said = script("collect.py", "shards", cwd=tmp_path)
    assert (code, "neither a file nor a folder" in said) == (1, True)


def test_too_much_is_refused(tmp_path: Path) -> None:
    collect = importlib.import_module("collect")
    for number in range(3):
        (tmp_path / f"junit-{number}.xml").write_bytes(b"x" * 10)
    assert len(collect.collect(tmp_path, most_files=3, most_bytes=30)) == 3
    with pytest.raises(collect.Refused, match="more than 2 files"):
        collect.collect(tmp_path, most_files=2)
    with pytest.raises(collect.Refused, match="or 29 bytes"):
        collect.collect(tmp_path, most_bytes=29)


def test_nothing_is_an_error_only_where_shards_ran(tmp_path: Path) -> None:
    code, said = script("collect.py", "shards", cwd=tmp_path)
    assert (code, "all are missing" in said) == (1, True)
    assert script("collect.py", "--optional", "e", cwd=tmp_path) == (0, "nothing in e\n")
    assert (tmp_path / "e").is_dir()  # for the step that reads it


def test_the_newest_failed_run_that_left_results_is_replayed() -> None:
    evidence = importlib.import_module("evidence")

    def run(number: int, conclusion: str | None) -> dict[str, Any]:
        return {"id": number, "conclusion": conclusion, "created_at": f"2026-01-0{number}"}

    def artifact(expired: bool = False, name: str = "vlm-ci-gpu-shard-1-attempt-1") -> Any:
        return {"name": name, "expired": expired}

    left = {
        1: [artifact()],
        2: [artifact()],
        3: [artifact(expired=True)],
        4: [artifact(name="x")],
        5: [],
    }
    runs = [run(2, "failure"), run(1, "failure"), run(3, "failure"), run(4, "cancelled")]
    runs += [run(5, None)]
    assert evidence.choose(runs, left.__getitem__) == 2
    assert evidence.choose([run(2, "success"), *runs[2:]], left.__getitem__) is None


RUN = "https://github.invalid/octo/engine/actions/runs/42"


def planned(nightly: ModuleType, *lines: str, issues: Any = (), failed: bool = True) -> Any:
    text = "\n".join(lines)
    searches = [nightly.Search(name="merged-llava", verdicts=text, report="### Report")]
    return nightly.plan(searches, issues, failed=failed, repository="octo/engine", run=RUN)


def issue(body: str, number: int = 3, login: str = BOT) -> dict[str, Any]:
    return {"number": number, "body": body, "user": {"login": login}}


def test_the_first_findings_open_an_issue(nightly: ModuleType) -> None:
    (call,) = planned(nightly, "failed         t::a: recompile", "merged         1 tests")
    assert (call.method, call.path) == ("POST", "repos/octo/engine/issues")
    assert call.fields["labels"] == ["vlm-ci-nightly"]
    for part in ("<!-- vlm-ci nightly ", RUN, "## merged-llava", "    failed  ", "### Report"):
        assert part in call.fields["body"]


def test_the_same_findings_update_it_and_others_are_told(nightly: ModuleType) -> None:
    (first,) = planned(nightly, "failed         t::a: recompile")
    there = [issue(first.fields["body"])]
    (again,) = planned(nightly, "failed         t::a: recompile", issues=there)
    assert (again.method, again.path) == ("PATCH", "repos/octo/engine/issues/3")
    update, comment = planned(nightly, "failed         t::b: @all", issues=there)
    assert update.fields["body"] != first.fields["body"]
    assert comment.path == "repos/octo/engine/issues/3/comments"
    assert "    merged-llava: failed         t::b: @all" in comment.fields["body"]


def test_a_clean_night_closes_it_and_says_so(nightly: ModuleType) -> None:
    (first,) = planned(nightly, "failed t")
    there = [issue(first.fields["body"])]
    comment, closed = planned(nightly, issues=there, failed=False)
    assert RUN in comment.fields["body"]
    assert closed.fields == {"state": "closed"}
    assert planned(nightly, failed=False) == []


def test_an_issue_of_somebody_else_is_left_alone(nightly: ModuleType) -> None:
    (first,) = planned(nightly, "failed t")
    marked = first.fields["body"]
    for other in (issue(marked, login="somebody"), issue("no marker"), issue(None)):
        (call,) = planned(nightly, "failed t", issues=[other])
        assert call.method == "POST"
    (call,) = planned(nightly, "failed t", issues=[{**issue(marked), "pull_request": {}}])
    assert call.method == "POST"


def test_a_body_that_is_too_long_is_cut_for_every_search(nightly: ModuleType) -> None:
    searches = [
        nightly.Search(name=f"search-{n}", verdicts="failed t", report="x" * 60_000)
        for n in range(3)
    ]
    (call,) = nightly.plan(searches, [], failed=True, repository="o/e", run=RUN)
    assert len(call.fields["body"]) < 65_536
    for number in range(3):
        assert f"## search-{number}" in call.fields["body"]
    assert call.fields["body"].count("Cut here") == 3


def test_the_night_s_results_are_read_and_the_calls_made(tmp_path: Path) -> None:
    merged = tmp_path / "merged/merged-vlm-ci-nightly-llava-attempt-1"
    merged.mkdir(parents=True)
    (merged / "merge.txt").write_text("failed         t::a: mismatch\n")
    (merged / "summary.md").write_text("### Report\n")
    gh = tmp_path / "gh"
    gh.write_text(
        f"#!{sys.executable}\nimport json, sys\nargs = sys.argv[1:]\n"
        "if '--slurp' in args:\n    print('[[]]')\nelse:\n"
        f"    open({str(tmp_path / 'calls')!r}, 'a').write(args[3] + sys.stdin.read())\n"
        "    print('{}')\n"
    )
    gh.chmod(0o755)
    code, said = script(
        "nightly_issue.py",
        "merged",
        cwd=tmp_path,
        GITHUB_REPOSITORY="octo/engine",
        GITHUB_SERVER_URL="https://github.invalid",
        GITHUB_RUN_ID="42",
        RESULT="failure",
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )
    assert (code, said) == (0, "POST repos/octo/engine/issues\n")
    made = (tmp_path / "calls").read_text()
    body = json.loads(made.removeprefix("repos/octo/engine/issues"))["body"]
    assert "failed         t::a: mismatch" in body
    assert "### Report" in body
