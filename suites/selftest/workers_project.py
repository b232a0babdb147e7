"""A project whose tests write down which worker they ran in: for the tests of workers."""

from __future__ import annotations

import pytest
from projects import Project

from vlm_ci.plugin import gpus

# One line for each test: its name, worker, GPU and threads.
CONFTEST = """
    import os, pathlib
    import pytest

    @pytest.fixture(autouse=True)
    def seen(request):
        worker = os.environ.get("PYTEST_XDIST_WORKER", "none")
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
        threads = os.environ.get("OMP_NUM_THREADS", "unset")
        with open(pathlib.Path(__file__).with_name("seen.txt"), "a") as stream:
            print(request.node.name, worker, gpu, threads, file=stream)
"""
PLAIN = """
    import pytest

    @pytest.mark.parametrize("number", range(8))
    def test_plain(number):
        pass
"""
# What other plugins load costs each process seconds.
LIGHT = ("-p", "no:hypothesispytest", "-p", "no:anyio", "-p", "no:cacheprovider")


@pytest.fixture
def noted(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose tests write down what they saw."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    monkeypatch.setenv(gpus.VISIBLE, "2,GPU-abc")
    project.makeconftest(CONFTEST)
    project.makepyfile(PLAIN)
    return project


def run(project: Project, *args: str):
    """Run pytest, whose workers load as little as they can."""
    return project.run(*LIGHT, *args)


def seen(project: Project) -> list[list[str]]:
    """Return test, worker, GPU and threads of each test that ran."""
    lines = (project.path / "seen.txt").read_text().splitlines()
    return [line.rsplit(" ", 3) for line in lines]


def pins(project: Project) -> dict[str, str]:
    """Return the GPU that each worker saw; each saw one and the same all the time."""
    found = {(worker, gpu) for _, worker, gpu, _ in seen(project)}
    assert len(found) == len(dict(found))
    return dict(found)
