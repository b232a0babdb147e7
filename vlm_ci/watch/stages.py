"""What telling the compiler's stages apart needs of torch: its private parts, as in ``internals``.

It changes nothing that outlives a ``with`` block, and compiles nothing. Source:
torch/_dynamo/eval_frame.py and utils.py, torch/nn/modules/module.py; read in 2.11 and 2.13.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch._dynamo import utils as dynamo_utils

from vlm_ci.watch import internals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled modules as the Python code that they were compiled from, in all threads."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def intercepted(
    module: torch.nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Let a compiled module's calls go through ``wrap(call)``, and put the call back as it was."""
    before = module._compiled_call_impl
    internals.intercept_calls(module, wrap)
    try:
        yield
    finally:
        module._compiled_call_impl = before


@contextmanager
def uncounted() -> Iterator[None]:
    """Put torch's counters back as they were: what is compiled here is not the target's."""
    counters = dynamo_utils.counters
    before = {group: dict(counted) for group, counted in counters.items()}
    try:
        yield
    finally:
        for group in counters:
            counters[group].clear()
            counters[group].update(before.get(group, {}))
