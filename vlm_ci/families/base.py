"""What a family offers. Loads torch only inside the functions that make tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vlm_ci.errors import UsageError

if TYPE_CHECKING:
    import torch

    from vlm_ci.traffic.envelope import Envelope, Geometry
    from vlm_ci.traffic.spec import Batch

Config = Mapping[str, Any]  # a model's configuration as in its config.json

# Values of ``Encoded.token_kinds``.
PADDING, TEXT, IMAGE, VIDEO = -1, 0, 1, 2
KIND_NAMES = {PADDING: "padding", TEXT: "text", IMAGE: "image", VIDEO: "video"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Model inputs of one batch.

    ``inputs`` are the keyword arguments of the model's forward. ``token_kinds`` is an int8 tensor
    [requests, padded length] on the CPU that says what stands at each position (``KIND_NAMES``).
    ``pixel_inputs`` names the input that holds the pixels of each modality that occurs.
    """

    inputs: dict[str, torch.Tensor]
    token_kinds: torch.Tensor
    pixel_inputs: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a model that recipes compile."""

    whole: torch.nn.Module
    language_model: torch.nn.Module
    decoder_layers: tuple[torch.nn.Module, ...]
    vision_blocks: tuple[torch.nn.Module, ...]


class Family(Protocol):
    """One architecture: everything that differs between models and nothing that does not."""

    name: str
    model_type: str
    """``model_type`` in the configuration of the models that belong to this family."""

    def envelope(self, config: Config) -> Envelope:
        """Return the default traffic for a model of this configuration, kept small."""
        ...

    def geometry(self, config: Config) -> Geometry:
        """Return how this model counts visual tokens."""
        ...

    def encode(
        self, config: Config, batch: Batch, *, device: torch.device, dtype: torch.dtype
    ) -> Encoded:
        """Build the seeded inputs of a batch; the same batch gives the same values."""
        ...

    def parts(self, model: torch.nn.Module) -> Parts:
        """Name the parts of a model of this family."""
        ...


def check_envelope(family: Family, config: Config, envelope: Envelope) -> None:
    """Refuse an envelope that the model cannot take.

    Raises:
        UsageError: it asks for a modality, a size or a length that the model lacks.
    """
    default = family.envelope(config)
    missing = [kind for kind in envelope.modalities if kind not in default.modalities]
    if missing:
        raise UsageError(
            f"the envelope asks for {', '.join(missing)}, which {family.name} does not take: "
            f"its modalities are {', '.join(default.modalities)}"
        )
    if envelope.geometry != family.geometry(config):
        raise UsageError(
            "the envelope's geometry differs from the model's: leave geometry out of the file"
        )
    for name in ("image", "video"):
        if name not in envelope.modalities:
            continue
        low, high = getattr(envelope, f"{name}_side")
        if default.side_multiple and envelope.side_multiple % default.side_multiple:
            raise UsageError(
                f"the envelope's side_multiple is {envelope.side_multiple} pixels; {family.name} "
                f"takes multiples of {default.side_multiple}"
            )
        fixed = envelope.geometry.token_side is None
        if fixed and (low, high) != (default.side_multiple, default.side_multiple):
            side = default.side_multiple
            raise UsageError(
                f"the envelope's {name}_side is [{low}, {high}]; this model takes images of "
                f"exactly {side}×{side} pixels: use [{side}, {side}]"
            )
    longest = position_limit(config)
    if longest is not None and envelope.max_tokens > longest:
        raise UsageError(
            f"the envelope's max_tokens is {envelope.max_tokens}; the model has at most "
            f"{longest} positions (max_position_embeddings)"
        )


def position_limit(config: Config) -> int | None:
    """Return the model's number of positions, None where its configuration does not say."""
    text = config.get("text_config", config)
    limit = text.get("max_position_embeddings")
    return int(limit) if limit is not None else None
