"""``vlm-ci junit merge`` and ``vlm-ci junit failed``: files in, a file or lines out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlm_ci.errors import UsageError
from vlm_ci.junit import files, identity, merging, words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vlm_ci.junit.records import Merged, Test


def merge(
    paths: Sequence[Path],
    out: Path,
    *,
    expect: Path | None,
    shards: int | None,
    say: Callable[[str], None],
) -> Merged:
    """Merge JUnit files into ``out`` and say what was found.

    Raises:
        UsageError: a file is refused, is named twice, or states something wrong.
    """
    places: dict[Path, Path] = {}
    for path in paths:
        if path.resolve() in places:
            raise UsageError(f"{path} is named twice: an attempt counts once")
        places[path.resolve()] = path
    if out.is_dir():
        raise UsageError(f"-o {out}: a folder; name a file")
    expected = identity.expected(files.read_lines(expect), str(expect)) if expect else None
    suites = [suite for path in paths for suite in files.read(path)]
    merged = merging.merge(suites, expected=expected, shards=shards, is_file=_is_file)
    files.write(out, merged)
    for line in words.summary(merged, str(out)):
        say(line)
    return merged


def failed(
    path: Path,
    *,
    infrastructure: bool | None,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Print the node ids to run again, one a line; ``infrastructure`` chooses those that a rule
    says are the infrastructure's (True) or that none does (False). What has no node id is said by
    ``warn``.

    Raises:
        UsageError: the file is refused.
    """
    merged = read(path)
    for test in merged.tests:
        if not test.broken or infrastructure not in (None, bool(test.rule)):
            continue
        problem = _unprintable(test)
        if problem:
            warn(problem)
        else:
            say(test.nodeid)


def read(path: Path) -> Merged:
    """Read what ``merge`` wrote, or a JUnit file as it is.

    Raises:
        UsageError: the file is refused.
    """
    return merging.merge(files.read(path), is_file=_is_file)


def _unprintable(test: Test) -> str:
    if test.missing == merging.WHOLE_SHARD:
        return f"shard {test.case.name} has no file: run it again as a whole"
    if identity.is_internal(test.case):
        return "an internal error of pytest belongs to no test: run its shard again as a whole"
    if identity.is_interruption(test.case):
        return f"{test.case.name}: run it again as a whole"
    if len(test.nodeid.splitlines()) != 1:
        return f"the node id {test.nodeid!r} does not fit on a line"
    return ""


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # too long, or a null character
        return False
