"""The pytest plugin: options and their sources, outcome, workers, and what it leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest

from vlm_ci import UsageError
from vlm_ci.options import OPTIONS
from vlm_ci.replay import replay

pytest_plugins = ["pytester"]
HERE = Path(__file__).parent

SUITE = """
    def test_mixed_traffic(vlm_check):
        vlm_check()
"""
BROKEN = """
    import os
    from toy import ToyTarget

    def nan():
        return ToyTarget(lambda call, ids, batch: call(ids) + float("nan"))

    def dying():
        def serve(call, ids, batch):
            if len(batch.requests) > 3:
                os._exit(7)
            return call(ids)
        return ToyTarget(serve)
"""
WORKERS = pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])


class Project:
    """A project outside the repository that uses the plugin."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.path = pytester.path
        self.makepyfile = pytester.makepyfile
        self.makeconftest = pytester.makeconftest
        self.runpytest_inprocess = pytester.runpytest_inprocess
        self._subprocess = pytester.runpytest_subprocess

    def run(self, *args: str) -> pytest.RunResult:
        """Run pytest in a process of its own."""
        if any(arg.startswith("-n") for arg in args):
            return self._subprocess(*args)
        done = processes.run("pytest", *args, cwd=self.path)
        sys.stdout.write(done.stdout)  # for the report, should this test fail
        return pytest.RunResult(
            done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), 0.0
        )


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch) -> Project:
    """A project with one vlm test and broken engines."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("CI", raising=False)
    ours = [str(HERE), str(pytester.path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, ours)))
    pytester.makepyfile(SUITE)
    pytester.makepyfile(engine=BROKEN)
    return Project(pytester)


def shown(done: pytest.RunResult) -> str:
    return done.stdout.str() + done.stderr.str()


# -- options -------------------------------------------------------------------------------------

# For each option: how the command line gives it, how the ini file does, and what comes of it.
VALUES = {
    "target": ("llava-tiny", "toy:factory"),
    "recipe": ("vision", "whole"),
    "backend": ("inductor", "aot_eager"),
    "device": ("cuda", "cuda:1"),
    "dtype": ("bfloat16", "float16"),
    "warmup": ("text-only", "image-only"),
    "envelope": ("one.json", "two.json"),
    "profile": ("ci", "nightly"),
    "examples": (11, 12),
    "seed": (21, 22),
    "bug": ("static-size", "silent-limit"),
    "repaired": (True, False),
    "out": ("one", "two"),
    "corpus": ("corpus-one", "corpus-two"),
    "database": ("database-one", "database-two"),
    "dynamic": ("auto", "false"),
    "mode": ("max-autotune", "reduce-overhead"),
    "fullgraph": (True, False),
    "recompile_limit": (31, 32),
}
READ = """
    import json, os
    import pytest

    @pytest.mark.vlm({marker})
    def test_settings(vlm_settings, request):
        value = getattr(vlm_settings, "{field}")
        with open("seen.txt", "a") as stream:
            print(json.dumps(value, default=str), file=stream)
