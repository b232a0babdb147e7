"""The pytest plugin: its options and where they come from."""

from __future__ import annotations

import json

import pytest
from projects import WORKERS_BY_NIGHT, shown

from vlm_ci.options import OPTIONS

pytest_plugins = ["pytester"]

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
    "github": (True, False),
    "corpus": ("corpus-one", "corpus-two"),
    "database": ("database-one", "database-two"),
    "database_readonly": (True, False),
    "evidence": ("evidence-one", "evidence-two"),
    "shard": ("1/2", "1/3"),
    "durations": ("one.xml", "two.xml"),
    "commit": ("abc", "def"),
    "baselines": ("baselines-one", "baselines-two"),
    "update_baselines": (True, False),
    "dynamic": ("auto", "false"),
    "mode": ("max-autotune", "reduce-overhead"),
    "fullgraph": (True, False),
    "policy": ("stall=fail", "stall=off"),
    "reference": ("none", "auto"),
    "relations": ("all", "alone"),
    "recompile_limit": (31, 32),
    "cache": ("cache-one", "cache-two"),
    "cache_scope": ("trusted", "untrusted"),
    "cache_lock": ("lock-one", "lock-two"),
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
READ_AS = {"dynamic": {"auto": None, "false": False}, "policy": {"stall=fail": {"stall": "fail"}}}


FILES = (
    *("envelope", "corpus", "database", "out", "cache", "cache_lock", "evidence", "durations"),
    "baselines",
)


def make_files(pytester: pytest.Pytester) -> None:
    """Make those that have to be there."""
    for number in ("one", "two"):
        (pytester.path / f"corpus-{number}").mkdir(exist_ok=True)
        (pytester.path / f"evidence-{number}").mkdir(exist_ok=True)
        (pytester.path / f"baselines-{number}").mkdir(exist_ok=True)
        (pytester.path / f"lock-{number}").touch()
        (pytester.path / f"{number}.xml").write_text("<testsuites/>")


def as_setting(field: str, given: object) -> object:
    """Return what comes of a value that a source gives."""
    return READ_AS[field][given] if field in READ_AS else given


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
    make_files(pytester)
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
    expected = as_setting(field, first)
    seen = seen_by(pytester, field, source, "-p", "no:xdist")
    if field in FILES and source != "arguments":
        expected = str(pytester.path / first)
    assert seen == expected


def test_every_option_reaches_a_worker(pytester: pytest.Pytester):
    """In workers too, from the command line, which wins over ini file and marker."""
    make_files(pytester)
    fields = {option.field: option for option in OPTIONS}
    weaker = ", ".join(
        f"{field}={second!r}"
        for field, (_, second) in VALUES.items()
        if fields[field].per_test and field != "corpus"
    )
    pytester.makepyfile(f"""
        import json
        import pytest

        @pytest.mark.vlm({weaker})
        def test_settings(vlm_settings):
            with open("seen.json", "w") as stream:
                seen = {{one: getattr(vlm_settings, one) for one in type(vlm_settings).__slots__}}
                json.dump(seen, stream, default=str)
    """)
    arguments = [
        f"--vlm-{option.name}" + ("" if option.kind is bool else f"={VALUES[field][0]}")
        for field, option in fields.items()
        if field != "update_baselines"  # which refuses a planted bug
    ]
    pytester.runpytest_subprocess("-n1", *arguments).assert_outcomes(passed=1)
    seen = json.loads((pytester.path / "seen.json").read_text())
    given = {field: as_setting(field, first) for field, (first, _) in VALUES.items()}
    assert seen == given | {"update_baselines": False}


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


