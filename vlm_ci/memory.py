"""Failing sessions kept from one run to the next, in one of Hypothesis's example databases.

The sessions themselves are kept, not Hypothesis's choices: those mean nothing once a strategy has
changed, and Hypothesis keeps none for a test with a seed of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from vlm_ci.traffic.spec import Session

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from hypothesis.database import ExampleDatabase


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Sessions that failed in earlier runs of what ``key`` names."""

    database: ExampleDatabase
    key: bytes

    @classmethod
    def in_folder(cls, folder: Path, name: str) -> Memory:
        """Return the memory of what ``name`` names, in a folder on disk."""
        from hypothesis.database import DirectoryBasedExampleDatabase

        return cls(database=DirectoryBasedExampleDatabase(folder), key=f"vlm-ci {name}".encode())

    def sessions(self) -> list[Session]:
        """Return the remembered sessions; what cannot be read any more is left out."""
        found = []
        for content in sorted(self.database.fetch(self.key)):
            try:
                found.append(msgspec.json.decode(content, type=Session))
            except msgspec.DecodeError:
                self.database.delete(self.key, content)
        return found

    def update(self, *, passed: Iterable[Session], failed: Iterable[Session]) -> None:
        """Forget the sessions that pass now, and remember those that fail."""
        for session in passed:
            self.database.delete(self.key, msgspec.json.encode(session))
        for session in failed:
            self.database.save(self.key, msgspec.json.encode(session))
