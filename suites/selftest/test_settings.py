"""Options from several sources: which one wins, what is checked, and in whose words."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_ci.errors import UsageError
from vlm_ci.options import DEFAULT_DATABASE, OPTIONS
from vlm_ci.settings import Layer, Settings


def layered(*layers: dict[str, object]) -> Settings:
    return Settings.from_layers([Layer(values=values) for values in layers])


def test_the_strongest_source_comes_last():
    settings = layered({"seed": 1, "examples": 5}, {"seed": 2}, {"seed": 3})
    assert (settings.seed, settings.examples) == (3, 5)


def test_a_profile_gives_way_in_its_own_source_and_wins_over_weaker_ones():
    assert layered({"examples": 7}, {"profile": "ci"}).examples == 300
    assert layered({"profile": "ci"}, {"examples": 7}).examples == 7
    assert layered({"profile": "ci", "examples": 7}).examples == 7


def test_a_bug_brings_its_target_over_weaker_sources_only():
    assert layered({"target": "llava-tiny"}, {"bug": "deepstack-kwarg"}).target == "qwen3-vl-tiny"
    own = layered({"bug": "deepstack-kwarg"}, {"warmup": "default"})
    assert (own.recipe, own.warmup) == ("language-model", "default")


def test_false_in_a_stronger_source_takes_a_flag_back():
    assert layered({"fullgraph": True}).fullgraph
    assert not layered({"fullgraph": True}, {"fullgraph": False}).fullgraph


def test_every_option_has_a_field_and_the_other_way_round():
    assert {option.field for option in OPTIONS} == set(Settings.__dataclass_fields__)


def test_paths_count_from_the_folder_of_their_source(tmp_path: Path):
    layer = Layer(values={"envelope": "e.json", "warmup": "p.json"}, folder=tmp_path)
    settings = Settings.from_layers([layer])
    assert settings.envelope == tmp_path / "e.json"
    assert settings.warmup == str(tmp_path / "p.json")
    named = Settings.from_layers([Layer(values={"warmup": "text-only"}, folder=tmp_path)])
    assert named.warmup == "text-only"


def test_hypothesis_keeps_examples_for_local_runs_alone(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    assert layered({}).database == Path(DEFAULT_DATABASE)
    assert layered({"database": "none"}).database is None
    assert layered({"profile": "ci"}).database is None
    assert layered({"profile": "ci", "database": "here"}).database == Path("here")
    monkeypatch.setenv("CI", "true")
    assert layered({}).database is None


def test_policies_merge_kind_by_kind():
    assert layered({}).policy == {}
    settings = layered(
        {"policy": "stall=off,recompile=warn"},
        {"policy": " graph-break = budget:3 "},
        {"policy": "stall=fail"},
    )
    assert settings.policy == {"stall": "fail", "recompile": "warn", "graph-break": "budget:3"}


def test_several_targets():
    assert layered({"target": "a, b,a"}).targets == ("a", "b")
    assert layered({"target": "a,b"}).for_target("b").target == "b"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"examples": "20"}, "x examples must be a whole number, not '20'"),
        ({"examples": True}, "x examples must be a whole number, not True"),
        ({"examples": 0}, "x examples must be at least 1, not 0"),
        ({"seed": 1.5}, "x seed must be a whole number, not 1.5"),
        ({"fullgraph": "yes"}, "x fullgraph must be true or false, not 'yes'"),
        ({"target": 3}, "x target must be a string, not 3"),
        ({"target": ""}, "x target is empty: leave it out for its default"),
        ({"target": "a,,b"}, "x target 'a,,b' holds an empty name"),
        ({"profile": "nigthly"}, "did you mean 'nightly'"),
        ({"dynamic": "yes"}, "unknown value for x dynamic 'yes'"),
        ({"repaired": True}, "x repaired needs x bug: it takes that bug's repaired twin"),
        ({"corpus": "/no/such/folder"}, "x corpus /no/such/folder is not there: name a folder"),
        ({"database": __file__}, "is a file: name a folder"),
        ({"policy": ""}, "x policy is empty: leave it out for its default"),
        ({"policy": "stal=off"}, "unknown kind in x policy 'stal': did you mean 'stall'"),
        ({"policy": "stall=no"}, "x policy: 'no' is no policy for stall: write KIND=fail"),
        ({"policy": "stall=budget:0"}, "x policy: 'budget:0' is no policy for stall"),
        ({"policy": "stall=budget:"}, "x policy: 'budget:' is no policy for stall"),
        ({"policy": "stall"}, "x policy 'stall' is no policy: write KIND=fail, KIND=warn,"),
        ({"policy": "nonfinite=off"}, "unknown kind in x policy 'nonfinite'"),
        ({"policy": {"stall": "off"}}, "x policy must be a string, not {'stall': 'off'}"),
    ],
)
def test_a_wrong_value_is_named_as_its_source_names_it(values: dict[str, object], message: str):
    layer = Layer(values=values, wording=lambda option: f"x {option.field}")
    with pytest.raises(UsageError) as caught:
        Settings.from_layers([layer])
    assert message in str(caught.value)


@pytest.mark.parametrize(("given", "expected"), [(True, True), ("false", False), ("auto", None)])
def test_dynamic(given: object, expected: bool | None):
    assert layered({"dynamic": given}).dynamic is expected
