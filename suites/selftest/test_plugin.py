"""The pytest plugin: options, outcome, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlm_ci.settings import OPTIONS

pytest_plugins = ["pytester"]
HERE = Path(__file__).parent

SUITE = """
    def test_mixed_traffic(vlm_check):
        vlm_check()
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch) -> pytest.Pytester:
    """A project outside the repository that uses the plugin."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    pytester.makepyfile(SUITE)
    return pytester


def test_every_option_is_offered(pytester: pytest.Pytester):
    shown = pytester.runpytest_subprocess("--help").stdout.str()
    for option in OPTIONS:
        assert f"--vlm-{option.name}" in shown


def test_a_clean_target_passes_with_a_summary(project: pytest.Pytester):
    done = project.runpytest_subprocess("--vlm-target=toy:factory", "--vlm-examples=10")
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines(["*= vlm-ci =*", "target *toy*", "verdict *clean*"])
    assert done.ret == 0
    result = json.loads((project.path / "vlm-ci-out/result.json").read_text())
    assert result["verdict"] == "clean"


def test_a_broken_target_fails_with_the_cause(project: pytest.Pytester):
    project.makepyfile(
        engine="""
        from toy import ToyTarget

        def factory():
            return ToyTarget(lambda call, ids, batch: call(ids) + float("nan"))
    """
    )
    done = project.runpytest_subprocess(
        "--vlm-target=engine:factory", "--vlm-examples=10", "--junitxml=junit.xml"
    )
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["nonfinite: the compiled logits hold NaN or Inf*", "*traffic*"])
    assert "Traceback" not in done.stdout.str()
    junit = (project.path / "junit.xml").read_text()
    assert 'name="vlm_ci_verdict" value="failed"' in junit


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--vlm-profile=nigthly", "unknown profile 'nigthly': did you mean 'nightly'"),
        ("--vlm-examples=-1", "--examples must be at least 1, not -1"),
        ("--vlm-bug=deepstack", "unknown bug 'deepstack': did you mean 'deepstack-kwarg'"),
        ("--vlm-target=toy:nothing", "unknown attribute of toy for target 'nothing'"),
    ],
)
def test_bad_options_end_the_session_with_exit_code_4(
    project: pytest.Pytester, option: str, message: str
):
    done = project.runpytest_subprocess(option)
    assert done.ret == 4
    assert message in done.stdout.str() + done.stderr.str()
    assert "Traceback" not in done.stdout.str() + done.stderr.str()


def test_a_project_without_vlm_tests_is_left_alone(pytester: pytest.Pytester):
    pytester.makepyfile("""
        import sys

        def test_nothing_heavy_is_loaded():
            loaded = {"torch", "transformers", "vlm_ci.checker"} & set(sys.modules)
            assert not loaded

        def test_the_hypothesis_profile_is_untouched():
            from hypothesis import settings

            assert settings().max_examples == settings.get_profile("default").max_examples
            assert "vlm_ci" not in str(settings._profiles)
    """)
    done = pytester.runpytest_subprocess("-p", "no:xdist")
    done.assert_outcomes(passed=2)
    assert "= vlm-ci =" not in done.stdout.str()
