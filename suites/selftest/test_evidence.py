"""Evidence of an earlier attempt: replayed first, never trusted, never changed; and reruns."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import msgspec
import pytest
import toy
from projects import WORKERS_BY_NIGHT, shown

from vlm_ci import reruns
from vlm_ci.evidence import FailureFile
from vlm_ci.failures import Failure
from vlm_ci.reruns import Wanted, choose, gather
from vlm_ci.traffic.files import pretty
from vlm_ci.traffic.spec import Batch, Request, Session, Text

pytest_plugins = ["pytester"]


def session(tokens: int) -> Session:
    return Session((Batch((Request((Text(tokens),)),)),))


def failure_file(tokens: int | None = 3, **changes: object) -> FailureFile:
    """Return a recording that belongs to ``WANTED``."""
    failure = Failure(
        kind="mismatch",
        cause="c",
        advice="a",
        key=str(tokens),
        traffic=session(tokens) if tokens else None,
    )
    file = FailureFile(
        test="a.py::test_x",
        target="toy:factory",
        recipe="r",
        backend="eager",
        options={"device": "cpu", "dtype": "float32", "dynamic": True},
        warmup="default",
        failure=failure,
    )
    return msgspec.structs.replace(file, **changes)


WANTED = Wanted(
    test="a.py::test_x",
    target="toy:factory",
    recipe="r",
    backend="eager",
    options={"device": "cpu", "dtype": "float32", "dynamic": True, "relations": "none"},
    envelope=toy.ENVELOPE,
)


def put(folder: Path, name: str, content: FailureFile | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else pretty(content))
    return path


def test_recordings_are_found_at_any_depth_and_chosen(tmp_path: Path):
    put(tmp_path, "failures/01-x/failure.json", failure_file(1))
    put(tmp_path, "shard-2/deep/er/failures/01-y/failure.json", failure_file(2))
    put(tmp_path, "shard-3/serving.json", failure_file(3))
    put(tmp_path, "shard-3/failures/02/failure.json", failure_file(3))
    put(tmp_path, "a/failure.json", failure_file(4, target="another"))
    put(tmp_path, "b/failure.json", failure_file(4, test="b.py::test_y"))
    put(tmp_path, "c/failure.json", failure_file(4, recipe="whole"))
    put(tmp_path, "d/failure.json", failure_file(4, backend="inductor"))
    put(tmp_path, "e/failure.json", failure_file(4, options={**WANTED.options, "dynamic": False}))
    put(tmp_path, "f/failure.json", failure_file(4, options={**WANTED.options, "bug": "x"}))
    put(tmp_path, "g/failure.json", failure_file(4, options={**WANTED.options, "device": "cuda"}))
    put(tmp_path, "h/failure.json", failure_file(None))
    put(tmp_path, "i/failure.json", failure_file(10_000))
    sessions, use = choose(gather(tmp_path), WANTED)
    assert sessions == (session(1), session(2), session(3))
    assert use.sessions == 3
    assert use.aside == {
        "of another backend": 1,
        "of another device": 1,
        "of another recipe": 1,
        "of another target": 1,
        "of another test": 1,
        "outside the envelope": 1,
        "the same session again": 1,
        "with another bug": 1,
        "with another dynamic": 1,
        "without a session": 1,
    }
    assert use.broken == []
    assert reruns.warnings(use) == []


def test_the_number_of_a_gpu_and_how_it_was_judged_do_not_matter(tmp_path: Path):
    options = {"device": "cuda:1", "dtype": "float32", "dynamic": True, "relations": "all"}
    put(tmp_path, "a/failure.json", failure_file(1, options=options))
    wanted = {**WANTED.options, "device": "cuda:0"}
    sessions, _ = choose(
        gather(tmp_path),
        Wanted(**{**{f: getattr(WANTED, f) for f in WANTED.__slots__}, "options": wanted}),
    )
    assert sessions == (session(1),)


def test_a_broken_file_is_one_warning_and_the_others_are_used(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(reruns, "MOST_BYTES", 2**20)
    good = put(tmp_path, "good/failure.json", failure_file(1))
    put(tmp_path, "binary/failure.json", b"\x80\x04pickle")
    put(tmp_path, "deep/failure.json", b"[" * 100_000)
    put(tmp_path, "empty/failure.json", b"")
    put(tmp_path, "large/failure.json", b" " * (2**20 + 1))
    put(tmp_path, "other/failure.json", b'{"schema": "vlm-ci/plan/1"}')
    outside = put(tmp_path.parent, f"{tmp_path.name}-outside/failure.json", failure_file(2))
    (tmp_path / "link").mkdir()
    (tmp_path / "link/failure.json").symlink_to(outside)
    (tmp_path / "folder-link").symlink_to(outside.parent)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe/failure.json")
    before = good.read_bytes()
    sessions, use = choose(gather(tmp_path), WANTED)
    assert sessions == (session(1),)
    assert good.read_bytes() == before
    told = {text.partition("/")[0]: text for text in use.broken}
    assert set(told) == {"binary", "deep", "empty", "large", "link", "other", "pipe"}
    assert told["large"] == "large/failure.json: larger than 1 MiB"
    assert told["link"] == "link/failure.json: a symbolic link, which is not followed"
    assert told["pipe"] == "pipe/failure.json: no plain file"
    assert len(reruns.warnings(use)) == 7


def test_there_is_an_end_to_how_many_are_read(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(reruns, "MOST_FILES", 2)
    for number in range(1, 6):
        put(tmp_path, f"{number}/failure.json", failure_file(number))
    sessions, use = choose(gather(tmp_path), WANTED)
    assert sessions == (session(1), session(2))
    assert use.broken == ["3/failure.json and what follows: only 2 files are read"]


# -- runs ------------------------------------------------------------------------------------------

# Wrong for one row of exactly five tokens, which a search of three examples does not send.
RARE = """
    from toy import ToyTarget

    def rare():
        def serve(call, ids, batch):
            wrong = ids.shape == (1, 5) and batch.seed == 7
            return call(ids) + (float("nan") if wrong else 0)
        return ToyTarget(serve)
