"""Shards: which machine runs what, and that all of them together are one run."""

from __future__ import annotations

import json
import random
from collections import Counter
from importlib import import_module
from pathlib import Path

import junit_files as xml
import processes
import pytest
import toy
from projects import WORKERS_BY_NIGHT

from vlm_ci.cli import main
from vlm_ci.errors import UsageError
from vlm_ci.search import Search
from vlm_ci.settings import Settings
from vlm_ci.sharding import RUN_LENGTH, Shard, Work, assign, examples_of, parse

pytest_plugins = ["pytester"]

TARGETS = [f"t{number}" for number in range(4)]


def works(*targets: str, tests: int = 2, parts: int = 30, **seconds: float) -> list[Work]:
    """Return some tests of each target, and two files of other tests."""
    found = [
        Work(name=f"a.py::{t}-{i}", unit=t, shared=True, parts=parts, seconds=seconds.get(t))
        for t in targets
        for i in range(tests)
    ]
    found += [Work(name=f"{f}.py::test_{i}", unit=f"{f}.py") for f in "xy" for i in range(3)]
    return found


# -- the rule --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 40])
@pytest.mark.parametrize("targets", [0, 1, 2, 4])
def test_every_test_is_run_once_or_in_parts_that_make_one(targets: int, count: int):
    listed = works(*TARGETS[:targets])
    for work, shards in zip(listed, assign(listed, count), strict=True):
        assert shards, work
        assert set(shards) <= set(range(1, count + 1))
        parts = [part for part in shards.values() if part is not None]
        if parts:
            total = len(shards)
            assert sorted(parts, key=lambda one: one.index) == [
                Shard(index, total) for index in range(1, total + 1)
            ]
            assert 1 < total <= work.parts
        else:
            assert len(shards) == 1


def test_the_order_of_collection_decides_nothing():
    listed = works(*TARGETS, t1=40.0, t2=7.0)
    for count in (2, 3, 6):
        first = {w.name: s for w, s in zip(listed, assign(listed, count), strict=True)}
        for seed in range(5):
            other = random.Random(seed).sample(listed, len(listed))
            assert {w.name: s for w, s in zip(other, assign(other, count), strict=True)} == first


def test_tests_of_a_target_and_of_a_file_stay_together():
    listed = works(*TARGETS)
    of_unit: dict[str, set[int]] = {}
    for work, shards in zip(listed, assign(listed, 3), strict=True):
        assert list(shards.values()) == [None]
        of_unit.setdefault(work.unit, set()).update(shards)
    assert {len(shards) for shards in of_unit.values()} == {1}
    assert set.union(*of_unit.values()) == {1, 2, 3}


def test_durations_balance_the_targets():
    listed = works(*TARGETS, tests=1, t0=100.0, t1=40.0, t2=35.0, t3=30.0)[:4]
    places = [set(shards) for shards in assign(listed, 2)]
    assert places[0].isdisjoint(places[1] | places[2] | places[3])  # 100 beside 105


def test_the_longest_target_is_split_most():
    listed = works("t0", "t1", tests=1, t0=90.0, t1=10.0)[:2]
    long, short = assign(listed, 5)
    assert (len(long), len(short)) == (4, 1)
    assert not set(long) & set(short)


def test_a_search_has_no_more_parts_than_runs_and_other_tests_fill_the_rest():
    listed = works("t0", tests=1, parts=2)
    given = assign(listed, 5)
    assert len(given[0]) == 2
    others = set().union(*given[1:])
    assert others
    assert others.isdisjoint(given[0])


WRONG = ["0/3", "4/3", "a/b", "3", "/", "1/0", "-1/3", "1/3/4", "", "1 /3"]


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_shard_is_one_message(text: str):
    with pytest.raises(UsageError) as caught:
        parse(text, "--vlm-shard")
    assert str(caught.value) == (
        f"--vlm-shard must be I/N with I from 1 to N, such as 2/3, not {text!r}"
    )


