"""Model families: tiny configurations, traffic turned into tensors, named parts of the module.

A family is one module of this package with a ``FAMILY`` in it; a further family is a further file
and one line in ``_MODULES``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from vlm_ci.errors import unknown_name

if TYPE_CHECKING:
    from vlm_ci.families.base import Family

_MODULES = {"qwen3-vl": "qwen3_vl", "qwen2.5-vl": "qwen2_5_vl", "llava": "llava"}


def names() -> tuple[str, ...]:
    """Return the names of all families."""
    return tuple(_MODULES)


def load(name: str) -> Family:
    """Return the family of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in _MODULES:
        raise unknown_name("family", name, _MODULES)
    family: Family = import_module(f"{__name__}.{_MODULES[name]}").FAMILY
    return family
