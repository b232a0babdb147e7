"""The only module that touches private parts of torch, each probed when it is imported.

Why they are needed: torch has no public hook for the start of a compilation, for a refusal under
``fail_on_recompile`` (an exception that model code may swallow), for what became of a compilation,
or for Inductor's autotuning. What torch says in its logs alone is read in ``logs``. Sources:
torch/_dynamo/callback.py, eval_frame.py, convert_frame.py and utils.py,
torch/_inductor/runtime/triton_heuristics.py; read in 2.11 and 2.13.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch._dynamo
from torch._dynamo import eval_frame
from torch._dynamo import utils as dynamo_utils
from torch._dynamo.callback import CallbackArgs, CallbackTrigger, callback_handler
from torch.utils import _pytree as pytree

from vlm_ci.environment import TESTED
from vlm_ci.errors import UsageError
from vlm_ci.watch.guards.text import Guard, lacks_line, parse, with_lines
from vlm_ci.watch.guards.text import short_path as short_path
from vlm_ci.watch.places import place_of

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


_require(eval_frame, "_callback_from_stance", "_stance", "_debug_get_cache_entry_list")
_require(torch.nn.Module, "_compiled_call_impl")
_require(torch._dynamo.config, "recompile_limit")
_require(dynamo_utils, "counters", "get_compilation_metrics", "graph_break_reasons")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What torch knew when it refused a call: the frame, and the guards that failed."""

    filename: str
    function: str
    first_line: int
    failed: tuple[Guard, ...]

    @property
    def frame(self) -> str:
        """The frame as ``function (file:line)``, the file from the package's folder down."""
        return f"{self.function} ({short_path(self.filename)}:{self.first_line})"

    @property
    def guards(self) -> tuple[str, ...]:
        """The guards as torch writes them, without entry numbers and comments."""
        return tuple(guard.text for guard in self.failed)

    @property
    def line(self) -> str:
        """The user's line behind the first guard that has one, "" where none has."""
        return next((guard.line for guard in self.failed if guard.line), "")


def is_refusal(error: BaseException) -> bool:
    """Whether an exception is torch's refusal to compile, or was raised from one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RuntimeError) and STRICT_STANCE in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def is_of_torch(path: str) -> bool:
    """Whether a file belongs to torch."""
    return path.startswith(str(Path(torch.__file__).parent))


_COMMENT = re.compile(r"\s+# .*$")


def parse_guards(message: str) -> tuple[str, ...]:
    """Return the failed guards that a refusal names, without entry numbers and comments."""
    return tuple(guard.text for guard in parse(message))


def _failed_guards(message: str, code: CodeType) -> tuple[Guard, ...]:
    failed = parse(message)
    if any(map(lacks_line, failed)):
        return with_lines(failed, _installed_guards(code))
    return failed


def _installed_guards(code: CodeType) -> Iterator[str]:
    """Yield the guards of all compiled variants of a function, each with the user's line.

    The message of a refusal leaves the line out where a guard on a tensor fails.
    """
    for entry in eval_frame._debug_get_cache_entry_list(code):
        managers: list[Any] = [getattr(entry.guard_manager, "root", None)]
        while managers:
            manager = managers.pop()
            if hasattr(manager, "get_leaf_guards"):
                for leaf in manager.get_leaf_guards():
                    yield from leaf.verbose_code_parts()
                managers += manager.get_child_managers()


@contextmanager
def reporting_refusals(report: Callable[[Refusal], None]) -> Iterator[None]:
    """Call ``report`` at each refusal under the strict stance, before its exception is raised.

    It is seen even where model code swallows the exception, and in every thread.
    """
    original = eval_frame._callback_from_stance
    refusing: dict[int, tuple[Any, Any]] = {}  # made once for each callback: it is asked per call

    def watching(callback: Any) -> Any:  # several times in each call of compiled code: be quick
        if eval_frame._stance.stance != STRICT_STANCE:
            return original(callback)
        if callback is None or callback is False:
            return callback  # nothing would compile here: no stance changes that
        known = refusing.get(id(callback))
        if known is None:
            known = refusing[id(callback)] = (callback, refusal_of(callback))
        return known[1]

    def refusal_of(callback: Any) -> Any:
        chosen: Any = original(callback)

        def refuse(frame: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return chosen(frame, *args, **kwargs)
            except RuntimeError as error:
                code: CodeType = frame.f_code
                report(
                    Refusal(
                        filename=code.co_filename,
                        function=code.co_name,
                        first_line=code.co_firstlineno,
                        failed=_failed_guards(str(error), code),
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


_TRIGGERS = {
    CallbackTrigger.DYNAMO: "dynamo",
    CallbackTrigger.LAZY_BACKWARD: "lazy",
    CallbackTrigger.CUDAGRAPH_RECORDING: "recording",
}


@contextmanager
def reporting_compiles(report: Callable[[str, str], None]) -> Iterator[None]:
    """Call ``report(trigger, compile id)`` whenever a compilation or a recording starts.

    The trigger is "dynamo", "lazy" or "recording"; the id reads "FRAME/N", N from 0.
    ``torch._dynamo.reset()`` drops the registration: register after it.
    """

    def start(args: CallbackArgs) -> None:
        trigger = _TRIGGERS.get(args.callback_trigger)
        if trigger is not None:
            report(trigger, str(args.compile_id))

    callback_handler.register_start_callback(start)
    try:
        yield
    finally:
        if start in callback_handler.start_callbacks:
            callback_handler.remove_start_callback(start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one compilation of a frame. ``installed`` says that Dynamo put compiled code
    in place; ``reason`` is why it compiled again, or why it failed; ``seconds`` is its time;
    ``place`` is the frame as ``vlm_ci.watch.places`` names it."""

    compile_id: str
    frame: str
    place: str
    installed: bool
    reason: str
    seconds: float