def test_a_wrong_shard_ends_the_command_and_pytest(capsys, pytester: pytest.Pytester):
    assert main(["run", "--shard", "4/3"]) == 4
    said = capsys.readouterr().err
    assert "--shard must be I/N with I from 1 to N, such as 2/3, not '4/3'" in said
    done = pytester.runpytest_inprocess("--vlm-shard=0/3")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*--vlm-shard must be I/N with I from 1 to N*'0/3'"])


# -- a search in parts -----------------------------------------------------------------------------


def tried(examples: int, part: Shard | None = None, seed: int = 5) -> list[str]:
    """Return the sessions that a search tries."""
    seen: list[str] = []
    Search(envelope=toy.ENVELOPE).run(
        lambda session: seen.append(repr(session)), examples=examples, seed=seed, part=part
    )
    return seen


@pytest.mark.parametrize(("examples", "count"), [(35, 3), (35, 4), (20, 2)])
def test_parts_of_a_search_try_what_the_whole_tries(examples: int, count: int):
    parts = [tried(examples, Shard(index, count)) for index in range(1, count + 1)]
    assert Counter(one for part in parts for one in part) == Counter(tried(examples))
    for index, part in enumerate(parts, 1):
        assert len(part) == examples_of(Shard(index, count), examples)
    assert len({tuple(part) for part in parts}) == count  # each has seeds of its own


def test_each_example_belongs_to_one_part():
    for examples in (1, 9, 10, 11, 300):
        for count in (1, 2, 3, 7):
            parts = [examples_of(Shard(index, count), examples) for index in range(1, count + 1)]
            assert sum(parts) == examples
            assert max(parts) - min(parts) <= RUN_LENGTH


def test_a_seed_means_the_same_whatever_a_process_has_imported(tmp_path: Path, monkeypatch):
    """Hypothesis draws constants of local modules too, which differ from shard to shard."""
    before = tried(60)
    content = "\n".join(f"NUMBER_{number} = {number}" for number in range(101, 60000, 97))
    (tmp_path / "full_of_numbers.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    import_module("full_of_numbers")
    assert tried(60) == before


# -- the seed --------------------------------------------------------------------------------------


def test_the_seed_of_a_night(monkeypatch):
    monkeypatch.setenv("GITHUB_RUN_ID", "1234567")
    assert Settings.from_mapping({"profile": "nightly"}).seed == 1234567
    assert Settings.from_mapping({"profile": "nightly", "seed": 3}).seed == 3
    assert Settings.from_mapping({"profile": "ci"}).seed == 0
    monkeypatch.delenv("GITHUB_RUN_ID")
    tonight = Settings.from_mapping({"profile": "nightly"}).seed
    assert 20260101 <= tonight <= 99991231


# -- three machines --------------------------------------------------------------------------------


EXAMPLES = 30


def of_the_last_run_alone() -> int:
    """Return the seed of a batch that only the third run of ten has."""
    runs: list[set[int]] = []
    for index in range(1, 4):
        seen: set[int] = set()
        Search(envelope=toy.ENVELOPE).run(
            lambda session, seen=seen: seen.update(batch.seed for batch in session.batches),
            examples=EXAMPLES,
            seed=0,
            part=Shard(index, 3),
        )
        runs.append(seen)
    return max(runs[2] - runs[0] - runs[1])


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a fault that only the last run of ten shows, run whole and on three shards."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "engine.py").write_text(
        "from toy import ToyTarget\n"
        "def rare():\n"
        "    nan = float('nan')\n"
        f"    bad = {of_the_last_run_alone()}\n"
        "    return ToyTarget(\n"
        "        lambda call, ids, batch: call(ids) + (nan if batch.seed == bad else 0))\n"
    )
    (folder / "test_vlm.py").write_text(
        "import pytest\n"
        "@pytest.mark.vlm(target='engine:rare')\n"
        "def test_rare(vlm_check):\n"
        "    vlm_check()\n"
        "@pytest.mark.vlm(target='engine:rare', examples=10)\n"
        "def test_small(vlm_check):\n"
        "    vlm_check()\n"
        "def test_target(vlm_target):\n"
        "    assert vlm_target.name\n"
    )
    (folder / "test_plain.py").write_text("def test_one(): pass\ndef test_two(): assert 0\n")
    path = f"{Path(__file__).parent}:{folder}:{Path(__file__).parents[2]}"
    for name, options in (
        ("whole", ()),
        *((f"{index}", (f"--vlm-shard={index}/3",)) for index in (1, 2, 3)),
    ):
        done = processes.run(
            "pytest",
            "-o",
            f"vlm_examples={EXAMPLES}",
            "-o",
            "vlm_target=engine:rare",
            "--vlm-database=none",
            f"--vlm-out=out-{name}",
            f"--junitxml={name}.xml",
            *options,
            cwd=folder,
            PYTHONPATH=path,
            GITHUB_SHA="abc123",
            GITHUB_RUN_ATTEMPT="1",
        )
        (folder / f"{name}.txt").write_text(done.stdout + done.stderr)
    return folder


