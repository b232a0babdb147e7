"""Tries what exists on a GPU alone by doing it: CUDA graphs, Triton. Importing it loads no torch.

Also what the stall watch needs, because it watches on a GPU unless it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vlm_ci.doctor.outcomes import NotHere, expect
from vlm_ci.doctor.trial import need_gpu, ones, trial

if TYPE_CHECKING:
    from vlm_ci.doctor.trial import Trial

_NO_GRAPHS = (
    "CUDA graphs exist on a GPU alone; on the CPU result.json says that captures were not observed"
)
_NO_KERNELS = (
    "Triton compiles kernels for a GPU alone; on the CPU result.json says that they were not "
    "observed"
)


def operators() -> str:
    """The profiler, which tells what a stall was spent on, names an operator as torch does."""
    import torch

    given = ones(2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        given + given
    spent = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    named = ", ".join(sorted(spent)) or "nothing"
    expect("aten::add" in spent, f"two tensors were added, and torch.profiler names {named}")
    expect(spent["aten::add"] > 0, "torch.profiler says that an addition takes no time")
    found = "torch.profiler names the operators that a first use is spent on"
    if torch.cuda.is_available():
        return found
    return f"{found}; without a GPU stalls are watched only where --policy names stall"


def graph_captures() -> str:
    """A capture of a CUDA graph is recorded, and its replay is not."""
    import torch

    need_gpu(_NO_GRAPHS)
    with trial("cuda") as t:
        source = ones(8, device="cuda")
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


def triton_kernels() -> str:
    """A kernel of the user's is recorded when it is compiled, and not when it is reused."""
    double = _kernel()
    with trial("cuda") as t:
        for count, expected in ((1024, 1), (1024, 1), (1023, 2), (1021, 2)):
            _launch(double, count, block=256)
            _expect_events(t, "triton-compile", expected)
        return f"each kernel that is compiled in this process is recorded; {_unseen()}"


def triton_autotuning() -> str:
    """The choice among the configurations of a user's kernel is recorded, once for each key."""
    kernel = _kernel()
    triton = import_module("triton")
    double = triton.autotune(
        configs=[triton.Config({"block": block}) for block in (256, 512)], key=["count"]
    )(kernel)
    with trial("cuda") as t:
        for count, expected in ((1024, 1), (1024, 1), (2048, 2)):
            _launch(double, count)
            _expect_events(t, "autotune", expected)
    return "each choice among the configurations of a kernel is recorded, and its reuse is not"


# -- what takes long ---------------------------------------------------------------------------


def graph_recordings() -> str:
    """Recordings by Inductor's cudagraph trees are recorded, replays are not; skips are."""
    import torch

    need_gpu(_NO_GRAPHS)
    _need_triton()

    def probed(x: Any) -> Any:
        return torch.softmax(x * 2, dim=-1)

    def writing(x: Any) -> Any:
        return x.add_(1) * 2

    with trial("cuda") as t:
        compiled = t.compile(probed, backend="inductor", mode="reduce-overhead")
        given = ones(16, 64, device="cuda")
        expected = probed(given)
        for _ in range(4):  # Inductor runs it once as it is, then records, then replays
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            answer = compiled(given).clone()
        torch.cuda.synchronize()
        expect(torch.allclose(answer, expected, atol=1e-5), "the replay differs from eager")
        _expect_events(t, "graph-recording", 1)
        captures = len(t.events("graph-capture"))
        expect(captures >= 1, "the recording is no capture")
        expect(not t.events("graph-skip"), "a skip was recorded, and CUDA graphs were used")
        compiled = t.compile(writing, backend="inductor", mode="reduce-overhead")
        for _ in range(3):
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            compiled(given)
        skips = t.events("graph-skip")
        expect(bool(skips), "CUDA graphs were given up for code that writes into its input, unseen")
        reason = str(skips[0].evidence["reason"])
        expect("mutated inputs" in reason, f"the reason reads {reason!r}; a mutated input was it")
    return "recordings by cudagraph trees are recorded, and where CUDA graphs are given up"


def inductor_autotuning() -> str:
    """The choice among the configurations of a kernel of Inductor's is recorded.

    The compile cache keeps such choices: it has to be empty, as ``launch`` sees to.
    """
    import torch

    need_gpu(_NO_KERNELS)
    _need_triton()

    def probed(x: Any) -> Any:
        return torch.softmax(x, dim=-1).sum(dim=0)

    with trial("cuda") as t:
        torch.compile(probed, mode="max-autotune-no-cudagraphs")(ones(512, 4096, device="cuda"))
        seen = [one for one in t.events("autotune") if one.evidence.get("by") == "Inductor"]
    expect(bool(seen), "Inductor compiled in mode max-autotune, and no choice of its was recorded")
    return f"its choices among configurations are recorded: {len(seen)} for one small graph"


# -- what they share ---------------------------------------------------------------------------


def _need_triton() -> None:
    if find_spec("triton") is None:
        raise NotHere("triton is not installed: no kernel of its can run")


def _kernel() -> Any:
    """Return a kernel that nothing was compiled for yet, or say why there is none."""
    need_gpu(_NO_KERNELS)
    _need_triton()
    return import_module("triton").jit(import_module("vlm_ci.doctor.kernel").double)


def _launch(kernel: Any, count: int, **options: int) -> None:
    source, result = ones(count, device="cuda"), ones(count, device="cuda")

    def grid(chosen: dict[str, int]) -> tuple[int]:
        return (-(-count // chosen["block"]),)

    kernel[grid](source, result, count, **options)
    total = float(result.sum())
    expect(total == 2 * count, f"the kernel computed {total} in place of {2 * count}")


def _expect_events(t: Trial, kind: str, expected: int) -> None:
    seen = len(t.events(kind))
    expect(seen == expected, f"{expected} {kind} events had to be recorded, and {seen} were")


def _unseen() -> str:
    from vlm_ci.watch.triton import UNSEEN

    return f"not seen are {UNSEEN}"
