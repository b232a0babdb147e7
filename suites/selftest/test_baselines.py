"""Baselines: each field goes red when what it guards becomes worse, and says so line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import torch
import worsened
from toy import ENVELOPE, ToyTarget

from vlm_ci import runner
from vlm_ci.baselines import files
from vlm_ci.baselines.comparing import compare
from vlm_ci.baselines.records import BaselineFile, Entry, entry_of
from vlm_ci.errors import UsageError
from vlm_ci.failures import render
from vlm_ci.report.terminal import summary
from vlm_ci.result import Result
from vlm_ci.settings import Settings
from vlm_ci.traffic.files import plan_to_json
from vlm_ci.warmup import named_plan
from vlm_ci.watch.cudagraphs import CudagraphObserver

Build = Callable[[], ToyTarget]


class Runs:
    """Runs toy engines against the baselines of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "baselines/toy.json"

    def __call__(self, build: Build, **given) -> Result:
        target = build()
        options = {
            "out": str(self.folder / "out"),
            "baselines": str(self.folder / "baselines"),
            "database": "none",
            "examples": 5,
            "warmup": "text-only",
            **given,
        }
        try:
            return runner.run(Settings.from_mapping(options), target)
        finally:
            target.close()

    def update(self, build: Build, **given) -> Result:
        return self(build, update_baselines=True, **given)


@pytest.fixture(scope="module")
def healthy_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The baseline of the healthy toy, written once by a run of it."""
    runs = Runs(tmp_path_factory.mktemp("healthy"))
    result = runs.update(ToyTarget)
    assert (result.verdict, result.baseline.updated) == ("clean", True)
    return runs.file.read_bytes()


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """A folder without baselines."""
    return Runs(tmp_path)


@pytest.fixture
def healthy(runs: Runs, healthy_file: bytes) -> Runs:
    """A folder with the baseline of the healthy toy."""
    runs.file.parent.mkdir()
    runs.file.write_bytes(healthy_file)
    return runs


@pytest.fixture
def capturable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the observer of CUDA graphs watch here, and captures do nothing."""
    real = CudagraphObserver.__init__
    monkeypatch.setattr(CudagraphObserver, "__init__", lambda self, device: real(self, "cuda"))
    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", lambda self: None, raising=False)
    return


def worse(result: Result) -> dict[str, tuple[str, str]]:
    """Return what the result says is worse, by field, as (before, after)."""
    assert result.baseline is not None
    return {one.field: (one.before, one.after) for one in result.baseline.changes if one.worse}


def lines(result: Result) -> list[str]:
    """Return the lines of the summary about the baseline, without their label."""
    found = summary(result)
    start = next(index for index, text in enumerate(found) if text.startswith("baseline "))
    label = len("baseline       ")
    return [
        text[label:]
        for index, text in enumerate(found)
        if index == start or (index > start and text.startswith(" " * label))
    ]


def failed_by_baseline(result: Result) -> bool:
    return result.verdict == "failed" and "baseline" in [one.kind for one in result.failures]


# -- each field --------------------------------------------------------------------------------

FRAME = "frames[toy.py: Toy.forward]"
BREAK = "breaks[Call to `torch._dynamo.graph_break()`]"


def test_the_same_run_with_another_seed_and_more_examples_is_as_it_was(healthy: Runs):
    result = healthy(ToyTarget, seed=3, examples=15)
    assert (result.verdict, result.failures, result.baseline.changes) == ("clean", [], [])
    assert lines(result) == [f"{healthy.file}: as it was"]


def test_a_graph_break_is_worse(healthy: Runs):
    result = healthy(worsened.breaking)
    assert failed_by_baseline(result)
    found = worse(result)
    assert found[BREAK][0] == "0"
    assert int(found[BREAK][1]) > 0
    for field in ("graphs", "compiles"):
        before, after = map(int, found[field])
        assert 0 < before < after, field
    assert "frames[worsened.py: torch_dynamo_resume_in_forward]" in found
    assert (f"- {BREAK} 0", f"+ {BREAK} {found[BREAK][1]}") in zip(
        lines(result), lines(result)[1:], strict=False
    )


def test_the_same_graph_break_more_often_is_worse(runs: Runs):
    runs.update(worsened.breaking)
    result = runs(worsened.breaking_twice)
    assert failed_by_baseline(result)
    before, after = map(int, worse(result)[BREAK])
    assert 0 < before < after


def test_another_frame_is_worse(healthy: Runs):
    result = healthy(worsened.another_frame)
    assert failed_by_baseline(result)
    found = worse(result)
    assert found["frames[worsened.py: another_frame.beside]"][0] == "0"
    assert FRAME not in found
    assert not any(field.startswith("breaks") for field in found)


