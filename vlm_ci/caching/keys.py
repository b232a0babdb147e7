"""What compiled code depends on besides the model: the key of a cache. Imports torch late."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vlm_ci.environment import version_of
from vlm_ci.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFIXES = ("TORCHINDUCTOR_", "TRITON_")
_NAMES = ("CC", "CXX")
# Where things lie and how many work on them. Inductor sets some of these by itself, so that they
# would make another key of a process that has compiled already.
_PLACES = ("_DIR", "_PATH", "_HOME")
_WORKERS = ("TORCHINDUCTOR_COMPILE_THREADS", "TORCHINDUCTOR_WORKER_START")


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What the key is made of. ``processor`` is a hash of the CPU's features, for which Inductor's
    C++ is compiled (``-march=native``); ``lock`` one of the user's lock file, "" without."""

    torch: str
    torch_build: str
    triton: str
    transformers: str
    python: str
    system: str
    processor: str
    threads: int
    device: str
    environment: dict[str, str]
    lock: str


def parts(
    device: str, lock: Path | None = None, environment: Mapping[str, str] | None = None
) -> Parts:
    """Return the parts of this process's key, for "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: the lock file cannot be read.
    """
    import torch

    env = os.environ if environment is None else environment
    return Parts(
        torch=str(torch.__version__),
        torch_build=f"{torch.version.git_version}, CUDA {torch.version.cuda}",
        triton=version_of("triton"),
        transformers=version_of("transformers"),
        python=f"{platform.python_implementation()} "
        + ".".join(platform.python_version_tuple()[:2]),
        system=_system(),
        processor=_processor(),
        threads=torch.get_num_threads(),
        device=_device(device),
        environment={
            name: value
            for name, value in sorted(env.items())
            if (name.startswith(_PREFIXES) or name in _NAMES)
            and not name.endswith(_PLACES)
            and name not in _WORKERS
        },
        lock=_digest_of(lock),
    )


def digest(found: Parts) -> str:
    """Return the key: 24 hexadecimal digits."""
    content = msgspec.json.encode(found, order="deterministic")
    return hashlib.sha256(content).hexdigest()[:24]


def _device(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch

    where = torch.device(device)
    major, minor = torch.cuda.get_device_capability(where)
    return f"{torch.cuda.get_device_name(where)}, {major}.{minor}"


def _system() -> str:
    """Name system, architecture and C library: a shared object loads on no other."""
    return " ".join((platform.system(), platform.machine(), *platform.libc_ver()))


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            features = " ".join(sorted(value.split()))
            return hashlib.sha256(features.encode()).hexdigest()[:16]
    return platform.processor()


def _digest_of(lock: Path | None) -> str:
    if lock is None:
        return ""
    try:
        return hashlib.sha256(lock.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read lock file {lock}: {error.strerror or error}") from None
