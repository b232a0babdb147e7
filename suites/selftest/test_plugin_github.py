"""A session in a step of GitHub Actions: its summary and annotations; alone and with workers."""

from __future__ import annotations

from pathlib import Path

import processes
import pytest
from projects import WORKERS, Project, shown

pytest_plugins = ["pytester"]

HOSTILE = """
    from toy import ToyTarget

    def loud():
        def serve(call, ids, batch):
            raise RuntimeError("x\\r::set-output name=a::b ##[add-path]/bin @octocat")
        return ToyTarget(serve)
"""


@pytest.fixture
def step(project: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A step of GitHub Actions over the project; returns the file of its summary."""
    file = project.path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project.path))
    file.write_text("# of an earlier command\n")
    return file


def run(project: Project, step: Path, *args: str) -> pytest.RunResult:
    """Run pytest in the step."""
    if any(arg.startswith("-n") for arg in args):
        return project.run(*args)
    variables = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_STEP_SUMMARY": str(step),
        "GITHUB_WORKSPACE": str(project.path),
    }
    done = processes.run("pytest", *args, cwd=project.path, **variables)
    lines = done.stdout.splitlines(), done.stderr.splitlines()
    return pytest.RunResult(done.returncode, *lines, 0.0)


@WORKERS
def test_a_red_session_tells_the_step_once(project, step: Path, workers: tuple[str, ...]):
    done = run(project, step, "--vlm-target=engine:nan", "--vlm-examples=3", *workers)
    assert done.ret == 1
    (file,) = project.path.glob("test_*.py")
    (command,) = [line for line in done.outlines if line.startswith("::")]
    assert command.startswith(f"::error file={file.name},line=1,title=vlm-ci%3A nonfinite in ")
    assert "%0Areplay: vlm-ci replay vlm-ci-out/failures/01-" in command
    text = step.read_text()
    assert text.startswith("# of an earlier command\n\n## ❌ vlm-ci: failed, 1 cause\n")
    assert text.count("## ❌") == 1
    assert "vlm-ci replay vlm-ci-out/failures/01-nonfinite" in text


@pytest.mark.parametrize("off", ["--no-vlm-github", pytest.param("ini", marks=pytest.mark.nightly)])
def test_it_can_be_switched_off(project, step: Path, off: str):
    options = [off]
    if off == "ini":
        (project.path / "pytest.ini").write_text("[pytest]\nvlm_github = false\n")
        options = []
    done = run(project, step, "--vlm-target=toy:factory", "--vlm-examples=3", *options)
    assert done.ret == 0
    assert step.read_text() == "# of an earlier command\n"


def test_a_session_without_vlm_tests_writes_nothing(project, step: Path):
    (project.path / "test_plain.py").write_text("def test_plain(): pass")
    done = run(project, step, "test_plain.py")
    assert done.ret == 0
    assert step.read_text() == "# of an earlier command\n"
    assert "::" not in shown(done).replace("test_plain.py::", "")


def test_what_a_model_says_is_no_command(project, step: Path):
    project.makepyfile(loud=HOSTILE)
    done = run(project, step, "--vlm-target=loud:loud", "--vlm-examples=3")
    assert done.ret == 1
    lines = [line.strip() for line in shown(done).replace("\r", "\n").splitlines()]
    commands = [line for line in lines if line.startswith("::")]
    assert [line.split(" ")[0] for line in commands] == ["::error"]
    assert not any("##[" in line for line in lines if not line.startswith("::error"))
    assert "`crash`" in step.read_text()


@pytest.mark.nightly
def test_without_a_step_nothing_is_told(project):
    done = project.run("--vlm-target=engine:nan", "--vlm-examples=3")
    assert not [line for line in done.outlines if line.startswith("::")]