def test_more_graphs_of_the_same_frame_are_worse(healthy: Runs):
    result = healthy(worsened.more_graphs)
    assert failed_by_baseline(result)
    assert [one.kind for one in result.failures] == ["baseline"]
    found = worse(result)
    assert set(found) == {"compiles", "graphs", FRAME}
    assert all(int(after) > int(before) > 0 for before, after in found.values())
    (failure,) = result.failures
    text = render(failure, out="out")
    before, after = found["graphs"]
    assert f"graphs {before} → {after}" in failure.cause
    assert f"- graphs {before}\n" in text
    assert f"+ graphs {after}\n" in text
    assert "--update-baselines" in text
    assert "vlm-ci replay" not in text  # one session does not show it


def test_another_round_is_worse(healthy: Runs):
    result = healthy(worsened.another_round)
    assert failed_by_baseline(result)
    assert worse(result)["rounds"] == ("2", "3")


def test_more_batches_are_worse(runs: Runs):
    plan = runs.folder / "plan.json"
    batches = named_plan("text-only", ENVELOPE).batches
    plan.write_bytes(plan_to_json(batches[:-1]))
    runs.update(ToyTarget, warmup=str(plan), examples=1)
    plan.write_bytes(plan_to_json(batches))
    result = runs(ToyTarget, warmup=str(plan), examples=1)
    assert failed_by_baseline(result)
    assert worse(result)["batches"] == (str(len(batches) - 1), str(len(batches)))


def test_a_larger_error_of_the_logits_is_worse_long_before_it_is_a_mismatch(healthy: Runs):
    result = healthy(imprecise)
    assert [one.kind for one in result.failures] == ["baseline"]
    (field,) = worse(result)
    assert field == "ratio"
    before, after = worse(result)["ratio"]
    assert before == "0"
    assert 0.1 < float(after) < 1


def test_an_error_that_grows_by_less_than_the_seed_explains_is_not(runs: Runs):
    runs.update(lambda: worsened.rounding(1.6e-4))
    result = runs(imprecise)
    assert (result.verdict, result.baseline.changes) == ("clean", [])
    assert worse(runs(lambda: worsened.rounding(4e-4))).keys() == {"ratio"}


def test_more_captured_graphs_are_worse(runs: Runs, capturable: None):
    first = runs.update(lambda: worsened.capturing(1))
    assert first.baseline.updated
    result = runs(lambda: worsened.capturing(2))
    assert failed_by_baseline(result)
    assert worse(result) == {"captures": ("5", "10")}


# -- what is no failure --------------------------------------------------------------------------


def test_a_fall_is_no_failure_and_asks_for_an_update(runs: Runs):
    runs.update(worsened.more_graphs)
    result = runs(ToyTarget)
    assert (result.verdict, worse(result)) == ("clean", {})
    assert {one.field for one in result.baseline.changes} == {"compiles", "graphs", FRAME}
    assert lines(result)[0] == f"{runs.file}: 3 better: --update-baselines keeps what was won"
    updated = runs.update(ToyTarget)
    assert updated.baseline.updated
    assert lines(updated)[0] == f"{runs.file}: written, 3 better than before"
    assert files.read(runs.file)[0].graphs < int(result.baseline.changes[0].before)


def test_the_policy_decides(healthy: Runs):
    assert healthy(worsened.more_graphs, policy="baseline=budget:2").verdict == "failed"
    result = healthy(worsened.more_graphs, policy="baseline=budget:3")
    assert (result.verdict, result.failures) == ("clean", [])
    (entry,) = result.tolerated
    assert (entry.failure.kind, entry.count) == ("baseline", len(worse(result)))


def test_a_run_without_an_entry_is_told_how_to_write_one(runs: Runs, healthy_file: bytes):
    runs.file.parent.mkdir()
    expected = [f"none for this run in {runs.file.parent}; --update-baselines writes one"]
    none = runs(ToyTarget)
    assert (none.verdict, lines(none)) == ("clean", expected)
    runs.file.write_bytes(healthy_file)
    other = runs(ToyTarget, warmup="default")
    assert (other.verdict, lines(other)) == ("clean", expected)


def test_none_switches_it_off(healthy: Runs):
    result = healthy(worsened.more_graphs, baselines="none")
    assert (result.verdict, result.baseline) == ("clean", None)


# -- updating ------------------------------------------------------------------------------------


def test_only_a_clean_run_becomes_the_baseline(healthy: Runs, healthy_file: bytes):
    result = healthy.update(lambda: worsened.rounding(1e-3))
    assert result.verdict == "failed"
    assert not result.baseline.updated
    assert healthy.file.read_bytes() == healthy_file
    assert lines(result)[-1] == (
        "not updated: the run is failed, and only a clean one becomes a baseline"
    )


def test_an_update_takes_a_rise_and_says_what_changed(healthy: Runs):
    result = healthy.update(worsened.more_graphs)
    assert (result.verdict, result.baseline.updated) == ("clean", True)
    assert lines(result)[0] == f"{healthy.file}: written, 3 worse than before"
    before, after = worse(result)["graphs"]
    assert {f"- graphs {before}", f"+ graphs {after}"} <= set(lines(result))
    assert healthy(worsened.more_graphs).verdict == "clean"


