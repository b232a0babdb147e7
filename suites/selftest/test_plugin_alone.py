"""The pytest plugin: what it leaves alone, and what it costs where nobody uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from projects import shown

pytest_plugins = ["pytester"]

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

        started = time.process_time()
        import vlm_ci.plugin as plugin
        loaded = time.process_time() - started

        class Clock:
            spent = 0.0

        def timed(function):
            if inspect.isgeneratorfunction(function):
                return function
            @functools.wraps(function)
            def run(*args, **kwargs):
                started = time.process_time()
                try:
                    return function(*args, **kwargs)
                finally:
                    Clock.spent += time.process_time() - started
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
