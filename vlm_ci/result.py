"""The result of a run: what OUT/result.json holds. Records only; imports no torch."""

from __future__ import annotations

from typing import Any

import msgspec

from vlm_ci.failures import Failure, identity

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
    ``frames`` counts compiles by the place of the frame, as ``file: Class.function`` without a
    line, so that two versions and two machines agree, ``breaks`` graph breaks by the first line of
    their reason. ``captures`` counts captured CUDA graphs, None where nothing here can see them.
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
    frames: dict[str, int] = {}
    breaks: dict[str, int] = {}
    captures: int | None = None


class Regions(msgspec.Struct, kw_only=True):
    """Compiled regions executed in one step: least, mean and most; None where not known."""

    least: int | None = None
    mean: float | None = None
    most: int | None = None


class Strict(msgspec.Struct, kw_only=True):
    """What happened after warm-up. Counts are None where nothing here can observe them.

    ``started`` is in seconds since the epoch. ``shrink_seconds`` holds, for each search that found
    something, the time from the first red to the smallest sessions. ``forward_seconds`` is the
    time inside the model, eager and compiled together.
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
    shrink_seconds: list[float] = []
    refusing: bool = True


class Worst(msgspec.Struct, kw_only=True):
    """The token that came nearest to a mismatch, or went furthest beyond it (ratio over 1).

    ``ratio`` and ``error`` are None where the logits hold NaN or Inf; ``statistic`` names what
    came nearest to its limit.
    """

    ratio: float | None
    error: float | None
    statistic: str = ""
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
    """The comparison of compiled with eager logits.

    ``reference`` is the type of the higher-precision reference, or "none": then ``rtol`` and
    ``atol`` decide, which is weaker, and ``weaker`` says why there is none. ``eager_error`` is
    eager's largest error against it over a batch (relative, root mean square);
    ``without_reference`` counts batches that it did not answer, so that the tolerance decided.
    ``relations`` counts, for each metamorphic relation, how often it was judged.
    """

    reference: str = "none"
    weaker: str = ""
    eager_error: float | None = None
    without_reference: int = 0
    relations: dict[str, int] = {}
    rtol: float = 0.0
    atol: float = 0.0
    tokens_compared: int = 0
    worst: Worst | None = None
    canary: Canary = msgspec.field(default_factory=Canary)


class Change(msgspec.Struct, kw_only=True):
    """One line in which a run differs from its baseline; ``worse`` says that it fails the run."""

    field: str
    before: str
    after: str
    worse: bool


class BaselineUse(msgspec.Struct, kw_only=True):
    """The comparison with a stored baseline.

    ``path`` is the file, empty where there is none; ``notes`` say what could not be compared, such
    as that it was written with other versions. ``updated`` says that this run rewrote it.
    """

    path: str = ""
    changes: list[Change] = []
    notes: list[str] = []
    updated: bool = False


class CacheUse(msgspec.Struct, kw_only=True):
    """The compile cache that a run began with: ``state`` is "cold", "warm" or "ignored" (``note``
    says why). ``hits`` counts graphs that came from it, ``misses`` those that were compiled."""

    folder: str
    key: str
    state: str
    note: str = ""
    hits: int | None = None
    misses: int | None = None


class EvidenceUse(msgspec.Struct, kw_only=True):
    """What of an earlier attempt's evidence was replayed first.

    ``sessions`` counts what was replayed and ``failing`` what of it fails again; ``aside`` counts
    recordings that were left aside, by the reason, and ``broken`` says which files could not be
    read.
    """

    folder: str
    sessions: int = 0
    failing: int = 0
    aside: dict[str, int] = {}
    broken: list[str] = []


class Audit(msgspec.Struct, kw_only=True):
    """How an audit went. ``extension_compiles`` are those of warm-ups between two searches;
    ``complete`` says that a whole search found nothing new in the end."""

    rounds: int = 0
    extensions: int = 0
    extension_compiles: int = 0
    plan_batches: int = 0
    complete: bool = False


class Watched(msgspec.Struct, kw_only=True):
    """One layer of the compiler: the kinds of events recorded, and what could not be seen."""

    layer: str
    sees: list[str]
    blind: str = ""


class Tolerated(msgspec.Struct, kw_only=True):
    """A failure that its policy lets pass, and how often it occurred."""

    failure: Failure
    policy: str
    count: int = 1


class Growth(msgspec.Struct, kw_only=True):
    """How many graphs there were after so many examples; ``batches`` is the plan's length then."""

    examples: int
    graphs: int
    batches: int


class GraphUse(msgspec.Struct, kw_only=True):
    """One graph of the cold warm-up, and the traffic that ran on it in the verification.

    ``place`` is where in the source it begins, as ``function (file:line)``; ``batch`` is the index
    of the batch of the plan that compiled it; ``served`` counts batches of traffic by their class,
    and ``examples`` the examples that had one.
    """

    graph: int
    place: str
    batch: int
    batches: int = 0
    examples: int = 0
    served: dict[str, int] = {}


