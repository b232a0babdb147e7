"""What goes into a repro: the model, its compiled modules, and the batches as text.

Builds the model without its weights, to see what the recipe compiles; compiles nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch

from vlm_ci.errors import UsageError
from vlm_ci.families.base import PADDING
from vlm_ci.repro import literals, script
from vlm_ci.targets import models, recipes
from vlm_ci.targets.loading import is_factory, resolve_dtype
from vlm_ci.traffic.spec import Image, Text, Video
from vlm_ci.warmup import batch_class

if TYPE_CHECKING:
    from vlm_ci.evidence import FailureFile
    from vlm_ci.failures import Failure
    from vlm_ci.traffic.envelope import Envelope
    from vlm_ci.traffic.spec import Batch, Item

KINDS = (*script.REFUSED, *script.COMPARED, "limit-hit", "eager-fallback", "crash")
ITEMS: tuple[type[Item], ...] = (Text, Image, Video)
GUARDED = (*script.REFUSED, "limit-hit", "eager-fallback")  # what happens depends on no value


class Unwritable(Exception):
    """No standalone script can be written for a failure; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """All that a script is made of.

    ``warm_up`` holds the batches to warm up with, in the plan's order; ``order`` their indices, the
    one first that is to stay longest. ``growing`` says that a short warm-up is worth a try.
    ``note`` says what every script leaves out.
    """

    scene: script.Scene
    warm_up: tuple[script.Literal, ...]
    session: tuple[script.Literal, ...]
    order: tuple[int, ...]
    growing: bool
    note: str = ""


def material(file: FailureFile) -> Material:
    """Gather what a script for this failure is made of.

    Raises:
        Unwritable: there can be none.
        UsageError: the target, its family or the recipe cannot be used here.
    """
    failure = file.failure
    if failure is None or failure.kind not in KINDS:
        kind = failure.kind if failure is not None else "none"
        raise Unwritable(f"there is no standalone script for failures of kind {kind}")
    if failure.traffic is None:
        raise Unwritable("no traffic was recorded that shows this failure")
    if not file.loadable:
        raise Unwritable(f"{file.target} was built by the test {file.test} itself, not by name")
    if is_factory(file.target):
        raise Unwritable(
            f"the target is built by {file.target}: what that does cannot be written out"
        )
    source = models.find(file.target)
    _check_known(source)
    envelope = file.envelope or source.envelope()
    warm, session = _split(file, failure)
    dtype = resolve_dtype(str(file.options.get("dtype", "float32")))
    special = literals.special_tokens(source.config)

    def literal(batch: Batch, special: frozenset[int] | None = special) -> script.Literal:
        encoded = source.encode(batch, device=torch.device("cpu"), dtype=dtype)
        tokens = (encoded.token_kinds != PADDING).long()
        mask = encoded.inputs.get("attention_mask")
        masked = mask is not None and torch.equal(mask.long(), tokens)
        judged = failure.kind in script.COMPARED and batch in session and not masked
        return script.Literal(
            text=literals.batch(encoded, dtype=dtype, special=special),
            context=batch.context,
            kept=literals.numbers(tokens.tolist()) if judged else "",
        )

    kept_values = special if failure.kind in GUARDED else None
    served = () if failure.kind == "limit-hit" else session
    bug = file.options.get("bug")
    warm_up = tuple(literal(batch) for batch in warm)
    return Material(
        scene=_scene(file, failure, source),
        warm_up=warm_up,
        session=tuple(literal(batch, kept_values) for batch in served),
        order=_shortest(warm, warm_up, session[-1], reached=failure.kind == "limit-hit")
        if failure.kind == "limit-hit" or _limited(failure)
        else _nearest(warm, session[-1], envelope),
        growing=not (bug or failure.kind == "limit-hit" or _limited(failure)),
        note=f"without vlm_ci there is no planted bug {bug}" if bug else "",
    )


def _several(batch: Batch, kind: type) -> int:
    """Count the items of a kind, up to two; text counts as one."""
    return min(sum(isinstance(item, kind) for item in batch.items()), 1 if kind is Text else 2)


def _limited(failure: Failure) -> bool:
    """Whether it shows only once the recompile limit is reached."""
    return "the recompile limit" in failure.note


