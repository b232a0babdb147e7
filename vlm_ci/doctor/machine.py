"""Cores, memory, GPUs and disks. Looks and judges; imports no torch, which ``probes`` asks."""

from __future__ import annotations

import getpass
import math
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlm_ci.doctor import limits
from vlm_ci.doctor.records import Check, first_line

if TYPE_CHECKING:
    from vlm_ci.doctor.outcomes import Gpu, Torch
    from vlm_ci.doctor.records import Status

GROUP = "Machine"
MIB, GIB = 1 << 20, 1 << 30


class Need(NamedTuple):
    """Bytes below which there is a warning, and below which a run would fail."""

    comfortable: int
    least: int


# Measured: a run of a tiny model takes 0.44 GiB at its peak, an Inductor compile of it no more.
MEMORY = Need(comfortable=2 * GIB, least=GIB // 2)
GPU_MEMORY = Need(comfortable=2 * GIB, least=GIB // 2)
# A clean run leaves some KiB. Each failure leaves its evidence, and logs grow with the search.
RESULTS = Need(comfortable=GIB, least=50 * MIB)
# One small graph leaves 0.3 MiB in Inductor's cache, a model of 36 layers some hundred MiB.
CACHE = Need(comfortable=2 * GIB, least=100 * MIB)


def checks(out: Path, torch: Torch | None) -> list[Check]:
    """Check what the machine has; ``torch`` is None where torch does not load."""
    return [
        cpu(torch),
        memory(),
        *gpus(torch),
        folder("results folder", out, RESULTS, "name another folder with --out"),
        cache(),
    ]


def cpu(torch: Torch | None) -> Check:
    """Compare torch's threads with the cores that this process may use."""
    usable: float = limits.cores()
    found = f"{os.cpu_count()} cores, {usable} of them for this process"
    quota = limits.control_groups().cpus
    if quota is not None and quota < usable:
        usable = quota
        found += f", and time for {quota:.3g} of them (the container's limit)"
    whole = max(1, math.ceil(usable))
    if torch is None:
        return _check("CPU", "ok", found)
    found += f"; torch uses {torch.threads} thread{'' if torch.threads == 1 else 's'}"
    if torch.threads <= whole:
        return _check("CPU", "ok", found)
    return _check(
        "CPU",
        "warning",
        f"{found}, which get in each other's way",
        f"`export OMP_NUM_THREADS={whole}`",
    )


def memory() -> Check:
    """Judge the memory that is available, with regard to the container's limit."""
    machine, group = limits.memory(), limits.control_groups()
    total = machine.total
    found = f"{size(total)}" if total is not None else "size not known"
    if group.memory is not None and (total is None or group.memory < total):
        found += f", of which the container may use {size(group.memory)}"
    known = [value for value in (machine.available, group.available) if value is not None]
    if not known:
        return _check("memory", "ok", f"{found}; what is available is not known here")
    available = min(known)
    found += f", {size(available)} available"
    if available < MEMORY.least:
        return _check(
            "memory",
            "broken",
            f"{found}; a run of a tiny model takes {size(MEMORY.least)}",
            "free memory, or raise the container's limit",
        )
    if available < MEMORY.comfortable:
        return _check(
            "memory",
            "warning",
            f"{found}: enough for a tiny model alone",
            f"free memory, or raise the container's limit, up to {size(MEMORY.comfortable)}",
        )
    return _check("memory", "ok", found)


def has_nvidia_driver() -> bool:
    """Say whether the machine has a driver by NVIDIA."""
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def gpus(torch: Torch | None) -> list[Check]:
    """Check each GPU that torch sees; where it sees none, say why."""
    if torch is None:
        return []
    if torch.gpus:
        return [_gpu(gpu) for gpu in torch.gpus]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.cuda is not None and visible is not None and visible.strip() in ("", "-1"):
        return [
            _check(
                "GPU",
                "absent",
                f"hidden by CUDA_VISIBLE_DEVICES={visible!r}",
                "unset it to test with --device cuda",
            )
        ]
    if not has_nvidia_driver():
        words = "none (no NVIDIA driver); only --device cuda needs one"
        return [_check("GPU", "absent", words)]
    if torch.cuda is None:
        return [
            _check(
                "GPU",
                "warning",
                f"the machine has an NVIDIA driver, and torch {torch.version} is a CPU build, "
                "which cannot use it",
                "install the build of torch for this driver's CUDA (the start page on pytorch.org "
                "names the command) to test with --device cuda",
            )
        ]
    return [
        _check(
            "GPU",
            "warning",
            f"the machine has an NVIDIA driver, and torch {torch.version} sees no GPU: "
            f"{torch.error}",
            f"compare the driver with CUDA {torch.cuda}, which torch was built for: `nvidia-smi`; "
            "in a container, pass the GPU into it",
        )
    ]


def _gpu(gpu: Gpu) -> Check:
    name = f"GPU {gpu.index}"
    found = f"{gpu.name}, {size(gpu.memory)}, compute capability {gpu.capability}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        found += f", of CUDA_VISIBLE_DEVICES={visible}"
    if gpu.error:
        return _check(
            name,
            "broken",
            f"{found}: it does not compute ({gpu.error})",
            "install a torch that was built for this GPU, or hide the GPU with "
            "CUDA_VISIBLE_DEVICES",
        )
    found += f", {size(gpu.free)} free"
    if gpu.free < GPU_MEMORY.least:
        return _check(
            name, "broken", found, "end what holds its memory (`nvidia-smi`), or choose another GPU"
        )
    if gpu.free < GPU_MEMORY.comfortable:
        return _check(
            name,
            "warning",
            f"{found}: enough for a tiny model alone",
            "see what holds its memory: `nvidia-smi`",
        )
    return _check(name, "ok", found)


def compile_cache() -> Path:
    """Return where torch's Inductor keeps compiled code.

    TORCHINDUCTOR_CACHE_DIR, or else ``torchinductor_USER`` in the folder for temporary files, as
    torch/_inductor/runtime/cache_dir_utils.py has it.
    """
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if chosen:
        return Path(chosen)
    try:
        user = getpass.getuser()
    except (KeyError, ImportError, OSError):  # a container may have no entry for this user
        user = f"uid_{os.getuid()}"
    return Path(tempfile.gettempdir()) / ("torchinductor_" + re.sub(r'[\\/:*?"<>|]', "_", user))


def cache() -> Check:
    """Check that folder; without a folder for temporary files there is none."""
    name, otherwise = "compile cache", "name another folder with TORCHINDUCTOR_CACHE_DIR"
    try:
        return folder(name, compile_cache(), CACHE, otherwise)
    except OSError as error:
        return _check(name, "broken", error.strerror or str(error), "set TMPDIR to such a folder")


def folder(name: str, path: Path, need: Need, otherwise: str) -> Check:
    """Check that a folder can be made and written to, and what its disk has left.

    Nothing stays behind: the try is a temporary file in the nearest folder that exists.
    """
    nearest = path.absolute()
    try:
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir():
            return _check(name, "broken", f"{path}: {nearest} is a file", otherwise)
        with tempfile.TemporaryFile(dir=nearest):
            pass
        free = shutil.disk_usage(nearest).free
    except OSError as error:
        why = first_line(error.strerror or str(error))
        return _check(name, "broken", f"{path} cannot be written to: {why}", otherwise)
    found = f"{path}, {size(free)} free"
    if free < need.least:
        return _check(
            name, "broken", f"{found}; it takes {size(need.least)}", f"free space, or {otherwise}"
        )
    if free < need.comfortable:
        return _check(
            name,
            "warning",
            f"{found}; {size(need.comfortable)} would be better",
            f"free space, or {otherwise}",
        )
    return _check(name, "ok", f"{found}, writable")


def size(count: float) -> str:
    """Write a number of bytes as people do: ``23.4 GiB``."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / MIB:.0f} MiB"


def _check(name: str, status: Status, found: str, advice: str = "") -> Check:
    return Check(group=GROUP, name=name, status=status, found=found, advice=advice)
