"""Objects named by the user as ``package.module:attribute``."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from vlm_ci.errors import UsageError, unknown_name


def import_object(kind: str, name: str) -> Any:
    """Import ``package.module:attribute``, looking in the current folder too.

    Raises:
        UsageError: the name has another form, or the module or attribute is not there.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"{kind} {name!r} must have the form package.module:attribute")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except (
        Exception,
        SystemExit,
    ) as error:  # the user's module may fail in any way while it is imported
        raise UsageError(
            f"{kind} {name!r}: cannot import {module_name!r}: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        public = [entry for entry in dir(module) if not entry.startswith("_")]
        raise unknown_name(f"attribute of {module_name} for {kind}", attribute, public)
    return getattr(module, attribute)