class Sweep(msgspec.Struct, kw_only=True):
    """One dimension of the traffic varied from an empty cache, everything else held constant.

    ``rows`` are (value, new compilations), in the order in which the values were served. In a
    control nothing compiled beyond the first value. ``possible`` counts the values that the
    envelope allows.
    """

    dimension: str
    rows: list[tuple[int, int]]
    growing: bool
    possible: int

    @property
    def control(self) -> bool:
        """Whether nothing compiled beyond the first value."""
        return not any(compiles for _, compiles in self.rows[1:])


class Verification(msgspec.Struct, kw_only=True):
    """A cold warm-up in a fresh process, in file order, and the examples that it then served.

    ``process`` is that process's id. ``refused`` counts batches that would have compiled,
    ``compiles`` what compiled all the same.
    """

    process: int = 0
    seeds: list[int] = []
    examples: int = 0
    batches: int = 0
    compiles: int = 0
    refused: int = 0
    rounds: int = 0
    warmup_compiles: int = 0
    warmup_seconds: float = 0.0
    seconds: float = 0.0
    held: bool = False


class Pruned(msgspec.Struct, kw_only=True):
    """Batches that the plan does without, and those that were tried and are needed.

    ``compiled_nothing`` were no use in a cold warm-up in file order, ``not_needed`` were left out
    one at a time and not missed, ``needed`` were left out and missed, ``untried`` were kept
    because the time for trying was over.
    """

    compiled_nothing: int = 0
    not_needed: int = 0
    needed: int = 0
    untried: int = 0


class Synthesis(msgspec.Struct, kw_only=True):
    """A warm-up plan made for an envelope.

    ``status`` is "bounded" (the plan holds), "unbounded" (``growing`` names the dimension of the
    traffic that needs a new graph for each value), "limit" (the recompile limit is too low: the
    frame ``limit_frame`` needs ``variants``), "not-held" (no plan held in a fresh process), or
    "unfinished". ``compiles`` are Dynamo compilations of the cold warm-up, ``graphs`` calls of the
    backend, ``seconds`` the time of the whole synthesis. ``counted`` says whether the target tells
    its graphs apart; without that ``serves`` is empty.
    """

    status: str = "unfinished"
    plan: str = ""
    batches: int = 0
    graphs: int = 0
    compiles: int = 0
    compile_seconds: float = 0.0
    curve: list[Growth] = []
    serves: list[GraphUse] = []
    counted: bool = True
    growing: list[str] = []
    sweeps: list[Sweep] = []
    limit: int | None = None
    limit_frame: str = ""
    variants: int | None = None
    verifications: list[Verification] = []
    pruned: Pruned = msgspec.field(default_factory=Pruned)
    seconds: float = 0.0


class Result(msgspec.Struct, kw_only=True):
    """One run of one target; ``test`` is the node id of the test, empty outside pytest.

    ``shard`` is "I/N", empty where the work is not split; ``part`` is which part of the search
    this run did, empty where it did all of it. ``commit`` and ``attempt`` are the CI's, empty and 0
    where it states none.
    """

    schema: str = RESULT_SCHEMA
    command: str
    target: str
    recipe: str
    backend: str
    options: dict[str, Any]
    environment: dict[str, Any]
    seed: int
    test: str = ""
    shard: str = ""
    part: str = ""
    commit: str = ""
    attempt: int = 0
    warnings: list[str] = []
    evidence: EvidenceUse | None = None
    traffic: Traffic = msgspec.field(default_factory=Traffic)
    warmup: Warmup = msgspec.field(default_factory=Warmup)
    strict: Strict = msgspec.field(default_factory=Strict)
    parity: Parity = msgspec.field(default_factory=Parity)
    audit: Audit | None = None
    baseline: BaselineUse | None = None
    cache: CacheUse | None = None
    watch: list[Watched] = []
    synthesis: Synthesis | None = None
    failures: list[Failure] = []
    tolerated: list[Tolerated] = []
    verdict: str = "incomplete"


def tolerate(result: Result, failure: Failure, policy: str) -> None:
    """Note an occurrence of a failure that its policy lets pass."""
    for known in result.tolerated:
        if identity(known.failure) == identity(failure):
            known.count += 1
            return
    result.tolerated.append(Tolerated(failure=failure, policy=policy))


def verdict(result: Result, *, complete: bool, interrupted: bool) -> str:
    """Judge from the records: failures first, then whether the run came to its end."""
    if interrupted:
        return "interrupted"
    if any(failure.kind != "vacuous" for failure in result.failures):
        return "failed"
    if result.failures:
        return "vacuous"
    return "clean" if complete and result.strict.batches else "incomplete"
