"""What can be tested: targets, recipes and planted bugs, as text or JSON. Imports no torch."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from vlm_ci import bugs as planted
from vlm_ci.targets import models, recipes

WIDTH = 27  # characters for a name


def targets(as_json: bool) -> str:
    """Return the tiny models, the families and the recipes."""
    tiny = [_target(name) for name in models.tiny_models()]
    checkpoints = sorted({entry["family"] for entry in tiny})
    if as_json:
        return _json(
            {
                "targets": tiny,
                "checkpoints": [f"{family}:CHECKPOINT" for family in checkpoints],
                "recipes": _recipes(),
            }
        )
    lines = ["Targets"]
    lines += [f"  {entry['name']:<{WIDTH}} {entry['description']}" for entry in tiny]
    lines += [
        f"  {family + ':CHECKPOINT':<{WIDTH}} a local folder or a hub id" for family in checkpoints
    ]
    lines += [
        f"  {'package.module:MODEL':<{WIDTH}} a model of your own, with a family of your own",
        f"  {'package.module:factory':<{WIDTH}} a target of your own",
        "",
        "Recipes",
    ]
    lines += [f"  {name:<{WIDTH}} {words}" for name, words in _recipes().items()]
    lines += [f"  {'package.module:function':<{WIDTH}} a recipe of your own"]
    return "\n".join(lines) + "\n"


def bugs(as_json: bool) -> str:
    """Return the planted bugs."""
    found = planted.all_bugs()
    if as_json:
        return _json(
            [
                {
                    "name": bug.name,
                    "class": bug.bug_class,
                    "origin": bug.origin,
                    "target": bug.target,
                    "recipe": bug.recipe,
                    "warmup": bug.warmup,
                    "expects": bug.expects,
                    "gpu": bug.gpu,
                    "relation": bug.relation,
                }
                for bug in found
            ]
        )
    lines = ["Planted bugs (vlm-ci run --bug NAME, and its repaired twin with --repaired)"]
    for bug in found:
        needs = ", needs a GPU" if bug.gpu else ""
        needs += f", relation {bug.relation}" if bug.relation else ""
        needs += "; eager has it too" if bug.in_both else ""
        lines += [
            f"  {bug.name:<{WIDTH}} {bug.bug_class}",
            f"  {'':<{WIDTH}} expects {bug.expects} on {bug.target}, {bug.recipe}, warm-up "
            f"{bug.warmup}{needs}",
            f"  {'':<{WIDTH}} seen in {bug.origin}",
        ]
    return "\n".join(lines) + "\n"


def _target(name: str) -> dict[str, Any]:
    source = models.find(name)
    envelope = source.family.envelope(source.config)
    return {
        "name": name,
        "family": source.family.name,
        "description": source.description,
        "modalities": list(envelope.modalities),
        "envelope": msgspec.to_builtins(envelope),
    }


def _recipes() -> dict[str, str]:
    return {name: (recipe.__doc__ or "").strip() for name, recipe in recipes.RECIPES.items()}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
