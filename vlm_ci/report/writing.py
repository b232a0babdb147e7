"""Writes a report beside its place and moves it there. Knows nothing of what stands in it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vlm_ci.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a report whole or not at all; folders on the way are made.

    Raises:
        UsageError: it cannot be written there.
    """
    if path.is_dir():
        raise UsageError(f"cannot write the report to {path}: it is a folder; name a file")
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8", errors="replace")
        beside.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write the report to {path}: {error.strerror or error}") from None