"""
NAME = "test_a_rerun_replays_first_even_from_the_folder_of_results.py::test_mixed_traffic"


@WORKERS_BY_NIGHT
def test_a_rerun_replays_first_even_from_the_folder_of_results(project, workers: tuple[str, ...]):
    project.makepyfile(engine=RARE)
    recorded = failure_file(
        5,
        test=NAME,
        target="engine:rare",
        recipe="",
        backend="",
        options={"device": "cpu", "dtype": "float32"},
    )
    assert recorded.failure is not None
    traffic = Session((Batch((Request((Text(5),)),), seed=7),))
    failure = msgspec.structs.replace(recorded.failure, traffic=traffic)
    out = project.path / "vlm-ci-out"
    put(out, "failures/01-x/failure.json", msgspec.structs.replace(recorded, failure=failure))
    put(out, "failures/02-y/failure.json", failure_file(1))
    put(out, "result.json", b'{"schema": "vlm-ci/result/1"}')
    options = ("--vlm-target=engine:rare", "--vlm-examples=3", "--vlm-database=none")
    done = project.run(*options, "--vlm-evidence=vlm-ci-out", *workers)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        [
            "evidence * 1 session of vlm-ci-out replayed first, 1 failing again; left aside: 1 of "
            "another target",
            "traffic * 0 examples,*",
        ]
    )
    project.run(*options, *workers).assert_outcomes(passed=1)  # the search alone does not find it


def test_missing_evidence_is_said_aloud_and_the_search_goes_on(project):
    put(project.path / "evidence", "a/failure.json", failure_file(1))
    options = ("--vlm-target=toy:factory", "--vlm-examples=3", "--vlm-evidence=evidence")
    done = project.run(*options)
    done.assert_outcomes(passed=1)
    said = (
        "missing evidence: evidence holds no session that failed in this test (left aside: 1 of "
        "another recipe); nothing was replayed, and the search began as ever"
    )
    assert f"warning        {said}" in shown(done)
    result = json.loads((project.path / "vlm-ci-out/result.json").read_text())
    assert said in result["warnings"]
    assert result["evidence"]["sessions"] == 0
    assert result["traffic"]["examples"] == 3
    gone = project.run("--vlm-target=toy:factory", "--vlm-evidence=gone")
    assert gone.ret == pytest.ExitCode.USAGE_ERROR
    assert "--vlm-evidence gone is not there: name a folder of results" in shown(gone)


# -- running again in one session ------------------------------------------------------------------

ONCE = """
    from toy import ToyTarget

    wrong = [{wrong}]

    def once():
        def serve(call, ids, batch):
            if wrong:
                {action}
            return call(ids)
        return ToyTarget(serve)
