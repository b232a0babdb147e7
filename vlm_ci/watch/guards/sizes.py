"""Guard families of sizes and strides: what is static, specialised, duck-shaped or compared."""

from __future__ import annotations

import re

from vlm_ci.watch.guards.family import ADD, OUT, PAD, TENSOR, GuardFamily

_TERM = r"[\w\s().,*+%/-]+"
_SIZE = r"[\w.\[\]'\"()]+\.shape\[\d+\]"
_BRANCH = (
    f"the code decides by this size: {PAD}, {OUT}, or add a batch from this side of the decision "
    "to the warm-up"
)


def _worded(size: str) -> str:
    """Write ``x.shape[1]`` as ``size 1 of x``."""
    return re.sub(r"^(.+)\.shape\[(\d+)\]$", r"size \2 of \1", size)


def _multiple(match: re.Match[str]) -> str:
    was, now = ("a", "is none") if match["op"] == "==" else ("no", "is one")
    return (
        f"{_worded(match['size'])} was {was} multiple of {match['step']} when this was compiled, "
        f"and {now} now"
    )


def _bounds(match: re.Match[str]) -> str:
    low, high, name = match["low"], match["high"], _worded(match["size"])
    if low and high:
        return f"{name} was compiled for {low} to {high}, and is outside now"
    if low:
        return f"{name} was compiled for {low} and more, and is below now"
    return f"{name} was compiled for {high} and less, and is above now"


def _equal(match: re.Match[str]) -> str:
    return (
        f"{_worded(match['one'])} and {_worded(match['two'])} were equal when this was compiled, "
        "and are not now"
    )


def _held(match: re.Match[str]) -> str:
    return f"{match[0]} held when this was compiled, and does not now"


def _fixed(match: re.Match[str]) -> str:
    place = f"{match['what']} {match['dim']} of {match['name']}"
    why = " (0 and 1 are specialised)" if match["old"] in "01" and match["what"] == "size" else ""
    return f"{place} was compiled as exactly {match['old']}{why} and is now {match['new']}"


_MISMATCH = (
    r"(?P<what>size) mismatch at index (?P<dim>\d+)\. expected (?P<old>\d+), actual (?P<new>\d+)"
)
STATIC = "static size"
SPECIALISATION = "specialisation"
STATIC_SIZE = re.compile(TENSOR + _MISMATCH)
STATIC_ADVICE = (
    f"mark this dimension dynamic (torch._dynamo.mark_dynamic) or unbacked; where the code makes "
    f"the size a Python number (dictionary keys, comparisons, int()), {OUT}; {PAD}; or {ADD}"
)