class CompileOutcomes:
    """Reads what torch notes about each compilation; it keeps the last 64."""

    def __init__(self) -> None:
        self._last: Any = None

    def skip(self) -> None:
        """Leave out what there is."""
        metrics = dynamo_utils.get_compilation_metrics()
        self._last = metrics[-1] if metrics else None

    def new(self) -> list[Outcome]:
        """Return the outcomes since the last call."""
        metrics = dynamo_utils.get_compilation_metrics()
        if not metrics or metrics[-1] is self._last:
            return []
        known = next((i for i, entry in enumerate(metrics) if entry is self._last), -1)
        self._last = metrics[-1]
        return [
            Outcome(
                compile_id=str(entry.compile_id),
                frame=f"{entry.co_name} "
                f"({short_path(entry.co_filename or '')}:{entry.co_firstlineno})",
                place=place_of(entry.co_filename or "", entry.co_name, entry.co_firstlineno or 0),
                # A frame that Dynamo skips counts as guarded in 2.13, and has no guards.
                installed=bool(entry.has_guarded_code) and entry.guard_count is not None,
                reason=str(entry.fail_reason or entry.recompile_reason or ""),
                seconds=round(entry.entire_frame_compile_time_s or 0.0, 4),
            )
            for entry in metrics[known + 1 :]
            if entry.co_name is not None and not entry.is_runtime
        ]


class GraphBreaks:
    """Reads the graph breaks that Dynamo notes, with the line of the user's that caused each."""

    def __init__(self) -> None:
        self._seen = 0

    def skip(self) -> None:
        """Leave out what there is."""
        self._seen = len(dynamo_utils.graph_break_reasons)

    def new(self) -> list[tuple[str, str]]:
        """Return (reason, line) of each graph break since the last call."""
        reasons = dynamo_utils.graph_break_reasons
        self._seen = min(self._seen, len(reasons))  # a reset empties the list
        found = reasons[self._seen :]
        self._seen = len(reasons)
        return [(str(one.reason).strip(), _innermost(one.user_stack)) for one in found]


def _innermost(stack: Any) -> str:
    if not stack:
        return ""
    place = stack[-1]
    return f"{place.name} ({short_path(place.filename)}:{place.lineno})"


def counters(group: str) -> dict[str, int]:
    """Return one group of torch's counters as it is, by name; those not counted yet are absent."""
    found: dict[str, int] = dynamo_utils.counters[group]
    return found


@contextmanager
def reporting_autotuning(report: Callable[[str], None]) -> Iterator[bool]:
    """Call ``report(kernel)`` where Inductor tries out configurations of a Triton kernel.

    Yields False where this torch has no such place.
    """
    try:
        from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    except ImportError:
        yield False
        return
    tuner: Any = CachingAutotuner
    original = getattr(tuner, "autotune_to_one_config", None)
    if original is None:
        yield False
        return

    def autotune(self: Any, *args: Any, **kwargs: Any) -> Any:
        report(str(getattr(getattr(self, "fn", None), "__name__", "a kernel")))
        return original(self, *args, **kwargs)

    tuner.autotune_to_one_config = autotune
    try:
        yield True
    finally:
        tuner.autotune_to_one_config = original


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
    return sum(dynamo_utils.counters["graph_break"].values())


def reset() -> None:
    """Empty Dynamo's cache and counters. Observers have to be registered again."""
    torch._dynamo.reset()
    dynamo_utils.counters.clear()
