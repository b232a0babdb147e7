"""gpu.yml from checkout to merged JUnit and summary: its steps as they stand, on the CPU.

GitHub's actions have stand-ins (workflow_runner.py). vlm_ci and what it needs are not installed
again: the step that does it finds the environment of these tests in its place.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from junitparser import JUnitXml
from workflow_expressions import Expressions
from workflow_runner import Github, Outcome, inputs_of, load, run_job

PULL = {
    "number": 7,
    "state": "open",
    "labels": [{"name": "run-ci"}],
    "base": {"repo": {"full_name": "octo/engine"}},
}
WITHOUT = "sys.modules.update(torch=None, transformers=None, pytest=None, hypothesis=None)"
HERE = "suites.selftest"  # as the checkout's root sees it
TOY = {"target": f"{HERE}.toy:factory", "backend": "", "device": "cpu", "examples": "20"}
# Answers as GitHub would: the argument after the method is the path.
GH = """#!/bin/sh
for path; do :; done
case "$path" in
*/pulls/7) cat "$ANSWERS/pull.json" ;;
*/statuses*) cat "$ANSWERS/statuses.json" ;;
*) echo "no answer for $path" >&2; exit 1 ;;
esac
"""


@pytest.fixture(scope="module")
def root() -> Path:
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def workflow(root: Path) -> dict[str, Any]:
    return load(root / ".github/workflows/gpu.yml")


def prepare(checkout: Path) -> None:
    """Put the environment of these tests where ``make install`` would make one."""
    bin_folder = checkout / ".venv/bin"
    bin_folder.mkdir(parents=True)
    python = f'#!/bin/sh\nPYTHONPATH="{checkout}" exec "{sys.executable}" '
    # `make tools` installs no torch: what the merge runs gets none either.
    light = f'-c "import sys; {WITHOUT}; from vlm_ci.cli import main; sys.exit(main())"'
    for name, text in (("python", f'{python}"$@"\n'), ("vlm-ci", f'{python}{light} "$@"\n')):
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    for stamp in (".installed", ".tools"):
        (checkout / ".venv" / stamp).touch()


class Run:
    """One run of gpu.yml, with all of its attempts."""

    def __init__(
        self,
        workflow: dict[str, Any],
        root: Path,
        folder: Path,
        *,
        workers: str = "0",  # what `-n auto` means here: by day no process but pytest's own
        **given: str,
    ) -> None:
        if not (root / ".git").exists():
            pytest.skip("needs a git checkout: actions/checkout clones one")
        head = ["git", "rev-parse", "HEAD"]
        sha = subprocess.run(head, cwd=root, check=True, capture_output=True, text=True)
        tools, answers = folder / "tools", folder / "answers"
        tools.mkdir()
        answers.mkdir()
        (tools / "gh").write_text(GH)
        (tools / "gh").chmod(0o755)
        self.sha = sha.stdout.strip()
        self.ended: list[Outcome] = []
        self.answers = answers
        self.answer(fork=False)
        own = ("PYTEST_", "GITHUB_", "CI", "VIRTUAL_ENV", "MAKE")
        outer = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        environment = {
            **outer,
            "CI": "true",
            "PYTEST_XDIST_AUTO_NUM_WORKERS": workers,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "ANSWERS": str(answers),
        }
        self.workflow = workflow
        self.given = {"pull_request": "7", "sha": self.sha, **given}
        self.github = Github(
            repository=root,
            folder=folder,
            prepare=prepare,
            environment=environment,
            sha=self.sha,
            payload={"repository": {"default_branch": "main"}},
        )

    def answer(self, *, fork: bool, labels: tuple[str, ...] = ("run-ci",), by: str = "") -> None:
        """Say what GitHub answers from now on; ``by`` is who approved the commit."""
        owner = "somebody/engine" if fork else "octo/engine"
        head = {"sha": self.sha, "repo": {"full_name": owner}}
        pull = {**PULL, "head": head, "labels": [{"name": name} for name in labels]}
        status = {"context": "vlm-ci/approved", "state": "success", "creator": {"login": by}}
        (self.answers / "pull.json").write_text(json.dumps(pull))
        (self.answers / "statuses.json").write_text(json.dumps([[status] if by else []]))

    def job(self, name: str, **matrix: Any) -> Outcome:
        """Run one job."""
        inputs = inputs_of(self.workflow, "workflow_call", self.given)
        return run_job(self.github, self.workflow, name, inputs, matrix)

    def shards(self) -> list[Outcome]:
        """Run the gate and every shard that it lets pass."""
        gate = self.job("gate")
        assert gate.result == "success", gate.log
        self.github.jobs.pop("shard", None)
        return [self.job("shard", shard=n) for n in json.loads(gate.outputs["shards"])]

    def artifacts(self) -> set[str]:
        return {path.name for path in self.github.artifacts.glob("*")}

    @contextmanager
    def lost(self, shard: int) -> Iterator[None]:
        """Take the artifact of a shard away, and what an earlier merge left."""
        artifact = self.github.artifacts / f"vlm-ci-gpu-shard-{shard}-attempt-1"
        kept = artifact.rename(self.github.folder / artifact.name)
        shutil.rmtree(self.merged(), ignore_errors=True)
        shutil.rmtree(self.github.folder / "attempt-1/merge", ignore_errors=True)
        try:
            yield
        finally:
            kept.rename(artifact)

    def merged(self, attempt: int = 1) -> Path:
        return self.github.artifacts / f"merged-vlm-ci-gpu-attempt-{attempt}"


def cases(path: Path) -> dict[str, Any]:
    """Return the cases of a JUnit file by name."""
    return {case.name: case for suite in JUnitXml.fromfile(str(path)) for case in suite}


@pytest.fixture(scope="module")
def run(workflow: dict[str, Any], root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run over a toy, which is served in seconds: both shards, then the merge."""
    run = Run(workflow, root, tmp_path_factory.mktemp("gpu"), **TOY, shards="2")
    run.ended = [*run.shards(), run.job("merge")]
    return run


