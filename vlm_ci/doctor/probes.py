"""Tries each observer by doing what it has to see; ``launch`` runs it in a process of its own.

``main`` appends one line of JSON to a file when a probe starts and one when it ends, so that a
crash tells where it came from. Importing it loads no torch.
"""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vlm_ci.doctor.loads import LOADS
from vlm_ci.doctor.outcomes import NotHere, Outcome, ProbeFailed, Torch, expect
from vlm_ci.doctor.records import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vlm_ci.watch.watcher import Watcher


class Trial:
    """A watcher at work, and a way to compile functions under it."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.graphs = 0

    def compile(self, function: Callable[..., Any], backend: str = "eager") -> Callable[..., Any]:
        """Compile a function as a target does, for the sizes that it is called with."""
        import torch

        from vlm_ci.targets.backends import CompileOptions, CountingBackend

        counting = CountingBackend(
            CompileOptions(backend=backend),
            on_graph=self._count_graph,
            on_region=self.watcher.region_executed,
        )
        compiled: Callable[..., Any] = torch.compile(function, backend=counting, dynamic=False)
        observed: Callable[..., Any] = self.watcher.observe("probe", function)(compiled)
        return observed

    def warm(self, compiled: Callable[..., Any]) -> None:
        """Let a compiled function compile for two ones, and keep the call as one of warm-up."""
        compiled(_ones(2))
        expect(self.graphs > 0, "torch.compile compiled nothing")
        self.watcher.keep_warm()

    def _count_graph(self) -> None:
        self.graphs += 1


@contextmanager
def trial() -> Iterator[Trial]:
    """Start from an empty cache with a watcher, and leave Dynamo as it was found: empty."""
    from vlm_ci.watch import internals
    from vlm_ci.watch.watcher import Watcher

    limit = internals.recompile_limit()
    internals.reset()
    watcher = Watcher()
    watcher.start()
    watcher.begin("warmup")
    watcher.begin_step()
    try:
        yield Trial(watcher)
    finally:
        watcher.stop()
        internals.set_recompile_limit(limit)
        internals.reset()


def _ones(*sizes: int, device: str = "cpu") -> Any:
    import torch

    return torch.ones(*sizes, device=device)


# -- observers ---------------------------------------------------------------------------------


def refused_calls() -> str:
    """A call that would compile again is refused and recorded, its guards and difference too."""
    from vlm_ci.watch import internals
    from vlm_ci.watch.explain import explain

    def probed(x: Any) -> Any:
        return x + 1

    with trial() as t:
        compiled = t.compile(probed)
        t.warm(compiled)
        t.watcher.begin("strict")
        t.watcher.begin_step()
        with internals.strict():
            compiled(_ones(2))
            expect(not t.watcher.refusals, "a call as in warm-up was refused")
            try:
                compiled(_ones(3).double())
            except RuntimeError:
                raised = True
            else:
                raised = False
        seen = len(t.watcher.refusals)
        expect(seen == 1, f"one call had to be refused, and {seen} refusals were recorded")
        expect(raised, "the call was refused, and no exception was raised")
        expect(t.watcher.counts("strict")["compile"] == 0, "the refused call compiled all the same")
        refusal, signature, _region = t.watcher.refusals[0]
        expect(bool(refusal.guards), "the refusal names no guard")
        cause = explain(refusal.guards, signature, t.watcher.warm["probe"]).cause
        expect(
            cause == "x: dtype is float64; in warm-up it was float32",
            f"the cause reads {cause!r}, and an argument of another type was it",
        )
    return "a call that would compile again is refused; it is recorded with its guards and cause"


def swallowed_refusals() -> str:
    """A refusal is recorded also where the model's own code swallows the exception."""
    from vlm_ci.watch import internals

    def probed(x: Any) -> Any:
        return x * 2

    with trial() as t:
        compiled = t.compile(probed)
        t.warm(compiled)

        def model_code(x: Any) -> Any:
            try:
                return compiled(x)
            except Exception:
                return x * 2

        with internals.strict():
            model_code(_ones(3))
        seen = len(t.watcher.refusals)
        expect(seen == 1, f"one call had to be refused, and {seen} refusals were recorded")
    return "a refusal is recorded also where the model's own code swallows the exception"


def compilations() -> str:
    """Each compilation of a frame is recorded, a new frame's after warm-up too."""

    def first(x: Any) -> Any:
        return x + 1

    def second(x: Any) -> Any:
        return x - 1

    with trial() as t:
        one, two = t.compile(first), t.compile(second)
        t.warm(one)
        for call, size, expected in ((one, 2, 1), (two, 2, 2), (one, 3, 3)):
            call(_ones(size))
            seen = t.watcher.count("compile")
            expect(seen == expected, f"torch compiled {expected} times, and {seen} were recorded")
    return "each compilation is recorded: of a new frame, and again for another size"


