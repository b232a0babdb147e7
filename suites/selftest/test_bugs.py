"""Every planted bug is found, with the right kind and cause; its repaired twin is clean."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from vlm_ci import bugs, runner
from vlm_ci.settings import Settings
from vlm_ci.traffic.files import read_traffic
from vlm_ci.traffic.spec import Image, Video, batch, session

NAMES = [bug.name for bug in bugs.all_bugs() if not bug.gpu]
GPU_NAMES = [bug.name for bug in bugs.all_bugs() if bug.gpu]

# Failures that a bug causes besides the one that it is listed with.
ALSO = {"silent-limit": {"limit-hit"}}
# Bugs that a single request does not show: warm-up's code for one row was compiled second, when
# Dynamo had seen both sizes vary, and has a symbol for each.
REQUESTS = {"duck-shape": 2}
# Bugs with which Dynamo takes up no frame at all, so that nothing starts to compile.
NEVER_COMPILES = {"sequential-compile"}


def run(tmp_path: Path, name: str, **given):
    settings = Settings.from_mapping(
        {"bug": name, "out": str(tmp_path), "examples": 60, "database": "none", **given}
    )
    target = runner.build_target(settings)
    try:
        return runner.run(settings, target)
    finally:
        target.close()


def test_the_bugs_that_the_project_promises_are_there():
    assert set(NAMES) >= {
        "another-thread",
        "autocast",
        "deepstack-kwarg",
        "dropped-image",
        "duck-shape",
        "grad-mode-flip",
        "inference-mode-inputs",
        "new-frame",
        "per-call-integer",
        "sequential-compile",
        "silent-limit",
        "skipped-frame",
        "sliced-view",
        "static-size",
        "swallowed-exception",
        "video-only-keyword",
        "warmup-none",
        "zero-one-specialisation",
    }
    assert set(GPU_NAMES) >= {"cudagraph-rerecording", "shape-stall", "triton-kernel"}
    for bug in bugs.all_bugs():
        assert bug.origin
        assert bug.bug_class
        assert bug.expects


# One of each way to be found runs by day; the rest by night.
BY_DAY = {
    "deepstack-kwarg",
    "dropped-image",
    "sequential-compile",
    "skipped-frame",
    "static-size",
    "swallowed-exception",
    "video-only-keyword",
    "zero-one-specialisation",
}


def tiered(names: Iterable[str], by_day: Collection[str]) -> list[Any]:
    return [
        name if name in by_day else pytest.param(name, marks=pytest.mark.nightly) for name in names
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", tiered(NAMES, BY_DAY))
def test_a_planted_bug_is_found(name: str, tmp_path: Path, repository: Path):
    bug = bugs.find(name)
    result = run(tmp_path, name)
    kinds = {failure.kind for failure in result.failures}
    assert result.verdict == "failed"
    assert kinds == {bug.expects} | ALSO.get(name, set())
    failure = next(failure for failure in result.failures if failure.kind == bug.expects)
    assert bug.cause in failure.cause
    assert failure.advice
    assert result.strict.compiles == 0
    assert (result.warmup.compiles == 0) == (name in NEVER_COMPILES)
    assert failure.traffic is not None
    assert len(failure.traffic.batches) == 1
    assert len(failure.traffic.batches[0].requests) == REQUESTS.get(name, 1)
    assert ("swallowed" in failure.note) == (name == "swallowed-exception")

    folder = tmp_path / failure.path
    assert read_traffic(folder / "traffic.json") == failure.traffic
    assert bug.cause in (folder / "evidence.txt").read_text()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    strict_kinds = {event["kind"] for event in events if event["phase"] == "strict"}
    assert strict_kinds <= {"refusal"}
    assert json.loads((folder / "environment.json").read_text())["torch"]
    for name_, path in (("result", tmp_path / "result.json"), ("failure", folder / "failure.json")):
        schema = json.loads((repository / f"vlm_ci/schemas/{name_}.schema.json").read_text())
        jsonschema.validate(json.loads(path.read_text()), schema)
    if name == "deepstack-kwarg":
        (only,) = result.failures
        assert only.traffic == session(batch(Image(8, 8)))
        assert only.cause.startswith("input_deepstack_embeds is a")
        assert [d["path"] for d in only.difference if d["aspect"] == "presence"] == [
            "input_deepstack_embeds"
        ]
    if name == "video-only-keyword":  # the same image in its place would be simpler traffic
        assert failure.traffic == session(batch(Video(1, 8, 8)))
    if name == "zero-one-specialisation":
        (size,) = (d for d in failure.difference if d["path"] == "frame_times")
        assert (size["aspect"], size["now"]) == ("size 0", "1")
    if name == "another-thread":
        states = {d["aspect"] for d in failure.difference if d["path"] == "process state"}
        assert states == {"grad mode", "inference mode"}
    if name == "dropped-image":
        assert set(failure.traffic.batches[0].items()) == {Image(8, 8), Video(1, 8, 8)}
        assert failure.location is not None


TWINS = ("deepstack-kwarg",)  # the rest by night


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    tiered(NAMES, TWINS),
)
def test_its_repaired_twin_is_clean(name: str, tmp_path: Path):
    result = run(tmp_path, name, repaired=True)
    assert result.failures == []
    assert result.verdict == "clean"
    assert result.strict.compiles == result.strict.refusals == 0
    assert min(result.traffic.corners.values()) > 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", GPU_NAMES)
def test_a_planted_bug_of_a_gpu_is_found(name: str, tmp_path: Path):
    bug = bugs.find(name)
    result = run(tmp_path, name)
    assert result.verdict == "failed"
    assert {failure.kind for failure in result.failures} == {bug.expects}
    # A stall of another shape may be paid for by another operator.
    assert any(bug.cause in failure.cause for failure in result.failures)
    assert result.strict.compiles == result.strict.refusals == 0
    assert result.warmup.converged


@pytest.mark.gpu
@pytest.mark.parametrize("name", GPU_NAMES)
def test_the_repaired_twin_of_a_gpu_bug_is_clean(name: str, tmp_path: Path):
    result = run(tmp_path, name, repaired=True)
    assert result.failures == []
    assert result.verdict == "clean"
