"""The pytest plugin: targets that tests share, warm, and targets that they build themselves."""

from __future__ import annotations

import json

import pytest
from projects import WORKERS_BY_NIGHT, shown

from vlm_ci import UsageError
from vlm_ci.replay import replay

pytest_plugins = ["pytester"]


@WORKERS_BY_NIGHT
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
