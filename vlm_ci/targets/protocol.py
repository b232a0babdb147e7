"""The seam through which an engine is adopted. Imports torch for type checking only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from vlm_ci.traffic.envelope import Envelope
    from vlm_ci.traffic.spec import Batch
    from vlm_ci.watch.watcher import Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a target can do.

    ``in_process`` targets run in this process, so that calls that would compile can be refused;
    others supply their counts through ``stats()``. ``logits`` is "full", or "top-k" where only
    the largest log-probabilities come back. ``contexts`` are those of ``Batch.context`` that the
    target can run.
    """

    in_process: bool = True
    logits: str = "full"
    contexts: tuple[str, ...] = ("inference_mode",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What the model answered to one batch.

    ``logits`` is [requests, padded length, vocabulary]; ``token_kinds`` is int8 [requests, padded
    length] on the CPU with -1 at padding, 0 at text, 1 at image and 2 at video positions.
    """

    logits: torch.Tensor
    token_kinds: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counts since the target was loaded, as far as it knows them; None is "not known".

    ``forward_seconds`` is the time inside the model's forward, eager and compiled together.
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
    """What a report says about a target."""

    name: str
    recipe: str
    backend: str
    device: str
    dtype: str
    options: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Target(Protocol):
    """A model under test: an eager and a compiled twin behind one interface."""

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