def test_policies_of_all_sources_hold_and_the_strongest_source_says_each_kind(pytester):
    pytester.makeini("[pytest]\nvlm_policy = graph-break=off, stall=off\n")
    marker = "policy='graph-skip=fail,limit-hit=warn'"
    pytester.makepyfile(READ.format(field="policy", marker=marker))
    options = ("--vlm-policy=stall=fail", "-p", "no:xdist")
    pytester.runpytest_inprocess(*options).assert_outcomes(passed=1)
    assert json.loads((pytester.path / "seen.txt").read_text()) == {
        "graph-break": "off",
        "graph-skip": "fail",
        "limit-hit": "warn",
        "stall": "fail",
    }


FORM = "write KIND=fail, KIND=warn, KIND=budget:N or KIND=off, several with commas between them"
BAD_OPTIONS = {
    "--vlm-profile=nigthly": "unknown profile 'nigthly': did you mean 'nightly'",
    "--vlm-examples=-1": "--vlm-examples must be at least 1, not -1",
    "--vlm-examples=many": "invalid int value: 'many'",
    "--vlm-seed=-1": "--vlm-seed must be at least 0, not -1",
    "--vlm-bug=deepstack-kwargs": "unknown bug 'deepstack-kwargs': did you mean 'deepstack-kwarg'",
    "--vlm-repaired": "--vlm-repaired needs --vlm-bug",
    "--vlm-dynamic=yes": "unknown value for --vlm-dynamic 'yes'",
    "--vlm-target=": "--vlm-target is empty",
    "--vlm-corpus=absent": "--vlm-corpus absent is not there",
    "--vlm-out=test_bad_options.py": "--vlm-out test_bad_options.py is a file",
    "--vlm-cache=test_bad_options.py": "--vlm-cache test_bad_options.py is a file",
    "--vlm-cache-scope=trustd": "unknown value for --vlm-cache-scope 'trustd'",
    "--vlm-cache-lock=absent": "--vlm-cache-lock absent is not there",
    "--vlm-targt=x": "unrecognized arguments: --vlm-targt=x",
    "--vlm-policy=stal=off": "unknown kind in --vlm-policy 'stal': did you mean 'stall'",
    "--vlm-policy=mismatch=off": "unknown kind in --vlm-policy 'mismatch'",
    "--vlm-policy=stall=of": f"--vlm-policy: 'of' is no policy for stall: {FORM}",
    "--vlm-policy=stall=budget:0": f"--vlm-policy: 'budget:0' is no policy for stall: {FORM}",
    "--vlm-policy=stall": f"--vlm-policy 'stall' is no policy: {FORM}",
    "--vlm-policy=stall=off,": f"--vlm-policy '' is no policy: {FORM}",
    "--vlm-policy=": "--vlm-policy is empty",
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
    "vlm_policy = stal=off": "unknown kind in vlm_policy in tox.ini 'stal': did you mean 'stall'",
    "vlm_policy = stall=never": "vlm_policy in tox.ini: 'never' is no policy for stall",
    "vlm_policy = stall=budget:0": "vlm_policy in tox.ini: 'budget:0' is no policy for stall",
    "vlm_policy = off": "vlm_policy in tox.ini 'off' is no policy: write KIND=fail",
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
    "policy='stal=off'": "unknown kind in vlm(policy=...) 'stal': did you mean 'stall'",
    "policy='stall=never'": "vlm(policy=...): 'never' is no policy for stall",
    "policy='stall=budget:0'": "vlm(policy=...): 'budget:0' is no policy for stall",
    "policy='off'": "vlm(policy=...) 'off' is no policy: write KIND=fail",
    "policy={'stall': 'off'}": "vlm(policy=...) must be a string, not {'stall': 'off'}",
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


@WORKERS_BY_NIGHT
def test_a_target_that_cannot_be_built_is_one_message(project, workers: tuple[str, ...]):
    project.makepyfile(test_other="def test_other(): pass")
    done = project.run("--vlm-target=toy:nothing", *workers)
    done.assert_outcomes(passed=1, errors=1)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "unknown attribute of toy for target 'nothing'" in shown(done)
    assert "Traceback" not in shown(done)
    assert "During handling" not in shown(done)
