"""The pytest plugin: what a run of its tests comes to, with and without workers."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
from projects import WORKERS_BY_NIGHT, shown

pytest_plugins = ["pytester"]


@WORKERS_BY_NIGHT
def test_a_clean_target_passes_with_header_and_summary(project, workers: tuple[str, ...]):
    done = project.run(
        "--vlm-target=toy:factory", "--vlm-examples=20", "--junitxml=junit.xml", *workers
    )
    done.assert_outcomes(passed=1)
    assert done.ret == 0
    done.stdout.fnmatch_lines(
        [
            "vlm-ci: torch *, transformers *, device cpu, target toy:factory, recipe *, "
            "backend eager, profile local (20 examples)",
            "vlm-ci: not watched: CUDA graphs, Triton, stalls",
            "*= vlm-ci =*",
            "target *toy:factory",
            "warm-up *converged",
            "traffic *20 examples*",
            "after warm-up  0 compiles, 0 refused calls*; * batches in *",
            "not watched    CUDA graphs (*); Triton (*); stalls (a CPU's timings are too noisy)",
            "regions *1 to 1*",
            "logits *tokens compared*",
            "verdict *clean, results in vlm-ci-out",
        ]
    )
    result = json.loads((project.path / "vlm-ci-out/result.json").read_text())
    assert result["verdict"] == "clean"
    assert result["target"] == "toy:factory"
    assert result["test"].endswith("::test_mixed_traffic")
    junit = (project.path / "junit.xml").read_text()
    for name, value in (
        ("verdict", "clean"),
        ("target", "toy:factory"),
        ("examples", "20"),
        ("compiles_after_warmup", "0"),
        ("results", "vlm-ci-out"),
    ):
        assert f'name="vlm_ci_{name}" value="{value}"' in junit


def test_the_header_shows_without_options_where_there_are_vlm_tests(project):
    done = project.runpytest_inprocess("--collect-only")
    done.stdout.fnmatch_lines(["vlm-ci: torch *, target qwen3-vl-tiny, *"])


@pytest.mark.parametrize(
    ("options", "triton", "line"),
    [
        ((), False, "CUDA graphs, Triton, stalls"),
        (("--vlm-policy=stall=warn",), False, "CUDA graphs, Triton"),
        (("--vlm-device=cuda:1",), False, "Triton (not installed)"),
        (("--vlm-device=cuda",), True, "Triton kernels of Inductor's own"),
        (
            ("--vlm-device=cuda", "--vlm-policy=stall=off"),
            True,
            "Triton kernels of Inductor's own, stalls",
        ),
    ],
)
def test_the_header_says_what_is_not_watched(
    project, monkeypatch, options: tuple[str, ...], triton: bool, line: str
):
    session = import_module("vlm_ci.plugin.session")  # the one that is imported: pytester drops it
    monkeypatch.setattr(session, "find_spec", lambda name: name if triton else None)
    done = project.runpytest_inprocess("--collect-only", "-p", "no:xdist", *options)
    done.stdout.fnmatch_lines(["vlm-ci: torch *", f"vlm-ci: not watched: {line}"])


@pytest.mark.parametrize(
    "workers", [(), pytest.param(("-n2",), marks=pytest.mark.nightly)], ids=["alone", "xdist"]
)
def test_a_policy_lets_a_finding_pass_and_says_so(project, workers: tuple[str, ...]):
    options = ("--vlm-target=toy:growing", "--vlm-warmup=text-only", "--vlm-examples=10")
    red = project.run(*options, *workers)
    red.assert_outcomes(failed=1)
    green = project.run(*options, "--vlm-policy=recompile=warn", *workers)
    green.assert_outcomes(passed=1)
    green.stdout.fnmatch_lines(
        [
            "tolerated      recompile: features * (warn, * times)",
            "verdict        clean, results in vlm-ci-out",
        ]
    )
    (entry,) = json.loads((project.path / "vlm-ci-out/result.json").read_text())["tolerated"]
    assert (entry["failure"]["kind"], entry["policy"]) == ("recompile", "warn")


@WORKERS_BY_NIGHT
def test_a_broken_target_fails_with_a_text_that_stands_alone(project, workers: tuple[str, ...]):
    done = project.run("--vlm-target=engine:nan", "--vlm-examples=10", *workers)
    done.assert_outcomes(failed=1)
    assert done.ret == 1
    folder = "vlm-ci-out/failures/01-nonfinite-the-compiled-logits-hold-nan-or-inf-at-r"
    done.stdout.fnmatch_lines(
        [
            "nonfinite: the compiled logits hold NaN or Inf at request 0, token 0 (text)",
            "  place      request 0, token 0 (text)",
            "  traffic    1 batch, as small as it gets:",
            "             Batch(requests=(Request(items=(Text(tokens=1),)),))",
            "             0 [[]t[]] 1 position: text 1",
            "  advice     *",
            f"  evidence   {folder}",
            f"  replay     vlm-ci replay {folder}",
            "verdict        failed, 1 cause, results in vlm-ci-out",
            "FAILED *::test_mixed_traffic - *nonfinite: the*",
        ]
    )
    assert (project.path / folder / "failure.json").exists()
    assert "Traceback" not in shown(done)
    assert "torch.__trace" not in shown(done)  # pytest attaches its handler to that logger


@WORKERS_BY_NIGHT
def test_each_test_keeps_its_own_results(project, workers: tuple[str, ...]):
    project.makepyfile("""
        import pytest

        @pytest.mark.vlm(target="engine:nan")
        def test_red(vlm_check):
            vlm_check()

        def test_green(vlm_check):
            vlm_check()
            vlm_check()
    """)
    done = project.run(
        "--vlm-examples=3", "-o", "vlm_target=toy:factory", "--vlm-out=out", *workers
    )
    done.assert_outcomes(passed=1, failed=1)
    results = {
        str(path.relative_to(project.path / "out")): json.loads(path.read_text())
        for path in (project.path / "out").rglob("result.json")
    }
    name = "test_each_test_keeps_its_own_results.py-test"
    assert {path: result["verdict"] for path, result in results.items()} == {
        f"{name}_red/result.json": "failed",
        f"{name}_green/result.json": "clean",
        f"{name}_green/run-2/result.json": "clean",
    }
    assert shown(done).count("verdict  ") == 3


@pytest.mark.nightly
def test_a_target_that_cannot_be_closed_is_said_and_hides_nothing(project):
    project.makepyfile(
        engine="""
        from toy import ToyTarget

        class Stubborn(ToyTarget):
            def close(self):
                raise OSError("busy")

        def nan():
            return Stubborn(lambda call, ids, batch: call(ids) + float("nan"))

        def green():
            return Stubborn()
    """
    )
    red = project.run("--vlm-target=engine:nan", "--vlm-examples=3")
    red.assert_outcomes(failed=1)
    assert "nonfinite: the compiled logits" in shown(red)
    assert "problem        closing target toy raised OSError: busy" in shown(red)
    assert red.ret == 1
    green = project.run("--vlm-target=engine:green", "--vlm-examples=3", "-n1")
    green.assert_outcomes(passed=1)
    assert green.ret == pytest.ExitCode.USAGE_ERROR  # the target breaks its protocol
    assert "problem        closing target toy raised OSError: busy" in shown(green)


def test_an_engine_that_dies_in_the_end_keeps_its_findings(project):
    project.makepyfile(
        engine="""
        import pathlib
        from toy import ToyTarget

        class Dying(ToyTarget):
            def stats(self):
                if "nonfinite" in self.seen():
                    raise ConnectionError("gone")
                return super().stats()

            def seen(self):
                path = pathlib.Path("vlm-ci-out/result.json")
                return path.read_text() if path.exists() else ""

        def factory():
            return Dying(lambda call, ids, batch: call(ids) + float("nan"))
    """
    )
    project.run("--vlm-target=engine:factory", "--vlm-examples=3")
    result = json.loads((project.path / "vlm-ci-out/result.json").read_text())
    assert [failure["kind"] for failure in result["failures"]][:1] == ["nonfinite"]


def test_tests_whose_names_look_alike_keep_their_own_folders(project):
    project.makepyfile("""
        import pytest

        @pytest.mark.parametrize("name", ["a/b", "a b"])
        def test_it(vlm_check, name):
            vlm_check()
    """)
    project.run("--vlm-target=toy:factory", "--vlm-examples=2").assert_outcomes(passed=2)
    assert len(list((project.path / "vlm-ci-out").rglob("result.json"))) == 2


@pytest.mark.nightly
def test_a_worker_that_dies_leaves_its_session(project):
    project.makepyfile(test_other="def test_other(): pass")
    done = project.run("--vlm-target=engine:dying", "-n1", "--max-worker-restart=1")
    assert done.ret == 1
    done.stdout.fnmatch_lines(
        [
            "failure        crash: the process ended while it served this session",
            "verdict        failed, 1 cause, results in vlm-ci-out",
        ]
    )
    result = json.loads((project.path / "vlm-ci-out/result.json").read_text())
    (failure,) = result["failures"]
    assert (project.path / "vlm-ci-out" / failure["path"] / "traffic.json").exists()
    assert any(len(batch["requests"]) == 4 for batch in failure["traffic"]["batches"])


def test_a_timeout_keeps_what_was_found(project):
    """pytest-timeout raises pytest.fail's exception wherever the test stands: here, shrinking."""
    project.makepyfile(
        engine="""
        import pathlib
        import pytest
        from toy import ToyTarget

        def late():
            def serve(call, ids, batch):
                if "nonfinite" in pathlib.Path("vlm-ci-out/result.json").read_text():
                    pytest.fail("Timeout (>16.0s) from pytest-timeout.")
                nan = float("nan") if len(batch.requests) == 1 else 0
                return call(ids) + nan
            return ToyTarget(serve)
    """
    )
    options = ("--vlm-target=engine:late", "-p", "no:xdist")
    done = project.run(*options)
    done.assert_outcomes(failed=1)
    assert "Failed: Timeout" in shown(done)
    result = json.loads((project.path / "vlm-ci-out/result.json").read_text())
    assert result["verdict"] == "failed"
    (failure,) = result["failures"]
    assert failure["kind"] == "nonfinite"
    assert (project.path / "vlm-ci-out" / failure["path"] / "failure.json").exists()
