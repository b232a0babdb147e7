"""Text of others made harmless for Markdown. Performs no I/O."""

from __future__ import annotations

import re

WIDTH = 200


def printable(text: str, width: int = WIDTH) -> str:
    """Return the text on one line, without anything invisible, at most ``width`` characters."""
    shown = "".join(c if c == " " or c.isprintable() else f"\\u{ord(c):04x}" for c in text[:width])
    return shown + ("…" if len(text) > width else "")


def code(text: str, width: int = WIDTH) -> str:
    """Return the text as a code span: in it nothing is a link, a mention, HTML or a command."""
    shown = printable(text, width) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{pad}{shown}{pad}{fence}"
