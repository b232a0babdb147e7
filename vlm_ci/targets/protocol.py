"""The seam through which an engine is adopted. Imports torch for type checking only.

``vlm_ci.targets.answers`` holds a target to what is written here; docs/own-model.md shows two
complete ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from vlm_ci.traffic.envelope import Envelope
    from vlm_ci.traffic.spec import Batch
    from vlm_ci.watch.watcher import Watcher


DTYPES = ("float32", "bfloat16", "float16", "float64")
LOGITS = ("full", "top-k")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a target can do.

    ``in_process`` targets compile in this process, so that calls that would compile can be
    refused; others have to count compilations themselves (``Stats.compiles``). ``logits`` is
    "full", or "top-k" where only the largest log-probabilities come back; it holds for every
    answer. ``contexts`` are those of ``Batch.context`` that the target can run.
    """

    in_process: bool = True
    logits: str = "full"
    contexts: tuple[str, ...] = ("inference_mode",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What the model answered to one batch.

    ``logits`` is [requests, padded length, vocabulary], a floating-point tensor; ``token_kinds``
    is int8 [requests, padded length] on the CPU with -1 at padding, 0 at text, 1 at image and 2 at
    video positions. What stands at padding is never looked at.

    A target that returns only the k most likely tokens gives ``token_ids``, int64 [requests,
    padded length, k], in any order and none twice; ``logits``, of the same shape, then holds their
    log-probabilities in nats, -inf where the probability is 0.
    """

    logits: torch.Tensor
    token_kinds: torch.Tensor
    token_ids: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counts since the target was loaded or reset, as far as it knows them; None is "not known".

    They never fall. ``compiles`` counts compilations, ``graphs`` calls of the compiler's backend,
    ``regions`` executions of compiled regions, ``captures`` and ``replays`` those of CUDA graphs,
    ``eager_falls`` calls that should have run compiled and did not. ``forward_seconds`` is the time
    inside the model's forward, eager and compiled together.
    """

    compiles: int | None = None
    graphs: int | None = None
    regions: int | None = None
    captures: int | None = None
    replays: int | None = None
    eager_falls: int | None = None
    forward_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetInfo:
    """What a report says about a target; ``dtype``, one of ``DTYPES``, chooses the tolerance.

    A target may carry one as its attribute ``info``; without it float32 on the CPU is assumed.
    """

    name: str
    recipe: str
    backend: str
    device: str
    dtype: str
    options: dict[str, Any] = field(default_factory=dict)


def info_of(target: Target) -> TargetInfo:
    """Return what a target says about itself, or what is assumed of one that says nothing."""
    info: TargetInfo | None = getattr(target, "info", None)
    return info or TargetInfo(
        name=target.name, recipe="", backend="", device="cpu", dtype="float32"
    )


@runtime_checkable
class Target(Protocol):
    """A model under test: an eager and a compiled twin behind one interface.

    Methods may be added. ``run_perturbed(batch, modality)`` (see ``WatchedTarget``): without it
    nothing proves that images move the logits, and the result says so.
    ``run_reference(batch) -> Output``, answering in a wider floating-point type: without it logits
    are judged by a fixed tolerance, and the result says so. ``run_mixed`` and ``run_poisoned``,
    with the attribute ``no_poison``, serve relations (see ``transformers_twin``).
    """

    name: str
    envelope: Envelope
    capabilities: Capabilities

    def run_eager(self, batch: Batch) -> Output:
        """Answer a batch without anything compiled."""
        ...

    def run_compiled(self, batch: Batch) -> Output:
        """Answer a batch the way the deployment does."""
        ...

    def warm_up(self, batch: Batch) -> None:
        """Run a batch of the warm-up plan; compiling is allowed."""
        ...

    def stats(self) -> Stats:
        """Return the counts since loading."""
        ...

    def reset(self) -> None:
        """Forget everything that was compiled."""
        ...

    def close(self) -> None:
        """Give the model's memory back; the target cannot be used afterwards."""
        ...


class WatchedTarget(Target, Protocol):
    """A target that lives in this process and records what is compiled."""

    watcher: Watcher
    info: TargetInfo

    def run_perturbed(self, batch: Batch, modality: str) -> Output:
        """Answer a batch eagerly with every image ("image") or video ("video") changed."""
        ...
