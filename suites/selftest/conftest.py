"""Shared by the tests of vlm_ci itself. Each file loads its targets and closes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from projects import BROKEN, SUITE, Project
from workers_project import noted as noted

from vlm_ci import environment
from vlm_ci.doctor import surroundings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the tests use no hub
for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(name, None)  # what the tests run is not what a step is about
if os.environ.get("PYTEST_XDIST_WORKER"):
    # One worker for each core: threads of its own would only get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("vlm_ci_selftest", deadline=None, derandomize=True, database=None)
settings.load_profile("vlm_ci_selftest")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that packages are installed in other versions; None: not installed."""

    def pretend(**given: str | None) -> None:
        named = {name.replace("_", "-"): version for name, version in given.items()}
        real = environment.version_of
        monkeypatch.setattr(
            environment,
            "version_of",
            lambda name: (named[name] or "not installed") if name in named else real(name),
        )

    return pretend


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset everything that doctor shows."""
    for name in os.environ:
        if name in surroundings.MEANING or name.startswith(tuple(surroundings.PREFIXES)):
            monkeypatch.delenv(name)


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch) -> Project:
    """A project with one vlm test and broken engines."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("CI", raising=False)
    ours = [str(Path(__file__).parent), str(pytester.path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, ours)))
    pytester.makepyfile(SUITE)
    pytester.makepyfile(engine=BROKEN)
    return Project(pytester)
