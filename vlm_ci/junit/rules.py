"""Which failures are the infrastructure's, by a table of rules, and which are verdicts that no
rerun can take back. Performs no I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_ci.junit.records import Problem

DIED = "worker-crashed"
# name of the rule, what it means, what has to occur in the failure's own lines (see ``_lines``)
RULES: tuple[tuple[str, str, str], ...] = (
    (
        "runner-lost",
        "the machine of the job went away",
        r"runner has received a shutdown signal|lost communication with the server"
        r"|runner (?:was )?lost\b|the operation was cancell?ed",
    ),
    (
        "interrupted",
        "the session was stopped, as when its job is cancelled",
        r"^the session was interrupted: a test was running",
    ),
    (
        "gpu-out-of-memory",
        "the GPU had no memory left",
        r"(?:CUDA|HIP) out of memory|CUDA error: out of memory|torch\.(?:cuda\.)?OutOfMemoryError"
        r"|cudaErrorMemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED",
    ),
    (
        "host-out-of-memory",
        "the machine had no memory left",
        r"\bMemoryError\b|Cannot allocate memory|DefaultCPUAllocator: (?:can't|not enough)",
    ),
    (
        "disk-full",
        "the machine had no space left",
        r"No space left on device|Disk quota exceeded",
    ),
    (
        "driver",
        "the GPU or its driver did not work",
        r"CUDA driver version is insufficient|driver on your system is too old"
        r"|no CUDA-capable device|No CUDA GPUs are available|Failed to initialize NVML"
        r"|NVML: (?:Unknown|Driver)|Driver/library version mismatch|fallen off the bus"
        r"|uncorrectable (?:NVLink|ECC) error|device\(s\) is/are busy or unavailable"
        r"|CUDA error: (?:system not yet initialized|initialization error|unknown error)",
    ),
    (
        DIED,
        "the process of a worker died, not while it served a session",
        r"worker '[^']*' crashed while running|node down: Not properly terminated",
    ),
)
_COMPILED = [(name, re.compile(pattern, re.IGNORECASE)) for name, _, pattern in RULES]

# A found kind is a verdict on the product, and stands whatever a rerun says. These are none: they
# may come from the machine too.
RETRIABLE = frozenset({"crash", "hang", "stall"})

_AROUND = re.compile(r'^failed on (?:setup|teardown) with "')
_ASSERTION = re.compile(r"(?:AssertionError\b|assert )")


def verdicts(kinds: str) -> tuple[str, ...]:
    """Return the kinds that no rerun takes back, of a property such as ``"mismatch, stall"``."""
    names = (name.strip() for name in kinds.split(","))
    return tuple(name for name in dict.fromkeys(names) if name and name not in RETRIABLE)


def infrastructure(problems: tuple[Problem, ...], *, kinds: str = "") -> tuple[str, str]:
    """Return the rule that says that these failures are the infrastructure's, and what it matched.

    Two empty texts where one of the failures is the product's: a failed assertion always is, and so
    is a process that died while it served a session (``crash`` among the ``kinds``), unless what it
    said matches another rule than that it died.
    """
    found = [_match(problem) for problem in problems]
    if "crash" in (name.strip() for name in kinds.split(",")):
        found = [("", "") if rule == DIED else (rule, hit) for rule, hit in found]
    return found[0] if found and all(rule for rule, _ in found) else ("", "")


def _match(problem: Problem) -> tuple[str, str]:
    message = _AROUND.sub("", problem.message)
    if _ASSERTION.match(message):
        return "", ""
    text = "\n".join([message, *_lines(problem.text)])
    for name, pattern in _COMPILED:
        hit = pattern.search(text)
        if hit:
            return name, hit[0]
    return "", ""


def _lines(text: str) -> list[str]:
    """Return the lines that state the exception: the rest shows source code, which may name
    anything."""
    lines = text.splitlines()
    stated = [line for line in lines if line.startswith("E ")]
    return stated or [line for line in lines if line.strip()][-1:]