def _check_known(source: models.Model) -> None:
    """Refuse a model that transformers cannot build by itself."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN,
    )

    kind = source.config["model_type"]
    if kind not in KNOWN:
        raise Unwritable(
            f"transformers itself knows no image-text-to-text model of type {kind!r}: a standalone "
            "script would need the code that registers it"
        )


def _split(file: FailureFile, failure: Failure) -> tuple[tuple[Batch, ...], tuple[Batch, ...]]:
    """Return the batches to warm up with and those to serve.

    A limit that was reached in warm-up, or a crash there, takes the plan up to that batch.
    """
    assert failure.traffic is not None
    session = failure.traffic.batches
    if failure.kind == "crash" and failure.key.startswith("the eager twin"):
        return (), session[-1:]
    before = failure.kind == "crash" and failure.key.startswith("warm-up")
    if (failure.kind == "limit-hit" or before) and session[-1] in file.plan:
        place = file.plan.index(session[-1])
        return file.plan[: place + (failure.kind == "limit-hit")], session
    return file.plan, session


def _shortest(
    warm: tuple[Batch, ...], texts: tuple[script.Literal, ...], failing: Batch, *, reached: bool
) -> tuple[int, ...]:
    """Sort the batches that are to reach a limit so that as many as possible fit into a script.

    The failing one stays if it ``reached`` the limit; else it is the first to go, because it is to
    find the limit reached.
    """
    order = sorted(range(len(warm)), key=lambda index: len(texts[index].text))
    last = len(warm) - 1
    if reached and warm and warm[last] == failing:
        return (last, *(index for index in order if index != last))
    seedless = [msgspec.structs.replace(batch, seed=failing.seed) for batch in warm]
    return tuple(sorted(order, key=lambda index: seedless[index] == failing))


def _nearest(warm: tuple[Batch, ...], failing: Batch, envelope: Envelope) -> tuple[int, ...]:
    """Sort the batches of a warm-up by how much they are like the failing one."""
    wanted = batch_class(failing, envelope)

    def unlike(index: int) -> tuple[int, ...]:
        """Count what differs; of batches that are alike, generic ones stand first in a plan."""
        found = batch_class(warm[index], envelope)
        return (
            found.context != wanted.context,
            sum(abs(_several(warm[index], kind) - _several(failing, kind)) for kind in ITEMS),
            found.single != wanted.single,
            found.padded != wanted.padded,
            index,
        )

    return tuple(sorted(range(len(warm)), key=unlike))


def _scene(file: FailureFile, failure: Failure, source: models.Model) -> script.Scene:
    from transformers import __version__ as transformers

    checkpoint = source.checkpoint
    if checkpoint is not None and Path(checkpoint).exists():
        checkpoint = str(Path(checkpoint).resolve())  # the script runs anywhere
    options = file.options
    compiled = _compiled(file.recipe, source)  # first: it says what a configuration lacks
    return script.Scene(
        kind=failure.kind,
        cause=failure.cause,
        versions=f"torch {torch.__version__} and transformers {transformers}",
        model=literals.code(checkpoint or literals.needed(source.config)),
        checkpoint=checkpoint is not None,
        device=str(options.get("device", "cpu")),
        dtype=str(options.get("dtype", "float32")),
        compiled=compiled,
        backend=file.backend,
        dynamic=options.get("dynamic", True),
        mode=options.get("mode"),
        fullgraph=bool(options.get("fullgraph")),
        recompile_limit=int(options.get("recompile_limit") or script.TORCH_LIMIT),
        stage=failure.key.split(" twin")[0].removeprefix("the ").split(" ")[0],
        variant=_variant(failure),
        limited=_limited(failure),
    )


def _variant(failure: Failure) -> str:
    expected = re.search(r"warm-up executed (\d+)", failure.cause)
    return expected[1] if expected else failure.key.split(":")[0]


def _compiled(recipe: str, source: models.Model) -> tuple[str, ...]:
    """Return the names of the modules that a recipe compiles, in its order; "" is the model.

    ``layers.*`` stands for a whole list of modules.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        with torch.device("meta"):
            config = AutoConfig.for_model(**source.config)
            model = AutoModelForImageTextToText.from_config(config)
    except Exception as error:  # transformers checks a configuration in many ways
        raise UsageError(f"transformers cannot build {source.name} without weights: {error}") from (
            error
        )
    names = {id(module): name for name, module in model.named_modules()}
    found: list[str] = []
    try:
        recipes.load(recipe)(source.parts(model), lambda module: found.append(names[id(module)]))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"recipe {recipe!r} raised {type(error).__name__}: {error}") from error
    if not found:
        raise Unwritable(f"recipe {recipe!r} compiles nothing")
    stem = re.sub(r"\.\d+$", "", found[0])
    if found == [f"{stem}.{name}" for name, _ in model.get_submodule(stem).named_children()]:
        return (f"{stem}.*",)
    return tuple(found)
