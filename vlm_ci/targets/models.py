"""Where a model comes from: a tiny configuration of ours, or a checkpoint of the user's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlm_ci import families, locations
from vlm_ci.errors import UsageError, unknown_name
from vlm_ci.families.base import Encoded, Parts
from vlm_ci.importing import import_object
from vlm_ci.targets.answers import raised_at
from vlm_ci.traffic.envelope import Envelope, Geometry

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from vlm_ci.families.base import Family
    from vlm_ci.traffic.spec import Batch

WEIGHT_SEED = 0

FAMILY_MEMBERS = ("name", "model_type", "envelope", "geometry", "encode", "parts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A transformers model that can be built: its family, and its configuration or checkpoint.

    ``config`` is the content of a config.json; the weights are then random. ``checkpoint`` is a
    folder or a hub id, from which the configuration is read too: give one of the two. What
    transformers does not know itself has to be registered with its ``AutoConfig`` and
    ``AutoModelForImageTextToText`` first.
    """

    name: str
    family: Family
    config: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be a model.

        Raises:
            UsageError: the name is empty, the family lacks something, the configuration is not
                there, belongs to another family, or is not what the family can read.
        """
        if not isinstance(self.name, str) or not self.name.strip():
            raise UsageError(f"vlm_ci.Model: name must be a non-empty str, not {self.name!r}")
        self._check_family()
        if not isinstance(self.config, Mapping):
            raise self._wrong(
                f"config must be a dict like a config.json, not a {type(self.config).__name__} "
                "(to_dict() makes one of a transformers configuration)"
            )
        if bool(self.config) == bool(self.checkpoint):
            both = "both config and checkpoint" if self.config else "neither config nor checkpoint"
            raise self._wrong(f"it has {both}: give config={{…}} or checkpoint='FOLDER-OR-HUB-ID'")
        if self.checkpoint:
            config = read_config(str(self.checkpoint))
            object.__setattr__(self, "config", config)
            object.__setattr__(self, "checkpoint", str(self.checkpoint))
        found, known = self.config.get("model_type"), self.family.model_type
        if found is None:
            raise self._wrong(f"config has no 'model_type': write 'model_type': {known!r}")
        if found != known:
            raise self._wrong(
                f"checkpoint {self.checkpoint!r} is a {found!r} model; family {self.family.name} "
                f"takes {known!r}"
                if self.checkpoint
                else f"config has model_type {found!r}; family {self.family.name} takes {known!r}"
            )
        envelope, geometry = self.envelope(), self._ask("geometry", Geometry)
        if envelope.geometry != geometry:
            raise self._wrong(
                f"{self.family.name}.envelope(config) has another geometry than "
                f"{self.family.name}.geometry(config): pass geometry=self.geometry(config)"
            )

    def envelope(self) -> Envelope:
        """Return the default traffic of this model."""
        envelope: Envelope = self._ask("envelope", Envelope)
        return envelope

    def encode(self, batch: Batch, *, device: torch.device, dtype: torch.dtype) -> Encoded:
        """Build the model's inputs for a batch."""
        encoded = self.family.encode(self.config, batch, device=device, dtype=dtype)
        if not isinstance(encoded, Encoded):
            raise self._wrong(
                f"{self.family.name}.encode returned a {type(encoded).__name__}: it must return a "
                "vlm_ci.Encoded(inputs=…, token_kinds=…, pixel_inputs=…)"
            )
        return encoded

    def parts(self, module: torch.nn.Module) -> Parts:
        """Name the parts of a built model.

        Raises:
            UsageError: the family finds none, or names something that is no module.
        """
        import torch

        method = f"{self.family.name}.parts"
        try:
            parts = self.family.parts(module)
        except Exception as error:
            raise self._wrong(f"{method}(model) raised {raised_at(error)}") from error
        if not isinstance(parts, Parts):
            raise self._wrong(
                f"{method}(model) returned a {type(parts).__name__}: it must return a "
                "vlm_ci.Parts(whole=…, language_model=…, decoder_layers=…, vision_blocks=…)"
            )
        for name in ("whole", "language_model", "decoder_layers", "vision_blocks"):
            part: Any = getattr(parts, name)
            several = name in ("decoder_layers", "vision_blocks")
            if several and not isinstance(part, tuple | list | torch.nn.ModuleList):
                raise self._wrong(
                    f"{method}(model).{name} is a {type(part).__name__}, not a tuple of modules"
                )
            for entry in part if several else (part,):
                if not isinstance(entry, torch.nn.Module):
                    raise self._wrong(
                        f"{method}(model).{name} holds a {type(entry).__name__}, not a "
                        "torch.nn.Module"
                    )
        return parts

    def build(self, *, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
        """Build the model in evaluation mode; without a checkpoint its weights are random.

        Raises:
            UsageError: transformers cannot build it, or cannot load the checkpoint.
        """
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText

        model: torch.nn.Module
        if self.checkpoint is None:
            try:
                config = AutoConfig.for_model(**self.config)
                torch.manual_seed(WEIGHT_SEED)
                with device:
                    model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
            except Exception as error:  # transformers checks a configuration in many ways
                raise self._wrong(
                    f"transformers cannot build it from its config: {type(error).__name__}: "
                    f"{_first_line(error)}"
                ) from error
        else:
            try:
                model = AutoModelForImageTextToText.from_pretrained(self.checkpoint, dtype=dtype)
            except (OSError, ValueError, RuntimeError) as error:
                raise UsageError(
                    f"cannot load the checkpoint {self.checkpoint!r}: {_first_line(error)}"
                ) from error
        return model.to(device).eval()

    def _check_family(self) -> None:
        family: Any = self.family
        if isinstance(family, type):
            raise self._wrong(f"family is the class {family.__name__}: pass {family.__name__}()")
        if missing := [name for name in FAMILY_MEMBERS if not hasattr(family, name)]:
            raise self._wrong(
                f"family is of type {type(family).__name__} without {', '.join(missing)}: see "
                "vlm_ci.Family"
            )
        for name in FAMILY_MEMBERS:
            value = getattr(family, name)
            if name in ("name", "model_type"):
                if not isinstance(value, str) or not value:
                    raise self._wrong(f"family.{name} must be a non-empty str, not {value!r}")
            elif not callable(value):
                raise self._wrong(f"family.{name} must be a method, not {value!r}")

    def _ask(self, method: str, kind: type) -> Any:
        """Return what the family says about the configuration."""
        call = f"{self.family.name}.{method}(config)"
        try:
            value = getattr(self.family, method)(self.config)
        except UsageError:
            raise
        except Exception as error:  # a configuration may lack what the family reads
            raise self._wrong(f"{call} raised {raised_at(error)}") from error
        if not isinstance(value, kind):
            raise self._wrong(
                f"{call} returned a {type(value).__name__}: it must return a vlm_ci.{kind.__name__}"
            )
        return value

    def _wrong(self, what: str) -> UsageError:
        return UsageError(f"model {self.name!r}: {what}")


def tiny_models() -> dict[str, Path]:
    """Return the configurations in fixtures/models by target name."""
    return {path.stem: path for path in sorted((locations.fixtures() / "models").glob("*.json"))}


def find(name: str) -> Model:
    """Return a model by target name.

    That is a tiny one, ``FAMILY:CHECKPOINT``, or a user's own, ``package.module:MODEL``.

    Raises:
        UsageError: there is none of that name, or its configuration cannot be read.
    """
    head, colon, rest = name.partition(":")
    if colon and head in families.names():
        return _from_checkpoint(name, head, rest)
    if colon:
        own = import_object("target", name)
        if not isinstance(own, Model):
            raise UsageError(f"target {name!r} is a {type(own).__name__}, not a vlm_ci.Model")
        return own
    tiny = tiny_models()
    if name not in tiny:
        known = [*tiny, *(f"{family}:CHECKPOINT" for family in families.names())]
        raise unknown_name("target", name, known)
    content = json.loads(tiny[name].read_text(encoding="utf-8"))
    return Model(
        name=name,
        family=families.load(content["family"]),
        config=content["config"],
        description=content["description"],
    )


def _from_checkpoint(name: str, family_name: str, checkpoint: str) -> Model:
    if not checkpoint:
        raise UsageError(
            f"target {name!r} names no checkpoint: write {family_name}:FOLDER or "
            f"{family_name}:HUB-ID"
        )
    return Model(
        name=name,
        family=families.load(family_name),
        description=f"checkpoint {checkpoint}",
        checkpoint=checkpoint,
    )


def read_config(checkpoint: str) -> dict[str, Any]:
    """Read the configuration of a checkpoint, a folder or a hub id.

    Raises:
        UsageError: it is not there, or transformers does not know it.
    """
    from transformers import AutoConfig

    try:
        loaded = AutoConfig.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read the configuration of checkpoint {checkpoint!r}: {_first_line(error)}"
        ) from error
    config: dict[str, Any] = loaded.to_dict()
    # to_dict writes an aliased field under its old name only (LLaVA's image_token_index).
    return config | {alias: getattr(loaded, alias) for alias in loaded.attribute_map}


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
