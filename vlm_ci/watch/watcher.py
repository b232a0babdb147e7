"""One recorder for everything that the observers see while a target lives."""

from __future__ import annotations

import inspect
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

from vlm_ci.watch import internals, logs
from vlm_ci.watch.events import Event, region_class
from vlm_ci.watch.observers import observers
from vlm_ci.watch.signatures import Binder, Signature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


_NOTHING: dict[str, Any] = {}


@dataclass(slots=True)
class Call:
    """One call of a compiled callable: its name, and the compiled regions executed in it.

    The signature is taken at once in warm-up; later only where the call is refused, so that a
    strict step costs next to nothing. The arguments are held while the call lasts.
    """

    region: str
    binder: Binder
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    signature: Signature | None = None
    regions: int = 0

    def sign(self) -> Signature:
        """Take the signature, if there is none yet."""
        if self.signature is None:
            self.signature = self.binder(self.args, self.kwargs)
        return self.signature


class _InThread(threading.local):
    """The calls of compiled callables that go on in one thread, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[Call] = []


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
        self._calls: list[Call] = []
        self._refused: list[tuple[internals.Refusal, Signature | None, str]] = []
        self._lock = threading.RLock()
        self._local = _InThread()
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
        bind, executed, local = Binder(function), self._executed, self._local
        code = getattr(inspect.unwrap(function), "__code__", None)
        if code is not None:
            self._files[region_class(name)] = code.co_filename

        def wrap(compiled: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(compiled)
            def call(*args: Any, **kwargs: Any) -> Any:
                record = Call(name, bind, args, kwargs)
                if self._signs:
                    record.sign()
                stack = local.stack
                stack.append(record)
                self._calls.append(record)
                before = len(executed)
                try:
                    return compiled(*args, **kwargs)
                finally:
                    record.regions = len(executed) - before
                    stack.pop()
                    record.args, record.kwargs = (), _NOTHING

            return call

        return wrap

    def keep_warm(self) -> None:
        """Keep the signatures of this step's calls as warmed."""
        for call in self._calls:
            known = self.warm.setdefault(region_class(call.region), [])
            if call.signature is not None and call.signature not in known:
                known.append(call.signature)

    def _on_refusal(self, refusal: internals.Refusal) -> None:
        call = self._local.stack[-1] if self._local.stack else None
        if call is not None:
            call.sign()
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
        return list(self._calls)

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