def recompile_limit() -> str:
    """A frame that torch gives up on, and runs eagerly from then on, is recorded."""
    from vlm_ci.watch import internals

    def probed(x: Any) -> Any:
        return x + 1

    with trial() as t:
        internals.set_recompile_limit(2)
        compiled = t.compile(probed)
        t.warm(compiled)
        compiled(_ones(3))
        expect(t.watcher.count("limit-hit") == 0, "recorded before the limit was reached")
        for size in (4, 5):
            compiled(_ones(size))
        seen = t.watcher.count("limit-hit")
        expect(seen == 1, f"the limit was reached once, and recorded {seen} times")
    return "it is recorded where torch gives up on a frame and runs it eagerly from then on"


def compiled_regions() -> str:
    """Each execution of a compiled region is counted, and code that runs eagerly is not."""

    def probed(x: Any) -> Any:
        return x * 3

    with trial() as t:
        compiled = t.compile(probed)
        t.warm(compiled)
        for expected in (2, 3):
            compiled(_ones(2))
            seen = t.watcher.regions
            expect(seen == expected, f"a region was executed {expected} times, and {seen} counted")
        probed(_ones(2))
        expect(t.watcher.regions == 3, "counted a region where the function ran eagerly")
        expect(t.graphs == 1, f"the backend compiled {t.graphs} graphs in place of one")
    return "each execution of compiled code is counted, and code that runs eagerly is not"


def graph_captures() -> str:
    """A capture of a CUDA graph is recorded, and its replay is not."""
    import torch

    if not torch.cuda.is_available():
        raise NotHere(
            "CUDA graphs exist on a GPU alone; on the CPU result.json says that captures were "
            "not observed"
        )
    with trial() as t:
        source = _ones(8, device="cuda")
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            doubled = source * 2  # what a first call allocates must not fall into the capture
        torch.cuda.current_stream().wait_stream(side)
        expect(t.watcher.count("graph-capture") == 0, "recorded one before there was one")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            doubled = source * 2
        source.fill_(3.0)
        graph.replay()
        torch.cuda.synchronize()
        expect(float(doubled[0]) == 6, f"the replay computed {float(doubled[0])} in place of 6")
        seen = t.watcher.count("graph-capture")
        expect(seen == 1, f"one graph was captured, and {seen} recorded")
    return "each capture of a CUDA graph is recorded, and its replays are not"


# -- what takes long ---------------------------------------------------------------------------


def inductor_on(device: str) -> str:
    """Compile something with Inductor, run it, and compare it with eager."""
    import torch

    def probed(x: Any) -> Any:
        return torch.softmax(x * 2, dim=-1).sum(dim=0)

    if device != "cpu" and not torch.cuda.is_available():
        raise NotHere("torch sees no GPU")
    with trial() as t:
        given = torch.arange(64.0 * 300, device=device).reshape(64, 300).sin()
        answer = t.compile(probed, backend="inductor")(given)
        expect(t.watcher.regions == 1, f"{t.watcher.regions} compiled regions executed, not 1")
        error = float((answer - probed(given)).abs().max())
        expect(error < 1e-4, f"differs from eager by {error:.3g}")
    return "compiled, ran, and agreed with eager"


def triton_autotuning() -> str:
    """Let Inductor autotune a kernel on the GPU, and count what the watch sees of it."""
    import torch

    if not torch.cuda.is_available():
        raise NotHere("Triton's kernels are compiled on a GPU alone")
    import_module("triton")

    def probed(x: Any) -> Any:
        return torch.softmax(x, dim=-1).sum(dim=0)

    with trial() as t:
        torch.compile(probed, mode="max-autotune-no-cudagraphs")(_ones(512, 4096, device="cuda"))
        seen = t.watcher.count("triton-compile")
    if not seen:
        raise NotHere("Inductor compiled in mode max-autotune, and nothing of it was seen")
    return f"{seen} autotuned kernels were seen"


OBSERVERS: dict[str, Callable[[], str]] = {
    "refused calls": refused_calls,
    "swallowed refusals": swallowed_refusals,
    "compilations": compilations,
    "recompile limit": recompile_limit,
    "compiled regions": compiled_regions,
    "CUDA graph captures": graph_captures,
}
THOROUGH: dict[str, Callable[[], str]] = {
    "Inductor on the CPU": lambda: inductor_on("cpu"),
    "Inductor on the GPU": lambda: inductor_on("cuda"),
    "Triton autotuning": triton_autotuning,
}
PROBES: dict[str, Callable[[], str | Torch]] = {**LOADS, **OBSERVERS, **THOROUGH}


def attempt(name: str) -> Outcome:
    """Run one probe; whatever it raises becomes its outcome."""
    try:
        seen = PROBES[name]()
    except NotHere as missing:
        return Outcome(probe=name, state="absent", found=str(missing))
    except ProbeFailed as failure:
        return Outcome(probe=name, state="fails", found=str(failure))
    except Exception as error:
        return Outcome(probe=name, state="fails", found=first_line(error))
    if isinstance(seen, Torch):
        return Outcome(probe=name, state="works", torch=seen)
    return Outcome(probe=name, state="works", found=seen)


def main(file: str, names: Sequence[str]) -> None:
    """Run the named probes in their order, and append to ``file`` what becomes of each."""
    with Path(file).open("ab", buffering=0) as out:
        for name in names:
            out.write(msgspec.json.encode(Outcome(probe=name, state="started")) + b"\n")
            out.write(msgspec.json.encode(attempt(name)) + b"\n")