def verdicts(path: Path) -> dict[str, str]:
    return {name: xml.verdict(case) for name, case in xml.cases(path).items()}


@pytest.mark.slow
def test_three_shards_merged_equal_one_run(fleet: Path, monkeypatch, capsys):
    monkeypatch.chdir(fleet)
    assert main(["junit", "merge", "1.xml", "2.xml", "3.xml", "-o", "all.xml"]) == 1
    assert verdicts(fleet / "all.xml") == verdicts(fleet / "whole.xml")
    assert verdicts(fleet / "whole.xml") == {
        "test_rare": "failure",
        "test_small": "passed",
        "test_target": "passed",
        "test_one": "passed",
        "test_two": "failure",
    }
    alone = [xml.verdict(xml.cases(fleet / f"{index}.xml")["test_rare"]) for index in (1, 2, 3)]
    assert alone == ["passed", "passed", "failure"]  # one part found it
    out = capsys.readouterr().out
    assert "flaky" not in out
    assert "failed         test_vlm.py::test_rare: Failed: nonfinite" in out


@pytest.mark.slow
def test_a_shard_that_is_missing_is_said_and_fails(fleet: Path, monkeypatch, capsys):
    monkeypatch.chdir(fleet)
    assert main(["junit", "merge", "1.xml", "2.xml", "-o", "two.xml"]) == 1
    assert verdicts(fleet / "two.xml")["test_rare"] == "error"
    out = capsys.readouterr().out
    assert "missing shard  3/3" in out
    assert "missing: part 3/3 of test_vlm.py::test_rare is in no file" in out
    assert main(["junit", "merge", "two.xml", "3.xml", "-o", "late.xml"]) == 1
    assert verdicts(fleet / "late.xml") == verdicts(fleet / "whole.xml")


@pytest.mark.slow
def test_a_shard_states_itself_and_counts_what_it_leaves(fleet: Path):
    for index in (1, 2, 3):
        text = (fleet / f"{index}.txt").read_text()
        count = len(xml.cases(fleet / f"{index}.xml"))
        assert f"shard          {index}/3: {count} of 5 tests, " in text
        assert f"{5 - count} deselected" in text.splitlines()[-1]
        for name, case in xml.cases(fleet / f"{index}.xml").items():
            stated = xml.properties(case)
            assert stated["vlm_ci.shard"] == f"{index}/3"
            assert (stated["vlm_ci.commit"], stated["vlm_ci.attempt"]) == ("abc123", "1")
            assert stated.get("vlm_ci.part") == (f"{index}/3" if name == "test_rare" else None)
        (suite,) = xml.root(fleet / f"{index}.xml").iter("testsuite")
        assert xml.properties(suite)["vlm_ci.shard"] == f"{index}/3"
        found = [json.loads(path.read_text()) for path in fleet.glob(f"out-{index}/**/result.json")]
        (rare,) = [one for one in found if one["test"].endswith("test_rare")]
        assert (rare["shard"], rare["part"]) == (f"{index}/3", f"{index}/3")
        assert (rare["commit"], rare["attempt"]) == ("abc123", 1)
        assert rare["traffic"]["examples"] <= 10