FAMILIES = (
    GuardFamily(
        name="multiple",
        pattern=r"^(?:Eq\()?\(?(?:Mod\()?(?P<size>.+?)(?: % |, )(?P<step>\d+)\)(?:,)? "
        r"(?:(?P<op>==|!=) )?0\)?$",
        words=_multiple,
        advice=f"{PAD} (a multiple of {{step}}), {OUT}, or add a batch from this side of the "
        "decision to the warm-up",
    ),
    GuardFamily(
        name="layout",
        pattern=r"^(?!.*\.storage_offset)(?=.*?(?P<name>[\w.\[\]'\"]+)\.stride\(\d+\)).*(?:[=<>]|Eq|Ne).*$",
        words=lambda m: (
            f"the strides of {m['name']} are of another form than when this was compiled ({m[0]})"
        ),
        advice=f"call .contiguous() on {{name}} before the call, or {ADD}",
    ),
    GuardFamily(
        name="storage offset",
        pattern=r"(?P<name>[\w.\[\]'\"]+)\.storage_offset\(\)",
        words="{name} begins at another place of its memory than when this was compiled",
        advice=f"call .clone() on {{name}} before the call, or {ADD}",
    ),
    GuardFamily(
        name="duck shape",
        pattern=rf"^(?P<one>{_SIZE}) == (?P<two>{_SIZE})$",
        words=_equal,
        advice="warm up with sizes that are not equal by accident, or set "
        "torch.fx.experimental._config.use_duck_shape = False",
        # An equality that the code asks for has a line, or torch excuses itself.
        when=lambda guard: "duck" in guard.hint or not (guard.hint or guard.line),
    ),
    GuardFamily(
        name="equal sizes",
        pattern=rf"^(?P<one>{_SIZE}) == (?P<two>{_SIZE})$",
        words=_equal,
        advice=_BRANCH,
    ),
    GuardFamily(
        name=SPECIALISATION,
        pattern=r"^2 <= (?P<name>[\w.\[\]'\"()]+)\.shape\[(?P<dim>\d+)\]$",
        words="size {dim} of {name} is below 2: 0 and 1 are specialised",
        advice="add a batch with this size 1 to the warm-up, or mark the dimension unbacked: "
        "torch._dynamo.decorators.mark_unbacked({name}, {dim})",
    ),
    GuardFamily(
        name="size bounds",
        pattern=rf"^(?=.* <= )(?:(?P<low>\d+) <= )?(?P<size>{_SIZE})(?: <= (?P<high>\d+))?$",
        words=_bounds,
        advice=_BRANCH,
    ),
    GuardFamily(
        name="size",
        pattern=rf"^(?P<size>{_SIZE}) == (?P<old>\d+)$",
        words=lambda m: f"{_worded(m['size'])} was compiled as exactly {m['old']}",
        advice=STATIC_ADVICE,
    ),
    GuardFamily(
        name="relation of sizes",
        pattern=r"^(?!tensor ').*(?:\.shape\[\d+\].*(?:[=<>]|Eq|Ne|Mod)|(?:[=<>]|Eq|Ne|Mod).*"
        r"\.shape\[\d+\]).*$",
        words=_held,
        advice=_BRANCH,
    ),
    GuardFamily(
        name="relation of numbers",
        pattern=rf"^(?:(?=.*\w ?(?:\*|\+|//|%|-) ?\w)|(?!.*==))"
        rf"{_TERM} (?:==|!=|<=|>=|<|>) {_TERM}$",
        words=_held,
        advice=_BRANCH,
    ),
    GuardFamily(
        name="relation of sizes",
        pattern=r"^\"?Shape guard failed with values",
        words="a relation between sizes held when this was compiled, and does not now",
        advice=_BRANCH,
    ),
    GuardFamily(
        name="parameter",
        pattern=TENSOR + _MISMATCH + r"\. Guard failed on a parameter",
        words=_fixed,
        advice="leave the parameters of the model as they were in warm-up, or set "
        "torch._dynamo.config.force_parameter_static_shapes = False",
    ),
    GuardFamily(
        name=SPECIALISATION,
        pattern=TENSOR + _MISMATCH.replace(r"(?P<old>\d+)", r"(?P<old>[01])"),
        words=_fixed,
        advice="warm up with a larger size first, or mark the dimension unbacked: "
        "torch._dynamo.decorators.mark_unbacked({name}, {dim})",
    ),
    GuardFamily(
        name="size that depends on data",
        pattern=r"^tensor '(?P<name>\(value \d+ before a graph break\)[^']*)' " + _MISMATCH,
        words=_fixed,
        advice=f"its size depends on data: {PAD}, {OUT}, or {ADD}",
    ),
    GuardFamily(
        name=STATIC,
        pattern=STATIC_SIZE.pattern,
        words=_fixed,
        advice=STATIC_ADVICE,
    ),
    GuardFamily(
        name="layout",
        pattern=TENSOR + r"(?P<what>stride) mismatch at index (?P<dim>\d+)\. "
        r"expected (?P<old>\d+), actual (?P<new>\d+)",
        words=_fixed,
        advice=f"call .contiguous() on {{name}} before the call, or {ADD}",
    ),
)
