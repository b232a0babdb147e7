"""What surrounds a forward: grad mode, autocast, the thread, where inputs were made."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

Inputs = TypeVar("Inputs")
Result = TypeVar("Result")

AUTOCAST_DTYPE = torch.bfloat16


def run_in(
    context: str,
    device: torch.device,
    make_inputs: Callable[[], Inputs],
    forward: Callable[[Inputs], Result],
) -> Result:
    """Make inputs and run ``forward`` on them in a context of ``traffic.spec.CONTEXTS``."""
    if context == "inference_mode":
        with torch.inference_mode():
            return forward(make_inputs())
    if context == "outside_inputs":
        inputs = make_inputs()
        with torch.inference_mode():
            return forward(inputs)
    if context == "no_grad":
        with torch.no_grad():
            return forward(make_inputs())
    if context == "grad":
        with torch.enable_grad():
            return forward(make_inputs())
    if context == "autocast":
        with torch.inference_mode(), torch.autocast(device.type, dtype=AUTOCAST_DTYPE):
            return forward(make_inputs())
    if context == "thread":
        return _in_thread(lambda: run_in("inference_mode", device, make_inputs, forward))
    raise ValueError(f"unknown context {context!r}")


def _in_thread(work: Callable[[], Result]) -> Result:
    results: list[Result] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:  # re-raised in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=target, name="vlm-ci-forward")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
