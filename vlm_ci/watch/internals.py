"""The only module that touches private parts of torch, each probed when it is imported.

Why they are needed: torch has no public hook for the start of a compilation, for a refusal under
``fail_on_recompile`` (an exception that model code may swallow), or for the recompile limit
(a log line). Sources: torch/_dynamo/callback.py, eval_frame.py and convert_frame.py; read in
2.11 and 2.13.
"""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch._dynamo
from torch._dynamo import eval_frame
from torch._dynamo.callback import CallbackArgs, CallbackTrigger, callback_handler
from torch.utils import _pytree as pytree

from vlm_ci.environment import TESTED
from vlm_ci.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType

STRICT_STANCE = "fail_on_recompile"


class UnsupportedTorch(UsageError):
    """This torch lacks something that the watch needs."""


def _require(owner: Any, *names: str) -> None:
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        oldest, newest = TESTED["torch"]
        raise UnsupportedTorch(
            f"torch {torch.__version__} has no {', '.join(missing)} in {owner.__name__}, which "
            f"vlm_ci needs to watch compilation; it was tested with torch {oldest} to {newest}"
        )


_require(eval_frame, "_callback_from_stance", "_stance")
_require(torch.nn.Module, "_compiled_call_impl")
_require(torch._dynamo.config, "recompile_limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What torch knew when it refused a call: the frame, and the guards that failed."""

    filename: str
    function: str
    line: int
    guards: tuple[str, ...]

    @property
    def frame(self) -> str:
        """The frame as ``function (file:line)``, the file from the package's folder down."""
        return f"{self.function} ({short_path(self.filename)}:{self.line})"


def short_path(path: str) -> str:
    """Cut a path down to what follows ``site-packages/``, or to its last three parts."""
    _head, found, tail = path.rpartition("site-packages/")
    return tail if found else "/".join(path.split("/")[-3:])


_REASON = re.compile(r"^\s*-?\s*\d+/\d+:\s*(?P<guard>.*)$", re.MULTILINE)
_COMMENT = re.compile(r"\s+# .*$")


def parse_guards(message: str) -> tuple[str, ...]:
    """Return the failed guards that a refusal names, without entry numbers and comments."""
    found = (_COMMENT.sub("", match["guard"]).strip() for match in _REASON.finditer(message))
    return tuple(dict.fromkeys(found))


@contextmanager
def reporting_refusals(report: Callable[[Refusal], None]) -> Iterator[None]:
    """Call ``report`` at each refusal under the strict stance, before its exception is raised.

    It is seen even where model code swallows the exception, and in every thread.
    """
    original = eval_frame._callback_from_stance

    def watching(callback: Any) -> Any:
        chosen = original(callback)
        if chosen is callback or not callable(chosen):
            return chosen
        if eval_frame._stance.stance != STRICT_STANCE:
            return chosen

        def refuse(frame: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return chosen(frame, *args, **kwargs)
            except RuntimeError as error:
                code: CodeType = frame.f_code
                report(
                    Refusal(
                        filename=code.co_filename,
                        function=code.co_name,
                        line=code.co_firstlineno,
                        guards=parse_guards(str(error)),
                    )
                )
                raise

        # Dynamo looks the backend up here; without it every cache entry would miss.
        refuse._torchdynamo_orig_backend = callback  # type: ignore[attr-defined]
        return refuse

    eval_frame._callback_from_stance = watching
    try:
        yield
    finally:
        eval_frame._callback_from_stance = original


@contextmanager
def strict() -> Iterator[None]:
    """Refuse every call that would compile, in all threads, before anything is compiled."""
    with torch.compiler.set_stance(STRICT_STANCE):
        yield


@contextmanager
def preserving_state() -> Iterator[None]:
    """Restore the process state that Dynamo guards on, as it was on entry."""
    threads = torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    default_dtype = torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    grad = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(default_dtype)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_grad_enabled(grad)


# Recordings by cudagraph trees are left out: they go through CUDAGraph.capture_begin, where the
# watcher sees them together with everybody else's captures.
_TRIGGERS = {
    CallbackTrigger.DYNAMO: "compile",
    CallbackTrigger.LAZY_BACKWARD: "compile",
    # torch 2.11 to 2.13 do not raise it ("temporarily disabled"); the next one may.
    CallbackTrigger.TRITON_AUTOTUNING: "triton-compile",
}


@contextmanager
def reporting_compiles(report: Callable[[str, str], None]) -> Iterator[None]:
    """Call ``report(kind, compile id)`` whenever a compilation or a recording starts.

    ``torch._dynamo.reset()`` drops the registration: register after it.
    """

    def start(args: CallbackArgs) -> None:
        kind = _TRIGGERS.get(args.callback_trigger)
        if kind is not None:
            report(kind, str(args.compile_id))

    callback_handler.register_start_callback(start)
    try:
        yield
    finally:
        if start in callback_handler.start_callbacks:
            callback_handler.remove_start_callback(start)


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


def keep_trace_to_itself() -> None:
    """Take foreign handlers off torch's structured trace; its own one, of TORCH_TRACE, stays.

    pytest 9.2 attaches its handler to every logger that does not propagate. On this one it makes
    torch build the whole trace, and fills a failure's report with thousands of empty lines.
    """
    logger = logging.getLogger("torch.__trace")
    for handler in list(logger.handlers):
        if not type(handler).__module__.startswith("torch."):
            logger.removeHandler(handler)


class CacheMark:
    """Tells whether Dynamo's cache was emptied since the mark was set.

    ``torch._dynamo.reset()`` drops every callback that was registered: this one too.
    """

    def __init__(self) -> None:
        callback_handler.register_start_callback(self._hear)

    def _hear(self, args: CallbackArgs) -> None:
        """Hear of a compilation, and do nothing."""

    def holds(self) -> bool:
        """Whether the cache was never emptied."""
        return self._hear in callback_handler.start_callbacks

    def remove(self) -> None:
        """Take the mark away."""
        if self.holds():
            callback_handler.remove_start_callback(self._hear)


def intercept_calls(
    module: torch.nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Replace a compiled module's call by ``wrap(call)``; the module itself stays untouched."""
    compiled = module._compiled_call_impl
    if compiled is None:
        raise ValueError("the module has not been compiled")
    module._compiled_call_impl = wrap(compiled)


def cloning(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Clone the tensors that a callable returns, which the next CUDA graph replay overwrites."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return pytree.tree_map_only(torch.Tensor, torch.clone, compiled(*args, **kwargs))

    return call


def recompile_limit() -> int:
    """Return the number of variants of a frame beyond which torch runs it eagerly."""
    limit: int = torch._dynamo.config.recompile_limit
    return limit


def set_recompile_limit(limit: int) -> None:
    """Set that number for the process."""
    torch._dynamo.config.recompile_limit = limit


def graph_breaks() -> int:
    """Return the graph breaks that Dynamo has counted since the last reset."""
    counter: dict[str, int] = torch._dynamo.utils.counters["graph_break"]
    return sum(counter.values())


def reset() -> None:
    """Empty Dynamo's cache and counters. Observers have to be registered again."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
