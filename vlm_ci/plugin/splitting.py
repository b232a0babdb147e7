"""Which of the collected tests are this machine's, and which part of each. Runs no test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import pytest

from vlm_ci.errors import UsageError
from vlm_ci.plugin.configuration import is_vlm
from vlm_ci.sharding import RUN_LENGTH, Shard, Work, assign

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vlm_ci.plugin.session import VlmSession
    from vlm_ci.settings import Settings

PART = pytest.StashKey[Shard]()


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The tests of one shard: ``kept`` run here, ``left`` on other machines alone."""

    shard: Shard
    kept: list[pytest.Item]
    left: list[pytest.Item]

    def words(self) -> str:
        """Say how many tests are here, and how many of them in part."""
        count = len(self.kept) + len(self.left)
        parts = sum(PART in item.stash for item in self.kept)
        text = f"{self.shard}: {len(self.kept)} of {count} tests"
        text += f", {parts} of them in part" if parts else ""
        text += f"; {len(self.left)} deselected, which other shards run" if self.left else ""
        if count and not self.kept:
            text += "; there is less work than shards: nothing is left for this one"
        return text


def share(session: VlmSession, items: list[pytest.Item]) -> list[pytest.Item]:
    """Leave this shard's tests in ``items``; return those that are left to others. Also read
    what an earlier attempt has left, before a test writes anything.

    Raises:
        UsageError: the file of durations is none.
    """
    from vlm_ci.plugin.session import target_of

    settings = session.settings
    if settings.evidence is not None:
        from vlm_ci import reruns

        session.recordings = reruns.gather(settings.evidence)
    if settings.shard is None:
        return []
    found = split(
        items,
        settings.shard,
        lambda item: session.settings_of(item, target_of(item)),
        durations(settings.durations),
    )
    session.shares = [found.words()]
    items[:] = found.kept
    return found.left


def split(
    items: Sequence[pytest.Item],
    shard: Shard,
    settings_of: Callable[[pytest.Item], Settings],
    seconds: Callable[[str], float | None],
) -> Share:
    """Choose the tests of a shard, and note at each the part of its search that is done here.

    Every machine has to collect the same tests; their order does not matter.
    """
    given = assign([_work(item, settings_of, seconds) for item in items], shard.count)
    kept, left = [], []
    for item, shards in zip(items, given, strict=True):
        if shard.index not in shards:
            left.append(item)
            continue
        kept.append(item)
        part = shards[shard.index]
        if part is not None:
            item.stash[PART] = part
    return Share(shard=shard, kept=kept, left=left)


def _work(
    item: pytest.Item,
    settings_of: Callable[[pytest.Item], Settings],
    seconds: Callable[[str], float | None],
) -> Work:
    known = seconds(item.nodeid)
    file = Work(name=item.nodeid, unit=item.nodeid.partition("::")[0], seconds=known)
    if not is_vlm(item):
        return file
    from vlm_ci.building import target_key

    try:
        settings = settings_of(item)
    except UsageError:
        return file  # the marker is wrong, and the test says so where it runs
    parts = 1
    # Where a test is expected to fail, one part may fail and another pass: it is not split.
    if "vlm_check" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("xfail"):
        parts = -(-settings.examples // RUN_LENGTH)
    unit = f"target {target_key(settings)}"
    return Work(name=item.nodeid, unit=unit, shared=True, parts=parts, seconds=known)


def durations(path: Path | None) -> Callable[[str], float | None]:
    """Return how long each test took in seconds, by its node id; None where that is not known.

    The file is one of JUnit (such as ``vlm-ci junit merge`` writes) or what pytest-split stores:
    a JSON object of seconds by node id.

    Raises:
        UsageError: it is neither.
    """
    if path is None:
        return lambda nodeid: None
    if path.suffix.lower() == ".xml":
        return _of_junit(path)
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=dict[str, float])
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise UsageError(
            f"{path}: not a file of durations: neither JUnit (*.xml) nor a JSON object of seconds "
            f"by node id, as pytest-split stores it: {error}"
        ) from None
    return stored.get


def _of_junit(path: Path) -> Callable[[str], float | None]:
    from vlm_ci.junit import files, identity

    seconds: dict[tuple[str, str], float] = {}
    for suite in files.read(path):
        for case in suite.cases:
            place = case.classname, case.name
            seconds[place] = seconds.get(place, 0.0) + case.seconds
    return lambda nodeid: seconds.get(identity.address(nodeid))
