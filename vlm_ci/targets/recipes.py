"""Recipes: which parts of a model are compiled.

A recipe is a function of the family's named parts and of ``compile_module``, which compiles one
module in place under the run's options and records its calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vlm_ci.errors import UsageError, unknown_name
from vlm_ci.importing import import_object

if TYPE_CHECKING:
    import torch

    from vlm_ci.families.base import Parts

CompileModule = Callable[["torch.nn.Module"], None]
Recipe = Callable[["Parts", CompileModule], None]


def decoder_layers(parts: Parts, compile_module: CompileModule) -> None:
    """Compile each decoder layer by itself, as engines do that compile layer by layer."""
    for layer in parts.decoder_layers:
        compile_module(layer)


def language_model(parts: Parts, compile_module: CompileModule) -> None:
    """Compile the whole language model; the vision tower stays eager."""
    compile_module(parts.language_model)


def vision(parts: Parts, compile_module: CompileModule) -> None:
    """Compile each block of the vision tower by itself."""
    for block in parts.vision_blocks:
        compile_module(block)


def whole(parts: Parts, compile_module: CompileModule) -> None:
    """Compile the model as one callable, vision tower and language model together."""
    compile_module(parts.whole)


RECIPES: dict[str, Recipe] = {
    "decoder-layers": decoder_layers,
    "language-model": language_model,
    "vision": vision,
    "whole": whole,
}


def load(name: str) -> Recipe:
    """Return the recipe of that name, or the user's own ``package.module:function``.

    Raises:
        UsageError: there is none, or it cannot be imported.
    """
    if name in RECIPES:
        return RECIPES[name]
    if ":" not in name:
        raise unknown_name("recipe", name, RECIPES)
    recipe = import_object("recipe", name)
    if not callable(recipe):
        raise UsageError(f"recipe {name!r} is not a function of (parts, compile_module)")
    own: Recipe = recipe
    return own
