"""The first module whose value diverges, of two traces of one model. Runs no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_ci.parity.localisation.judging import worst

if TYPE_CHECKING:
    import torch

    from vlm_ci.parity.localisation.traces import Call, Trace, Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """A trace to judge, the one it should equal, and one in higher precision; a value diverges
    where its ratio (``judging.ratios``) is beyond ``factor``."""

    actual: Trace
    expected: Trace
    reference: Trace | None
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first module whose value diverges, and how: what its inputs have to do with it."""

    module: str
    ratio: float
    note: str


def first_divergence(traces: Traces, model: torch.nn.Module) -> Divergence | None:
    """Return the first module, in the order in which calls end, with an output that diverges.

    A leaf that got wrong inputs stands for the block around it, if that is a block of leaves: an
    output projection after a wrong mask for its attention. A module that one twin alone calls is
    named where the values begin to diverge in the forward that should have called it.
    """
    for call in traces.actual.calls:
        ratio = _output_ratio(call, traces)
        if ratio > traces.factor:
            return _explained(call, ratio, traces, model)
    return None


def _explained(call: Call, ratio: float, traces: Traces, model: torch.nn.Module) -> Divergence:
    call = _block(call, traces, model)
    differing = _inputs(call, traces)
    if not differing:
        return Divergence(module=call.name, ratio=ratio, note=_beyond(ratio))
    giver = call.parent
    while giver is not None and _inputs(giver, traces):
        giver = giver.parent
    words = ", ".join(f"{path}{what}" for path, what in differing.items())
    note = f"its inputs differ already: {words}"
    if giver is None:
        return Divergence(module=call.name, ratio=ratio, note=note)
    note += f", made in the forward of {_called(giver, model)}"
    alone, which = _called_alone(call, giver, traces)
    if alone:
        note = (
            f"{which} calls it in the forward of {_called(giver, model)}; "
            f"the inputs of {call.name} differ then: {words}"
        )
    return Divergence(module=alone or call.name, ratio=ratio, note=note)


def _beyond(ratio: float) -> str:
    return f"its inputs agree; its error is {ratio:.3g} times eager's own"


def _called(call: Call, model: torch.nn.Module) -> str:
    return call.name or type(model).__name__


def _block(call: Call, traces: Traces, model: torch.nn.Module) -> Call:
    """Return the block around a leaf that got wrong inputs in it, where the block diverges too."""
    parent = call.parent
    if parent is None or not parent.name:
        return call
    block = model.get_submodule(parent.name)
    if any(list(child.children()) for child in block.children()):
        return call
    if not _inputs(call, traces) or _output_ratio(parent, traces) <= traces.factor:
        return call
    return parent


def _output_ratio(call: Call, traces: Traces) -> float:
    other = traces.expected.get(call.key)
    if other is None:
        return 0.0
    reference = traces.reference.get(call.key) if traces.reference else None
    return max(
        _ratios(call.outputs, other.outputs, reference.outputs if reference else None).values(),
        default=0.0,
    )


def _inputs(call: Call, traces: Traces) -> dict[str, str]:
    """Return the inputs of a call that differ, each with what is to be said of it."""
    other = traces.expected.get(call.key)
    if other is None:
        return {}
    reference = traces.reference.get(call.key) if traces.reference else None
    found = {}
    ratios = _ratios(call.inputs, other.inputs, reference.inputs if reference else None)
    for path in call.inputs.keys() & other.inputs.keys():
        here, there = call.inputs[path], other.inputs[path]
        if here is None and there is None:
            continue
        if here is None or there is None:
            kinds = ["None" if each is None else "a tensor" for each in (here, there)]
            found[path] = f" ({kinds[0]}; {kinds[1]} in eager)"
        elif here.shape != there.shape:
            found[path] = " (of another shape)"
        elif ratios[path] > traces.factor:
            found[path] = ""
    return dict(sorted(found.items()))


def _ratios(actual: Values, expected: Values, reference: Values | None) -> dict[str, float]:
    found = {}
    for path, value in actual.items():
        other = expected.get(path)
        if value is not None and other is not None:
            found[path] = worst(value, other, reference.get(path) if reference else None)
    return found


def _called_alone(call: Call, giver: Call, traces: Traces) -> tuple[str, str]:
    """Return a module that one twin alone calls in a forward, before ``call``, and which twin."""
    for these, others, which in (
        (traces.expected, traces.actual, "eager alone"),
        (traces.actual, traces.expected, "the compiled twin alone"),
    ):
        for each in these.calls:
            if each.key == call.key:
                break
            if each.parent and each.parent.key == giver.key and others.get(each.key) is None:
                return each.name, which
    return "", ""