def test_both_shards_run_and_leave_their_artifacts(run: Run) -> None:
    first, second, _ = run.ended
    assert first.result == "success", first.log
    assert second.result == "success", second.log
    assert run.artifacts() == {
        "vlm-ci-gpu-shard-1-attempt-1",
        "vlm-ci-gpu-shard-2-attempt-1",
        "merged-vlm-ci-gpu-attempt-1",
    }
    left = run.github.artifacts / "vlm-ci-gpu-shard-1-attempt-1/vlm-ci-out"
    assert (left / "junit-shard-1-attempt-1-turn-1.xml").is_file()
    result = json.loads((left / "results-1/result.json").read_text())
    assert result["verdict"] == "clean"


def test_the_merge_holds_every_test_and_the_summary_says_so(run: Run) -> None:
    merge = run.ended[-1]
    assert merge.result == "success", merge.log
    assert set(cases(run.merged() / "junit.xml")) == {"test_mixed_traffic"}
    assert "clean, 2 runs" in merge.summary
    assert "missing" not in merge.summary
    assert merge.summary == (run.merged() / "summary.md").read_text()
    assert (run.merged() / "report.html").stat().st_size > 1000


def test_a_lost_shard_is_a_failure_with_its_name(run: Run) -> None:
    with run.lost(2):
        merge = run.job("merge")
    assert merge.result == "failure"
    assert "missing shard  2/2" in merge.log
    assert "missing shard" in merge.summary
    assert "2/2" in merge.summary
    assert "vlm_ci.missing" in (run.merged() / "junit.xml").read_text()


def test_where_all_shards_are_lost_the_merge_says_so(run: Run) -> None:
    with run.lost(1), run.lost(2):
        merge = run.job("merge")
    assert merge.result == "failure"
    assert "no shard left a JUnit file" in merge.log
    assert "Nothing was merged" in merge.summary


def test_a_fork_gets_to_a_gpu_only_with_an_approval_of_this_commit(
    workflow: dict[str, Any], root: Path, tmp_path: Path
) -> None:
    run = Run(workflow, root, tmp_path)
    run.answer(fork=True)
    gate = run.job("gate")
    assert gate.result == "failure"
    assert "comes from a fork and needs a status vlm-ci/approved of its own" in gate.log
    assert run.job("shard", shard=1).result == "skipped"
    assert run.job("merge").result == "skipped"

    shutil.rmtree(tmp_path / "attempt-1")
    run.answer(fork=True, by="github-actions[bot]")
    gate = run.job("gate")
    assert (gate.result, gate.outputs["trusted"]) == ("success", "false")
    assert gate.outputs["sha"] == run.sha


@pytest.mark.parametrize(
    ("trusted", "cache", "ref"), [("true", "write", "c"), ("false", "read", "main")]
)
def test_what_a_fork_may_not_do(
    workflow: dict[str, Any], trusted: str, cache: str, ref: str
) -> None:
    """Save a cache, and have its own code read what its shards left."""
    contexts = {
        "needs": {"gate": {"outputs": {"trusted": trusted, "sha": "c"}}},
        "github": {"event": {"repository": {"default_branch": "main"}}},
    }
    expressions = Expressions(contexts=contexts, status={})
    action = workflow["jobs"]["shard"]["steps"][-1]["with"]
    checkout = workflow["jobs"]["merge"]["steps"][0]["with"]
    assert expressions.text(action["cache"]) == cache
    assert expressions.text(checkout["ref"]) == ref


@pytest.mark.nightly
def test_a_rerun_replays_what_failed_and_does_not_turn_green(
    workflow: dict[str, Any], root: Path, tmp_path: Path
) -> None:
    """Two attempts of one shard over a toy that answers wrongly, and the merge of both."""
    wrong = {**TOY, "target": f"{HERE}.workflow_toys:wrong"}
    run = Run(workflow, root, tmp_path, **wrong, shards="1")
    (first,) = run.shards()
    assert first.result == "failure"
    run.github.attempt = 2
    (second,) = run.shards()
    assert second.result == "failure"
    left = run.github.artifacts / "vlm-ci-gpu-shard-1-attempt-2/vlm-ci-out/results-1/result.json"
    evidence = json.loads(left.read_text())["evidence"]
    assert evidence["sessions"] == 1
    merge = run.job("merge")
    assert merge.result == "failure"
    assert "failed, failed" in run.merged(attempt=2).joinpath("junit.xml").read_text()
    assert "mismatch" in merge.summary


@pytest.mark.nightly
def test_the_default_model_passes_from_checkout_to_summary(
    workflow: dict[str, Any], root: Path, tmp_path: Path
) -> None:
    given = {"device": "cpu", "backend": "eager", "examples": "20", "shards": "2"}
    run = Run(workflow, root, tmp_path, workers="1", **given)
    for shard in run.shards():
        assert shard.result == "success", shard.log
    merge = run.job("merge")
    assert merge.result == "success", merge.log
    assert "qwen3-vl-tiny" in merge.summary
