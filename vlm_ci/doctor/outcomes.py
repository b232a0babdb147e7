"""What a probe says: records for the process that started it, and two errors. Imports no torch."""

from __future__ import annotations

from typing import Literal

import msgspec


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU that torch sees. Memory in bytes; ``error`` says why it cannot compute, if so."""

    index: int
    name: str
    capability: str
    memory: int
    free: int = 0
    error: str = ""


class Torch(msgspec.Struct, frozen=True, kw_only=True):
    """What torch says of itself. ``cuda`` is the CUDA that it was built for; None: a CPU build.

    ``error`` says why a build for CUDA sees no GPU, or is empty.
    """

    version: str
    cuda: str | None
    threads: int
    gpus: tuple[Gpu, ...] = ()
    error: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How far a probe came. A probe that is "started" and no more ended the process."""

    probe: str
    state: Literal["started", "works", "fails", "absent"]
    found: str = ""
    torch: Torch | None = None


class ProbeFailed(Exception):
    """What should have been seen was not."""


class NotHere(Exception):
    """There is nothing on this machine to try it on."""


def expect(condition: bool, words: str) -> None:
    """Raise ProbeFailed with ``words`` unless the condition holds."""
    if not condition:
        raise ProbeFailed(words)
