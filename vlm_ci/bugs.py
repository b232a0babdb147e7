"""Planted bugs: real failure classes re-created on real models, each with a repaired twin.

A bug is a file in fixtures/bugs/ with ``BUG``, ``mutate(model)`` and ``repair(model)``; both
change the compiled twin before it is compiled. A fault of values has ``first(batch, geometry)``
besides, which says where it begins to show. Imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from vlm_ci import locations
from vlm_ci.errors import unknown_name
from vlm_ci.traffic.envelope import Geometry
from vlm_ci.traffic.spec import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedBug:
    """What a planted bug is, where it comes from, and what a run must say of it.

    ``bug_class`` is the row of the list of real bugs it belongs to; ``origin`` names public
    reports; ``expects`` is the failure kind, and ``cause`` a text that its cause holds;
    ``warmup`` is the plan under which it shows; ``options`` are compile options it needs.
    ``module`` names, as ``model.named_modules()`` does, the first module that gives a wrong value;
    it may be a module within that gives the first one.
    ``in_both`` says that the eager twin has the fault too, so that no comparison with it shows it;
    ``relation`` is the relation that shows it (``vlm_ci.parity.relations``).
    """

    name: str
    bug_class: str
    origin: str
    target: str
    recipe: str
    expects: str
    cause: str
    warmup: str = "default"
    gpu: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    module: str = ""
    in_both: bool = False
    relation: str = ""


Mutate = Callable[[Any], None]
First = Callable[[Batch, Geometry], tuple[int, int] | None]


_PACKAGE = "vlm_ci_planted_bugs"


@cache
def _modules() -> dict[str, ModuleType]:
    folder = locations.fixtures() / "bugs"
    package = ModuleType(_PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[_PACKAGE] = package
    found = (import_module(f"{_PACKAGE}.{path.stem}") for path in sorted(folder.glob("[!_]*.py")))
    return {module.BUG.name: module for module in found}


def all_bugs() -> tuple[PlantedBug, ...]:
    """Return every planted bug, by name."""
    return tuple(_modules()[name].BUG for name in sorted(_modules()))


def find(name: str) -> PlantedBug:
    """Return the planted bug of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in _modules():
        raise unknown_name("bug", name, _modules())
    bug: PlantedBug = _modules()[name].BUG
    return bug


def change(name: str, *, repaired: bool) -> Mutate:
    """Return the change that plants the bug, or the one of its repaired twin."""
    module = _modules()[find(name).name]
    mutate: Mutate = module.repair if repaired else module.mutate
    return mutate


def first(name: str) -> First | None:
    """Return what says where the bug begins to show; None where it is no fault of values.

    Given a batch and the target's geometry, that is a request and an index in its padded row: of
    the wrong tokens the earliest one of the first request that has any. None where no token of
    the batch is wrong, or where more than the batch decides it.
    """
    found: First | None = getattr(_modules()[find(name).name], "first", None)
    return found