# -- pytest's side ---------------------------------------------------------------------------------


def plain_project(pytester: pytest.Pytester) -> None:
    for name in "abc":
        pytester.makepyfile(**{f"test_{name}": "def test_x(): pass\ndef test_y(): pass"})


@WORKERS_BY_NIGHT
def test_tests_of_no_target_are_split_by_file(pytester: pytest.Pytester, workers: tuple[str, ...]):
    plain_project(pytester)
    seen: Counter[str] = Counter()
    for index in (1, 2):
        done = pytester.runpytest_subprocess(
            f"--vlm-shard={index}/2", f"--junitxml={index}.xml", *workers
        )
        count = {1: 4, 2: 2}[index]
        done.stdout.fnmatch_lines(
            [f"shard * {index}/2: {count} of 6 tests; {6 - count} deselected, which*"]
        )
        cases = list(xml.root(pytester.path / f"{index}.xml").iter("testcase"))
        assert len(cases) == count
        assert {xml.properties(one)["vlm_ci.shard"] for one in cases} == {f"{index}/2"}
        seen.update(one.attrib["classname"] + one.attrib["name"] for one in cases)
    assert len(seen) == 6
    assert set(seen.values()) == {1}


def test_a_shard_without_work_says_so_and_is_not_missing(pytester: pytest.Pytester, monkeypatch):
    pytester.makepyfile(test_a="def test_x(): pass")
    for index, code in ((1, 0), (2, 5)):
        done = pytester.runpytest_inprocess(f"--vlm-shard={index}/2", f"--junitxml={index}.xml")
        assert done.ret == code
    done.stdout.fnmatch_lines(["shard *nothing is left for this one"])
    monkeypatch.chdir(pytester.path)
    assert main(["junit", "merge", "1.xml", "2.xml", "-o", "all.xml"]) == 0


@pytest.mark.parametrize("kind", ["junit", "json"])
def test_durations_decide_where_files_go(pytester: pytest.Pytester, kind: str):
    plain_project(pytester)
    times = {"a": 1.0, "b": 1.0, "c": 9.0}
    name = "times.xml" if kind == "junit" else ".test_durations"
    if kind == "junit":
        xml.write(
            pytester.path / name,
            xml.suite(
                *(
                    f'<testcase classname="test_{file}" name="test_{test}" time="{seconds}"/>'
                    for file, seconds in times.items()
                    for test in "xy"
                )
            ),
        )
    else:
        stored = {f"test_{f}.py::test_{t}": s for f, s in times.items() for t in "xy"}
        (pytester.path / name).write_text(json.dumps(stored))
    done = pytester.runpytest_inprocess("--vlm-shard=1/2", f"--vlm-durations={name}", "-v")
    done.assert_outcomes(passed=2, deselected=4)
    assert "test_c.py::test_x PASSED" in done.stdout.str()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "*times.json: not a file of durations*No such file*"),
        ("[1]", "*times.json: not a file of durations*"),
        ('{"a": "b"}', "*times.json: not a file of durations*"),
    ],
)
def test_a_wrong_file_of_durations_is_one_message(pytester, content: str | None, message: str):
    plain_project(pytester)
    if content is not None:
        (pytester.path / "times.json").write_text(content)
    done = pytester.runpytest_inprocess("--vlm-shard=1/2", "--vlm-durations=times.json")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([message])


def test_a_test_that_is_expected_to_fail_is_not_split(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.xfail
        def test_known(vlm_check): ...

        def test_other(vlm_check): ...
        """
    )
    for index, tests in ((1, 2), (2, 1)):
        done = pytester.runpytest_inprocess(f"--vlm-shard={index}/2", "--collect-only")
        done.stdout.fnmatch_lines([f"shard * {index}/2: {tests} of 2 tests, 1 of them in part*"])
