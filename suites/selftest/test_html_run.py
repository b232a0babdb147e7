"""A run leaves its events and the page of all its tests, and says where the page lies."""

from __future__ import annotations

from pathlib import Path

import pytest
from projects import shown

from vlm_ci.report import records

pytest_plugins = ["pytester"]

TWO = """
    import pytest

    @pytest.mark.vlm(target="toy:growing", warmup="text-only")
    def test_red(vlm_check):
        vlm_check()

    def test_green(vlm_check):
        vlm_check()
"""


@pytest.mark.parametrize(
    "workers",
    [pytest.param((), id="alone"), pytest.param(("-n2",), id="xdist", marks=pytest.mark.nightly)],
)
def test_one_page_holds_all_tests_of_a_session(project, workers: tuple[str, ...]):
    project.makepyfile(TWO)
    done = project.run("--vlm-examples=5", "-o", "vlm_target=toy:factory", *workers)
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["verdict *", "", "report         vlm-ci-out/report.html"])
    assert shown(done).count("report  ") == 1
    assert len(list(project.path.rglob("report.html"))) == 1
    text = (project.path / "vlm-ci-out/report.html").read_text()
    for part in ("::test_red", "::test_green", "2 runs, 1 cause found", "features is None"):
        assert part in text
    for run in records.read([project.path / "vlm-ci-out"]).runs:
        phases = [event.phase for event in run.events if event.kind == "phase"]
        assert phases == ["warmup", "canary", "strict", "end"]
        rounds = [event.evidence["round"] for event in run.events if event.kind == "round"]
        assert rounds == list(range(1, run.result.warmup.rounds + 1))
        assert run.events[-1].time - run.events[0].time >= run.result.strict.seconds
        late = {event.kind for event in run.events if event.phase == "strict"}
        assert late == ({"phase", "refusal"} if run.failures else {"phase"})


@pytest.mark.nightly
def test_a_page_that_cannot_be_written_changes_no_outcome(project):
    (project.path / "vlm-ci-out").mkdir()
    (project.path / "vlm-ci-out/report.html").write_text("mine")
    done = project.run("--vlm-target=toy:factory", "--vlm-examples=3")
    done.assert_outcomes(passed=1)
    assert done.ret == 0
    done.stdout.fnmatch_lines(
        ["report         none: vlm-ci-out/report.html is no page of vlm-ci's: it was left alone"]
    )
    assert (project.path / "vlm-ci-out/report.html").read_text() == "mine"


def test_a_session_without_a_run_leaves_no_page(project):
    project.makepyfile("def test_other(): pass")
    project.run("--vlm-out=out", "--vlm-target=toy:factory", "-k", "other").assert_outcomes(
        passed=1
    )
    assert not (project.path / "out").exists()


def test_a_further_run_takes_the_events_of_the_last_one_away(tmp_path: Path):
    from vlm_ci import artifacts

    (tmp_path / "result.json").write_text('{"schema": "vlm-ci/result/1"}')
    (tmp_path / "events.jsonl").write_text("old")
    artifacts.prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [pytest.param("run", marks=pytest.mark.nightly), "audit"])
def test_the_commands_write_it_too(tmp_path: Path, command: str):
    import processes

    done = processes.run(
        "vlm-ci",
        command,
        "--target",
        "toy:factory",
        "--examples",
        "3",
        "--out",
        "out",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "report         out/report.html" in done.stdout.splitlines()
    assert "1 run, nothing found" in (tmp_path / "out/report.html").read_text()
