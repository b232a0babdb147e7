"""Puts the page of some runs into their folder when they are over; a run never fails by it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_ci.errors import UsageError
from vlm_ci.report.writing import write

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = "report.html"


def keep(folders: Sequence[Path], base: Path) -> str:
    """Write one page of the runs in some folders, into ``base`` where all lie in it.

    Returns a line that names it, or that says why there is none.
    """
    from vlm_ci.report import records
    from vlm_ci.report.html import page

    try:
        path = _common(folders, base) / PAGE
        if path.exists() and not is_ours(path):
            raise UsageError(f"{path} is no page of vlm-ci's: it was left alone")
        write(path, page(records.read(folders)))
    except UsageError as error:
        return f"none: {error}"
    except Exception as error:  # ours; the verdict does not depend on it
        return f"none: {type(error).__name__}: {error}"
    return str(path)


def is_ours(path: Path) -> bool:
    """Whether a page that lies there was written by us; another tool may use the same name."""
    from vlm_ci.report.html import GENERATOR

    try:
        return GENERATOR.encode() in path.read_bytes()[:1000]
    except OSError:
        return False


def _common(folders: Sequence[Path], base: Path) -> Path:
    """Return the base folder, or where the runs lie if that is elsewhere."""
    absolute = [folder.absolute() for folder in folders]
    if all(folder.is_relative_to(base.absolute()) for folder in absolute):
        return base
    return Path(os.path.commonpath(absolute))
