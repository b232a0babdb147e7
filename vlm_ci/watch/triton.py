"""Observes Triton: kernels of the user's that are compiled, and autotuning of any kernel.

Triton's hooks are public (``triton.knobs``, since 3.4); Inductor's autotuner is not.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vlm_ci.watch import internals

if TYPE_CHECKING:
    from vlm_ci.watch.observers import Record

UNSEEN = (
    "kernels that Inductor compiles, in processes of its own: only code that Dynamo has just "
    "compiled brings new ones"
)


class TritonObserver:
    """Records "triton-compile" where a kernel of the user's is compiled in this process, and
    "autotune" where configurations of a kernel are tried out, the user's or Inductor's.
    """

    layer = "Triton"
    kinds = ("triton-compile", "autotune")

    def __init__(self, device: str) -> None:
        self._stack = ExitStack()
        self._sees: tuple[str, ...] = ()
        self.blind = ""
        if not device.startswith("cuda"):
            self.blind = "there are no kernels of its on the CPU"
        elif find_spec("triton") is None:
            self.blind = "triton is not installed"

    @property
    def sees(self) -> tuple[str, ...]:
        """The kinds whose hook this Triton has."""
        return self._sees

    def start(self, record: Record) -> None:
        """Set Triton's hooks, keeping those that are there."""
        if self.blind:
            return
        missing = []
        self._sees = ()
        if self._watch_compiles(record):
            self._sees += ("triton-compile",)
        else:
            missing.append("kernels that are compiled (no triton.knobs.runtime hook)")
        if self._watch_autotuning(record):
            self._sees += ("autotune",)
        else:
            missing.append("autotuning")
        self.blind = "; ".join([*missing, UNSEEN])

    def _watch_compiles(self, record: Record) -> bool:
        try:
            runtime = import_module("triton.knobs").runtime
            before = runtime.jit_post_compile_hook
        except (ImportError, AttributeError):
            return False

        def compiled(*args: Any, **details: Any) -> Any:
            if not details.get("already_compiled"):
                function = details.get("fn")
                record(
                    "triton-compile",
                    frame=str(getattr(function, "name", "a kernel")),
                    evidence={"signature": str(details.get("repr", ""))[:500]},
                )
            return before(*args, **details) if before is not None else None

        runtime.jit_post_compile_hook = compiled
        self._stack.callback(setattr, runtime, "jit_post_compile_hook", before)
        return True

    def _watch_autotuning(self, record: Record) -> bool:
        try:
            tuner: Any = import_module("triton.runtime.autotuner").Autotuner
            original = tuner.run
        except (ImportError, AttributeError):
            return False

        @wraps(original)
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            known = len(self.cache)
            result = original(self, *args, **kwargs)
            if len(self.cache) > known:
                name = getattr(getattr(self, "base_fn", self.fn), "__name__", "a kernel")
                record("autotune", frame=name, evidence={"by": "triton.autotune"})
            return result

        tuner.run = run
        self._stack.callback(setattr, tuner, "run", original)
        reported = internals.reporting_autotuning(
            lambda kernel: record("autotune", frame=kernel, evidence={"by": "Inductor"})
        )
        return self._stack.enter_context(reported)

    def collect(self) -> None:
        """Nothing waits: each event is recorded as it happens."""

    def stop(self) -> None:
        """Put the hooks back."""
        self._stack.close()
