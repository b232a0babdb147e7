"""The failures that a check can find, put in words: what happened, and what would help."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from vlm_ci.errors import UsageError
from vlm_ci.failures import Failure
from vlm_ci.traffic.spec import Batch, Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlm_ci.parity.canary import CanaryResult
    from vlm_ci.parity.relations import Violation
    from vlm_ci.stalls import Stall
    from vlm_ci.warmup import WarmupReport
    from vlm_ci.watch.events import Event
    from vlm_ci.watch.watcher import Watcher

# Events that must not occur after warm-up: the kind of failure, the cause, advice. The first one
# that a step has decides: a recording by cudagraph trees is a capture too.
_SIZES = "add this size to the captured sizes, or pad to one of them"
_KERNEL = "warm this shape up, pad to a bucket, or mark the argument do_not_specialize"
LATE = {
    "compile": ("recompile", "something was compiled after warm-up", "add it to the warm-up"),
    "lazy-compile": (
        "recompile",
        "a part of compiled code was compiled at its first use, after warm-up",
        "let the warm-up use it too: a backward pass is compiled when it first runs",
    ),
    "limit-hit": (
        "limit-hit",
        "the recompile limit was reached after warm-up",
        "see TORCH_LOGS=recompiles",
    ),
    "graph-recording": (
        "graph-capture",
        "Inductor's cudagraph trees recorded a CUDA graph after warm-up",
        _SIZES,
    ),
    "graph-capture": ("graph-capture", "a CUDA graph was captured after warm-up", _SIZES),
    "triton-compile": ("triton-compile", "a Triton kernel was compiled after warm-up", _KERNEL),
    "autotune": ("triton-compile", "a kernel was autotuned after warm-up", _KERNEL),
    "graph-skip": (
        "graph-skip",
        "CUDA graphs were given up for a piece of code",
        "mend what the reason names, or the launches of its kernels are paid one by one",
    ),
}
LIMIT_ADVICE = (
    "find what varies with TORCH_LOGS=recompiles and keep it out of the compiled region; raising "
    "recompile_limit only moves the limit"
)


def crash(where: str, error: Exception, served: tuple[Batch, ...]) -> Failure:
    """A batch that the envelope allows raised; a user's mistake is passed on as it is."""
    if isinstance(error, UsageError):
        raise error
    name = type(error).__name__
    text = str(error).strip().split("\n")[0][:300]
    return Failure(
        kind="crash",
        cause=f"{where} raised {name}: {text}",
        advice="the envelope allows this batch: serve it, or take it out of the envelope",
        key=f"{where} {name}: {re.sub(r'[0-9]+', 'N', text)[:80]}",
        traffic=Session(served),
    )


def endless_warmup(report: WarmupReport) -> Failure:
    """Warm-up went on compiling; the traffic is the batch that compiled most in the end."""
    worst = max(range(len(report.last_round)), key=lambda index: report.last_round[index])
    return Failure(
        kind="unbounded",
        cause=f"warm-up still compiled in round {report.rounds}: "
        f"{sum(report.last_round)} compilations over {len(report.plan.batches)} batches",
        advice="something differs from call to call though the batches are the same: look for "
        "counters and identities in the guards with TORCH_LOGS=recompiles",
        key="warm-up does not converge",
        traffic=Session((report.plan.batches[worst],)),
    )


def limit_hit(function: str, evidence: dict[str, Any], batch: Batch) -> Failure:
    """Warm-up reached the recompile limit at ``function`` with this batch."""
    return Failure(
        kind="limit-hit",
        cause=f"the recompile limit was reached in warm-up at {function}; from then on it runs "
        "eagerly for whatever is not compiled yet",
        advice=LIMIT_ADVICE,
        key=function,
        frame=function,
        guards=(evidence["last_reason"],) if evidence.get("last_reason") else (),
        traffic=Session((batch,)),
    )


def too_many_variants(function: str, count: int, limit: int) -> Failure:
    """All the traffic takes more variants of a frame than torch keeps."""
    return Failure(
        kind="limit-hit",
        cause=f"this traffic takes {count} compiled variants of {function}, and the recompile "
        f"limit is {limit}: beyond it torch runs the frame eagerly",
        advice="remove causes of recompilation from it, or raise torch._dynamo.config."
        "recompile_limit (--recompile-limit) to what it takes",
        key=f"{function} takes more variants",
        frame=function,
    )


