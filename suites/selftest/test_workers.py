"""Workers of xdist: how many there are, and a GPU for each."""

from __future__ import annotations

import re

import pytest
from projects import shown
from workers_project import pins, run, seen

from vlm_ci.plugin import capacity, gpus, workers

pytest_plugins = ["pytester"]


# -- how many -----------------------------------------------------------------------------------


def test_auto_is_one_worker_for_each_visible_gpu(noted):
    done = run(noted, "-nauto", "--vlm-device=cuda")
    done.assert_outcomes(passed=8)
    assert pins(noted) == {"gw0": "2", "gw1": "GPU-abc"}
    words = "vlm-ci: 2 workers, one for each of 2 visible GPUs: gw0 on 2, gw1 on GPU-abc"
    assert words in done.stdout.lines
    assert {threads for *_, threads in seen(noted)} == {str(max(1, capacity.cores() // 2))}


def test_auto_on_the_cpu_is_a_core_each_and_says_so(noted):
    done = run(noted, "-nauto", "--maxprocesses=2", "--vlm-seed=1")
    done.assert_outcomes(passed=8)
    done.stdout.fnmatch_lines(["vlm-ci: * worker*: a core each (*); memory for * (* GiB free, *"])
    assert set(pins(noted).values()) == {"2,GPU-abc"}  # untouched


def test_auto_on_the_cpu_is_no_more_than_memory_allows(pytester, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    monkeypatch.setattr(capacity, "cores", lambda: 8)
    config = pytester.parseconfig("--vlm-seed=1")
    for free, count in ((100, 6), (4, 2), (0, 1)):
        monkeypatch.setattr(capacity, "free_memory", lambda free=free: free * workers.GIB)
        assert workers.automatic(config, 6) == count
    monkeypatch.setattr(capacity, "free_memory", lambda: None)
    assert workers.automatic(config, 16) == 8


@pytest.mark.parametrize(
    "case", ["no option", "another plugin", "variable"], ids=lambda case: case.replace(" ", "-")
)
def test_auto_is_left_to_whoever_else_says_it(noted, monkeypatch, case: str):
    options = ["-nauto"] if case == "no option" else ["-nauto", "--vlm-device=cuda"]
    if case == "another plugin":
        noted.makeconftest("def pytest_xdist_auto_num_workers(config): return 1\n")
    else:
        monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "1")
    if case == "no option":
        monkeypatch.setenv(gpus.VISIBLE, "0,1,2")
    done = run(noted, *options)
    done.assert_outcomes(passed=8)
    assert "1 worker [" in shown(done)
    assert ("vlm-ci:" in shown(done)) == (case != "no option")


# -- a GPU for each -----------------------------------------------------------------------------


def test_more_workers_than_gpus_go_round_robin_and_it_is_said(noted):
    done = run(noted, "-n3", "--vlm-device=cuda")
    done.assert_outcomes(passed=8)
    assert pins(noted) == {"gw0": "2", "gw1": "GPU-abc", "gw2": "2"}
    words = "vlm-ci: 3 workers share 2 visible GPUs: gw0 on 2, gw1 on GPU-abc, gw2 on 2"
    assert words in done.stdout.lines


def test_a_numbered_gpu_is_left_to_the_user(noted):
    done = run(noted, "-n2", "--vlm-device=cuda:1")
    done.assert_outcomes(passed=8)
    assert set(pins(noted).values()) == {"2,GPU-abc"}
    assert "vlm-ci: 2 workers share cuda:1, which the options name" in done.stdout.lines
    auto = run(noted, "-nauto", "--vlm-device=cuda:1")
    assert "vlm-ci: 1 worker on cuda:1, which the options name" in auto.stdout.lines


def test_no_visible_gpu_is_said(noted, monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "")
    done = run(noted, "-nauto", "--vlm-device=cuda")
    done.assert_outcomes(passed=8)
    words = "vlm-ci: 1 worker: no GPU is visible (CUDA_VISIBLE_DEVICES is '')"
    assert words in done.stdout.lines


def test_a_gpu_that_the_user_gives_to_a_worker_stays(noted):
    one = "popen//env:CUDA_VISIBLE_DEVICES=7"
    done = run(noted, "--dist=load", f"--tx={one}", "--tx=popen", "--vlm-device=cuda")
    done.assert_outcomes(passed=8)
    assert pins(noted) == {"gw0": "7", "gw1": "GPU-abc"}


def test_a_conftest_that_takes_the_gpu_away_is_one_message(noted, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # of the session around this one
    noted.makeconftest("""
        import os
        if "PYTEST_XDIST_WORKER" in os.environ:
            os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    """)
    noted.makepyfile("def test_check(vlm_target): pass")
    done = run(noted, "-n2", "--vlm-device=cuda", "--vlm-target=toy:factory")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    given = r"worker gw(0 was given GPU 2|1 was given GPU GPU-abc), and then something set"
    assert re.search(given + " CUDA_VISIBLE_DEVICES to '0'", shown(done))
    assert "Traceback" not in shown(done)


def test_cuda_that_started_before_the_worker_had_its_gpu_is_one_message(noted):
    """A sitecustomize module runs before anything of pytest does."""
    noted.makepyfile(
        sitecustomize="""
        import sys, types
        cuda = types.SimpleNamespace(is_initialized=lambda: True)
        torch = sys.modules["torch"] = types.ModuleType("torch")
        torch.cuda = cuda
    """
    )
    done = run(noted, "-n2", "--vlm-device=cuda")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "worker gw0 had started CUDA before it was given GPU 2: start no CUDA when" in (
        shown(done)
    )
    assert not (noted.path / "seen.txt").exists()


# -- who chooses the distribution ---------------------------------------------------------------


def test_a_chosen_distribution_is_kept(noted):
    done = run(noted, "-n1", "--dist=load", "-v")
    done.assert_outcomes(passed=8)
    assert "scheduling tests via LoadScheduling" in shown(done)
