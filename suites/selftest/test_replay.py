"""Replay: exactly that session again, what it says, what it keeps, and bad recordings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy
from toy import ToyTarget

from vlm_ci import (
    Image,
    Text,
    UsageError,
    artifacts,
    batch,
    building,
    evidence,
    locations,
    runner,
    session,
)
from vlm_ci.cli import main
from vlm_ci.settings import Settings
from vlm_ci.traffic.files import plan_to_json, pretty, read_traffic

OWN_CORPUS = locations.fixtures() / "traffic"
NAN = "test_replay:nan"
TEST = "suites/test_mixed.py::test_mixed"


def nan() -> ToyTarget:
    """Answers NaN to every text of an even number of tokens."""

    def serve(call, ids, part):
        even = any(isinstance(item, Text) and item.tokens % 2 == 0 for item in part.items())
        return call(ids) + float("nan") if even else call(ids)

    return ToyTarget(serve)


def refused() -> ToyTarget:
    """Passes an argument that warm-up never saw, where there is an image."""

    def serve(call, ids, part):
        if any(isinstance(item, Image) for item in part.items()):
            return call(ids, features=ids.new_zeros(*ids.shape, 16).float())
        return call(ids)

    return ToyTarget(serve)


@pytest.fixture
def record(tmp_path: Path, monkeypatch):
    """Run a target in a folder of its own, and return the folder of its results."""
    monkeypatch.chdir(tmp_path)

    def run(target: str, **given: object) -> Path:
        settings = Settings.from_mapping(
            {"target": target, "examples": 20, "database": "none", "out": "out", **given}
        )
        built = building.build_target(settings)
        try:
            runner.run(settings, built, test=TEST, name=target)
        finally:
            built.close()
        return tmp_path / "out"

    return run


def only(out: Path) -> Path:
    (folder,) = (out / "failures").iterdir()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(path: Path, **changes: object) -> None:
    path.write_bytes(pretty({**json.loads(path.read_bytes()), **changes}))


def test_a_failure_is_replayed_verbosely_and_left_alone(record, capsys):
    out = record(NAN)
    before = content(out)
    assert main(["replay", str(only(out))]) == 1
    shown = capsys.readouterr().out
    for text in (
        "recorded       nonfinite: the compiled logits hold NaN or Inf",
        "batch 1 of 1   0 [tt] 2 positions: text 2",
        "Batch(requests=(Request(items=(Text(tokens=2),)),))",
        "regions      1 compiled regions executed",
        "logits       compiled ones hold NaN or Inf (request 0, token 0, text)",
        "verdict        it still fails, with the cause that was recorded",
    ):
        assert text in shown
    assert content(out) == before


def test_a_refused_call_shows_frame_and_guards(record, capsys):
    out = record("test_replay:refused", warmup="text-only")
    assert main(["replay", str(only(out) / "failure.json")]) == 1
    shown = capsys.readouterr().out
    assert "refused      forward (suites/selftest/toy.py" in shown.replace(
        "/selftest/", "/selftest/"
    )
    assert "  guard        " in shown
    assert "logits       not reached" in shown


def test_the_node_id_of_a_test_stands_for_its_failures(record, capsys):
    out = record(NAN)
    assert main(["replay", TEST, "--out", str(out)]) == 1
    assert "it still fails" in capsys.readouterr().out
    assert main(["replay", "suites/test_other.py::test_x", "--out", str(out)]) == 4
    shown = capsys.readouterr().err
    assert "no results of suites/test_other.py::test_x" in shown
    assert f"it has results of {TEST}" in shown


def test_a_folder_of_results_stands_for_all_its_failures(record, capsys):
    out = record(NAN)
    copy = out / "failures/02-again"
    copy.mkdir()
    (copy / "failure.json").write_bytes((only_first(out) / "failure.json").read_bytes())
    assert main(["replay", str(out)]) == 1
    shown = capsys.readouterr().out
    assert shown.count("it still fails") == 2
    assert shown.count("done by an earlier run") == 1  # warmed once


def only_first(out: Path) -> Path:
    return sorted((out / "failures").iterdir())[0]


def test_a_fixed_failure_says_so(record, capsys, monkeypatch):
    out = record(NAN)
    monkeypatch.setattr("test_replay.nan", toy.factory)
    assert main(["replay", str(only(out))]) == 0
    assert "verdict        fixed: the recorded failure does not show any more" in (
        capsys.readouterr().out
    )


def test_another_cause_says_so(record, capsys, monkeypatch):
    out = record(NAN)
    monkeypatch.setattr("test_replay.nan", lambda: ToyTarget(lambda call, ids, part: call(ids) + 1))
    assert main(["replay", str(only(out))]) == 1
    assert "with another cause than the one that was recorded: mismatch" in capsys.readouterr().out


def test_what_is_given_wins_over_what_was_recorded(record, capsys):
    out = record("test_replay:refused", warmup="text-only")
    plan = out.parent / "plan.json"
    plan.write_bytes(plan_to_json((batch(Text(7)), batch(Image(8, 8)))))
    assert main(["replay", str(only(out)), "--warmup", str(plan)]) == 0
    assert "plan.json: 2 batches" in capsys.readouterr().out


def test_a_failure_without_traffic_is_searched_for_again(record, capsys):
    """That nothing compiled was called belongs to no session; a replay may not call it fixed."""
    plan = {"target": "llava-tiny", "recipe": "vision", "examples": 3}
    envelope = Path("text.json")
    envelope.write_text(json.dumps({"modalities": ["text"]}))
    out = record(plan.pop("target"), envelope=str(envelope), **plan)
    envelope.unlink()  # the recorded envelope and plan stand for the files
    assert main(["replay", str(only(out))]) == 1
    assert "it still fails, with the cause that was recorded" in capsys.readouterr().out


def test_the_newest_run_of_a_test_counts(record, capsys):
    out = record(NAN)
    (out / "again").mkdir()
    clean = json.loads((out / "result.json").read_bytes())
    (out / "again/result.json").write_bytes(pretty({**clean, "failures": []}))
    assert main(["replay", TEST, "--out", str(out)]) == 4
    assert f"the newest run of {TEST} in {out}/again found nothing" in capsys.readouterr().err


def test_one_bad_recording_does_not_stop_the_others(record, capsys):
    out = record(NAN)
    copy = out / "failures/00-unknown"
    copy.mkdir()
    recorded = json.loads((only_last(out) / "failure.json").read_bytes())
    (copy / "failure.json").write_bytes(pretty({**recorded, "target": "no_such_module:f"}))
    assert main(["replay", str(out)]) == 4
    shown = capsys.readouterr().out
    assert "error          target 'no_such_module:f': cannot import" in shown
    assert "it still fails" in shown


def only_last(out: Path) -> Path:
    return sorted((out / "failures").iterdir())[-1]


def test_the_recorded_plan_and_envelope_hold(record, capsys):
    out = record(NAN)
    file = only(out) / "failure.json"
    recorded = json.loads(file.read_bytes())
    edit(file, plan=recorded["plan"][:1])
    assert main(["replay", str(file)]) == 1
    assert "plan default: 1 batches" in capsys.readouterr().out


def test_other_versions_are_named_and_tried_anyway(record, capsys):
    out = record(NAN)
    file = only(out) / "failure.json"
    recorded = json.loads(file.read_bytes())
    recorded["failure"]["traffic"]["schema"] = "vlm-ci/traffic/7"
    edit(
        file,
        schema="vlm-ci/failure/9",
        environment={**recorded["environment"], "torch": "2.9.1", "transformers": "5.1.0"},
        failure=recorded["failure"],
        of_the_future=True,
    )
    assert main(["replay", str(file)]) == 1
    shown = capsys.readouterr().out
    for text in (
        "it was written as vlm-ci/failure/9; this version reads vlm-ci/failure/1; trying anyway",
        "its traffic is vlm-ci/traffic/7; this version reads vlm-ci/traffic/1; trying anyway",
        "torch was 2.9.1 and is ",
        "transformers was 5.1.0 and is ",
        "it still fails",
    ):
        assert text in shown


def test_traffic_alone_is_replayed_against_the_target_that_is_named(tmp_path: Path, capsys):
    path = tmp_path / "mine.json"
    path.write_bytes(pretty(session(batch(Text(3)), batch([Image(8, 16), Text(2)]))))
    assert main(["replay", str(path), "--target", "toy:factory"]) == 0
    shown = capsys.readouterr().out
    assert "batch 2 of 2" in shown
    assert "verdict        clean: this traffic passes" in shown
    assert main(["replay", str(path), "--target", NAN]) == 1
    assert "verdict        it fails" in capsys.readouterr().out


# -- the corpus ----------------------------------------------------------------------------------


def test_kept_traffic_is_tried_first_by_every_later_run(record, capsys, tmp_path: Path):
    out = record(NAN)
    assert main(["replay", str(only(out)), "--keep"]) == 1
    (kept,) = (tmp_path / "fixtures/traffic").iterdir()
    assert read_traffic(kept) == session(batch(Text(2)))
    assert (
        f"fixtures/traffic/{kept.name}: every later run tries it first" in capsys.readouterr().out
    )
    assert main(["replay", str(only(out)), "--keep"]) == 1  # once is enough
    assert "it was there already" in capsys.readouterr().out
    assert len(list(kept.parent.iterdir())) == 1

    result = json.loads((record(NAN, seed=5) / "result.json").read_text())
    assert result["traffic"]["examples"] == 0  # found before anything was generated
    assert result["traffic"]["corpus"] >= 1
    assert [failure["kind"] for failure in result["failures"]] == ["nonfinite"]
    result = json.loads((record("toy:factory") / "result.json").read_text())
    assert result["traffic"]["examples"] == 20
    assert result["verdict"] == "clean"


def test_a_corpus_of_ones_own(record, capsys, tmp_path: Path):
    out = record(NAN)
    assert main(["replay", str(only(out)), "--keep", "--corpus", "mine/traffic"]) == 1
    assert len(list((tmp_path / "mine/traffic").iterdir())) == 1
    result = json.loads((record(NAN, corpus="mine/traffic") / "result.json").read_text())
    assert result["traffic"]["examples"] == 0


def test_traffic_outside_the_envelope_is_left_out_and_counted(record, tmp_path: Path):
    folder = tmp_path / "fixtures/traffic"
    folder.mkdir(parents=True)
    (folder / "large.json").write_bytes(pretty(session(batch(Image(800, 800)))))
    result = json.loads((record("toy:factory") / "result.json").read_text())
    assert result["traffic"]["corpus_outside"] >= 1
    assert result["verdict"] == "clean"


def test_a_broken_file_in_the_corpus_is_named(record, tmp_path: Path):
    folder = tmp_path / "fixtures/traffic"
    folder.mkdir(parents=True)
    (folder / "broken.json").write_text("{")
    with pytest.raises(UsageError, match=r"traffic file fixtures/traffic/broken\.json"):
        record("toy:factory")


# -- the example database ------------------------------------------------------------------------


def test_a_failing_example_is_tried_first_by_the_next_local_run(record, capsys):
    record(NAN, database="examples", seed=1)
    found = json.loads((record(NAN, database="examples", seed=99) / "result.json").read_text())
    assert found["traffic"]["examples"] == 0  # found before anything was generated
    assert found["failures"][0]["kind"] == "nonfinite"
    out = record(NAN, database="examples", seed=99)
    before = content(out.parent / "examples")
    main(["replay", str(only(out))])
    assert content(out.parent / "examples") == before  # a replay leaves the database alone
    other = json.loads((record("toy:factory", database="examples") / "result.json").read_text())
    assert other["traffic"]["examples"] == 20  # what failed on another target is not tried


def test_what_passes_again_is_forgotten(record, monkeypatch):
    record(NAN, database="examples")
    monkeypatch.setattr("test_replay.nan", toy.factory)
    for expected in (1, 0):
        result = json.loads((record(NAN, database="examples") / "result.json").read_text())
        assert result["verdict"] == "clean"
        assert result["traffic"]["corpus"] == expected + len(list(OWN_CORPUS.glob("*.json")))


# -- bad recordings ------------------------------------------------------------------------------


BAD = {
    "absent": (["absent"], "there is no absent: name a failure's folder"),
    "empty folder": (["empty"], "empty holds no failures"),
    "no JSON": (["garbage.json"], "failure file garbage.json: "),
    "no object": (["list.json"], "its schema is None, not 'vlm-ci/failure/1'"),
    "another kind of file": (["plan.json"], "its schema is 'vlm-ci/plan/1', not"),
    "no target": (["partial.json"], "Object missing required field `target`"),
    "no failure": (["none.json"], "holds no failure"),
    "unknown kind": (["kind.json"], "unknown failure kind 'mystery'"),
    "damaged options": (["options.json"], "dynamic in options.json must be true, false or null"),
    "unknown target": (["gone.json"], "unknown target 'no-such-tiny'"),
    "target not importable": (["module.json"], "cannot import 'no_such_module'"),
    "broken traffic": (["traffic.json", "--target", "toy:factory"], "traffic file traffic.json: "),
    "outside": (
        ["large.json", "--target", "toy:factory"],
        "is outside the envelope of toy:factory",
    ),
    "no results": (
        ["a::b", "--out", "empty"],
        "no results of a::b in empty: it has no results of tests",
    ),
    "unknown option": (["list.json", "--targt", "x"], "--targt"),
    "corpus is a file": (
        ["good.json", "--keep", "--corpus", "list.json", "--target", "toy:factory"],
        "cannot write to the corpus list.json",
    ),
}


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch) -> None:
    """A folder of broken recordings, and the current one."""
    monkeypatch.chdir(tmp_path)
    failure = {"kind": "crash", "cause": "c", "advice": "a", "key": "k"}
    whole = {
        "schema": evidence.FAILURE_SCHEMA,
        "target": "toy:factory",
        "recipe": "decoder-layers",
        "backend": "eager",
        "options": {},
        "warmup": "default",
        "failure": failure,
    }
    large = {"batches": [{"requests": [{"items": [{"kind": "image", "height": 80, "width": 8}]}]}]}
    files: dict[str, object] = {
        "list.json": [1],
        "plan.json": {"schema": "vlm-ci/plan/1", "requests": []},
        "partial.json": {"schema": evidence.FAILURE_SCHEMA, "failure": failure},
        "none.json": {**whole, "failure": None},
        "kind.json": {**whole, "failure": {**failure, "kind": "mystery"}},
        "options.json": {**whole, "target": "llava-tiny", "options": {"dynamic": [1]}},
        "gone.json": {**whole, "target": "no-such-tiny"},
        "module.json": {**whole, "target": "no_such_module:factory"},
        "traffic.json": {"batches": []},
        "large.json": large,
        "good.json": json.loads(pretty(session(batch(Text(3))))),
    }
    for name, value in files.items():
        (tmp_path / name).write_bytes(pretty(value))
    (tmp_path / "garbage.json").write_text("{")
    (tmp_path / "empty").mkdir()


@pytest.mark.parametrize("case", BAD)
def test_a_bad_recording_is_one_clear_message(case: str, recordings, capsys):
    args, message = BAD[case]
    assert main(["replay", *args]) == 4
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.out + shown.err


def test_salvage_takes_only_what_a_dead_process_left(record, tmp_path: Path):
    out = record("toy:factory")
    assert artifacts.salvage(out, TEST) is None  # it came to its end
    assert artifacts.salvage(tmp_path / "absent", TEST) is None
