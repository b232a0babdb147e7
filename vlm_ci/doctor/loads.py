"""Loads what has to be loaded, and lets each GPU compute; torch is imported inside the probes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import msgspec

from vlm_ci.doctor.outcomes import Gpu, Torch, expect
from vlm_ci.doctor.records import first_line

if TYPE_CHECKING:
    from collections.abc import Callable


def torch_loads() -> Torch:
    """Load torch, and let each GPU that it sees compute something."""
    import torch

    available = torch.version.cuda is not None and torch.cuda.is_available()
    return Torch(
        version=str(torch.__version__),
        cuda=torch.version.cuda,
        threads=torch.get_num_threads(),
        gpus=tuple(map(_gpu, range(torch.cuda.device_count()))) if available else (),
        error="" if available else _why_no_gpu(),
    )


def _why_no_gpu() -> str:
    import torch

    if torch.version.cuda is None:
        return ""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return first_line(str(error))
    return "torch.cuda.is_available() is False"


def _gpu(index: int) -> Gpu:
    import torch

    known = torch.cuda.get_device_properties(index)
    gpu = Gpu(
        index=index,
        name=known.name,
        capability=f"{known.major}.{known.minor}",
        memory=known.total_memory,
    )
    try:
        total = float((torch.arange(4.0, device=f"cuda:{index}") * 2).sum())
        expect(total == 12, f"2 * (0 + 1 + 2 + 3) gave {total}")
        return msgspec.structs.replace(gpu, free=torch.cuda.mem_get_info(index)[0])
    except Exception as error:
        return msgspec.structs.replace(gpu, error=first_line(error))


def transformers_loads() -> str:
    """Load transformers, which checks the versions of what it depends on."""
    import_module("transformers")
    return "loads"


def torchvision_loads() -> str:
    """Load torchvision; a build for another torch fails here."""
    import_module("torchvision")
    return "loads"


LOADS: dict[str, Callable[[], str | Torch]] = {
    "torch": torch_loads,
    "transformers": transformers_loads,
    "torchvision": torchvision_loads,
}
