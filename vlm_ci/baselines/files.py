"""Baseline files: where they lie, and how several processes write one. Imports no torch."""

from __future__ import annotations

import getpass
import os
import re
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vlm_ci.baselines.records import VERSIONS, BaselineFile, Entry
from vlm_ci.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT = 60.0  # seconds to wait for another process that writes the same file


def path_of(folder: Path, target: str) -> Path:
    """Return the file of a target in a folder of baselines."""
    name = re.sub(r"[^\w.-]+", "-", target).strip("-.")
    return folder / f"{name or 'target'}.json"


def read(path: Path) -> tuple[Entry, ...]:
    """Read a baseline file; one that is not there holds nothing.

    Raises:
        UsageError: it cannot be read or is not valid; the message names the place in the file.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise UsageError(f"cannot read the baseline file {path}: {error.strerror}") from None
    try:
        return msgspec.json.decode(content, type=BaselineFile).entries
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"baseline file {path}: {error}; mend it, or delete it and let --update-baselines "
            "write it anew"
        ) from None


def find(entries: Sequence[Entry], now: Entry) -> Entry | None:
    """Return the entry of this setup: with the same torch where there is one, then with the same
    transformers, then with the same Python, then with the newest versions."""

    def closeness(entry: Entry) -> tuple[object, ...]:
        return (*(entry.same_versions(now, name) for name in VERSIONS), _versions(entry))

    same = [entry for entry in entries if entry.setup == now.setup]
    return max(same, key=closeness, default=None)


def update(path: Path, entry: Entry) -> None:
    """Put an entry into a file in place of the one with its setup and versions.

    The file is locked meanwhile, so that processes that update it do not lose each other's entries,
    and written whole or not at all.

    Raises:
        UsageError: it cannot be written, or what is there is not valid.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_lock_of(path), timeout=TIMEOUT):
            others = [
                known
                for known in read(path)
                if known.setup != entry.setup or not known.same_versions(entry)
            ]
            entries = tuple(sorted([*others, entry], key=_order))
            beside = path.with_name(f".{path.name}.{os.getpid()}")
            beside.write_bytes(content_of(entries))
            beside.replace(path)
    except Timeout:
        raise UsageError(
            f"cannot write the baseline file {path}: another process holds it, for {TIMEOUT:.0f} s "
            "now"
        ) from None
    except OSError as error:
        raise UsageError(
            f"cannot write the baseline file {path}: {error.strerror or error}"
        ) from None


def content_of(entries: tuple[Entry, ...]) -> bytes:
    """Return entries as a file's content: sorted keys, and a line for each fact."""
    encoded = msgspec.json.encode(BaselineFile(entries=entries), order="sorted")
    return msgspec.json.format(encoded, indent=2) + b"\n"


def _lock_of(path: Path) -> Path:
    """Return the file to lock: not beside the baselines, which are under version control."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no name, as in some containers
        user = "user"
    name = f"vlm-ci-{user}-{zlib.crc32(str(path.resolve()).encode()):08x}.lock"
    return Path(tempfile.gettempdir()) / name


def _order(entry: Entry) -> tuple[object, ...]:
    return (msgspec.json.encode(entry.setup, order="sorted"), _versions(entry))


def _versions(entry: Entry) -> tuple[list[int], ...]:
    return tuple(
        [int(part) for part in re.findall(r"\d+", entry.made_with.get(name, ""))]
        for name in VERSIONS
    )
