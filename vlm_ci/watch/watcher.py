"""One recorder for everything that the observers see while a target lives."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch

from vlm_ci.watch import internals
from vlm_ci.watch.events import Event, region_class
from vlm_ci.watch.signatures import Binder, Signature

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(slots=True, kw_only=True)
class Call:
    """One call of a compiled callable: its name, and the compiled regions executed in it.

    The signature is taken at once in warm-up; later only where the call is refused, so that a
    strict step costs next to nothing.
    """

    region: str
    take_signature: Callable[[], Signature]
    signature: Signature | None = None
    regions: int = 0


class Watcher:
    """Records events, executed regions and calls, step by step.

    Start it after ``internals.reset()``, which drops what an earlier watcher had registered.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.phase = "load"
        self.sign_all = False  # take the signature of every call, also in the strict phase
        self._run_start = 0
        self.step = 0
        self.regions = 0  # compiled regions executed since the start
        self.warm: dict[str, list[Signature]] = {}  # signatures by region class, from warm-up
        self._calls: list[Call] = []
        self._refused: list[tuple[internals.Refusal, Signature | None, str]] = []
        self._lock = threading.RLock()
        self._local = threading.local()
        self._stack = ExitStack()

    def start(self) -> None:
        """Register the observers."""
        self._stack.enter_context(
            internals.reporting_compiles(
                lambda kind, compile_id: self.record(kind, evidence={"compile_id": compile_id})
            )
        )
        self._stack.enter_context(internals.reporting_refusals(self._on_refusal))
        self._stack.enter_context(
            internals.reporting_limits(
                lambda function, reason: self.record(
                    "limit-hit", frame=function, evidence={"last_reason": reason}
                )
            )
        )
        self._stack.enter_context(
            _reporting_captures(
                lambda: self.record("graph-capture", evidence={"by": "torch.cuda.CUDAGraph"})
            )
        )

    def stop(self) -> None:
        """Take the observers away again."""
        self._stack.close()

    # -- recording ---------------------------------------------------------------------------

    def begin(self, phase: str) -> None:
        """Enter a phase; its steps count from 1."""
        self.phase, self.step = phase, 0

    def begin_run(self) -> None:
        """Begin another run over the same target: phases are counted from here on."""
        self._run_start = len(self.events)

    @property
    def run_events(self) -> list[Event]:
        """The events since ``begin_run``."""
        return self.events[self._run_start :]

    def begin_step(self) -> None:
        """Begin the next forward: what follows belongs to it."""
        internals.keep_trace_to_itself()
        with self._lock:
            self.step += 1
            self._calls, self._refused = [], []

    def record(self, kind: str, *, frame: str = "", evidence: dict[str, Any] | None = None) -> None:
        """Append an event to the list; safe from any thread."""
        with self._lock:
            self.events.append(
                Event(
                    kind=kind,
                    time=time.time(),
                    phase=self.phase,
                    step=self.step,
                    frame=frame,
                    evidence=evidence or {},
                )
            )

    def region_executed(self) -> None:
        """Count one execution of a compiled region."""
        with self._lock:
            self.regions += 1
        stack = self._stack_of_calls()
        if stack:
            stack[-1].regions += 1

    def observe(self, name: str, function: Callable[..., Any]) -> Callable[[Any], Any]:
        """Return a wrapper for the compiled form of ``function`` that records each call."""
        bind = Binder(function)

        def wrap(compiled: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(compiled)
            def call(*args: Any, **kwargs: Any) -> Any:
                record = Call(region=name, take_signature=lambda: bind(args, kwargs))
                if self.phase != "strict" or self.sign_all:
                    record.signature = record.take_signature()
                stack = self._stack_of_calls()
                stack.append(record)
                with self._lock:
                    self._calls.append(record)
                try:
                    return compiled(*args, **kwargs)
                finally:
                    stack.pop()
                    record.take_signature = _gone
                    if stack:
                        stack[-1].regions += record.regions

            return call

        return wrap

    def keep_warm(self) -> None:
        """Keep the signatures of this step's calls as warmed."""
        for call in self._calls:
            known = self.warm.setdefault(region_class(call.region), [])
            if call.signature is not None and call.signature not in known:
                known.append(call.signature)

    def _stack_of_calls(self) -> list[Call]:
        stack: list[Call] | None = getattr(self._local, "stack", None)
        if stack is None:
            stack = self._local.stack = []
        return stack

    def _on_refusal(self, refusal: internals.Refusal) -> None:
        stack = self._stack_of_calls()
        call = stack[-1] if stack else None
        if call is not None:
            call.signature = call.signature or call.take_signature()
        with self._lock:
            self._refused.append(
                (refusal, call.signature if call else None, call.region if call else "")
            )
        self.record(
            "refusal",
            frame=refusal.frame,
            evidence={
                "guards": list(refusal.guards),
                "region": call.region if call else "",
            },
        )

    # -- reading -----------------------------------------------------------------------------

    @property
    def calls(self) -> list[Call]:
        """The calls of compiled callables in this step."""
        return list(self._calls)

    @property
    def refusals(self) -> list[tuple[internals.Refusal, Signature | None, str]]:
        """The refusals of this step, each with the call it happened in and that call's region."""
        return list(self._refused)

    def count(self, kind: str) -> int:
        """Count the events of a kind since the start."""
        return sum(event.kind == kind for event in self.events)

    def counts(self, phase: str) -> Counter[str]:
        """Count the events of one phase of this run by kind."""
        return Counter(event.kind for event in self.run_events if event.phase == phase)


def _gone() -> Signature:
    raise RuntimeError("the call is over and its arguments are no longer held")


class _reporting_captures(ExitStack):
    """Reports captures by anyone through ``torch.cuda.CUDAGraph.capture_begin``."""

    def __init__(self, report: Callable[[], None]) -> None:
        super().__init__()
        graph = getattr(torch.cuda, "CUDAGraph", None)
        if graph is None or not torch.cuda.is_available():
            return
        original = graph.capture_begin

        @wraps(original)
        def capture_begin(self: Any, *args: Any, **kwargs: Any) -> Any:
            report()
            return original(self, *args, **kwargs)

        graph.capture_begin = capture_begin
        self.callback(setattr, graph, "capture_begin", original)
