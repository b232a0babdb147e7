"""Guard families of Python objects: what is present, of which type, which object, which keys."""

from __future__ import annotations

import re

from vlm_ci.watch.guards.family import ADD, OUT, GuardFamily


def _kind(match: re.Match[str]) -> str:
    """Name a type as people do: ``torch.nn.modules.linear.Linear`` is ``Linear``.

    torch 2.11 prints the object itself, such as ``Color.RED: 1``.
    """
    kind = (match["kind"] or "").removeprefix("__main__.")
    return kind.split(":")[0] if ":" in kind else kind.rpartition(".")[2] or "object"


def _found(match: re.Match[str]) -> str:
    name, kind = match["name"], match["kind"]
    if kind == "NoneType":
        return f"{name} was a tensor when this was compiled, and is None now"
    if kind in ("int", "float", "bool", "str", "list", "tuple", "dict"):
        return f"{name} was a tensor when this was compiled, and is of type {kind} now"
    return (
        f"{name} was a tensor of another class when this was compiled, and is of class "
        f"{_kind(match)} now"
    )


def _aliases(match: re.Match[str]) -> str:
    names = re.sub(r"[\[\]\"]", "", match["names"] or match["checked"] or "").strip()
    return f"one tensor is passed in two places now, and was not when this was compiled: {names}"


def _attribute(match: re.Match[str]) -> str:
    owner, key = match["name"] or match["owner"], match["key"] or match["other"]
    lacked = bool(match["no"] or match["lacked"])
    return (
        f"{owner} had {'no' if lacked else 'an'} attribute {key} of its own when this was "
        f"compiled, and has {'one' if lacked else 'none'} now"
    )


def _contents(match: re.Match[str]) -> str:
    groups = match.groupdict()
    owner, key = groups["name"] or groups["set"], groups["key"] or groups["item"]
    return (
        f"{owner} held {'no ' if match['no'] else ''}{key} when this was compiled, and "
        f"{'does' if match['no'] else 'does not'} now"
    )


_PASS = f"always pass the argument {{name}}, with zeros where there is nothing, or {ADD}"
_TYPE = r", type=<(?:class )?'?(?P<kind>.+?)'?>$"