def test_an_update_that_says_the_same_leaves_the_file_alone(healthy: Runs, healthy_file: bytes):
    result = healthy.update(ToyTarget, seed=5, examples=9)
    assert not result.baseline.updated
    assert healthy.file.read_bytes() == healthy_file


# -- other versions ------------------------------------------------------------------------------


class Entries:
    """The entry of each engine, from one run of it."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._known: dict[Build, Entry] = {}

    def __call__(self, build: Build, **made_with: str) -> Entry:
        if build not in self._known:
            self._known[build] = entry_of(self._runs(build, baselines="none"))
        entry = self._known[build]
        return msgspec.structs.replace(entry, made_with={**entry.made_with, **made_with})


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> Entries:
    """Entries of toy engines."""
    return Entries(Runs(tmp_path_factory.mktemp("entries")))


def imprecise() -> ToyTarget:
    return worsened.rounding(3e-4)


@pytest.mark.parametrize(
    ("build", "fields"),
    [
        (ToyTarget, set()),
        (worsened.more_graphs, set()),
        (worsened.breaking, {BREAK}),
        (worsened.another_round, {"rounds"}),
        (imprecise, {"ratio"}),
    ],
)
@pytest.mark.parametrize(
    ("name", "version", "blind", "told"),
    [
        ("transformers", "5.17.0", set(), "graphs, frames and captures are not compared"),
        ("python", "3.99", {BREAK}, "graphs, graph breaks, frames and captures are not compared"),
    ],
)
def test_of_another_version_what_can_be_compared_is(
    entries: Entries,
    name: str,
    version: str,
    blind: set[str],
    told: str,
    build: Build,
    fields: set[str],
):
    found = compare(entries(ToyTarget, **{name: version}), entries(build))
    assert {one.field for one in found.changes if one.worse} == fields - blind
    assert f"{name} {version}" in found.versions
    assert told in found.versions


def test_another_torch_words_graph_breaks_otherwise_so_that_they_are_counted(entries: Entries):
    before, now = entries(worsened.breaking, torch="2.11.0"), entries(worsened.breaking)
    before = msgspec.structs.replace(before, breaks={"reworded": sum(before.breaks.values())})
    assert compare(before, now).changes == ()
    (change,) = compare(entries(ToyTarget, torch="2.11.0"), now).changes
    assert (change.field, change.before, change.worse) == ("breaks", "0", True)


def test_another_version_warns_and_an_update_keeps_its_entry(healthy: Runs, entries: Entries):
    (known,) = files.read(healthy.file)
    old = msgspec.structs.replace(known, made_with={**known.made_with, "torch": "2.11.0"})
    healthy.file.write_bytes(files.content_of((old,)))
    warned = healthy(ToyTarget)
    assert (warned.verdict, warned.baseline.changes) == ("clean", [])
    (warning,) = [text for text in warned.warnings if "written with torch 2.11.0" in text]
    assert sum(warning in text for text in summary(warned)) == 1
    assert healthy.update(ToyTarget).baseline.updated
    assert [one.made_with["torch"] for one in files.read(healthy.file)] == [
        "2.11.0",
        torch.__version__.partition("+")[0],
    ]
    found = healthy(ToyTarget)
    assert not [text for text in found.warnings if "written with" in text]
    assert found.baseline.notes == []


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((b'"graphs": ', b'"graphs": "'), "JSON is malformed"),
        (
            (b'"rounds": 2', b'"rounds": "two"'),
            "Expected `int`, got `str` - at `$.entries[0].rounds`",
        ),
        ((b'"rounds"', b'"round"'), "Object contains unknown field `round` - at `$.entries[0]`"),
        ((b"baseline/1", b"baseline/9"), "must be one of vlm-ci/baseline/1"),
    ],
)
def test_a_broken_file_is_bad_input(
    healthy: Runs, healthy_file: bytes, change: tuple[bytes, bytes], message: str
):
    assert change[0] in healthy_file
    healthy.file.write_bytes(healthy_file.replace(*change))
    with pytest.raises(UsageError) as caught:
        healthy(ToyTarget)
    assert str(caught.value).startswith(f"baseline file {healthy.file}: ")
    assert message in str(caught.value)


def test_a_file_has_a_line_for_each_fact_and_sorted_keys(healthy_file: bytes):
    text = healthy_file.decode()
    decoded = msgspec.json.decode(healthy_file)
    assert files.content_of(msgspec.json.decode(healthy_file, type=BaselineFile).entries) == (
        healthy_file
    )
    (entry,) = decoded["entries"]
    assert list(entry) == sorted(entry)
    assert '\n      "rounds": 2,\n' in text
    assert '\n        "toy.py: Toy.forward": ' in text
