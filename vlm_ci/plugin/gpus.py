"""Which GPUs this process may use, in the words of CUDA_VISIBLE_DEVICES. Starts no CUDA."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

VISIBLE = "CUDA_VISIBLE_DEVICES"
TIMEOUT = 120.0  # seconds; nvidia-smi takes several on a large machine that just started

_ENTRY = re.compile(r"\d+|GPU-[0-9A-Fa-f-]+|MIG-[\w/-]+")
_LISTED = re.compile(r"^(?:GPU (?P<index>\d+)|\s+MIG .*):.*\(UUID: (?P<uuid>[\w/-]+)\)$")
_COUNT = "import torch; print(torch.cuda.device_count())"


def visible(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return an entry for each GPU that CUDA would show, each good for CUDA_VISIBLE_DEVICES.

    Where the variable is unset, nvidia-smi is asked, which comes with the driver, and where that
    gives no answer, torch in a process of its own: counting here would start CUDA or need torch.
    """
    given = environ.get(VISIBLE)
    return parse(given) if given is not None else _installed()


def parse(given: str) -> tuple[str, ...]:
    """Return the entries of a value of CUDA_VISIBLE_DEVICES: indices, UUIDs, MIG devices.

    As CUDA reads it: the list ends at the first entry that names no GPU, such as -1, and a list
    that repeats one is empty.
    """
    entries: list[str] = []
    for part in given.split(","):
        entry = part.strip()
        if _ENTRY.fullmatch(entry) is None:
            break
        entries.append(entry)
    return tuple(entries) if len(set(entries)) == len(entries) else ()


def parse_listing(text: str) -> tuple[str, ...]:
    """Return the entries that ``nvidia-smi -L`` lists.

    Indices, which are CUDA's own numbers; where a GPU is divided, the UUIDs of its MIG devices and
    of the other GPUs: CUDA shows one MIG device at most unless it is named.
    """
    indices: list[str] = []
    uuids: list[list[str]] = []  # of each GPU: its own, then those of its MIG devices
    for line in text.splitlines():
        found = _LISTED.match(line)
        if found is None:
            continue
        if found["index"] is not None:
            indices.append(found["index"])
            uuids.append([])
        if uuids:
            uuids[-1].append(found["uuid"])
    if all(len(own) == 1 for own in uuids):
        return tuple(indices)
    return tuple(uuid for own in uuids for uuid in (own[1:] or own))


def _installed() -> tuple[str, ...]:
    tool = shutil.which("nvidia-smi")
    listing = _output(tool, "-L") if tool else None
    if listing is not None:
        return parse_listing(listing)
    count = (_output(sys.executable, "-c", _COUNT) or "").strip()
    return tuple(map(str, range(int(count)))) if count.isdecimal() else ()


def _output(*command: str) -> str | None:
    """Return what a command prints; None where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
