"""What this machine has: versions and hardware, as recorded with every result."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

# What the suites are run with; beyond it a run warns.
TESTED = {"torch": ("2.11", "2.13"), "transformers": ("5.17", "5.23")}


def version_of(package: str) -> str:
    """Return the installed version of a package, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def describe(device: str) -> dict[str, Any]:
    """Return versions of what matters and the name of the device."""
    import torch

    hardware = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        hardware = torch.cuda.get_device_name(torch.device(device))
    return {
        "vlm_ci": version_of("vlm-ci"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": version_of("transformers"),
        "hypothesis": version_of("hypothesis"),
        "device": device,
        "hardware": hardware,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(terse=True),
    }


def version_warnings() -> list[str]:
    """Say which installed versions are outside what was tested."""
    warnings = []
    for package, (oldest, newest) in TESTED.items():
        found = version_of(package)
        if not _minor(oldest) <= _minor(found) <= _minor(newest):
            warnings.append(
                f"{package} {found} is outside what vlm_ci was tested with ({oldest} to {newest})"
            )
    return warnings


def _minor(version: str) -> tuple[int, int]:
    parts = version.split("+")[0].split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        return (-1, -1)