def in_warmup(event: Event, batch: Batch) -> Failure:
    """Something of ``IN_WARMUP`` happened while this batch warmed up."""
    return IN_WARMUP[event.kind](event.frame, event.evidence, batch)


def graph_break(frame: str, evidence: dict[str, Any], batch: Batch) -> Failure:
    """Warm-up met a graph break with this batch; torch's own hint becomes the advice."""
    reason, _, rest = str(evidence["reason"]).partition("\n")
    hints = [line.split("Hint: ", 1)[1] for line in rest.split("\n") if "Hint: " in line]
    return Failure(
        kind="graph-break",
        cause=f"graph break at {frame or 'an unknown line'}: {reason}",
        advice=hints[0] if hints else "compile with --fullgraph, which shows what breaks the graph",
        key=f"{frame}: {reason}",
        frame=frame,
        traffic=Session((batch,)),
    )


def graph_skip(frame: str, evidence: dict[str, Any], batch: Batch) -> Failure:
    """Inductor gave CUDA graphs up for a piece of code while this batch warmed up."""
    kind, cause, advice = LATE["graph-skip"]
    reason = str(evidence["reason"]).split("\n")[0]
    return Failure(
        kind=kind,
        cause=f"{cause}: {reason}",
        advice=advice,
        key=re.sub(r"\d+", "N", reason),
        frame=frame,
        traffic=Session((batch,)),
    )


# What the watch may have against a warm-up.
IN_WARMUP = {"limit-hit": limit_hit, "graph-break": graph_break, "graph-skip": graph_skip}


def late(event: Event, served: tuple[Batch, ...]) -> Failure:
    """Something of ``LATE`` happened in a strict step."""
    kind, cause, advice = LATE[event.kind]
    if event.kind == "compile" and event.evidence.get("new_frame"):
        kind, cause = "new-frame", "a frame was compiled for the first time, after warm-up"
    told = ", ".join(
        str(event.evidence[name]) for name in ("reason", "by") if name in event.evidence
    )
    named = " ".join(part for part in (event.frame, f"({told})" if told else "") if part)
    return Failure(
        kind=kind,
        cause=f"{cause}: {named}" if named else cause,
        advice=advice,
        key=f"{event.kind} {event.frame}",
        frame=event.frame,
        traffic=Session(served),
    )


# What pays for a first use, by the operator that grew most, and what would help.
_PAYS = (
    (
        "cudnn_attention",
        "choose another SDPA backend: cuDNN builds a plan for each new shape "
        "(torch.backends.cuda.enable_cudnn_sdp(False), or torch.nn.attention.sdpa_kernel)",
    ),
    (
        "module|library|lazy|kernel",
        "kernels are loaded at their first use: set CUDA_MODULE_LOADING=EAGER, or warm these "
        "shapes",
    ),
    ("conv", "convolutions choose an algorithm for each shape: warm these shapes, or pad"),
)


def stall(found: Stall, served: tuple[Batch, ...]) -> Failure:
    """A shape cost much more at its first use than when it was repeated."""
    payers = "; ".join(f"{name} {seconds * 1e3:.0f} ms more" for name, seconds in found.operators)
    first = found.operators[0][0] if found.operators else ""
    return Failure(
        kind="stall",
        cause=f"a new shape took {found.first * 1e3:.0f} ms and its repeat "
        f"{found.repeat * 1e3:.0f} ms, though nothing was compiled that Dynamo sees"
        + (f": {payers}" if payers else ""),
        advice=next(
            (advice for pattern, advice in _PAYS if re.search(pattern, first, re.IGNORECASE)),
            "pad to buckets that the warm-up has, or warm these shapes",
        ),
        key=f"first use: {first}",
        traffic=Session(served),
        note=found.note,
    )


def skipped(watcher: Watcher, regions: Sequence[str]) -> tuple[str, str]:
    """Say what to do about compiled code that executes nothing, and what the watch knows of it."""
    in_torch = [region for region in regions if watcher.is_of_torch(region)]
    if in_torch:
        return (
            "Dynamo skips code that lies in torch/nn, such as torch.nn.Sequential.forward, when it "
            "is compiled in place: use torch.compile(module), or compile a module of your own "
            "around it",
            "",
        )
    events = {
        f"{event.frame}{': ' if event.evidence['reason'] else ''}{event.evidence['reason']}"
        for event in watcher.events
        if event.kind == "frame-skip"
    }
    note = f"Dynamo gave frames up in warm-up: {'; '.join(sorted(events)[:3])}" if events else ""
    advice = (
        "let the first call of the frame in warm-up run tensor operations: a frame whose first "
        "call has none is skipped for ever"
        if events
        else "find out why Dynamo skips it: run with TORCH_LOGS=graph_breaks,recompiles"
    )
    return advice, note


