"""Guard families of plain values: flags, numbers and names that a compiled variant holds fixed."""

from __future__ import annotations

from vlm_ci.watch.guards.family import ADD, OUT, PAD, GuardFamily

_NAME = r"(?P<name>(?!tensor )[A-Za-z_][^<>=%]*?)"
_NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_WAS = "{name} was compiled as exactly {old}"
_ONE = f"always pass one value of {{name}}, or {ADD} for each value"

FAMILIES = (
    GuardFamily(
        name="number bounds",
        pattern=rf"^(?=.*[<>]|.*!=)(?:(?P<low>{_NUMBER}) <=? )?(?P<name>[A-Za-z_]\w*)"
        rf"(?: (?P<op><=?|>=?|!=) (?P<high>{_NUMBER}))?$",
        words=lambda m: f"{m[0]} held when this was compiled, and does not now",
        advice=f"{PAD}, {OUT}, or add a batch from this side of the bound to the warm-up",
    ),
    GuardFamily(
        name="training",
        pattern=r"^(?P<name>.*\btraining) == (?P<old>True|False)$",
        words="{name} was {old} when this was compiled, and is not now",
        advice="call .eval() (or .train()) once, before warm-up, and leave it",
    ),
    GuardFamily(
        name="number read from a tensor",
        pattern=r"^(?P<name>\(value \d+ before a graph break\)[\[\]\d]*) == (?P<old>.+)$",
        words="a number that the code read from a tensor, or computed before a graph break, was "
        "compiled as exactly {old}",
        advice=f"keep the number in a tensor (no .item(), .tolist() or int() between compiled "
        f"parts), {OUT}, or {PAD}",
    ),
    GuardFamily(
        name="integer attribute",
        pattern=rf"^{_NAME} == (?P<old>-?\d+)$",
        words=_WAS,
        advice="keep {name} out of the compiled region, make it a tensor (a buffer), or set "
        "torch._dynamo.config.allow_unspec_int_on_nn_module = True",
        when=lambda guard: "integer attributes of the nn.Module" in guard.hint,
    ),
    GuardFamily(
        name="attribute value",
        pattern=r"^(?P<name>self\.[^=]+) == (?P<old>.+)$",
        words=_WAS,
        advice="set {name} once, before warm-up, and leave it, or pass its value as a tensor",
    ),
    GuardFamily(
        name="flag",
        pattern=rf"^{_NAME} == (?P<old>True|False)$",
        words=_WAS,
        advice=_ONE,
        recorded=True,
    ),
    GuardFamily(
        name="constant",
        pattern=rf"^(?!.*\.(?:shape|stride|storage_offset)\b){_NAME} == "
        r"(?P<old>b?['\"].*|torch\.\w+|device\(.*\)|<.*>)$",
        words=_WAS,
        advice=_ONE,
        recorded=True,
    ),
    GuardFamily(
        name="nan",
        pattern=r"^\(type\((?P<name>.+?)\) is \w+ and __\w+_isnan",
        words="{name} was compiled as NaN, and is a number now",
        advice="pass {name} as a tensor (torch.tensor(...)): numbers are compiled as constants",
    ),
    GuardFamily(
        name="float",
        pattern=rf"^(?!.*\.(?:shape|stride|storage_offset)\b){_NAME} == "
        r"(?P<old>-?(?:\d+\.\d+|\d+(?:\.\d+)?e.*|inf|.*j\)?))$",
        words=_WAS,
        advice="pass {name} as a tensor (torch.tensor(...)): floats are compiled as constants",
        recorded=True,
    ),
    GuardFamily(
        name="range",
        pattern=r"^(?P<name>.+)\.(?:start|stop|step) == (?P<old>.+)$"
        r"|^___normalize_(?:range|count)_iter\((?P<iterator>.+)\) == (?P<bounds>.+)$",
        words=lambda m: (
            f"{m['name'] or m['iterator']} is another range or slice than when this was compiled"
            f" ({m['old'] or m['bounds']})"
        ),
        advice=f"pass a tensor in place of the range or slice, {OUT}, or {ADD}",
    ),
    GuardFamily(
        name="integer",
        pattern=rf"^(?!.*\.(?:shape|stride|storage_offset)\b){_NAME} == (?P<old>-?\d+)$",
        words=_WAS,
        advice=f"pass {{name}} as a tensor, let torch treat it as dynamic (dynamic=True, or warm "
        f"up with two values), {OUT}, or {PAD}",
        recorded=True,
    ),
    GuardFamily(
        name="value",
        pattern=rf"^(?!.*\.(?:shape|stride|storage_offset)\b){_NAME} == (?P<old>.+)$",
        words=_WAS,
        advice="keep the value of {name} out of the compiled region, or pass it as a tensor",
    ),
)
