"""Tries what is watched of Dynamo by letting Dynamo do it. Importing it loads no torch."""

from __future__ import annotations

from typing import Any

from vlm_ci.doctor.outcomes import expect
from vlm_ci.doctor.trial import ones, trial


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
            compiled(ones(2))
            expect(not t.watcher.refusals, "a call as in warm-up was refused")
            try:
                compiled(ones(3).double())
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
        cause = explain(refusal.failed, signature, t.watcher.warm["probe"]).cause
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
            model_code(ones(3))
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
            call(ones(size))
            seen = t.watcher.count("compile")
            expect(seen == expected, f"torch compiled {expected} times, and {seen} were recorded")
    return "each compilation is recorded: of a new frame, and again for another size"


def recompile_reasons() -> str:
    """What became of a compilation is recorded, with the guard that made it necessary."""

    def probed(x: Any) -> Any:
        return x + 1

    with trial() as t:
        compiled = t.compile(probed)
        t.warm(compiled)
        seen = len(t.events("compiled"))
        expect(seen == 1, f"code was installed once, and recorded {seen} times")
        compiled(ones(3))
        after = t.events("compiled")
        expect(len(after) == 2, f"code was installed twice, and recorded {len(after)} times")
        expect("probed (" in after[1].frame, f"it names the frame {after[1].frame!r}, not probed")
        reason = str(after[1].evidence["reason"])
        expect("expected 2, actual 3" in reason, f"the reason reads {reason!r}; it was a size")
    return "what became of a compilation is recorded, with the guard that made it necessary"


def graph_breaks() -> str:
    """A graph break is recorded with the line that caused it and torch's reason."""
    import torch

    eager = torch.compiler.disable(_as_it_is)  # type: ignore[no-untyped-call]

    def probed(x: Any) -> Any:
        x = x + 1
        return eager(x) * 2

    with trial() as t:
        t.warm(t.compile(_plus_one))
        expect(not t.events("graph-break"), "recorded one before there was one")
        t.compile(probed)(ones(2))
        breaks = t.events("graph-break")
        expect(len(breaks) == 1, f"the graph broke once, and {len(breaks)} breaks were recorded")
        frame, reason = breaks[0].frame, str(breaks[0].evidence["reason"])
        line = probed.__code__.co_firstlineno + 2
        right = frame.startswith("probed (") and frame.endswith(f":{line})")
        expect(right, f"the break was in line {line} of probed, and {frame!r} was recorded")
        expect("disable" in reason, f"the reason reads {reason!r}; a disabled function was it")
    return "a graph break is recorded with its line and its reason"


def skipped_frames() -> str:
    """A frame that Dynamo gives up over a graph break, and runs eagerly for ever, is recorded."""
    import torch

    eager = torch.compiler.disable(_as_it_is)  # type: ignore[no-untyped-call]

    def probed(x: Any) -> Any:
        for _ in range(2):
            x = eager(x + 1)
        return x

    with trial() as t:
        t.warm(t.compile(_plus_one))
        expect(not t.events("frame-skip"), "recorded one before there was one")
        t.compile(probed)(ones(2))
        skips = t.events("frame-skip")
        expect(len(skips) == 1, f"one frame was skipped, and {len(skips)} were recorded")
        expect("probed (" in skips[0].frame, f"it names the frame {skips[0].frame!r}, not probed")
        expect(bool(skips[0].evidence["reason"]), "no reason is recorded")
    return "a frame that Dynamo gives up over a graph break is recorded with its reason"


def recompile_limit() -> str:
    """A frame that torch gives up on, and runs eagerly from then on, is recorded."""
    from vlm_ci.watch import internals

    def probed(x: Any) -> Any:
        return x + 1

    with trial() as t:
        internals.set_recompile_limit(2)
        compiled = t.compile(probed)
        t.warm(compiled)
        compiled(ones(3))
        expect(t.watcher.count("limit-hit") == 0, "recorded before the limit was reached")
        for size in (4, 5):
            compiled(ones(size))
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
            compiled(ones(2))
            seen = t.watcher.regions
            expect(seen == expected, f"a region was executed {expected} times, and {seen} counted")
        probed(ones(2))
        expect(t.watcher.regions == 3, "counted a region where the function ran eagerly")
        expect(t.graphs == 1, f"the backend compiled {t.graphs} graphs in place of one")
    return "each execution of compiled code is counted, and code that runs eagerly is not"


def _as_it_is(x: Any) -> Any:
    return x


def _plus_one(x: Any) -> Any:
    return x + 1
