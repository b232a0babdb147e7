"""Records of runs made by hand: what the tests of reports share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from vlm_ci.evidence import FailureFile
from vlm_ci.failures import Failure, Script
from vlm_ci.picture import Picture, Row
from vlm_ci.report.records import FailureRecord, Records, RunRecord
from vlm_ci.result import (
    BaselineUse,
    CacheUse,
    Canary,
    Change,
    Parity,
    Result,
    Strict,
    Tolerated,
    Traffic,
    Warmup,
    Worst,
)
from vlm_ci.traffic.envelope import Envelope, Geometry
from vlm_ci.traffic.spec import Batch, Image, Request, Session, Text, Video
from vlm_ci.watch.events import Event

ENVIRONMENT = {
    "vlm_ci": "0.1.0",
    "python": "3.11.7",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "device": "cpu",
    "hardware": "x86_64",
}
BATCH = Batch(
    requests=(
        Request((Text(9), Image(56, 84), Text(4))),
        Request((Video(4, 56, 56), Text(2))),
    )
)
GEOMETRY = Geometry(token_side=28, image_overhead=2)
CALL = (
    {"path": "ids", "now": "int64 tensor [2, 13] on cpu", "warm": "int64 tensor [2, 7] on cpu"},
    {"path": "mask", "now": "None", "warm": "None"},
    {"path": "features", "now": "float32 tensor [6, 64] on cpu", "warm": "not passed"},
)


def event(kind: str, time: float, phase: str = "warmup", **rest: Any) -> Event:
    """Return an event so many seconds after the run began."""
    return Event(kind=kind, time=1000.0 + time, phase=phase, step=rest.pop("step", 0), **rest)


EVENTS = (
    event("phase", 0.0),
    event("round", 0.1, evidence={"round": 1, "batches": 2}),
    event("compile", 0.2, step=1, evidence={"compile_id": "0/0", "new_frame": True}),
    event("graph", 0.9, step=1, frame="forward (model.py:3)"),
    event(
        "compiled",
        1.2,
        step=1,
        frame="forward (model.py:3)",
        evidence={"compile_id": "0/0", "seconds": 0.9, "reason": ""},
    ),
    event("round", 2.0, evidence={"round": 2, "batches": 2}),
    event("phase", 3.0, "canary"),
    event("phase", 3.5, "strict"),
    event("refusal", 4.0, "strict", step=3, evidence={"guards": ["size of ids"]}),
    event("stall", 4.2, "strict", step=4, evidence={"first": 0.2, "repeat": 0.03}),
    event("phase", 5.0, "end"),
)


def result(**changes: Any) -> Result:
    """Return the result of a clean run."""
    given: dict[str, Any] = {
        "command": "run",
        "target": "qwen3-vl-tiny",
        "recipe": "decoder-layers",
        "backend": "eager",
        "options": {"device": "cpu", "dtype": "float32", "dynamic": True},
        "environment": dict(ENVIRONMENT),
        "seed": 7,
        "test": "suite.py::test_mixed",
        "traffic": Traffic(examples=20, batches=61, requests=99, images=30, corners={"one row": 4}),
        "warmup": Warmup(plan="default", rounds=2, batches=9, compiles=5, converged=True),
        "strict": Strict(batches=61, refusals=0, seconds=3.5, forward_seconds=2.0),
        "parity": Parity(
            reference="float64",
            tokens_compared=1234,
            worst=Worst(ratio=0.042, error=1e-6, request=0, token=3, modality="text"),
            canary=Canary(applied=1, moved=1, changes={"image": 5.0}),
        ),
        "verdict": "clean",
    }
    return Result(**{**given, **changes})


def recompile(**changes: Any) -> Failure:
    """Return a recompile, with all that such a failure knows."""
    given: dict[str, Any] = {
        "kind": "recompile",
        "cause": "features is a float32 tensor; in warm-up it was not passed",
        "advice": "always pass features",
        "key": "features",
        "frame": "forward (model.py:3)",
        "guards": ("features is None", "size of ids is 7"),
        "words": ("features was None when this was compiled",),
        "line": "model.py:9 in forward: if features is not None:",
        "call": CALL,
        "traffic": Session((BATCH, BATCH)),
        "path": "failures/01-recompile",
        "repro": Script(path="failures/01-recompile/repro.py", reproduced=True),
    }
    return Failure(**{**given, **changes})


def mismatch(**changes: Any) -> Failure:
    """Return a mismatch with its picture."""
    kinds = ("text",) * 9 + ("image",) * 8 + ("text",) * 4
    ratios = (0.1,) * 10 + (40.0,) * 3 + (0.2,) * 8
    given: dict[str, Any] = {
        "kind": "mismatch",
        "cause": "compiled logits differ from eager by 3.8",
        "advice": "compare the two at the module named",
        "key": "token",
        "location": {"request": 0, "token": 10, "modality": "image", "module": "layers.1"},
        "traffic": Session((BATCH,)),
        "path": "failures/02-mismatch",
        "picture": Picture(title="the cause", rows=(Row(kinds=kinds, ratios=ratios),)),
    }
    return Failure(**{**given, **changes})


def failure_file(failure: Failure) -> FailureFile:
    """Return the failure file of a failure."""
    made = result()
    return FailureFile(
        test=made.test,
        target=made.target,
        recipe=made.recipe,
        backend=made.backend,
        options=made.options,
        environment=made.environment,
        warmup="default",
        envelope=Envelope(geometry=GEOMETRY),
        failure=failure,
    )


def record(failure: Failure, **changes: Any) -> FailureRecord:
    """Return a failure as it is read back from its folder."""
    made = FailureRecord(failure=failure, file=failure_file(failure), folder=f"out/{failure.path}")
    return replace(made, **changes)


def red(*failures: Failure, **changes: Any) -> RunRecord:
    """Return a red run: a recompile with a script and a mismatch, unless others are given."""
    found = failures or (recompile(), mismatch())
    made = result(
        verdict="failed",
        failures=list(found),
        warnings=["torch 9.9 is outside what vlm_ci was tested with"],
        tolerated=[
            Tolerated(failure=recompile(kind="stall", cause="slow"), policy="warn", count=3)
        ],
        baseline=BaselineUse(
            path="baseline.json",
            changes=[Change(field="warm-up compiles", before="4", after="5", worse=True)],
            notes=["it was written with torch 2.12"],
        ),
        cache=CacheUse(folder="cache", key="abc", state="cold", hits=1, misses=2),
        shard="1/4",
        commit="0123abcd",
        attempt=2,
        **changes,
    )
    records = tuple(
        record(one, script="import torch\n" if one.repro is not None else "") for one in found
    )
    return RunRecord(folder=Path("out"), result=made, failures=records, events=EVENTS)


def green(**changes: Any) -> RunRecord:
    """Return a clean run."""
    return RunRecord(folder=Path("out"), result=result(**changes), events=EVENTS[:-3])


def both() -> Records:
    """Return a red and a green run, and a file that could not be read."""
    return Records(runs=(red(), green()), problems=("other/result.json is broken: no JSON",))


def on_disk(run: RunRecord, folder: Path) -> Path:
    """Write a run as a run writes itself; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    without = [msgspec.structs.replace(one.failure, picture=None) for one in run.failures]
    brief = msgspec.structs.replace(run.result, failures=without)
    (folder / "result.json").write_bytes(msgspec.json.encode(brief))
    (folder / "events.jsonl").write_bytes(
        b"".join(msgspec.json.encode(one) + b"\n" for one in run.events)
    )
    for one in run.failures:
        place = folder / one.failure.path
        place.mkdir(parents=True)
        (place / "failure.json").write_bytes(msgspec.json.encode(one.file))
        if one.script:
            (place / "repro.py").write_text(one.script)
    return folder
