"""How many cores and how much memory this process may use, containers' limits included.

Reads files below ``/proc`` and ``/sys``; elsewhere it knows less and says so with None.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path("/")

# Limit, use, and the part of the use that the kernel gives back when asked, in memory.stat.
_MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # cgroup v1
)


def cores(root: Path = ROOT) -> int:
    """Return how many cores this process may use: its affinity, and the CPU quotas around it."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    for folder in _cgroups(root, "cpu"):
        quota = _quota(folder)
        if quota is not None:
            count = min(count, max(1, int(quota)))
    return count


def free_memory(root: Path = ROOT) -> int | None:
    """Return how many bytes this process may still use; None where that is not known.

    The least of what the machine has available and of what each cgroup around this process leaves:
    its limit less its use, where cached files that the kernel would drop do not count.
    """
    free = [value for folder in _cgroups(root, "memory") for value in _left(folder)]
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    return max(0, min(free)) if free else None


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroups, the innermost first (cgroups(7)).

    Some do not exist: inside a container the path is often the host's.
    """
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = mount / controllers if controllers else mount
        if controllers and not base.is_dir():
            base = mount / controller
        folder = base / path.lstrip("/")
        for one in (folder, *folder.parents):
            yield one
            if one == base:
                break


def _left(folder: Path) -> Iterator[int]:
    for limit_name, use_name, reclaimable in _MEMORY:
        limit, use = _read(folder / limit_name).strip(), _read(folder / use_name).strip()
        if not (limit.isdecimal() and use.isdecimal()):
            continue  # no such file, or "max"
        stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
        yield int(limit) - int(use) + int(stat.get(reclaimable, 0))


def _quota(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
    if not quota:  # cgroup v1
        quota = _read(folder / "cpu.cfs_quota_us").strip()
        period = _read(folder / "cpu.cfs_period_us").strip()
    known = quota.isdecimal() and period.isdecimal()  # else "max", -1, or no such file
    return int(quota) / int(period) if known else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