"""
DYNAMIC = {"auto": None, "false": False}


def test_the_values_cover_every_option():
    assert list(VALUES) == [option.field for option in OPTIONS]


def test_help_shows_every_option_and_its_ini_twin(pytester: pytest.Pytester):
    text = shown(pytester.runpytest("--help"))
    for option in OPTIONS:
        assert f"--vlm-{option.name}" in text
        assert f"vlm_{option.field} (" in text
    assert "vlm(**options)" in shown(pytester.runpytest("--markers"))


def seen_by(pytester: pytest.Pytester, field: str, source: str, *more: str) -> object:
    """Give the first value from one source, and the second from all weaker ones."""
    first, second = VALUES[field]
    (option,) = (option for option in OPTIONS if option.field == field)
    sources = ["ini", "marker", "arguments"]
    rank = sources.index(source)
    given = {name: first if name == source else second for name in sources[: rank + 1]}
    for folder in ("corpus-one", "corpus-two"):
        (pytester.path / folder).mkdir(exist_ok=True)
    marker = given.get("marker") if option.per_test else None
    bug = "bug='static-size', " if field == "repaired" else ""
    pytester.makepyfile(
        READ.format(field=field, marker=bug + (f"{field}={marker!r}" if marker is not None else ""))
    )
    pytester.makeini(f"[pytest]\nvlm_{field} = {given['ini']}\n")
    arguments = []
    if "arguments" in given:
        arguments = [f"--vlm-{option.name}={first}"]
        if option.kind is bool:
            arguments = [f"--vlm-{option.name}"]
    if field == "repaired":
        arguments.append("--vlm-bug=static-size")
    done = pytester.runpytest_inprocess(*arguments, *more)
    done.assert_outcomes(passed=1)
    return json.loads((pytester.path / "seen.txt").read_text().splitlines()[-1])


@pytest.mark.parametrize("source", ["ini", "marker", "arguments"])
@pytest.mark.parametrize("field", VALUES)
def test_each_option_from_each_source(pytester: pytest.Pytester, field: str, source: str):
    per_test = next(option.per_test for option in OPTIONS if option.field == field)
    if source == "marker" and not per_test:
        pytester.makepyfile(READ.format(field=field, marker=f"{field}='x'"))
        done = pytester.runpytest_inprocess()
        assert done.ret == pytest.ExitCode.USAGE_ERROR
        assert f"unknown option of the vlm marker '{field}'" in shown(done)
        return
    first = VALUES[field][0]
    expected = DYNAMIC.get(first, first) if field == "dynamic" else first
    seen = seen_by(pytester, field, source, "-p", "no:xdist")
    if field in ("envelope", "corpus", "database", "out") and source != "arguments":
        expected = str(pytester.path / first)
    assert seen == expected


def test_every_option_reaches_a_worker(pytester: pytest.Pytester):
    """In workers too, from the command line, which wins over ini file and marker."""
    (pytester.path / "corpus-one").mkdir()
    fields = {option.field: option for option in OPTIONS}
    weaker = ", ".join(
        f"{field}={second!r}"
        for field, (_, second) in VALUES.items()
        if fields[field].per_test and field != "corpus"
    )
    pytester.makepyfile(f"""
        import dataclasses, json
        import pytest

        @pytest.mark.vlm({weaker})
        def test_settings(vlm_settings):
            with open("seen.json", "w") as stream:
                json.dump(dataclasses.asdict(vlm_settings), stream, default=str)
    """)
    arguments = [
        f"--vlm-{option.name}" + ("" if option.kind is bool else f"={VALUES[field][0]}")
        for field, option in fields.items()
    ]
    pytester.runpytest_subprocess("-n1", *arguments).assert_outcomes(passed=1)
    seen = json.loads((pytester.path / "seen.json").read_text())
    assert seen == {
        field: DYNAMIC.get(first, first) if field == "dynamic" else first
        for field, (first, _) in VALUES.items()
    }


def test_a_flag_is_taken_back_by_the_command_line(pytester: pytest.Pytester):
    pytester.makepyfile(READ.format(field="fullgraph", marker="fullgraph=True"))
    pytester.runpytest_inprocess("--no-vlm-fullgraph").assert_outcomes(passed=1)
    assert (pytester.path / "seen.txt").read_text() == "false\n"


def test_a_marker_of_the_class_and_one_of_the_function(pytester: pytest.Pytester):
    pytester.makepyfile("""
        import pytest

        @pytest.mark.vlm(seed=1, examples=3)
        class TestMine:
            @pytest.mark.vlm(seed=2)
            def test_nearest_wins(self, vlm_settings):
                assert (vlm_settings.seed, vlm_settings.examples) == (2, 3)
    """)
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


BAD_OPTIONS = {
    "--vlm-profile=nigthly": "unknown profile 'nigthly': did you mean 'nightly'",
    "--vlm-examples=-1": "--vlm-examples must be at least 1, not -1",
    "--vlm-examples=many": "invalid int value: 'many'",
    "--vlm-seed=-1": "--vlm-seed must be at least 0, not -1",
    "--vlm-bug=deepstack": "unknown bug 'deepstack': did you mean 'deepstack-kwarg'",
    "--vlm-repaired": "--vlm-repaired needs --vlm-bug",
    "--vlm-dynamic=yes": "unknown value for --vlm-dynamic 'yes'",
    "--vlm-target=": "--vlm-target is empty",
    "--vlm-corpus=absent": "--vlm-corpus absent is not there",
    "--vlm-out=test_bad_options.py": "--vlm-out test_bad_options.py is a file",
    "--vlm-targt=x": "unrecognized arguments: --vlm-targt=x",
}


@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_bad_options(pytester: pytest.Pytester, option: str):
    pytester.makepyfile("def test_other(): pass", test_bad_options="def test_one(): pass")
    done = pytester.runpytest_inprocess(option)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert BAD_OPTIONS[option] in shown(done)
    assert "Traceback" not in shown(done)


BAD_INI = {
    "vlm_examples = many": "vlm_examples in tox.ini must be a whole number",
    "vlm_examples = 0": "vlm_examples in tox.ini must be at least 1, not 0",
    "vlm_fullgraph = perhaps": "vlm_fullgraph in tox.ini must be true or false",
    "vlm_profile = nigthly": "did you mean 'nightly'",
    "vlm_bug = none-such": "unknown bug 'none-such'",
    "vlm_corpus = absent": "vlm_corpus in tox.ini absent is not there",
    "vlm_dynamic = yes": "unknown value for vlm_dynamic in tox.ini 'yes'",
}


@pytest.mark.parametrize("value", BAD_INI)
def test_bad_ini_values(pytester: pytest.Pytester, value: str):
    pytester.makepyfile("def test_one(): pass")
    pytester.makeini(f"[pytest]\n{value}\n")
    done = pytester.runpytest_inprocess()
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert BAD_INI[value] in shown(done)
    assert "Traceback" not in shown(done)


BAD_MARKERS = {
    "targt='llava-tiny'": "unknown option of the vlm marker 'targt': did you mean 'target'",
    "'llava-tiny'": "the vlm marker takes keywords only, such as vlm(target='llava-tiny')",
    "examples='20'": "vlm(examples=...) must be a whole number, not '20'",
    "examples=0": "vlm(examples=...) must be at least 1, not 0",
    "out='x'": "unknown option of the vlm marker 'out'",
    "repaired=True": "vlm(repaired=...) needs vlm(bug=...)",
    "profile='nigthly'": "did you mean 'nightly'",
    "fullgraph=1": "vlm(fullgraph=...) must be true or false, not 1",
}


@pytest.mark.parametrize("marker", BAD_MARKERS)
def test_bad_markers(pytester: pytest.Pytester, marker: str):
    pytester.makepyfile(READ.format(field="seed", marker=marker))
    done = pytester.runpytest_inprocess()
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: test_bad_markers.py::test_settings: " in shown(done)
    assert BAD_MARKERS[marker] in shown(done)
    assert "Traceback" not in shown(done)


def test_a_bad_marker_in_a_worker_is_one_message_too(pytester: pytest.Pytester):
    pytester.makepyfile(READ.format(field="seed", marker="targt='x'") + "\n    def test_b(): pass")
    done = pytester.runpytest_subprocess("-n2")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.assert_outcomes(passed=1, errors=1)
    assert "unknown option of the vlm marker 'targt'" in shown(done)
    assert "Traceback" not in shown(done)
    assert "INTERNALERROR" not in shown(done)


@WORKERS
def test_a_target_that_cannot_be_built_is_one_message(project, workers: tuple[str, ...]):
    project.makepyfile(test_other="def test_other(): pass")
    done = project.run("--vlm-target=toy:nothing", *workers)
    done.assert_outcomes(passed=1, errors=1)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "unknown attribute of toy for target 'nothing'" in shown(done)
    assert "Traceback" not in shown(done)
    assert "During handling" not in shown(done)


# -- outcome -------------------------------------------------------------------------------------


@WORKERS
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
            "*= vlm-ci =*",
            "target *toy:factory",
            "warm-up *converged",
            "traffic *20 examples*",
            "after warm-up  0 compiles, 0 refused calls*",
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


@WORKERS
def test_a_broken_target_fails_with_a_text_that_stands_alone(project, workers: tuple[str, ...]):
    done = project.run("--vlm-target=engine:nan", "--vlm-examples=10", *workers)
    done.assert_outcomes(failed=1)
    assert done.ret == 1
    folder = "vlm-ci-out/failures/01-nonfinite-the-compiled-logits-hold-nan-or-inf-at-r"
    done.stdout.fnmatch_lines(
        [
            "nonfinite: the compiled logits hold NaN or Inf at request 0, token 0 (text)",
            "  worst at   request 0, token 0 (text)",
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


@WORKERS
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


@WORKERS
def test_several_targets_are_several_tests(project, workers: tuple[str, ...]):
    done = project.run("--vlm-target=toy:factory,engine:nan", "--vlm-examples=3", *workers)
    done.assert_outcomes(passed=1, failed=1)
    assert "test_mixed_traffic[engine:nan]" in shown(done)


def test_tests_of_one_target_stand_side_by_side_and_share_its_warm_up(project):
    project.makepyfile("""
        import pytest
        import toy

        built = []
        original = toy.factory

        def factory():
            built.append("toy")
            return original()

        toy.factory = factory

        @pytest.mark.vlm(target="toy:factory")
        def test_a(vlm_check):
            assert not vlm_check().warmup.reused

        @pytest.mark.vlm(target="engine:dying", examples=1)
        def test_between(vlm_target):
            assert built == ["toy"]  # the other target's tests came before

        def test_plain():
            pass

        @pytest.mark.vlm(target="toy:factory", seed=3)
        def test_b(vlm_check):
            result = vlm_check()
            assert result.warmup.reused
            assert result.warmup.compiles

        @pytest.mark.vlm(target="toy:factory", warmup="text-only")
        def test_c(vlm_check):
            assert not vlm_check().warmup.reused  # another plan starts cold
            assert built == ["toy"]
    """)
    done = project.run("-p", "no:xdist", "-v", "--vlm-examples=3")
    done.assert_outcomes(passed=5)
    done.stdout.fnmatch_lines(
        ["*::test_a *", "*::test_b *", "*::test_plain *", "*::test_c *", "*::test_between *"]
    )


def test_a_target_that_a_test_has_compiled_more_into_starts_cold(project):
    project.makepyfile("""
        import pytest
        from vlm_ci import Image, Text, batch

        pytestmark = pytest.mark.vlm(target="toy:factory", warmup="text-only", examples=3)

        def test_a(vlm_check):
            vlm_check()

        def test_b(vlm_target):
            import torch
            before = vlm_target.stats().compiles
            vlm_target.reset()
            vlm_target.run_compiled(batch(Text(3)))
            assert vlm_target.stats().compiles > before

        def test_c(vlm_check):
            assert not vlm_check().warmup.reused
    """)
    project.run("-p", "no:xdist").assert_outcomes(passed=3)


def test_what_a_test_compiles_first_does_not_hide_what_a_plan_lacks(project):
    """Whoever compiled it, and whatever stood in between: a check starts cold."""
    project.makepyfile("""
        import pytest
        import toy
        import torch
        from vlm_ci import Image, Text, batch

        @pytest.mark.vlm(target="toy:factory")
        def test_a(vlm_target):  # before any check
            from vlm_ci.warmup import named_plan
            for part in named_plan("default", vlm_target.envelope).batches:
                vlm_target.warm_up(part)

        @pytest.mark.vlm(target="toy:factory", examples=3)
        def test_b(vlm_check):
            result = vlm_check()
            assert result.warmup.compiles and not result.warmup.reused

        @pytest.mark.vlm(target="toy:factory", examples=3)
        def test_c(vlm_check):
            torch._dynamo.reset()  # as some projects do before each test
            result = vlm_check()
            assert result.warmup.compiles and not result.warmup.reused

        class TestOwn:
            @pytest.fixture
            def vlm_target(self):
                yield toy.factory()

            @pytest.mark.vlm(target="toy:factory", examples=3)
            def test_d(self, vlm_check):
                assert vlm_check().warmup.compiles

        @pytest.mark.vlm(target="toy:factory", examples=3)
        def test_e(vlm_check):
            assert vlm_check().warmup.compiles  # the slot held the other target
    """)
    project.run("-p", "no:xdist").assert_outcomes(passed=5)


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
    for workers in ((), ("-n1",)):
        green = project.run("--vlm-target=engine:green", "--vlm-examples=3", *workers)
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


def test_options_that_cannot_reach_a_test_s_own_target_are_refused_or_said(project):
    project.makeconftest("""
        import pytest
        import toy

        @pytest.fixture
        def vlm_target():
            yield toy.factory()
    """)
    refused = project.run("--vlm-bug=deepstack-kwarg", "--vlm-examples=3")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    assert "the option bug does not apply here: this test builds its target" in shown(refused)
    said = project.run("--vlm-backend=inductor", "--vlm-examples=3")
    said.assert_outcomes(passed=1)
    assert "warning        --backend does not apply to" in shown(said)


@pytest.mark.parametrize(
    ("target", "message"),
    [("None", "NoneType"), ("object()", "of type object")],
)
def test_a_fixture_that_gives_no_target_is_one_message(project, target: str, message: str):
    project.makeconftest(f"""
        import pytest

        @pytest.fixture
        def vlm_target():
            return {target}
    """)
    done = project.run("--vlm-examples=3")
    done.assert_outcomes(failed=1)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert message in shown(done)
    assert "Traceback" not in shown(done)
    assert "AttributeError" not in shown(done)


def test_tests_whose_names_look_alike_keep_their_own_folders(project):
    project.makepyfile("""
        import pytest

        @pytest.mark.parametrize("name", ["a/b", "a b"])
        def test_it(vlm_check, name):
            vlm_check()
    """)
    project.run("--vlm-target=toy:factory", "--vlm-examples=2").assert_outcomes(passed=2)
    assert len(list((project.path / "vlm-ci-out").rglob("result.json"))) == 2


def test_several_targets_and_a_test_with_a_target_of_its_own(project):
    project.makepyfile("""
        import pytest
        import toy

        @pytest.fixture
        def vlm_target():
            return toy.factory()

        def test_it(vlm_target):
            assert vlm_target.name == "toy"
    """)
    project.run("--vlm-target=toy:factory,engine:nan").assert_outcomes(passed=1)


def test_a_project_builds_its_target_itself(project):
    project.makeconftest("""
        import pytest
        import toy

        @pytest.fixture
        def vlm_target():
            target = toy.ToyTarget(lambda call, ids, batch: call(ids) + float("nan"))
            yield target
            target.close()
    """)
    done = project.run("--vlm-examples=3")
    done.assert_outcomes(failed=1)
    result = json.loads((project.path / "vlm-ci-out/result.json").read_text())
    assert result["target"] == "toy"
    # There is no name by which a replay could build it.
    assert "  evidence   vlm-ci-out" in shown(done)
    assert "vlm-ci replay" not in shown(done)
    with pytest.raises(UsageError, match="::test_mixed_traffic built itself: run that test again"):
        replay(
            str(project.path / "vlm-ci-out"),
            {},
            results=project.path,
            corpus=None,
            keep=False,
            say=print,
        )


def test_the_envelope_is_a_fixture(project):
    project.makepyfile("""
        def test_it(vlm_envelope, vlm_target):
            assert vlm_envelope is vlm_target.envelope
    """)
    project.run("--vlm-target=toy:factory").assert_outcomes(passed=1)


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


# -- what it leaves alone ------------------------------------------------------------------------

UNRELATED = """
    import sys

    def test_nothing_heavy_is_loaded():
        heavy = {"torch", "transformers", "hypothesis", "msgspec", "vlm_ci.settings"}
        assert not heavy & set(sys.modules)
