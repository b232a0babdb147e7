"""Guard families of tensors, sizes aside: dtype, rank, device, gradients, dispatch keys, marks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_ci.watch.guards.family import ADD, TENSOR, GuardFamily
from vlm_ci.watch.guards.state import STATE_ADVICE

if TYPE_CHECKING:
    import re

_KEYS = TENSOR + r"dispatch key set mismatch\. expected DispatchKeySet\("
# The keys that an inference tensor lacks; those that the process leaves out do not show.
_TRACKED = r"(?:ADInplaceOrView|Autograd\w+)"
_ACTUAL = r"\), actual DispatchKeySet\("


def _gradient(match: re.Match[str]) -> str:
    did = match["old"] == "1"
    return (
        f"{match['name']} {'required' if did else 'did not require'} a gradient when this was "
        f"compiled, and {'does not' if did else 'does'} now"
    )


def _keys(match: re.Match[str]) -> str:
    old, new = (set(match[side].split(", ")) for side in ("old", "new"))
    lost, gained = ", ".join(sorted(old - new)), ", ".join(sorted(new - old))
    changes = [f"without {lost}"] if lost else []
    changes += [f"with {gained}"] if gained else []
    return (
        f"{match['name']} has other dispatch keys than when this was compiled: "
        f"{' and '.join(changes)}"
    )


FAMILIES = (
    GuardFamily(
        name="dtype",
        pattern=TENSOR + r"dtype mismatch\. expected (?P<old>\w+), actual (?P<new>\w+)",
        words="{name} was of dtype {old} when this was compiled, and is {new} now",
        advice=f"cast {{name}} to one dtype before the call, or {ADD}",
        recorded=True,
    ),
    GuardFamily(
        name="rank",
        pattern=TENSOR + r"rank mismatch\. expected (?P<old>\d+), actual (?P<new>\d+)",
        words="{name} had {old} dimensions when this was compiled, and has {new} now",
        advice=f"always give {{name}} the same number of dimensions (unsqueeze), or {ADD}",
        recorded=True,
    ),
    GuardFamily(
        name="requires_grad",
        pattern=TENSOR + r"requires_grad mismatch\. expected requires_grad=(?P<old>\d)",
        words=_gradient,
        advice="enter torch.no_grad() around every call and pass tensors that are .detach()ed; "
        "call requires_grad_() on parameters before warm-up",
        recorded=True,
    ),
    GuardFamily(
        name="inference tensor",
        pattern=_KEYS + rf"(?P<new>[^)]*?)(?:, {_TRACKED})+" + _ACTUAL + r"(?P=new)\)",
        words="{name} is an inference tensor now, and was none when this was compiled",
        advice=STATE_ADVICE["inference mode"],
        recorded=True,
    ),
    GuardFamily(
        name="inference tensor",
        pattern=_KEYS + r"(?P<old>[^)]*)" + _ACTUAL + rf"(?P=old)(?:, {_TRACKED})+\)",
        words="{name} was an inference tensor when this was compiled, and is none now",
        advice=STATE_ADVICE["inference mode"],
        recorded=True,
    ),
    GuardFamily(
        name="device",
        pattern=r"^(?:tensor '(?P<name>.+?)' )?[Tt]ensor device index mismatch",
        words="a tensor was on another device of this kind when this was compiled",
        advice="move the inputs to the device that warm-up used before the call",
        recorded=True,
    ),
    GuardFamily(
        name="device",
        pattern=_KEYS + r"(?P<old>\w+)\b.*" + _ACTUAL + r"(?!(?P=old)\b)(?P<new>\w+)",
        words="{name} was a {old} tensor when this was compiled, and is a {new} tensor now",
        advice="move {name} to the device (and layout) that warm-up used before the call",
        recorded=True,
    ),
    GuardFamily(
        name="lazy view",
        pattern=_KEYS + r"(?P<old>.*)" + _ACTUAL + r"(?P<new>.*\b(?:Conjugate|Negative)\b.*)\)",
        words="{name} is a lazily conjugated or negated view now, and was none when this was "
        "compiled",
        advice="pass {name}.resolve_conj().resolve_neg(), in warm-up as in serving",
    ),
    GuardFamily(
        name="dispatch keys",
        pattern=_KEYS + r"(?P<old>.*)" + _ACTUAL + r"(?P<new>.*)\)",
        words=_keys,
        advice="call compiled code in the same modes and transforms (TorchDispatchMode, "
        "torch.vmap) in warm-up as in serving",
    ),
    GuardFamily(
        name="tensor subclass",
        pattern=r"^___check_metadata_|^__dtensor_spec_|^___check_opaque_guard_fn_",
        words="the metadata of a tensor subclass (a DTensor's placement, say) changed",
        advice=f"use one placement and one layout for it, or {ADD}",
    ),
    GuardFamily(
        name="marked dimensions",
        pattern=r"_dynamo_(?:\w*indices|shape_ids|unbacked_bounds|dim_marking)"
        r"|_has_dynamo_dim_marking",
        words="a tensor carries other marks (mark_dynamic, mark_unbacked, mark_static) than when "
        "this was compiled",
        advice="mark the same dimensions in warm-up as in serving: put the marks where every call "
        "passes",
    ),
)
