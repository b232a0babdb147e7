"""Workers of xdist: a target on one of them, warmed once, and one that dies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatch

import pytest
from junitparser import JUnitXml
from projects import shown
from workers_project import LIGHT, pins, run, seen

from vlm_ci.plugin import gpus

pytest_plugins = ["pytester"]


# The session's device is a GPU, so that workers are pinned; each test says that it needs none.
ON_GPUS = ("-o", "vlm_device=cuda")


def targets(project, death: str = "") -> None:
    """Write three tests of each of two targets, interleaved; ``death`` ends a search of one."""
    project.makepyfile(
        engine=f"""
        import os, signal
        import toy

        DEADLY = False

        def serve(call, ids, batch):
            if DEADLY and len(batch.requests) > 3:
                {death or "pass"}
            return call(ids)

        def first(): return toy.ToyTarget(serve)
        def second(): return toy.ToyTarget()
    """
    )
    tests = []
    for number in range(3):
        for name in ("first", "second"):
            deadly = (number, name) == (1, "first")
            options = f"seed={number}, examples={40 if deadly else 4}"
            tests.append(f"""
@pytest.mark.vlm(target="engine:{name}", device="cpu", {options})
def test_{number}_{name}(vlm_check):
    engine.DEADLY = {deadly}
    vlm_check()
""")
    (project.path / "test_targets.py").write_text("import pytest, engine\n" + "".join(tests))


def results(project) -> dict[str, dict]:
    """Return result.json of each test, by the test's name."""
    found = {}
    for path in (project.path / "vlm-ci-out").rglob("result.json"):
        result = json.loads(path.read_text())
        found[result["test"].partition("::")[2]] = result
    return found


def test_two_targets_have_a_worker_each_and_are_warmed_once(noted, monkeypatch):
    """The canary: whatever pytest and xdist do of their own, this must hold."""
    targets(noted)
    monkeypatch.setenv(gpus.VISIBLE, "5")
    done = run(noted, "-n2", "-v", *ON_GPUS)
    done.assert_outcomes(passed=14)
    assert "scheduling tests via TargetScheduling" in done.stdout.lines
    assert pins(noted) == {"gw0": "5", "gw1": "5"}
    words = "workers        2 workers share 1 visible GPU: gw0 on 5, gw1 on 5"
    assert words in done.stdout.lines  # in the summary; the header says it too
    where = {test: worker for test, worker, *_ in seen(noted)}
    first, second = (
        {worker for test, worker in where.items() if test.endswith(name)}
        for name in ("_first", "_second")
    )
    assert len(first) == len(second) == 1
    assert first != second
    warmed = Counter(
        result["target"] + test[-6:] for test, result in results(noted).items()
        if not result["warmup"]["reused"]
    )  # fmt: skip
    assert sorted(warmed.values()) == [1, 1]
    assert len(results(noted)) == 6


# -- a worker that dies -------------------------------------------------------------------------

DEATHS = {
    "exit": "os._exit(7)",
    "kill": "os.kill(os.getpid(), signal.SIGKILL)",
    "segfault": "__import__('ctypes').string_at(0)",
}


@pytest.mark.parametrize(
    "death",
    [
        "exit",
        pytest.param("kill", marks=pytest.mark.nightly),
        pytest.param("segfault", marks=pytest.mark.nightly),
    ],
)
def test_a_dead_worker_is_replaced_and_its_test_reported_once(noted, death: str):
    targets(noted, DEATHS[death])
    options = (*ON_GPUS, "-p", "no:faulthandler", "--junitxml=junit.xml")
    done = run(noted, "-n2", *options, "test_targets.py")
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.assert_outcomes(passed=5, failed=1)
    # Once in the terminal, with its session and the way to serve it again.
    words = "worker 'gw*' crashed while running 'test_targets.py::test_1_first'"
    assert len([line for line in done.stdout.lines if fnmatch(line, words)]) == 1
    assert shown(done).count("FAILED test_targets.py::test_1_first") == 1
    done.stdout.fnmatch_lines(
        [
            words,
            "crash: the process ended while it served this session",
            "  traffic  *",
            "  replay     vlm-ci replay vlm-ci-out/*/failures/01-crash-*",
            "failure        crash: the process ended while it served this session",
        ]
    )
    # Once in JUnit.
    cases = [case for suite in JUnitXml.fromfile(str(noted.path / "junit.xml")) for case in suite]
    assert Counter(case.name for case in cases) == {
        f"test_{number}_{name}": 1 for number in range(3) for name in ("first", "second")
    }
    (crashed,) = (case for case in cases if case.result)
    assert "crashed while running" in crashed.result[0].text
    assert "it served this session" in crashed.result[0].text
    # Once in the results, where everything else is clean.
    found = results(noted)
    assert {test: result["verdict"] for test, result in found.items()} == {
        f"test_{number}_{name}": "failed" if (number, name) == (1, "first") else "clean"
        for number in range(3)
        for name in ("first", "second")
    }
    (failure,) = found["test_1_first"]["failures"]
    assert failure["kind"] == "crash"
    assert any(len(batch["requests"]) > 3 for batch in failure["traffic"]["batches"])
    # The rest of its target has one worker again, which has the dead one's GPU.
    pinned = pins(noted)
    where = {test: worker for test, worker, *_ in seen(noted)}
    assert where["test_0_first"] == where["test_1_first"] != where["test_2_first"] == "gw2"
    assert pinned["gw2"] == pinned[where["test_1_first"]]
    assert not found["test_2_first"]["warmup"]["reused"]


