"""A bundle on disk: one line of manifest, then a zip of files. Verifies, reads, writes; no torch.

What is in it is executed when it is used: shared objects are loaded, pickles are read. The hash
says that a bundle is whole, not that somebody honest wrote it; who may write the folder decides.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

import msgspec

from vlm_ci.caching.keys import Parts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SCHEMA = "vlm-ci/cache/1"
LONGEST_MANIFEST = 1 << 16  # bytes
_CHUNK = 1 << 20
# Triton's index of the files of a kernel holds absolute paths
# (triton/runtime/cache.py, FileCacheManager.put_group).
_GROUP = "__grp__"


class BadBundle(Exception):
    """A bundle that must not be used; the message says why."""


class _Header(msgspec.Struct, frozen=True):
    schema: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle says of itself. ``sha256`` is that of all that follows its line, ``size`` its
    bytes; ``made_by`` names who wrote it, ``made`` when (seconds since the epoch)."""

    schema: str = SCHEMA
    key: str
    scope: str
    parts: Parts
    sha256: str
    size: int
    files: int
    made_by: dict[str, str]
    made: float


@contextmanager
def opened(path: Path, *, key: str, scope: str) -> Iterator[tuple[Manifest, zipfile.ZipFile]]:
    """Open a bundle that is whole and belongs to this key and scope.

    Raises:
        FileNotFoundError: there is none.
        BadBundle: it is damaged, of another version, key or scope.
    """
    with path.open("rb") as file:  # one descriptor: what was hashed is what is read
        manifest = _verified(file, key=key, scope=scope)
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise BadBundle(f"its content is no archive: {error}") from None
        with archive:
            yield manifest, archive


def _verified(file: IO[bytes], *, key: str, scope: str) -> Manifest:
    line = file.readline(LONGEST_MANIFEST)
    try:
        schema = msgspec.json.decode(line, type=_Header).schema
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadBundle("it does not begin with a manifest") from None
    if schema != SCHEMA:
        raise BadBundle(f"its schema is {schema!r}, not {SCHEMA!r}")
    try:
        manifest = msgspec.json.decode(line, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadBundle(f"its manifest is not valid: {error}") from None
    if manifest.scope != scope:
        raise BadBundle(f"its scope is {manifest.scope!r}, not {scope!r}")
    if manifest.key != key:
        raise BadBundle(f"it was made for key {manifest.key}, not {key}")
    start = file.tell()
    found, size = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK):
        found.update(chunk)
        size += len(chunk)
    if size != manifest.size:
        raise BadBundle(f"it holds {size} bytes where its manifest says {manifest.size}")
    if found.hexdigest() != manifest.sha256:
        raise BadBundle("its content has another hash than its manifest says")
    file.seek(start)
    return manifest


def extract(archive: zipfile.ZipFile, roots: Mapping[str, Path]) -> list[str]:
    """Put the files of a bundle into the folders of their roots, and return all their names.

    A file that is there already stays: names are hashes of what they stand for.

    Raises:
        BadBundle: a name leads elsewhere, or a file cannot be read or written.
    """
    try:
        for name in archive.namelist():
            root, *inside = PurePosixPath(name).parts
            if root not in roots or not inside or ".." in inside or "\\" in name:
                raise BadBundle(f"it holds a file {name!r} that belongs to no cache")
            place = roots[root].joinpath(*inside)
            if not place.exists():
                _put(place, _placed(archive.read(name), place))
        return archive.namelist()
    except (OSError, zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise BadBundle(f"its files cannot be put in place: {error}") from None


def _placed(content: bytes, place: Path) -> bytes:
    if not place.name.startswith(_GROUP):
        return content
    try:
        index = json.loads(content)
        children = index["child_paths"]
        index["child_paths"] = {
            name: str(place.parent / PurePosixPath(path).name) for name, path in children.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return content  # another format: Triton compiles what it does not find
    return json.dumps(index).encode()


def _put(place: Path, content: bytes) -> None:
    """Write a file whole or not at all: other processes may look for it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".", delete=False) as file:
        file.write(content)
    os.replace(file.name, place)


def write(
    path: Path,
    files: Mapping[str, Path],
    *,
    key: str,
    scope: str,
    parts: Parts,
    made_by: dict[str, str],
    keep: zipfile.ZipFile | None = None,
) -> Manifest:
    """Write a bundle of files, by name, and of what ``keep`` holds; put in place whole.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as folder:
        payload, whole = Path(folder) / "payload", Path(folder) / "whole"
        with zipfile.ZipFile(payload, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name in keep.namelist() if keep is not None else ():
                if name not in files and keep is not None:
                    archive.writestr(name, keep.read(name), zipfile.ZIP_DEFLATED, 1)
            for name, file in files.items():
                archive.writestr(name, file.read_bytes(), zipfile.ZIP_DEFLATED, 1)
            count = len(archive.namelist())
        with payload.open("rb") as source:
            manifest = Manifest(
                key=key,
                scope=scope,
                parts=parts,
                sha256=hashlib.file_digest(source, "sha256").hexdigest(),
                size=payload.stat().st_size,
                files=count,
                made_by=made_by,
                made=time.time(),
            )
            source.seek(0)
            with whole.open("wb") as target:
                target.write(msgspec.json.encode(manifest) + b"\n")
                shutil.copyfileobj(source, target)
                target.flush()
                os.fsync(target.fileno())
        os.replace(whole, path)
    return manifest
