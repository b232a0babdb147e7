"""A stranger's project: the wheel in a virtual environment of its own, a target, red and green."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/own-model.md"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as ``make wheel`` builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def listing(wheel: Path) -> list[str]:
    import zipfile

    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_holds_suites_and_fixtures_and_nothing_global(wheel: Path):
    names = listing(wheel)
    for name in (
        "vlm_ci/_suites/parity/test_parity.py",
        "vlm_ci/_suites/recompile/test_mixed_traffic.py",
        "vlm_ci/_suites/run.ini",
        "vlm_ci/_fixtures/models/qwen3-vl-tiny.json",
        "vlm_ci/_fixtures/bugs/deepstack_kwarg.py",
        "vlm_ci/_fixtures/traffic/README.md",
        "vlm_ci/schemas/result.schema.json",
        "vlm_ci/report/html/templates/page.html",
        "vlm_ci/report/html/templates/style.css",
    ):
        assert name in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vlm_ci"}


@pytest.fixture(scope="module")
def project(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project outside the repository with a virtual environment that holds the wheel.

    Its dependencies are those of this environment, which spares a download of torch; vlm_ci itself
    is the wheel's.
    """
    folder = tmp_path_factory.mktemp("project")
    venv.create(folder / ".venv", with_pip=False, symlinks=True)
    python = folder / ".venv/bin/python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps",
         "--disable-pip-version-check", str(wheel)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    (packages,) = (folder / ".venv/lib").glob("python3.*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    for name in ("engine_in_process.py", "test_engine.py"):
        shutil.copy(ROOT / "docs/examples" / name, folder)
    return folder


def run(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the project's virtual environment in the project."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST", "PYTHONPATH", "VIRTUAL"))
    }
    return subprocess.run(
        [str(project / ".venv/bin" / command[0]), *command[1:]],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_project_uses_the_wheel(project: Path):
    done = run(project, "python", "-c", "import vlm_ci; print(vlm_ci.__file__)")
    assert done.stdout.startswith(str(project / ".venv"))
    listed = run(project, "vlm-ci", "targets")
    assert "qwen3-vl-tiny" in listed.stdout
    assert "deepstack-kwarg" in run(project, "vlm-ci", "targets", "--bugs").stdout


def step(name: str) -> list[str]:
    """Return the command of the page that names this factory."""
    (command,) = re.findall(
        rf"^\$ (vlm-ci run --target {name} .*)$", PAGE.read_text(), re.MULTILINE
    )
    return command.split()


@pytest.mark.slow
@pytest.mark.nightly
def test_its_own_target_is_red_with_its_bug_and_green_without(project: Path):
    green = run(project, *step("engine_in_process:factory"))
    assert green.returncode == 0, green.stdout + green.stderr
    assert "verdict        clean" in green.stdout
    red = run(project, *step("engine_in_process:broken_factory"))
    assert red.returncode == 1, red.stdout + red.stderr
    (failure,) = json.loads((project / "vlm-ci-out/result.json").read_text())["failures"]
    assert failure["kind"] == "mismatch"
    again = run(project, "vlm-ci", "replay", f"vlm-ci-out/{failure['path']}", "--keep")
    assert again.returncode == 1, again.stdout + again.stderr
    assert "it still fails, with the cause that was recorded" in again.stdout
    assert len(list((project / "fixtures/traffic").glob("*.json"))) == 1  # the project's own


@pytest.mark.slow
def test_its_own_test_suite_finds_the_plugin(project: Path):
    options = ("--vlm-target=engine_in_process:factory", "--vlm-examples=20")
    done = run(project, "python", "-m", "pytest", "test_engine.py", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