"""


@pytest.mark.parametrize(
    ("action", "outcome"),
    [
        ("return call(ids) + float('nan')", "failed"),
        ("raise RuntimeError('CUDA out of memory')", "passed"),
    ],
    ids=["finding", "crash"],
)
def test_a_plugin_that_runs_it_again_makes_no_finding_green(project, action: str, outcome: str):
    project.makepyfile(engine=ONCE.format(wrong="1", action=action))
    project.makepyfile("""
        import engine

        def test_mixed_traffic(vlm_check):
            try:
                vlm_check()
            finally:
                engine.wrong.clear()  # the second time everything is right
    """)
    done = project.run(
        "--vlm-target=engine:once",
        "--vlm-examples=3",
        "--vlm-database=none",
        "--reruns=2",
        "--junitxml=junit.xml",
        "-p",
        "no:xdist",
    )
    done.assert_outcomes(**{outcome: 1})
    assert "rerun" in done.stdout.lines[-1]
    if outcome == "failed":
        assert "nonfinite: the compiled logits" in shown(done)
        assert "that the test is run again changes nothing about it" in shown(done)


# -- what the infrastructure is to blame for ------------------------------------------------------


def test_a_gpu_without_memory_is_the_infrastructures_by_a_rule(project, monkeypatch, capsys):
    from vlm_ci.cli import main

    project.makepyfile(
        engine=ONCE.format(
            wrong="1",
            action="raise __import__('torch').OutOfMemoryError('CUDA out of memory. Tried')",
        )
    )
    project.run("--vlm-target=engine:once", "--vlm-examples=3", "--junitxml=1.xml")
    monkeypatch.chdir(project.path)
    assert main(["junit", "merge", "1.xml", "-o", "all.xml"]) == 1
    out = capsys.readouterr().out
    assert "infrastructure " in out
    assert "rule gpu-out-of-memory matched" in out
    assert 'name="vlm_ci_failures" value="crash"' in (project.path / "1.xml").read_text()


@pytest.mark.nightly
def test_a_worker_that_dies_states_its_shard_and_part(project, monkeypatch, capsys):
    from vlm_ci.cli import main

    monkeypatch.setenv("GITHUB_SHA", "abc")
    options = ("-n1", "--max-worker-restart=1", "--vlm-database=none")
    project.run("--vlm-target=engine:dying", "--vlm-shard=1/2", "--junitxml=1.xml", *options)
    junit = (project.path / "1.xml").read_text()
    for name, value in (
        ("vlm_ci.part", "1/2"),
        ("vlm_ci.shard", "1/2"),
        ("vlm_ci.commit", "abc"),
        ("vlm_ci_failures", "crash"),
    ):
        assert f'name="{name}" value="{value}"' in junit
    monkeypatch.chdir(project.path)
    assert main(["junit", "merge", "1.xml", "-o", "all.xml"]) == 1
    assert "missing shard  2/2" in capsys.readouterr().out
    other = re.sub(r"<error.*?</error>", "", junit, flags=re.S).replace(
        'value="1/2"', 'value="2/2"'
    )
    (project.path / "2.xml").write_text(other.replace('value="crash"', 'value=""'))
    assert main(["junit", "merge", "1.xml", "2.xml", "-o", "all.xml"]) == 1
    out = capsys.readouterr().out
    assert "failed         test_a_worker" in out
    assert "worker-crashed" not in out  # it is the product's
