"""What torch says in its logs and nowhere else: recompile limits, CUDA graphs that it gives up.

Knows the names of torch's loggers and the beginnings of its messages; read in 2.11 and 2.13.
"""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vlm_ci.watch.guards.text import short_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_COMMENT = re.compile(r"\s+# .*$")


class _LimitHandler(logging.Handler):
    """Turns Dynamo's warning about a limit into a call; the record itself goes its usual way."""

    def __init__(self, report: Callable[[str, str], None]) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, str) and record.msg.startswith("torch._dynamo hit config."):
            message = record.getMessage()
            function = re.search(
                r"function: '(?P<name>.*)' \((?P<path>.*):(?P<line>\d+)\)", message
            )
            reason = re.search(r"last reason: (?:\d+/\d+: )?(?P<guard>.*)", message)
            self._report(
                f"{function['name']} ({short_path(function['path'])}:{function['line']})"
                if function
                else "unknown",
                _COMMENT.sub("", reason["guard"]).strip() if reason else "",
            )


@contextmanager
def reporting_limits(report: Callable[[str, str], None]) -> Iterator[None]:
    """Call ``report(function, last reason)`` when Dynamo reaches a recompile limit.

    Dynamo says so in a log line and nowhere else. The warning is recorded here and kept off the
    terminal, where it would stand in the middle of the progress line.
    """
    logger = logging.getLogger("torch._dynamo.convert_frame")
    handler = _LimitHandler(report)
    propagate, level = logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    if not logger.isEnabledFor(logging.WARNING):  # TORCH_LOGS=-dynamo silences it
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


@contextmanager
def reporting_graph_skips(report: Callable[[str], None]) -> Iterator[None]:
    """Call ``report(reason)`` where Inductor gives CUDA graphs up for a piece of code."""
    handler = _SkipHandler(report)
    logger = logging.getLogger("torch._inductor.cudagraph_utils.__cudagraphs")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _SkipHandler(logging.Handler):
    def __init__(self, report: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "skipping cudagraph" in message:
            self._report(message.strip())


_TRACE = logging.getLogger("torch.__trace")


def keep_trace_to_itself() -> None:
    """Take foreign handlers off torch's structured trace; its own one, of TORCH_TRACE, stays.

    pytest 9.2 attaches its handler to every logger that does not propagate. On this one it makes
    torch build the whole trace, and fills a failure's report with thousands of empty lines.
    """
    logger = _TRACE
    for handler in list(logger.handlers):
        if not type(handler).__module__.startswith("torch."):
            logger.removeHandler(handler)
