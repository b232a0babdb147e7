"""What this process may use of the machine: cores, memory, control groups. Reads files only.

Control groups: version 2 (cpu.max, memory.max) and version 1 (cpu.cfs_quota_us,
memory.limit_in_bytes), as the kernel's admin-guide on cgroups describes them. A limit holds for
everything below it, so that each ancestor counts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_LIMIT = 1 << 60  # version 1 writes "no limit" as the largest number of pages


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of the control groups. ``cpus`` in cores, ``memory`` in bytes; None: no limit.

    ``available`` is what the tightest group has left, the page cache that it can drop included.
    """

    cpus: float | None = None
    memory: int | None = None
    available: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory in bytes; None where the system does not say."""

    total: int | None
    available: int | None


def cores() -> int:
    """Return how many cores this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory(meminfo: Path = Path("/proc/meminfo")) -> Memory:
    """Return the memory of the machine, without regard to control groups."""
    values = {}
    for line in (_text(meminfo) or "").splitlines():
        name, _colon, value = line.partition(":")
        if value.strip().endswith("kB"):
            values[name] = int(value.split()[0]) * 1024
    total = values.get("MemTotal")
    if total is None and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Memory(total=total, available=values.get("MemAvailable"))


def control_groups(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Limits:
    """Return the tightest limits of the groups that this process is in."""
    cpus, limits, left = [], [], []
    for line in (_text(membership) or "").splitlines():
        _number, controllers, place = [*line.split(":", 2), "", ""][:3]
        for folder in _ancestors(root / controllers if controllers else root, place):
            if (quota := _quota(folder)) is not None:
                cpus.append(quota)
            if (room := _room(folder)) is not None:
                limits.append(room[0])
                left.append(room[1])
    return Limits(
        cpus=min(cpus, default=None),
        memory=min(limits, default=None),
        available=min(left, default=None),
    )


def _ancestors(mount: Path, place: str) -> Iterator[Path]:
    """Yield a group's folder and those above it.

    Inside a container the place may be the host's, which is not mounted; the mount's root, which
    is the container's own group, is always among them.
    """
    folder = mount / place.lstrip("/")
    while folder != mount and mount in folder.parents:
        yield folder
        folder = folder.parent
    yield mount


def _quota(folder: Path) -> float | None:
    quota, period = [*(_text(folder / "cpu.max") or "").split(), "", ""][:2]
    if not quota:
        quota = _text(folder / "cpu.cfs_quota_us") or ""
        period = _text(folder / "cpu.cfs_period_us") or ""
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None  # "max" in version 2, -1 in version 1
    return int(quota) / int(period)


def _room(folder: Path) -> tuple[int, int] | None:
    """Return a group's limit and what is left of it, in bytes; None without a limit."""
    for limit_file, used_file, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = _text(folder / limit_file) or ""
        if not limit.isdecimal() or int(limit) >= _NO_LIMIT:
            continue
        used = _text(folder / used_file) or "0"
        droppable = 0
        for line in (_text(folder / "memory.stat") or "").splitlines():
            if line.startswith(f"{cache} "):
                droppable = int(line.split()[1])
        return int(limit), max(0, int(limit) - int(used) + droppable)
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
