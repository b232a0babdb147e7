"""An interrupt is not lost where Python drops it. Imports no torch.

What a signal's handler raises in a callback of the garbage collector or in a destructor goes
nowhere: Python prints it and goes on. Hypothesis has such a callback, and torch makes collections
long, so that Ctrl-C or the cancellation of a job would now and then only look as if it were taken.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_raised: list[int] = []  # by handlers, in this process, since the outermost ``remembered``
_depth = 0


@contextmanager
def remembered() -> Iterator[None]:
    """Remember that a handler of SIGINT or SIGTERM raised KeyboardInterrupt, for ``check``.

    Handlers do what they did. Outside the main thread, where there are none, nothing happens.
    """
    global _depth
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, _remembering(handler))
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not _depth:
            _raised.clear()
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)


def check() -> None:
    """Raise the interrupt that was dropped, if one was.

    Raises:
        KeyboardInterrupt: a handler raised it, and nobody took it.
    """
    if _raised:
        _raised.clear()
        raise KeyboardInterrupt


def _remembering(handler: Callable[[int, Any], Any]) -> Callable[[int, Any], None]:
    def handle(number: int, frame: Any) -> None:
        try:
            handler(number, frame)
        except KeyboardInterrupt:
            _raised.append(number)
            raise

    return handle
