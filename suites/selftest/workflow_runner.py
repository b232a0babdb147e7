"""Runs the jobs of a workflow as they stand: its shell for real, its actions by stand-ins.

What stands in for GitHub: a clone for actions/checkout, folders for artifacts and caches. Anything
that a workflow uses and that is not known here is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from workflow_expressions import ExpressionError, Expressions, Open, shown

SHELLS = {"bash": ["bash", "--noprofile", "--norc", "-eo", "pipefail"]}
STEP_FIELDS = {"id", "name", "if", "uses", "with", "run", "shell", "env"}
CONVERT: dict[str, Callable[[str], Any]] = {"number": int, "boolean": lambda text: text == "true"}


class WorkflowError(Exception):
    """A workflow uses something that is not known here."""


@dataclass(kw_only=True)
class Outcome:
    """How a job or a step ended; ``log`` is what its shell printed."""

    result: str = "success"
    outputs: dict[str, Any] = field(default_factory=dict)
    log: str = ""
    summary: str = ""


@dataclass(kw_only=True)
class Github:
    """What GitHub keeps for one run of a workflow: artifacts, caches, outcomes of jobs.

    ``prepare`` is called with each checkout; ``environment`` goes to every step's shell.
    """

    repository: Path
    folder: Path
    prepare: Callable[[Path], None]
    environment: Mapping[str, str]
    sha: str
    event: str = "workflow_dispatch"
    payload: dict[str, Any] = field(default_factory=dict)
    attempt: int = 1
    jobs: dict[str, Outcome] = field(default_factory=dict)

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def caches(self) -> Path:
        return self.folder / "caches"

    def context(self) -> dict[str, Any]:
        """Return the context ``github``."""
        return {
            "event_name": self.event,
            "event": Open(self.payload),
            "ref": "refs/heads/main",
            "repository": "octo/engine",
            "run_attempt": self.attempt,
            "run_id": 42,
            "sha": self.sha,
            "token": "no-token",
        }


@dataclass(kw_only=True)
class Job:
    """One job while it runs."""

    github: Github
    workspace: Path
    contexts: dict[str, Any]
    environment: dict[str, str]
    failed: bool = False
    log: str = ""
    summary: Path = field(init=False)

    def __post_init__(self) -> None:
        self.workspace.mkdir(parents=True)
        self.summary = self.workspace.with_suffix(".summary.md")
        self.summary.touch()

    def expressions(self, contexts: Mapping[str, Any]) -> Expressions:
        status = {
            "always": lambda: True,
            "cancelled": lambda: False,
            "failure": lambda: self.failed,
            "success": lambda: not self.failed,
        }
        return Expressions(contexts=contexts, status=status)

    def steps(self, steps: list[dict[str, Any]], contexts: dict[str, Any], place: Path) -> None:
        """Run steps in order; ``place`` is the folder of the action that they are of."""
        done = contexts["steps"]
        # What has not run yet, or was skipped, has no outputs: they are null.
        done.update(
            {s["id"]: {"outputs": Open(), "outcome": "skipped"} for s in steps if "id" in s}
        )
        for step in steps:
            if unknown := set(step) - STEP_FIELDS:
                raise WorkflowError(f"a step has {sorted(unknown)}, which is not known here")
            expressions = self.expressions(contexts)
            if not expressions.condition(step.get("if", "success()")):
                continue
            env = {n: expressions.text(v) for n, v in step.get("env", {}).items()}
            if "run" in step:
                outcome = self._shell(step, env, place)
            else:
                given = {n: expressions.text(v) for n, v in step.get("with", {}).items()}
                outcome = self._action(step["uses"], given, contexts)
            self.failed |= outcome.result == "failure"
            if "id" in step:
                record = {"outputs": Open(outcome.outputs), "outcome": outcome.result}
                done[step["id"]] = record

    def _shell(self, step: Mapping[str, Any], env: dict[str, str], place: Path) -> Outcome:
        if "${{" in step["run"]:
            raise WorkflowError(f"an expression inside of a run step: {step['run']!r}")
        output = self.workspace.with_suffix(".output")
        output.write_text("")
        script = self.workspace.with_suffix(".sh")
        script.write_text(step["run"])
        shell = step.get("shell") or self.contexts["shell"]
        done = subprocess.run(
            [*SHELLS[shell], str(script)],
            cwd=self.workspace,
            env={
                **self.github.environment,
                **self.environment,
                "GITHUB_ACTION_PATH": str(place),
                "GITHUB_OUTPUT": str(output),
                "GITHUB_STEP_SUMMARY": str(self.summary),
                "GITHUB_WORKSPACE": str(self.workspace),
                "GITHUB_RUN_ATTEMPT": str(self.github.attempt),
                "GITHUB_RUN_ID": "42",
                "GITHUB_REPOSITORY": "octo/engine",
                "GITHUB_SERVER_URL": "https://github.invalid",
                "GITHUB_SHA": self.github.sha,
                "RUNNER_OS": "Linux",
                **env,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.log += f"$ {step['run']}\n{done.stdout}"
        lines = [line.partition("=") for line in output.read_text().splitlines()]
        result = "failure" if done.returncode else "success"
        return Outcome(result=result, outputs={name: value for name, _, value in lines})

    def _action(self, uses: str, given: dict[str, str], contexts: Mapping[str, Any]) -> Outcome:
        if uses.startswith("./"):
            return self._composite(self.workspace / uses, given, contexts)
        if uses.startswith("OWNER/vlm_ci/"):  # as an engine's repository names ours
            place = uses.removeprefix("OWNER/vlm_ci/").partition("@")[0]
            return self._composite(self.github.repository / place, given, contexts)
        known: dict[str, Callable[[dict[str, str]], Outcome]] = {
            "actions/checkout": self._checkout,
            "actions/setup-python": lambda given: Outcome(),
            "actions/upload-artifact": self._upload,
            "actions/download-artifact": self._download,
            "actions/cache/restore": self._restore,
            "actions/cache/save": self._save,
        }
        name = uses.partition("@")[0]
        if name not in known:
            raise WorkflowError(f"the action {name} is not known here")
        self.log += f"$ {name} {given}\n"
        return known[name](given)

    def _composite(
        self, place: Path, given: dict[str, str], contexts: Mapping[str, Any]
    ) -> Outcome:
        action = load(place / "action.yml")
        if unknown := set(given) - set(action["inputs"]):
            raise WorkflowError(f"{place.name} has no inputs {sorted(unknown)}")
        inputs = {}
        for name, one in action["inputs"].items():
            if one.get("required") == "true" and not given.get(name):
                raise WorkflowError(f"{place.name} needs the input {name}")
            default = self.expressions(contexts).text(one.get("default", ""))
            inputs[name] = given.get(name, default)
        inner = {"inputs": inputs, "steps": {}, "github": contexts["github"]}
        failed, self.failed = self.failed, False
        self.steps(action["runs"]["steps"], inner, place)
        result = "failure" if self.failed else "success"
        self.failed |= failed
        expressions = self.expressions(inner)
        outputs = {n: expressions.text(o["value"]) for n, o in action.get("outputs", {}).items()}
        return Outcome(result=result, outputs=outputs)

    # -- what stands in for actions ----------------------------------------------------------------

    def _checkout(self, given: dict[str, str]) -> Outcome:
        assert given["persist-credentials"] == "false"
        shutil.rmtree(self.workspace)
        source = f"file://{self.github.repository}"
        git = ["git", "-c", "advice.detachedHead=false"]
        subprocess.run([*git, "clone", "-q", source, str(self.workspace)], check=True)
        ref = given.get("ref") or self.github.sha
        if ref not in ("main", "refs/heads/main"):
            subprocess.run([*git, "checkout", "-q", ref], cwd=self.workspace, check=True)
        self.github.prepare(self.workspace)
        return Outcome()

    def _upload(self, given: dict[str, str]) -> Outcome:
        """Copy files as the action does: paths count from what all of them have in common."""
        paths = [self.workspace / line for line in given["path"].split("\n") if line]
        root = Path(os.path.commonpath(paths)) if len(paths) > 1 else paths[0]
        target = self.github.artifacts / given["name"]
        if target.exists():
            raise WorkflowError(f"there is an artifact {given['name']} already")
        for path in (file for one in paths for file in one.rglob("*") if file.is_file()):
            name = path.relative_to(root)
            if not any(part.startswith(".") for part in name.parts):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target / name)
        return Outcome()

    def _download(self, given: dict[str, str]) -> Outcome:
        assert given["github-token"], "without a token only this attempt's artifacts are seen"
        for one in sorted(self.github.artifacts.glob("*")):
            if fnmatchcase(one.name, given["pattern"]):
                shutil.copytree(one, self.workspace / given["path"] / one.name)
        return Outcome()

    def _restore(self, given: dict[str, str]) -> Outcome:
        exact = self.github.caches / given["key"]
        older: list[Path] = []
        if prefix := given.get("restore-keys"):
            older = sorted(self.github.caches.glob(f"{prefix}*"), key=os.path.getmtime)
        for found in (exact, *reversed(older)):
            if found.exists():
                shutil.copytree(found, self.workspace / given["path"], dirs_exist_ok=True)
                break
        return Outcome(outputs={"cache-hit": str(exact.exists()).lower()})

    def _save(self, given: dict[str, str]) -> Outcome:
        source = self.workspace / given["path"]
        if source.exists():
            shutil.copytree(source, self.github.caches / given["key"], dirs_exist_ok=True)
        return Outcome()


def load(path: Path) -> dict[str, Any]:
    """Return a workflow or an action, every scalar as its text."""
    loaded: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    return loaded


def inputs_of(workflow: Mapping[str, Any], trigger: str, given: Mapping[str, Any]) -> Open:
    """Return the context ``inputs``: what is given, and the defaults of one trigger."""
    declared = {name: (one or {}).get("inputs", {}) for name, one in workflow["on"].items()}
    if unknown := set(given) - set(declared[trigger]):
        raise WorkflowError(f"{trigger} has no inputs {sorted(unknown)}")
    # A field of another trigger is null; one of no trigger is an error of the workflow.
    values: dict[str, Any] = {name: None for one in declared.values() for name in one}
    for name, one in declared[trigger].items():
        value = given[name] if name in given else one["default"]  # what is required has none
        values[name] = CONVERT.get(one["type"], str)(str(value))
    return values  # type: ignore[return-value]


def run_job(
    github: Github,
    workflow: Mapping[str, Any],
    name: str,
    inputs: Mapping[str, Any],
    matrix: Mapping[str, Any] | None = None,
) -> Outcome:
    """Run one job, and keep how it ended for those that need it: one failed shard is a failure."""
    job = workflow["jobs"][name]
    needs = job.get("needs", [])
    needed = {one: github.jobs[one] for one in ([needs] if isinstance(needs, str) else needs)}
    contexts: dict[str, Any] = {
        "github": github.context(),
        "inputs": inputs,
        "matrix": dict(matrix or {}),
        "needs": {n: {"result": o.result, "outputs": o.outputs} for n, o in needed.items()},
        "steps": {},
        "shell": workflow["defaults"]["run"]["shell"],
    }
    turn = "-".join([name, *(shown(value) for value in contexts["matrix"].values())])
    place = github.folder / f"attempt-{github.attempt}" / turn
    running = Job(github=github, workspace=place, contexts=contexts, environment={})
    before = running.expressions(contexts)
    running.failed = any(one.result != "success" for one in needed.values())
    if not before.condition(job.get("if", "success()")):
        outcome = Outcome(result="skipped")
    else:
        running.failed = False
        running.environment.update({n: before.text(v) for n, v in job.get("env", {}).items()})
        running.steps(job["steps"], contexts, place)
        after = running.expressions(contexts)
        outcome = Outcome(
            result="failure" if running.failed else "success",
            outputs={n: after.text(v) for n, v in job.get("outputs", {}).items()},
            log=running.log,
            summary=running.summary.read_text(encoding="utf-8"),
        )
    last = github.jobs.get(name)
    if not (matrix and last is not None and last.result == "failure"):
        github.jobs[name] = outcome
    return outcome


__all__ = ["ExpressionError", "Github", "Outcome", "WorkflowError", "inputs_of", "load", "run_job"]