def blind(outcome: CanaryResult) -> Failure:
    """The canary moved nothing."""
    modality = outcome.modality
    return Failure(
        kind="vacuous",
        cause=f"changing every {modality} moves no logit beyond the tolerance (by at most "
        f"{outcome.largest_change:.3g}), so that a dropped {modality} would go unseen",
        advice="initialise the model with a wider distribution, or open gates that start at zero",
        key=f"canary {modality}",
        traffic=Session((outcome.batch,)),
    )


def never_called(recipe: str) -> Failure:
    """Nothing that the recipe compiles was ever called."""
    return Failure(
        kind="vacuous",
        cause=f"no batch reached anything that recipe {recipe!r} compiles",
        advice="choose a recipe that compiles what this traffic runs through",
        key="never called",
    )


def never_compared(batches: int) -> Failure:
    """Every step was tolerated before it came to its logits."""
    return Failure(
        kind="vacuous",
        cause=f"none of {batches} batches came to its logits: what ended each of them is tolerated",
        advice="warm up with what is refused, or let its policy be fail",
        key="never compared",
    )


def is_late(failure: Failure) -> bool:
    """Whether a failure comes from an event after warm-up, not from a refused call."""
    return failure.key.split(" ")[0] in LATE


def nonfinite(twin: str, location: dict[str, Any], served: tuple[Batch, ...]) -> Failure:
    """The logits of a twin, "eager" or "compiled", hold NaN or Inf."""
    return Failure(
        kind="nonfinite",
        cause=f"the {twin} logits hold NaN or Inf at request {location['request']}, token "
        f"{location['token']} ({location['modality']})",
        advice="look for a row that is masked as a whole, or an overflow in this type",
        key=twin,
        location=location,
        traffic=Session(served),
    )


def broken_relation(found: Violation, served: tuple[Batch, ...]) -> Failure:
    """A metamorphic relation does not hold for the compiled twin."""
    return Failure(
        kind="mismatch",
        cause=found.text,
        advice="no eager baseline is needed to see this, and eager may have the fault too: look "
        "for what reaches from one row, place or batch to another",
        key=f"relation {found.relation}",
        location={
            "relation": found.relation,
            "request": found.request,
            "token": found.token,
            "modality": found.modality,
            "note": "no module is named and nothing drawn: both answers are the compiled twin's",
        },
        traffic=Session(served),
        note=f"set beside {', then '.join(map(repr, found.batches))}",
    )


def no_reference(text: str, served: tuple[Batch, ...]) -> Failure:
    """Eager is further from its higher-precision reference than rounding explains."""
    return Failure(
        kind="vacuous",
        cause=text,
        advice="eager and the reference do not compute the same thing, so that their difference "
        "is no measure of rounding: look for code that depends on the type, or judge with "
        "--reference none",
        key="eager is far from its reference",
        traffic=Session(served),
    )


_COMPILER = (
    "nothing was compiled again: the code that {} makes of this graph computes something else than "
    "the graph; reduce it to that graph and report it to PyTorch"
)
# By the stage at fault (see vlm_ci.parity.localisation).
MISMATCH_ADVICE = {
    "model code": "no compiler is at fault: the Python of the compiled twin computes something "
    "else than eager's, also where nothing is compiled. Compare the two at the module named",
    "Dynamo": "nothing was compiled again: the graph that Dynamo captured computes something else "
    "than the Python code. Look for torch.compiler.is_compiling() and for values that were "
    "constants when it was captured",
    "AOTAutograd": _COMPILER.format("AOTAutograd"),
    "Inductor": _COMPILER.format("Inductor"),
    "AOTAutograd or Inductor": _COMPILER.format("AOTAutograd or Inductor"),
}


def mismatch(
    cause: str,
    key: str,
    served: tuple[Batch, ...],
    *,
    location: dict[str, Any] | None = None,
) -> Failure:
    """The compiled logits are not eager's."""
    return Failure(
        kind="mismatch",
        cause=cause,
        advice="nothing was compiled again: the compiled code computes something else. Compare "
        "backends eager, aot_eager and inductor to see which stage does",
        key=key,
        location=location,
        traffic=Session(served),
    )
