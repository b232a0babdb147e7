"""The probes: each tries something by doing it; ``launch`` runs them in a process of its own.

``main`` appends one line of JSON to a file when a probe starts and one when it ends, so that a
crash tells where it came from. Importing it loads no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vlm_ci.doctor import dynamo_probes, gpu_probes, inductor_probes
from vlm_ci.doctor.loads import LOADS
from vlm_ci.doctor.outcomes import NotHere, Outcome, ProbeFailed, Torch
from vlm_ci.doctor.records import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OBSERVERS: dict[str, Callable[[], str]] = {
    "refused calls": dynamo_probes.refused_calls,
    "swallowed refusals": dynamo_probes.swallowed_refusals,
    "compilations": dynamo_probes.compilations,
    "recompile reasons": dynamo_probes.recompile_reasons,
    "graph breaks": dynamo_probes.graph_breaks,
    "skipped frames": dynamo_probes.skipped_frames,
    "recompile limit": dynamo_probes.recompile_limit,
    "compiled regions": dynamo_probes.compiled_regions,
    "stalls": gpu_probes.operators,
    "CUDA graph captures": gpu_probes.graph_captures,
    "Triton kernels": gpu_probes.triton_kernels,
    "Triton autotuning": gpu_probes.triton_autotuning,
}
# What takes long: compiling with Inductor, and observers that need it.
INDUCTOR: dict[str, Callable[[], str]] = {
    "Inductor on the CPU": lambda: inductor_probes.inductor_on("cpu"),
    "Inductor on the GPU": lambda: inductor_probes.inductor_on("cuda"),
}
THOROUGH: dict[str, Callable[[], str]] = {
    "lazy compilations": inductor_probes.lazy_compilations,
    "compile caches": inductor_probes.compile_caches,
    "CUDA graph recordings": gpu_probes.graph_recordings,
    "Inductor's autotuning": gpu_probes.inductor_autotuning,
}
PROBES: dict[str, Callable[[], str | Torch]] = {**LOADS, **OBSERVERS, **INDUCTOR, **THOROUGH}


def attempt(name: str) -> Outcome:
    """Run one probe; whatever it raises becomes its outcome."""
    try:
        seen = PROBES[name]()
    except NotHere as missing:
        return Outcome(probe=name, state="absent", found=str(missing))
    except ProbeFailed as failure:
        return Outcome(probe=name, state="fails", found=str(failure))
    except Exception as error:
        return Outcome(probe=name, state="fails", found=first_line(error))
    if isinstance(seen, Torch):
        return Outcome(probe=name, state="works", torch=seen)
    return Outcome(probe=name, state="works", found=seen)


def main(file: str, names: Sequence[str]) -> None:
    """Run the named probes in their order, and append to ``file`` what becomes of each."""
    with Path(file).open("ab", buffering=0) as out:
        for name in names:
            out.write(msgspec.json.encode(Outcome(probe=name, state="started")) + b"\n")
            out.write(msgspec.json.encode(attempt(name)) + b"\n")
