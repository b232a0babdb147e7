"""Tensors and configurations as short Python literals. Writes text; runs no model."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from vlm_ci.families.base import TEXT

if TYPE_CHECKING:
    from vlm_ci.families.base import Config, Encoded

WIDTH = 100  # columns
FEW = 16  # numbers: up to so many floats are written out, because they are no pixels
_HELD = re.compile(r'"(?:[^"\\]|\\.)*"(: )?|\[[^\[\]"]{,40}\]|\([^()"]{,40}\)')
_SPECIAL = re.compile(r"token_(id|ids|index)$")


def batch(encoded: Encoded, *, dtype: torch.dtype, special: frozenset[int] | None) -> str:
    """Write the inputs of a batch as ``dict(input_ids=[[5]*7], pixel_values=(24, 96))``.

    A list holds values, a tuple is the shape of random numbers of the model's ``dtype``, a lambda
    makes a tensor of another type. With ``special``, the ids of delimiters and placeholders, all
    ordinary tokens become one: for guards, which do not see values.
    """
    parts = []
    for name, value in encoded.inputs.items():
        shown = value
        if special is not None and name == "input_ids":
            shown = _uniform(value, encoded.token_kinds, special)
        parts.append(f"{name}={_tensor(shown.detach().cpu(), dtype)}")
    return f"dict({', '.join(parts)})"


def special_tokens(config: Config) -> frozenset[int]:
    """Return the ids that a configuration gives a meaning: ``image_token_id`` and the like."""
    found: set[int] = set()
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= special_tokens(value)
        elif _SPECIAL.search(str(key)):
            values = value if isinstance(value, list | tuple) else [value]
            found |= {number for number in values if isinstance(number, int)}
    return frozenset(found)


def _uniform(ids: torch.Tensor, kinds: torch.Tensor, special: frozenset[int]) -> torch.Tensor:
    if ids.shape != kinds.shape:
        return ids
    ids = ids.detach().cpu().clone()
    meant = torch.isin(ids, torch.tensor(sorted(special), dtype=ids.dtype))
    ordinary = (kinds == TEXT) & ~meant
    if bool(ordinary.any()):
        ids[ordinary] = ids[ordinary].min()
    return ids


def _tensor(value: torch.Tensor, dtype: torch.dtype) -> str:
    shape = tuple(value.shape)
    written = torch.float32 if value.is_floating_point() else torch.int64
    if value.dtype is torch.bool:
        written = torch.bool
    tail = "" if value.dtype is written else f", dtype={value.dtype}"
    if value.numel() == 0:
        return f"lambda: torch.zeros({shape}, dtype={value.dtype})"
    if not value.is_floating_point() or value.numel() <= FEW:
        text = numbers(value.tolist())
        return f"lambda: torch.tensor({text}{tail})" if tail else text
    if bool((value == value.flatten()[0]).all()):
        return f"lambda: torch.full({shape}, {value.flatten()[0].item()!r}, dtype={value.dtype})"
    return str(shape) if value.dtype is dtype else f"lambda: torch.randn({shape}{tail})"


def numbers(value: Any) -> str:
    """Write nested lists of numbers with repetitions: ``[[5]*7 + [9]*3]``, ``[[1]*9]*2``."""
    if not isinstance(value, list):
        return repr(value)
    groups: list[tuple[list[str], int]] = []  # texts that stand together, how often they repeat
    for text, group in groupby(numbers(child) for child in value):
        count = len(list(group))
        if count >= 3 or (count == 2 and text.startswith("[")):
            groups.append(([text], count))
        elif groups and groups[-1][1] == 1:
            groups[-1][0].extend([text] * count)
        else:
            groups.append(([text] * count, 1))
    shown = [f"[{', '.join(texts)}]" + (f"*{n}" if n > 1 else "") for texts, n in groups]
    return " + ".join(shown) if len(value) else "[]"


def code(value: Any) -> str:
    """Write what JSON can hold as Python."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{code(key)}: {code(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(code, value))}]"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def needed(config: Config) -> dict[str, Any]:
    """Return the keys of a configuration that are not what transformers takes by default."""
    from transformers import AutoConfig
    from transformers.utils import logging

    def built(keys: Mapping[str, Any]) -> Any:
        return AutoConfig.for_model(**_copied(keys)).to_dict()

    whole: dict[str, Any] = _copied(config)
    wanted = built(whole)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # it warns of values that fit only together

    def prune(part: dict[str, Any]) -> None:
        for key in list(part):
            if part is whole and key == "model_type":
                continue
            value = part.pop(key)
            try:
                superfluous = built(whole) == wanted
            except Exception:  # a configuration may not do without it
                superfluous = False
            if not superfluous:
                part[key] = value
                if isinstance(value, dict):
                    prune(value)

    try:
        likely = _without(whole, built({"model_type": whole["model_type"]}))
        if built(likely) == wanted:  # far fewer keys to try
            whole = likely
        prune(whole)
    finally:
        logging.set_verbosity(verbosity)
    return whole


def _without(part: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is as in ``default``, but for the type of the model."""
    found: dict[str, Any] = {}
    for key, value in part.items():
        if key == "model_type" or key not in default or value != default[key]:
            both = isinstance(value, Mapping) and isinstance(default.get(key), Mapping)
            found[key] = _without(value, default[key]) if both else value
    return found


def _copied(value: Any) -> Any:
    """Copy what transformers may write into."""
    if isinstance(value, Mapping):
        return {key: _copied(child) for key, child in value.items()}
    return [_copied(child) for child in value] if isinstance(value, list | tuple) else value


def wrapped(text: str, indent: int = 0) -> list[str]:
    """Break code into lines of ``WIDTH`` columns; strings, keys and short lists stay whole."""
    held = _HELD.sub(lambda match: match[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(
        held,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 4),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in lines]
