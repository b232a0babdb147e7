"""Untrusted text made safe for GitHub's Markdown: no markup, no link, no mention. Pure.

What a user's model says in an exception or a file name is shown, and has no other effect. GitHub
takes mentions, references and addresses from the rendered text, where a backslash is gone already:
inside code it leaves them alone, and elsewhere an invisible character parts them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

JOINER = "\u2060"  # WORD JOINER: has no width, and is part of no name, number or address

# Line separators besides the newline, and what turns the direction of a text.
_SEPARATORS = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_UNSEEN = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f]")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_LINKED = (
    re.compile(r"(@)(?=\S)"),
    re.compile(r"(#)(?=\w)"),
    re.compile(r"(:)(?=//)"),
    re.compile(r"(\bwww)(?=\.)", re.IGNORECASE),
    re.compile(r"(\bgh)(?=-\d)", re.IGNORECASE),
    re.compile(r"(\b(?:mailto|xmpp):)", re.IGNORECASE),
)
_COMMIT = re.compile(r"\b[0-9a-f]{7,}\b", re.IGNORECASE)  # GitHub takes 7 to 40 digits for one

MOST_INLINE = 2_000  # characters of a text that stands in a line
MOST_FENCED = 20_000  # characters of a block of code


def visible(text: str) -> str:
    """Return a text in which control characters show and do nothing; newlines and tabs stay."""
    text = _SEPARATORS.sub("\n", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _CONTROL.sub(lambda found: chr(0x2400 + ord(found[0])), text)
    return _UNSEEN.sub("\ufffd", text)


def one_line(text: str, most: int = MOST_INLINE) -> str:
    """Return a text as one line of at most ``most`` characters, and one that says so."""
    line = " ".join(visible(text).split())
    return line if len(line) <= most else f"{line[:most].rstrip()}…"


def prose(text: str) -> str:
    """Return a text that is shown as it is, in the middle of a paragraph or a list."""
    line = one_line(text)
    for pattern in _LINKED:
        line = pattern.sub(rf"\1{JOINER}", line)
    line = _COMMIT.sub(lambda found: re.sub(r"(.{6})(?=.)", rf"\1{JOINER}", found[0]), line)
    return _PUNCTUATION.sub(r"\\\1", line)


def code(text: str) -> str:
    """Return a text as an inline code span; nothing for an empty one."""
    line = one_line(text)
    if not line:
        return ""
    ticks = "`" * (_longest_run(line) + 1)
    pad = " " if line[0] == "`" or line[-1] == "`" else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def cell(text: str) -> str:
    """Return a text as a code span in a cell of a table; a dash for an empty one.

    A backslash before a pipe becomes one that is no escape: parsers differ about it.
    """
    line = re.sub(r"\\+(?=\|)", lambda found: "⧵" * len(found[0]), one_line(text, 300))
    return code(line).replace("|", r"\|") or "–"


def fenced(text: str, language: str = "text") -> str:
    """Return a text as a block of code; a long one is cut inside the fence, which says so."""
    body = visible(text).expandtabs(4).strip("\n")
    if len(body) > MOST_FENCED:
        left = len(body) - MOST_FENCED
        body = f"{body[:MOST_FENCED]}\n… and {left} more characters"
    fence = "`" * max(3, _longest_run(body) + 1)
    return f"{fence}{language}\n{body}\n{fence}"


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table; its cells are safe already."""
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
