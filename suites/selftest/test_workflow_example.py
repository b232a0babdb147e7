"""docs/examples/github/vlm-ci.yml: what it declares is read, and what it downloads is looked at."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from workflow_runner import Github, Outcome, inputs_of, load, run_job

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs/examples/github/vlm-ci.yml"
OURS = ROOT / ".github/workflows/gpu.yml"
INPUTS = {"nodeid": "tests/a.py::test_x", "runner": "h100", "pull_request": "7", "request": "r"}
GH = """#!/bin/sh
for path; do :; done
case "$path" in
*/pulls/7) cat "$ANSWERS/pull.json" ;;
*/statuses*) echo '[[]]' ;;
*/actions/runs?head_sha=*) cat "$ANSWERS/runs.json" ;;
*/actions/runs/41/artifacts*) cat "$ANSWERS/artifacts.json" ;;
*) echo "no answer for $path" >&2; exit 1 ;;
esac
"""
PULL = {
    "number": 7,
    "state": "open",
    "labels": [{"name": "run-ci"}],
    "base": {"repo": {"full_name": "octo/engine"}},
}
RUNS = {"workflow_runs": [{"id": 41, "conclusion": "failure", "created_at": "2026-01-01"}]}
ARTIFACTS = {"artifacts": [{"name": "vlm-ci-engine-shard-1-attempt-1", "expired": False}]}


@pytest.mark.parametrize("path", [EXAMPLE, OURS], ids=lambda path: path.stem)
def test_every_input_is_read(path: Path):
    text = path.read_text()
    for trigger, one in load(path)["on"].items():
        for name in (one or {}).get("inputs", {}) if isinstance(one, dict) else ():
            assert re.search(rf"inputs\.{name}\b", text), f"{trigger} declares {name}"


@pytest.fixture
def github(tmp_path: Path) -> Github:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout: actions/checkout clones one")
    head = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(head, cwd=ROOT, check=True, capture_output=True, text=True)
    sha = done.stdout.strip()
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    pull = {**PULL, "head": {"sha": sha, "repo": {"full_name": "octo/engine"}}}
    for name, answer in (("pull", pull), ("runs", RUNS), ("artifacts", ARTIFACTS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(answer))
    outer = {name: os.environ[name] for name in ("HOME",) if name in os.environ}
    path = f"{tmp_path}:{os.environ['PATH']}"
    return Github(
        repository=ROOT,
        folder=tmp_path,
        prepare=lambda checkout: None,
        environment={**outer, "PATH": path, "ANSWERS": str(tmp_path)},
        sha=sha,
    )


def shard(github: Github, **given: str) -> tuple[Outcome, Path, dict[str, Any]]:
    """Run the gate and then a shard up to the check; return that step of the workflow too."""
    workflow = load(EXAMPLE)
    inputs = inputs_of(workflow, "workflow_dispatch", {**INPUTS, "sha": github.sha, **given})
    gate = run_job(github, workflow, "gate", inputs)
    assert gate.result == "success", gate.log
    job = workflow["jobs"]["shard"]
    *steps, check = job["steps"]
    job["steps"] = [step for step in steps if step.get("name") != "Install the engine"]
    outcome = run_job(github, workflow, "shard", inputs, {"shard": 1})
    return outcome, github.folder / f"attempt-{github.attempt}" / "shard-1", check


def left(github: Github, name: str) -> None:
    """Put a file into what an earlier run's shard left."""
    folder = github.artifacts / "vlm-ci-engine-shard-1-attempt-1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("<testsuites/>")


def test_a_replay_gets_what_failed_before(github: Github):
    left(github, "junit-1.xml")
    outcome, workspace, check = shard(github, replay="true")
    assert outcome.result == "success", outcome.log
    assert github.jobs["gate"].outputs["evidence"] == "41"
    assert "'run-id': '41'" in outcome.log
    assert (workspace / "vlm-ci-evidence/vlm-ci-engine-shard-1-attempt-1/junit-1.xml").is_file()
    assert "inputs.replay" in check["with"]["evidence"]


def test_without_replay_nothing_is_downloaded(github: Github):
    left(github, "junit-1.xml")
    outcome, workspace, _ = shard(github)
    assert outcome.result == "success", outcome.log
    assert not (workspace / "vlm-ci-evidence").exists()


@pytest.mark.parametrize("attempt", [1, 2])
def test_artifacts_are_looked_at_before_anything_reads_them(github: Github, attempt: int):
    github.attempt = attempt
    left(github, "junit-\n1.xml")
    outcome, _, _ = shard(github, replay="true" if attempt == 1 else "false")
    assert outcome.result == "failure"
    assert "has a name with control characters" in outcome.log
