"""What an earlier attempt left: its failing sessions, for a rerun to replay first.

Evidence is a downloaded artifact, and nothing in it is trusted: it is read once, into memory,
before anything is written; sizes are capped, links are not followed, and what does not have the
form of a failure file is said and left out. Nothing below the folder is changed.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vlm_ci import evidence
from vlm_ci.errors import UsageError
from vlm_ci.result import EvidenceUse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vlm_ci.evidence import FailureFile
    from vlm_ci.traffic.envelope import Envelope
    from vlm_ci.traffic.spec import Session

# serving.json is what a process that was killed was just serving.
NAMES = ("failure.json", "serving.json")
MOST_BYTES = 16 * 2**20  # of one file; a failure with its picture has less than one of them
MOST_FILES = 1000
# Which options tell one target from another. The device's number is the machine's business.
OPTIONS = ("dtype", "dynamic", "mode", "fullgraph", "bug", "repaired")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recordings:
    """Failure files below ``folder``, and in words those that could not be read."""

    folder: str
    files: tuple[FailureFile, ...] = ()
    broken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The run that a recording has to belong to; ``test`` is empty outside pytest."""

    test: str
    target: str
    recipe: str
    backend: str
    options: dict[str, Any]
    envelope: Envelope


def gather(folder: Path) -> Recordings:
    """Read every failure file below a folder, at any depth."""
    files: list[FailureFile] = []
    broken: list[str] = []
    for path in _paths(folder):
        name = str(path.relative_to(folder))
        if len(files) + len(broken) >= MOST_FILES:
            broken.append(f"{name} and what follows: only {MOST_FILES} files are read")
            break
        try:
            recorded = evidence.parse(_content(path), path)
        except (OSError, UsageError) as error:
            why = (error.strerror if isinstance(error, OSError) else "") or str(error)
            broken.append(f"{name}: {why}")
        else:
            slim = msgspec.structs.replace(recorded.failure, picture=None)
            files.append(msgspec.structs.replace(recorded.file, failure=slim))
    return Recordings(folder=str(folder), files=tuple(files), broken=tuple(broken))


def choose(recordings: Recordings, wanted: Wanted) -> tuple[tuple[Session, ...], EvidenceUse]:
    """Return the sessions that belong to a run, each once, and what became of the others."""
    aside: Counter[str] = Counter()
    sessions: dict[Session, None] = {}
    for file in recordings.files:
        traffic = file.failure.traffic if file.failure is not None else None
        reason = _reason(file, wanted)
        if not reason and traffic is None:
            reason = "without a session"
        if not reason and traffic is not None:
            if any(map(wanted.envelope.violation, traffic.batches)):
                reason = "outside the envelope"
            elif traffic in sessions:
                reason = "the same session again"
            else:
                sessions[traffic] = None
        if reason:
            aside[reason] += 1
    return tuple(sessions), EvidenceUse(
        folder=recordings.folder,
        sessions=len(sessions),
        aside=dict(sorted(aside.items())),
        broken=list(recordings.broken),
    )


def warnings(use: EvidenceUse) -> list[str]:
    """Return what has to be said aloud: files that are broken, and that nothing was replayed."""
    texts = [f"evidence {text}" for text in use.broken]
    if not use.sessions:
        left = told_aside(use)
        texts.append(
            f"missing evidence: {use.folder} holds no session that failed in this test"
            + (f" ({left})" if left else "")
            + "; nothing was replayed, and the search began as ever"
        )
    return texts


def told_aside(use: EvidenceUse) -> str:
    """Return in words how many recordings were left aside, and why."""
    parts = [f"{count} {reason}" for reason, count in use.aside.items()]
    parts += [f"{len(use.broken)} broken"] if use.broken else []
    return f"left aside: {', '.join(parts)}" if parts else ""


def _reason(file: FailureFile, wanted: Wanted) -> str:
    """Return why a recording does not belong to a run, or an empty text."""
    for name in ("target", "recipe", "backend", "test"):
        if getattr(file, name) != getattr(wanted, name):
            return f"of another {name}"
    there = {"device": str(file.options.get("device")), **file.options}
    kinds = (str(there["device"]), str(wanted.options.get("device")))
    if kinds[0].partition(":")[0] != kinds[1].partition(":")[0]:
        return "of another device"
    # An option that is not recorded was not set: a bug stands in the options only where planted.
    differ = [name for name in OPTIONS if there.get(name) != wanted.options.get(name)]
    return f"with another {differ[0]}" if differ else ""


def _paths(folder: Path) -> Iterable[Path]:
    """Return the files that may be recordings, in a fixed order; folders that are links are not
    gone into."""
    for place, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        yield from (Path(place) / name for name in sorted(files) if name in NAMES)


def _content(path: Path) -> bytes:
    """Return what a file holds.

    Raises:
        UsageError: it is no plain file, or too large.
        OSError: it cannot be read.
    """
    if path.is_symlink():
        raise UsageError("a symbolic link, which is not followed")
    # Not blocking: a pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UsageError("no plain file")
        content = stream.read(MOST_BYTES + 1) if status.st_size <= MOST_BYTES else b""
        if status.st_size > MOST_BYTES or len(content) > MOST_BYTES:
            raise UsageError(f"larger than {MOST_BYTES >> 20} MiB")
        return content