"""


@pytest.mark.parametrize(
    "options",
    [("-p", "no:xdist"), ("-n2",), ("-p", "no:vlm_ci"), ("--strict-markers", "--strict-config")],
    ids=" ".join,
)
def test_a_project_without_vlm_tests_is_left_alone(pytester: pytest.Pytester, options):
    pytester.makepyfile(UNRELATED)
    done = pytester.runpytest_subprocess("-p", "no:hypothesispytest", *options)
    done.assert_outcomes(passed=1)
    assert "vlm-ci:" not in shown(done)
    assert "= vlm-ci =" not in shown(done)


def test_the_hypothesis_profile_is_untouched(project):
    project.makepyfile("""
        from hypothesis import given, settings, strategies

        def test_check(vlm_check):
            before = dict(settings._profiles), settings.default
            vlm_check()
            assert (dict(settings._profiles), settings.default) == before

        @given(strategies.integers())
        def test_own(number):
            assert settings.default.max_examples == 100
    """)
    done = project.run("--vlm-target=toy:factory", "--vlm-examples=3")
    done.assert_outcomes(passed=2)


def test_with_autoload_off_it_is_loaded_by_name(project, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    options = ("--vlm-target=toy:factory", "--vlm-examples=3")
    done = project.run("-p", "vlm_ci.plugin", *options)
    done.assert_outcomes(passed=1)
    assert project.run("-p", "no:cacheprovider").ret == 1
    assert "unrecognized arguments: --vlm-target" in shown(project.run(*options))


def test_without_the_plugin_its_tests_say_what_is_missing(project):
    done = project.run("-p", "no:vlm_ci")
    done.assert_outcomes(errors=1)
    assert "fixture 'vlm_check' not found" in shown(done)


def test_unused_it_costs_at_most_20_ms(pytester: pytest.Pytester):
    """Import, options, ini values and hooks: what the plugin adds to another project's session."""
    pytester.makepyfile("def test_one(): pass")
    measure = pytester.makepyfile(
        measure="""
        import functools, inspect, json, sys, time

        import pytest  # there in any case

        started = time.perf_counter()
        import vlm_ci.plugin as plugin
        loaded = time.perf_counter() - started

        class Clock:
            spent = 0.0

        def timed(function):
            if inspect.isgeneratorfunction(function):
                return function
            @functools.wraps(function)
            def run(*args, **kwargs):
                started = time.perf_counter()
                try:
                    return function(*args, **kwargs)
                finally:
                    Clock.spent += time.perf_counter() - started
            return run

        for name in [name for name in vars(plugin) if name.startswith("pytest_")]:
            setattr(plugin, name, timed(getattr(plugin, name)))
        code = pytest.main(["-q", "-p", "vlm_ci.plugin", "test_unused_it_costs_at_most_20_ms.py"])
        assert code == 0
        print("measured", json.dumps([loaded, Clock.spent]))
    """
    )
    env = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "",  # an installed package has its byte code
        "PYTHONPYCACHEPREFIX": str(pytester.path / "bytecode"),
    }
    best = float("inf")
    for _ in range(7):
        done = subprocess.run(
            [sys.executable, str(measure)], capture_output=True, text=True, env=env, check=True
        )
        figures = next(line for line in done.stdout.splitlines() if line.startswith("measured"))
        best = min(best, sum(json.loads(figures.removeprefix("measured "))))
    assert best < 0.020, f"{best * 1000:.1f} ms"
