#!/usr/bin/env python3
"""Looks at downloaded artifacts before anything reads them, and prints their JUnit files.

What a shard uploads was written by the code under test: it is data, and may be too much of it.
Nothing is opened here. The standard library alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

MOST_FILES = 20_000
MOST_BYTES = 2_000_000_000
LARGEST_JUNIT = 100_000_000


class Refused(Exception):
    """The artifacts are not what shards leave."""


def collect(
    folder: Path, *, most_files: int = MOST_FILES, most_bytes: int = MOST_BYTES
) -> list[Path]:
    """Return the JUnit files below a folder, sorted.

    Raises:
        Refused: there is a link, a special file, a name that is no text of one line, or too much.
    """
    files = 0
    size = 0
    found: list[Path] = []
    for path in sorted(folder.rglob("*")):
        if not path.name.isprintable():
            raise Refused(f"{str(path)!r} has a name with control characters")
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise Refused(f"{path} is neither a file nor a folder")
        if path.is_dir():
            continue
        files += 1
        size += path.stat().st_size
        if files > most_files or size > most_bytes:
            raise Refused(f"{folder} holds more than {most_files} files or {most_bytes} bytes")
        if path.name.startswith("junit-") and path.suffix == ".xml":
            if path.stat().st_size > LARGEST_JUNIT:
                raise Refused(f"{path} has more than {LARGEST_JUNIT} bytes")
            found.append(path)
    return found


def main() -> int:
    """Print one path a line, or say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--optional", action="store_true", help="nothing there is no error")
    given = parser.parse_args()
    try:
        found = collect(given.folder)
        if not found and not given.optional:
            raise Refused(f"no shard left a JUnit file in {given.folder}: all are missing")
    except Refused as error:
        print(f"::error title=artifacts::{error}", file=sys.stderr)
        return 1
    given.folder.mkdir(exist_ok=True)
    print("\n".join(str(path) for path in found) or f"nothing in {given.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
