"""Where a model comes from: a tiny configuration of ours, or a checkpoint of the user's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_ci import families, locations
from vlm_ci.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from vlm_ci.families.base import Family

WEIGHT_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model that can be built: its family, its configuration, and its checkpoint if any."""

    name: str
    family: Family
    config: Mapping[str, Any]
    description: str
    checkpoint: str | None = None

    def build(self, *, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
        """Build the model in evaluation mode; without a checkpoint its weights are random.

        Raises:
            UsageError: the checkpoint cannot be loaded.
        """
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText

        model: torch.nn.Module
        if self.checkpoint is None:
            config = AutoConfig.for_model(**self.config)
            torch.manual_seed(WEIGHT_SEED)
            with device:
                model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        else:
            try:
                model = AutoModelForImageTextToText.from_pretrained(self.checkpoint, dtype=dtype)
            except (OSError, ValueError, RuntimeError) as error:
                raise UsageError(
                    f"cannot load the checkpoint {self.checkpoint!r}: {_first_line(error)}"
                ) from error
        return model.to(device).eval()


def tiny_models() -> dict[str, Path]:
    """Return the configurations in fixtures/models by target name."""
    return {path.stem: path for path in sorted((locations.fixtures() / "models").glob("*.json"))}


def find(name: str) -> ModelSource:
    """Return the source of a model by target name: a tiny one, or ``FAMILY:CHECKPOINT``.

    Raises:
        UsageError: there is none of that name, or its configuration cannot be read.
    """
    family, colon, checkpoint = name.partition(":")
    if colon and family in families.names():
        return _from_checkpoint(name, family, checkpoint)
    tiny = tiny_models()
    if name not in tiny:
        known = [*tiny, *(f"{family}:CHECKPOINT" for family in families.names())]
        raise unknown_name("target", name, known)
    content = json.loads(tiny[name].read_text(encoding="utf-8"))
    return ModelSource(
        name=name,
        family=families.load(content["family"]),
        config=content["config"],
        description=content["description"],
    )


def _from_checkpoint(name: str, family_name: str, checkpoint: str) -> ModelSource:
    if not checkpoint:
        raise UsageError(
            f"target {name!r} names no checkpoint: write {family_name}:FOLDER or "
            f"{family_name}:HUB-ID"
        )
    from transformers import AutoConfig

    try:
        loaded = AutoConfig.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read the configuration of checkpoint {checkpoint!r}: {_first_line(error)}"
        ) from error
    config = loaded.to_dict()
    # to_dict writes an aliased field under its old name only (LLaVA's image_token_index).
    config |= {alias: getattr(loaded, alias) for alias in loaded.attribute_map}
    family = families.load(family_name)
    if config.get("model_type") != family.model_type:
        raise UsageError(
            f"checkpoint {checkpoint!r} is a {config.get('model_type')!r} model; family "
            f"{family_name} takes {family.model_type!r}"
        )
    return ModelSource(
        name=name,
        family=family,
        config=config,
        description=f"checkpoint {checkpoint}",
        checkpoint=checkpoint,
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
