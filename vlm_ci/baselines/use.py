"""The baseline of one run: found before it, compared with it, and rewritten where that is asked."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from vlm_ci import locations
from vlm_ci.baselines import files
from vlm_ci.baselines.comparing import Comparison, compare, failure_of
from vlm_ci.baselines.records import Entry, entry_of
from vlm_ci.result import BaselineUse

if TYPE_CHECKING:
    from pathlib import Path

    from vlm_ci.failures import Failure
    from vlm_ci.result import Result
    from vlm_ci.traffic.envelope import Envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a run is compared with. ``path`` is the file that holds ``entries``, ``own`` the one
    that an update writes; ``envelope`` is as in ``records.Setup``."""

    path: Path
    entries: tuple[Entry, ...]
    own: Path
    envelope: str = ""
    updates: bool = False

    def judge(self, result: Result) -> tuple[tuple[Failure, int], ...]:
        """Compare a run that came to its end; say in the result what differs.

        Returns the failure that a rise is, with how many lines are worse; nothing where the run is
        to become the baseline itself.
        """
        now = entry_of(result, envelope=self.envelope)
        before = files.find(self.entries, now)
        use = result.baseline = BaselineUse(path=str(self.path) if before else "")
        if before is None:
            use.notes.append(self._none())
            return ()
        found = compare(before, now)
        use.changes, use.notes = list(found.changes), list(found.notes)
        if found.versions:
            use.notes.insert(0, found.versions)
            result.warnings.append(found.versions)
        failure = failure_of(found.changes, str(self.own))
        if failure is None or self.updates:
            return ()
        return ((failure, sum(change.worse for change in found.changes)),)

    def keep(self, result: Result) -> None:
        """Rewrite the baseline if that is asked for and the run is clean.

        An entry that says the same is left alone, although its worst ratio is another one.

        Raises:
            UsageError: the file cannot be written.
        """
        if not self.updates:
            return
        use = result.baseline = result.baseline or BaselineUse()
        if result.verdict != "clean":
            use.notes.append(
                f"not updated: the run is {result.verdict}, and only a clean one becomes a baseline"
            )
            return
        now = entry_of(result, envelope=self.envelope)
        before = files.find(self.entries, now)
        if before is not None and self.path == self.own and compare(before, now) == _SAME:
            return
        files.update(self.own, now)
        if before is None:
            use.notes.remove(self._none())
        use.path, use.updated = str(self.own), True

    def _none(self) -> str:
        return f"none for this run in {self.own.parent}; --update-baselines writes one"


_SAME = Comparison(changes=(), notes=())


def open_baseline(
    folder: Path,
    target: str,
    *,
    shipped: bool,
    envelope: tuple[Path, Envelope] | None = None,
    updates: bool = False,
) -> Baseline:
    """Find the baselines of a target: the folder's own, or those that vlm_ci brings.

    ``shipped`` allows the latter, where the folder has no file for this target; ``envelope`` is
    the file that stands in place of the target's own envelope, and what it allows.

    Raises:
        UsageError: the file is broken.
    """
    own = path = files.path_of(folder, target)
    if shipped and not own.exists():
        path = files.path_of(locations.fixtures() / "baselines", target)
    named = ""
    if envelope is not None:
        checksum = zlib.crc32(msgspec.json.encode(envelope[1]))
        named = f"{envelope[0].name} {checksum:08x}"
    return Baseline(path=path, entries=files.read(path), own=own, envelope=named, updates=updates)
