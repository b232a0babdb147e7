"""The process state that Dynamo guards on, kept as it was. Public torch only."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def preserving_state() -> Iterator[None]:
    """Restore the process state that Dynamo guards on, as it was on entry."""
    before = _state()
    try:
        yield
    finally:
        if _state() != before:  # setting all of it takes longer than looking
            threads, precision, default_dtype, deterministic, warn_only, grad = before
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            torch.set_default_dtype(default_dtype)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.set_grad_enabled(grad)


def _state() -> tuple[int, str, torch.dtype, bool, bool, bool]:
    return (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.is_grad_enabled(),
    )