FAMILIES = (
    GuardFamily(
        name="None attribute",
        pattern=r"^(?P<name>self\..+) is None$",
        words="{name} was None when this was compiled, and is not now",
        advice="set {name} before warm-up and leave it, or pass its value as an argument",
    ),
    GuardFamily(
        name="None",
        pattern=r"^(?P<name>.+) is None$",
        words="{name} was None when this was compiled, and is not now",
        advice=_PASS,
        recorded=True,
    ),
    GuardFamily(
        name="None",
        pattern=r"^(?P<name>.+) is not None$",
        words="{name} was a value when this was compiled, and is None now",
        advice=_PASS,
        recorded=True,
    ),
    GuardFamily(
        name="keyword",
        pattern=r"^(?P<no>not )?___dict_contains\('(?P<name>\w+)', (?:kw|kwds|\w*kwargs)\)$",
        words=lambda m: (
            f"{m['name']} was {'not ' if m['no'] else ''}passed when this was compiled, and "
            f"{'is' if m['no'] else 'is not'} now"
        ),
        advice=_PASS,
        recorded=True,
    ),
    GuardFamily(
        name="tensor type",
        pattern=r"^expected type of '(?P<name>.+?)' to be a tensor type.*<class '(?P<kind>.+?)'>",
        words=_found,
        advice=f"always pass the argument {{name}} as a plain tensor, or {ADD}",
        recorded=True,
    ),
    GuardFamily(
        name="tensor type",
        pattern=r"^expected type of '(?P<name>.+?)' to be a tensor type",
        words="{name} was a tensor of another class when this was compiled",
        advice=f"always pass the argument {{name}} as a plain tensor, or {ADD}",
        recorded=True,
    ),
    GuardFamily(
        name="type",
        pattern=rf"^___check_(?:type_id|fake_script_type)\((?P<name>.+), \d+\)(?:{_TYPE})?",
        words=lambda m: (
            f"{m['name']} was of type {_kind(m)} when this was compiled, and is of another now"
        ),
        advice=f"always pass {{name}} with one type (list or tuple, int or float, a tensor or "
        f"None), or {ADD}",
        recorded=True,
    ),
    GuardFamily(
        name="function",
        pattern=r"^___check_obj_id\((?P<name>.+?)(?:\.__code__)?, \d+\), type=<(?:class )?'?"
        r"(?P<kind>code|function|builtin_function_or_method|method|built-in|bound method)\b",
        words="{name} was another function when this was compiled",
        advice="define the function once, outside of the request, and always pass that one",
    ),
    GuardFamily(
        name="object",
        pattern=rf"^___check_obj_id\((?P<name>.+), \d+\)(?:{_TYPE})?",
        words=lambda m: (
            f"{m['name']} was one particular object ({_kind(m)}) when this was compiled, and is "
            "another now"
        ),
        advice=f"create the object once, before warm-up, and always pass that one, or {ADD}",
    ),
    GuardFamily(
        name="same object",
        pattern=r"^(?P<name>[\w.\[\]'\"]+) is (?P<other>[\w.\[\]'\"]+)$",
        words="{name} and {other} were one object when this was compiled, and are two now",
        advice=f"pass a copy (.clone()) wherever two arguments may be one tensor, or {ADD}",
    ),
    GuardFamily(
        name="same tensor",
        pattern=r"^Duplicate tensors? found[^:!]*[:!]\s*(?P<names>.*)"
        r"|^check_no_aliasing\((?P<checked>.*)\)",
        words=_aliases,
        advice=f"pass a copy (.clone()) in one of the places, or {ADD}",
    ),
    GuardFamily(
        name="overlapping memory",
        pattern=r"^check_overlapping\((?P<what>.*)\)",
        words="the arguments share memory in another way than when this was compiled: {what}",
        advice="pass copies (.clone()) of views into one buffer, in warm-up as in serving",
    ),
    GuardFamily(
        name="missing attribute",
        pattern=r"^(?:getattr failed on source|\w+Error on|Not a weakref|Weakref_GetRef failed"
        r"|.*null type dict on|.*Not a (?:function|callable obj)(?: on)?) (?P<name>.+)$",
        words="{name}, or something in it, was there when this was compiled, and is missing now",
        advice="leave the attributes and entries of {name} as they were in warm-up: assign None "
        "rather than deleting one",
    ),
    GuardFamily(
        name="attribute",
        pattern=r"^(?P<no>not )?___dict_contains\('(?P<key>\w+)', (?P<name>.+)\.__dict__\)$"
        r"|^(?P<lacked>not )?hasattr\((?P<owner>[^,]+), '(?P<other>(?!_dynamo_)\w+)'\)$",
        words=_attribute,
        advice="set attributes once, before warm-up (in __init__), and assign None rather than "
        "adding or deleting one",
    ),
    GuardFamily(
        name="cache entry",
        pattern=r"^(?P<no>not )?___dict_contains\((?P<key>.+?), (?P<name>self\..+)\)$",
        words=_contents,
        advice="fill {name} before warm-up, or keep a cache that serving fills out of the compiled "
        "region",
    ),
    GuardFamily(
        name="keys",
        pattern=r"^(?P<no>not )?(?:___dict_contains\((?P<key>.+?), (?P<name>.+)\)"
        r"|set\.__contains__\((?P<set>.+?), (?P<item>.+)\))$",
        words=_contents,
        advice=f"always pass the same keys, with None or zeros where there is nothing, or {ADD}",
    ),
    GuardFamily(
        name="keys",
        pattern=r"^list\((?:dict|set)\.keys\((?P<name>.+)\)\)\[(?P<index>\d+)\] == (?P<key>.+)$",
        words="key {index} of {name} was {key} when this was compiled, and is not now",
        advice=f"always build {{name}} with the same keys in the same order, or {ADD}",
    ),
    GuardFamily(
        name="length",
        pattern=r"^not (?P<name>[\w.\[\]'\"]+)$",
        words="{name} was empty when this was compiled, and is not now",
        advice=f"keep the number of entries of {{name}} constant, {OUT}, or {ADD}",
        recorded=True,
    ),
    GuardFamily(
        name="length",
        pattern=r"^(?:len|___tuple_iterator_len)\((?P<name>.+)\) (?:==|!=) (?P<old>\d+)$",
        words="{name} had exactly {old} entries when this was compiled, and has another number now",
        advice=f"keep the number of entries of {{name}} constant, {OUT}, or {ADD}",
        recorded=True,
    ),
)
