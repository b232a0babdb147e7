"""Records of runs for the tests of reports: no run is behind them."""

from __future__ import annotations

from typing import Any

from vlm_ci.failures import Failure
from vlm_ci.result import BaselineUse, CacheUse, Change, Parity, Result, Tolerated, Worst
from vlm_ci.traffic.spec import Batch, Image, Request, Session, Text

SESSION = Session((Batch((Request((Text(3), Image(1, 2))),)),))


def failure(**given: Any) -> Failure:
    """A failure with every text that a report shows."""
    facts: dict[str, Any] = {
        "kind": "recompile",
        "cause": "input_deepstack_embeds is present, in warm-up it was None",
        "advice": "warm up with an image",
        "key": "input_deepstack_embeds",
        "frame": "forward (engine/model.py:7) in model.language_model",
        "traffic": SESSION,
        "path": "failures/01-recompile",
    }
    return Failure(**{**facts, **given})


def result(**given: Any) -> Result:
    """A clean run, but for what is given."""
    facts: dict[str, Any] = {
        "command": "run",
        "target": "qwen3-vl-tiny",
        "recipe": "language-model",
        "backend": "eager",
        "options": {"device": "cpu", "dtype": "float32"},
        "environment": {
            **{"torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.7"},
            **{"device": "cpu", "hardware": "x86_64"},
        },
        "seed": 3,
        "test": "tests/test_vlm.py::test_mixed_traffic",
        "parity": Parity(worst=Worst(ratio=0.25, error=1e-6, request=0, token=0, modality="text")),
        "verdict": "failed" if given.get("failures") else "clean",
    }
    return Result(**{**facts, **given})


def full(text: str) -> Result:
    """A run in which one text stands wherever a record holds text of others."""
    found = failure(
        cause=text, advice=text, key=text, frame=text, line=text, note=text, path=text,
        guards=(text,), words=(text,), location=None,
    )  # fmt: skip
    return result(
        target=text, recipe=text, backend=text, test=text, shard=text, commit=text,
        environment={"torch": text}, failures=[found], warnings=[text], verdict="failed",
        tolerated=[Tolerated(failure=failure(cause=text, advice=text), policy=text)],
        baseline=BaselineUse(
            changes=[Change(field=text, before=text, after=text, worse=True)], notes=[text]
        ),
        cache=CacheUse(folder=text, key=text, state=text, note=text),
    )  # fmt: skip
