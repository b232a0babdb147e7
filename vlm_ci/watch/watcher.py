"""One recorder for everything that the observers see while a target lives."""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

from vlm_ci.watch import internals, logs
from vlm_ci.watch.events import Event, region_class
from vlm_ci.watch.observers import observers
from vlm_ci.watch.signatures import Binder, Signature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType


class Call(NamedTuple):
    """One call of a compiled callable: its name, and the compiled regions executed in it.

    The signature is taken in warm-up, and later only where a call is refused, so that a strict
    step costs next to nothing.
    """

    region: str
    regions: int
    signature: Signature | None = None


class Watcher:
    """Records events, executed regions and calls, step by step.

    Start it after ``internals.reset()``, which drops what an earlier watcher had registered.
    ``region_executed(graph)`` notes one execution of a compiled region, of the graph with this
    number. It runs inside of compiled code, where each Python frame costs Dynamo's hook: it is the
    ``append`` of a list, which is safe from any thread.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.observers = observers(device)
        self.events: list[Event] = []
        self._files: dict[str, str] = {}  # where the code of each region class lies
        self.phase = "load"
        self._signs = True  # take the signature of every call
        self._sign_all = False
        self._run_start = 0
        self.step = 0
        self._executed: list[int] = []  # numbers of the graphs executed in this step
        self._executed_before = 0  # how many were in earlier steps
        self.region_executed = self._executed.append
        self.warm: dict[str, list[Signature]] = {}  # signatures by region class, from warm-up
        self._calls: list[tuple[Any, ...]] = []  # the fields of each Call
        self._wrapper: CodeType | None = None  # the code that all wrappers of `observe` share
        self._refused: list[tuple[internals.Refusal, Signature | None, str]] = []
        self._lock = threading.RLock()
        self._stack = ExitStack()
        self._watching = False
        self._collected = True  # since the last step began
        self._count: Counter[str] = Counter()

    def start(self) -> None:
        """Register the observers."""
        self._stack.enter_context(internals.reporting_refusals(self._on_refusal))
        for observer in self.observers:
            observer.start(self.record)
            self._stack.callback(observer.stop)
        self._watching = True

    def stop(self) -> None:
        """Take the observers away again."""
        self._watching = False
        self._stack.close()

    # -- recording ---------------------------------------------------------------------------

    def begin(self, phase: str) -> None:
        """Enter a phase; its steps count from 1."""
        self.end_step()
        self.phase, self.step = phase, 0
        self.record("phase")
        self._signs = phase != "strict" or self.sign_all

    def begin_run(self) -> None:
        """Begin another run over the same target: phases are counted from here on."""
        self._run_start = len(self.events)

    @property
    def run_events(self) -> list[Event]:
        """The events since ``begin_run``."""
        return self.events[self._run_start :]

    def begin_step(self) -> None:
        """Begin the next forward: what follows belongs to it."""
        logs.keep_trace_to_itself()
        if not self._collected:
            self.end_step()
        self._collected = False
        self.step += 1
        self._calls, self._refused = [], []
        self._executed_before += len(self._executed)
        self._executed.clear()

    @property
    def sign_all(self) -> bool:
        """Whether the signature of every call is taken, also in the strict phase."""
        return self._sign_all

    @sign_all.setter
    def sign_all(self, value: bool) -> None:
        self._sign_all = value
        self._signs = value or self.phase != "strict"

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Serve something beside the step that goes on: its calls and regions stay as they are.

        What is executed meanwhile counts in ``regions``, which never falls, and in no step.
        """
        calls, refused, executed = self._calls, self._refused, list(self._executed)
        try:
            yield
        finally:
            self.end_step()
            self._calls, self._refused = calls, refused
            self._executed_before = self.regions - len(executed)
            self._executed[:] = executed

    def end_step(self) -> None:
        """End a forward: what torch has counted in it becomes events."""
        self._collected = True
        for observer in self.observers if self._watching else ():
            observer.collect()

    def record(self, kind: str, *, frame: str = "", evidence: dict[str, Any] | None = None) -> None:
        """Append an event to the list; safe from any thread."""
        with self._lock:
            self._count[kind] += 1
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

    def observe(self, name: str, function: Callable[..., Any]) -> Callable[[Any], Any]:
        """Return a wrapper for the compiled form of ``function`` that records each call."""
        bind, executed = Binder(function), self._executed
        code = getattr(inspect.unwrap(function), "__code__", None)
        if code is not None:
            self._files[region_class(name)] = code.co_filename

        def wrap(compiled: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                signed = (bind(args, kwargs),) if self._signs else ()
                before = len(executed)
                try:
                    return compiled(*args, **kwargs)
                finally:
                    self._calls.append((name, len(executed) - before, *signed))

            self._wrapper = call.__code__
            return wraps(compiled)(call)

        return wrap

    def _current_call(self) -> tuple[str, Signature | None]:
        """The innermost call of a compiled callable in this thread: its name and signature.

        Its arguments are read from the frame of its wrapper, which keeps nothing by itself.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not self._wrapper:
            frame = frame.f_back
        if frame is None:
            return "", None
        seen = frame.f_locals
        return seen["name"], seen["bind"](seen["args"], seen["kwargs"])

    def keep_warm(self) -> None:
        """Keep the signatures of this step's calls as warmed."""
        for call in self.calls:
            known = self.warm.setdefault(region_class(call.region), [])
            if call.signature is not None and call.signature not in known:
                known.append(call.signature)

    def _on_refusal(self, refusal: internals.Refusal) -> None:
        region, signature = self._current_call()
        with self._lock:
            self._refused.append((refusal, signature, region))
        self.record(
            "refusal",
            frame=refusal.frame,
            evidence={
                "guards": list(refusal.guards),
                "region": region,
            },
        )

    # -- reading -----------------------------------------------------------------------------

    @property
    def regions(self) -> int:
        """The compiled regions executed since the start."""
        return self._executed_before + len(self._executed)

    @property
    def executed(self) -> Counter[int]:
        """The compiled regions executed in this step, by the number of the graph."""
        return Counter(self._executed)

    @property
    def calls(self) -> list[Call]:
        """The calls of compiled callables in this step."""
        return [Call(*one) for one in self._calls]

    @property
    def refusals(self) -> list[tuple[internals.Refusal, Signature | None, str]]:
        """The refusals of this step, each with the call it happened in and that call's region."""
        return list(self._refused)

    def is_of_torch(self, region: str) -> bool:
        """Whether the code of a region class lies in torch itself."""
        return internals.is_of_torch(self._files.get(region, ""))

    def count(self, kind: str) -> int:
        """Count the events of a kind since the start."""
        return self._count[kind]

    def counts(self, phase: str) -> Counter[str]:
        """Count the events of one phase of this run by kind."""
        return Counter(event.kind for event in self.run_events if event.phase == phase)
