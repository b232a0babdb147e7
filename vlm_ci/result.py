"""The result of a run: what OUT/result.json holds. Records only; imports no torch."""

from __future__ import annotations

from typing import Any

import msgspec

from vlm_ci.failures import Failure

RESULT_SCHEMA = "vlm-ci/result/1"


class Traffic(msgspec.Struct, kw_only=True):
    """What the search sent. An example is one generated session; ``corners`` counts sessions.

    ``corpus`` counts the recorded sessions that were tried first, of the corpus and of earlier
    runs; ``corpus_outside`` those that were left out because the envelope does not allow them.
    """

    examples: int = 0
    corpus: int = 0
    corpus_outside: int = 0
    batches: int = 0
    requests: int = 0
    images: int = 0
    videos: int = 0
    text_only: int = 0
    corners: dict[str, int] = {}


class Warmup(msgspec.Struct, kw_only=True):
    """What warm-up compiled. ``compiles`` are Dynamo compilations (one for each frame),
    ``graphs`` calls of the backend. ``reused`` says that an earlier run over this target did it.
    """

    plan: str = ""
    rounds: int = 0
    batches: int = 0
    compiles: int = 0
    graphs: int = 0
    graph_breaks: int = 0
    seconds: float = 0.0
    converged: bool = False
    reused: bool = False


class Regions(msgspec.Struct, kw_only=True):
    """Compiled regions executed in one step: least, mean and most; None where not known."""

    least: int | None = None
    mean: float | None = None
    most: int | None = None


class Strict(msgspec.Struct, kw_only=True):
    """What happened after warm-up. Counts are None where nothing here can observe them.

    ``started`` is in seconds since the epoch. ``forward_seconds`` is the time inside the model,
    eager and compiled together.
    """

    batches: int = 0
    compiles: int = 0
    refusals: int = 0
    graph_captures: int | None = None
    triton_compiles: int | None = None
    regions_per_step: Regions = msgspec.field(default_factory=Regions)
    started: float = 0.0
    seconds: float = 0.0
    forward_seconds: float = 0.0
    refusing: bool = True


class Worst(msgspec.Struct, kw_only=True):
    """The token that came nearest to a mismatch, or went furthest beyond it (ratio over 1).

    ``ratio`` and ``error`` are None where the logits hold NaN or Inf.
    """

    ratio: float | None
    error: float | None
    request: int
    token: int
    modality: str


class Canary(msgspec.Struct, kw_only=True):
    """How many modalities were perturbed, and how many of those moved the logits.

    ``changes`` holds the largest change of a logit for each; None where it is NaN or Inf.
    """

    applied: int = 0
    moved: int = 0
    changes: dict[str, float | None] = {}


class Parity(msgspec.Struct, kw_only=True):
    """The comparison of compiled with eager logits."""

    reference: str = "eager"
    rtol: float = 0.0
    atol: float = 0.0
    tokens_compared: int = 0
    worst: Worst | None = None
    canary: Canary = msgspec.field(default_factory=Canary)


class Result(msgspec.Struct, kw_only=True):
    """One run of one target; ``test`` is the node id of the test, empty outside pytest."""

    schema: str = RESULT_SCHEMA
    command: str
    target: str
    recipe: str
    backend: str
    options: dict[str, Any]
    environment: dict[str, Any]
    seed: int
    test: str = ""
    warnings: list[str] = []
    traffic: Traffic = msgspec.field(default_factory=Traffic)
    warmup: Warmup = msgspec.field(default_factory=Warmup)
    strict: Strict = msgspec.field(default_factory=Strict)
    parity: Parity = msgspec.field(default_factory=Parity)
    failures: list[Failure] = []
    verdict: str = "incomplete"


def verdict(result: Result, *, complete: bool, interrupted: bool) -> str:
    """Judge from the records: failures first, then whether the run came to its end."""
    if interrupted:
        return "interrupted"
    if any(failure.kind != "vacuous" for failure in result.failures):
        return "failed"
    if result.failures:
        return "vacuous"
    return "clean" if complete and result.strict.batches else "incomplete"
