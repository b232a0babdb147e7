"""What a baseline file holds. Records only; imports no torch."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import msgspec

from vlm_ci.errors import check_choice

if TYPE_CHECKING:
    from vlm_ci.result import Result

BASELINE_SCHEMA = "vlm-ci/baseline/1"
VERSIONS = ("torch", "transformers", "python")
# Options of a result that do not change what warm-up compiles, or that have a field of their own.
NOT_OF_THE_SETUP = frozenset(
    ("device", "dtype", "bug", "repaired", "reference", "relations", "policy")
)


class Setup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What two runs have to have in common to be comparable.

    ``device`` is the name of the GPU, or "cpu"; ``options`` are those of the compiler; ``plan`` is
    the name of the warm-up plan or of its file, without a folder; ``envelope`` is empty for the
    target's own, and else the name of the file and a checksum of what it allows.
    """

    target: str
    recipe: str
    backend: str
    device: str
    dtype: str
    options: dict[str, Any]
    plan: str
    envelope: str


class WorstRatio(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How near the logits came to a mismatch, at 1, over ``tokens`` tokens, judged by
    ``reference``. ``examples`` and ``seed`` are what it was measured with."""

    ratio: float
    reference: str
    tokens: int
    examples: int
    seed: int


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run: how warm-up went, and how near the logits came to a mismatch.

    Fields are as in ``vlm_ci.result.Warmup``. ``made_with`` holds versions of torch (without its
    build), transformers and Python, all of which decide how code is cut into frames and graphs;
    ``logits`` is None where none were compared.
    """

    setup: Setup
    made_with: dict[str, str]
    batches: int
    rounds: int
    compiles: int
    graphs: int
    frames: dict[str, int]
    breaks: dict[str, int]
    captures: int | None
    logits: WorstRatio | None

    def same_versions(self, other: Entry, *names: str) -> bool:
        """Whether both were made with the same versions of these, or of all."""
        return all(
            self.made_with.get(name) == other.made_with.get(name) for name in names or VERSIONS
        )


class BaselineFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The baselines of one target: an entry for each setup and each set of versions."""

    schema: str = BASELINE_SCHEMA
    entries: tuple[Entry, ...] = ()

    def __post_init__(self) -> None:
        check_choice("the schema of the baseline", self.schema, (BASELINE_SCHEMA,))


def entry_of(result: Result, *, envelope: str = "") -> Entry:
    """Return a run as an entry; ``envelope`` is as in ``Setup``."""
    warm, worst, environment = result.warmup, result.parity.worst, result.environment
    device = str(result.options["device"])
    options = {k: v for k, v in result.options.items() if k not in NOT_OF_THE_SETUP}
    logits = None
    if worst is not None and worst.ratio is not None:
        logits = WorstRatio(
            ratio=float(f"{worst.ratio:.4g}"),
            reference=result.parity.reference,
            tokens=result.parity.tokens_compared,
            examples=result.traffic.examples,
            seed=result.seed,
        )
    return Entry(
        setup=Setup(
            target=result.target,
            recipe=result.recipe,
            backend=result.backend,
            device=str(environment["hardware"]) if device.startswith("cuda") else device,
            dtype=str(result.options["dtype"]),
            # As they are once they were in a file: a tuple is a list then.
            options=msgspec.json.decode(msgspec.json.encode(options)),
            plan=PurePath(warm.plan).name,
            envelope=envelope,
        ),
        made_with={
            "torch": str(environment["torch"]).partition("+")[0],
            "transformers": str(environment["transformers"]),
            "python": ".".join(str(environment["python"]).split(".")[:2]),
        },
        batches=warm.batches,
        rounds=warm.rounds,
        compiles=warm.compiles,
        graphs=warm.graphs,
        frames=dict(warm.frames),
        breaks=dict(warm.breaks),
        captures=warm.captures,
        logits=logits,
    )
