"""A guard family: one row of the table, and the phrases that rows share. It imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_ci.watch.guards.text import Guard

# A template over the named groups of a family's pattern, or a function of the match.
Template = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardFamily:
    """A form that guards take, what it means, and what to do about it.

    ``pattern`` is searched in the guard's text with plain names; its group ``name`` is what the
    guard is about. ``recorded`` says that the signature of a call holds the same: where the
    signatures of two calls agree, such a guard does not tell them apart. ``when`` narrows the
    family down by what the text does not show.
    """

    name: str
    pattern: str
    words: Template
    advice: Template
    recorded: bool = False
    when: Callable[[Guard], bool] | None = None


def fill(template: Template, match: re.Match[str]) -> str:
    """Return a template with the groups of a match in it."""
    return template.format(**match.groupdict()) if isinstance(template, str) else template(match)


ADD = "add this batch to the warm-up"
OUT = "move this length out of the graph"
PAD = "pad to the bucket"
TENSOR = r"^tensor '(?P<name>.+?)' "