@pytest.mark.nightly
def test_without_restarts_the_session_ends_and_what_was_found_is_told(noted):
    targets(noted, DEATHS["exit"])
    done = run(noted, "-n1", "--max-worker-restart=0", "test_targets.py")
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.assert_outcomes(passed=1, failed=1)
    assert "worker gw0 crashed and worker restarting disabled" in shown(done)
    assert "  replay     vlm-ci replay vlm-ci-out/" in shown(done)


@pytest.mark.nightly
def test_maxfail_ends_the_session_after_a_crash(noted):
    targets(noted, DEATHS["exit"])
    done = run(noted, "-n1", "--maxfail=1", "test_targets.py")
    # Which of the two is xdist's and pytest's to say, and has changed.
    assert done.ret in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.TESTS_FAILED)
    assert "stopping after 1 failures" in shown(done)


@pytest.mark.nightly
def test_a_worker_that_dies_between_tests_is_said_and_fails_the_session(noted):
    noted.makepyfile(
        engine="""
        import os
        import toy

        class Dying(toy.ToyTarget):
            def close(self):
                os._exit(7)

        def factory(): return Dying()
    """
    )
    noted.makepyfile("def test_check(vlm_check): vlm_check()")
    options = ("--vlm-target=engine:factory", "--vlm-examples=2", "--max-worker-restart=0")
    done = run(noted, "-n1", *options)
    done.assert_outcomes(passed=1)
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    words = "problem        worker gw0 ended outside a test: Not properly terminated"
    assert words in done.stdout.lines


@pytest.mark.nightly
def test_what_an_earlier_session_left_is_not_taken_for_a_crash_of_this_one(noted, monkeypatch):
    """The first process dies in a search, the second before it has built its target."""
    targets(noted, DEATHS["exit"])
    (noted.path / "test_targets.py").write_text("""
import os, pytest, engine
@pytest.fixture
def die():
    if os.environ.get("DIE_EARLY"):
        os._exit(7)
@pytest.mark.vlm(target="engine:first", examples=40)
def test_it(die, vlm_check):
    engine.DEADLY = True
    vlm_check()
""")
    out = noted.path / "vlm-ci-out"
    alone = [sys.executable, "-m", "pytest", "-pno:xdist", *LIGHT, "test_targets.py"]
    assert subprocess.run(alone, cwd=noted.path).returncode == 7
    assert json.loads((out / "result.json").read_text())["verdict"] == "incomplete"
    monkeypatch.setenv("DIE_EARLY", "1")
    done = run(noted, "-n1", "--max-worker-restart=0", "test_targets.py")
    done.assert_outcomes(failed=1)
    assert "it served this session" not in shown(done)
    assert json.loads((out / "result.json").read_text())["verdict"] == "incomplete"


# -- on GPUs ------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_two_workers_have_two_gpus(project):
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs; torch sees {torch.cuda.device_count()}")
    project.makepyfile("""
        import pathlib
        import pytest, torch

        def check(vlm_check, name):
            result = vlm_check()
            assert torch.cuda.device_count() == 1
            uuid = torch.cuda.get_device_properties(0).uuid
            pathlib.Path(__file__).with_name(f"{name}.uuid").write_text(str(uuid))
            assert result.environment["device"] == "cuda"

        @pytest.mark.vlm(target="qwen3-vl-tiny", examples=10)
        def test_one(vlm_check):
            check(vlm_check, "one")

        @pytest.mark.vlm(target="llava-tiny", examples=10)
        def test_two(vlm_check):
            check(vlm_check, "two")
    """)
    done = run(project, "-nauto", "--maxprocesses=2", "--vlm-device=cuda", "--vlm-dtype=bfloat16")
    done.assert_outcomes(passed=2)
    uuids = {(project.path / f"{name}.uuid").read_text() for name in ("one", "two")}
    assert len(uuids) == 2
