"""Text of others made harmless for the bot's answers. Performs no I/O."""

from __future__ import annotations

from vlm_ci.report import escaping

WIDTH = 200


def printable(text: str, width: int = WIDTH) -> str:
    """Return the text on one line, at most ``width`` characters; what nobody sees is spelt out."""
    shown = "".join(c if c == " " or c.isprintable() else f"\\u{ord(c):04x}" for c in text[:width])
    return shown + ("…" if len(text) > width else "")


def code(text: str, width: int = WIDTH) -> str:
    """Return the text as a code span: in it nothing is a link, a mention, HTML or a command."""
    return escaping.code(printable(text, width)) or "–"
