"""The lines of a comment that Markdown shows as plain text. Performs no I/O.

CommonMark is parsed by markdown-it-py. In doubt a line is not plain: a command that is not seen can
be typed again, one that is seen in a quotation does harm.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from markdown_it.token import Token

# Beyond these, parsing takes seconds, and no one has typed it.
LONGEST = 4000  # characters of a paragraph that may hold commands
MOST = 4000  # lines of a comment
_COMMAND = re.compile(r"^/", re.MULTILINE)
_TAG = re.compile(r"<[A-Za-z/]")
_BREAKS = ("softbreak", "hardbreak")
_VOID = frozenset("area base br col embed hr img input link meta source track wbr".split())
# The text of each block is parsed by itself, and only where that matters.
_BLOCKS = MarkdownIt("commonmark").enable(["table", "strikethrough"]).disable("inline")


class _Open(HTMLParser):
    """Keeps the elements that raw HTML leaves open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def plain_lines(body: str) -> list[str]:
    """Return the lines of top-level paragraphs that begin as plain text, in order."""
    text = body.replace("\r\n", "\n").replace("\r", "\n")
    if not _COMMAND.search(text):  # most comments: nothing to parse
        return []
    source = text.split("\n")
    if len(source) > MOST:
        return []
    html = _Open()
    lines: list[str] = []
    environment: dict[str, Any] = {}  # link definitions, which change what brackets mean
    before = ""
    for token in _BLOCKS.parse(text, environment):
        if token.type == "html_block":
            html.feed(token.content)
        elif token.type == "inline" and token.map is not None:
            rows = source[token.map[0] : token.map[1]]
            plain = before == "paragraph_open" and token.level == 1
            wanted = plain and any(row.startswith("/") for row in rows)
            if len(token.content) > LONGEST:
                html.feed(token.content)
            elif wanted or _TAG.search(token.content):
                children = _inline(token.content, environment)
                lines += _paragraph(rows if wanted else [], children, html)
        before = token.type
    return lines


def _inline(content: str, environment: dict[str, Any]) -> list[Token]:
    tokens: list[Token] = []
    _BLOCKS.inline.parse(content, _BLOCKS, environment, tokens)
    return tokens


def _paragraph(source: Sequence[str], children: Sequence[Token], html: _Open) -> Iterator[str]:
    """Yield the lines of one paragraph that begin as plain text, and note what its HTML opens.

    A code span or a link may hold line breaks of its own: then lines and tokens cannot be matched,
    and none is plain.
    """
    starts = [0, *(i + 1 for i, child in enumerate(children) if child.type in _BREAKS)]
    lines = dict(zip(starts, source, strict=True)) if len(starts) == len(source) else {}
    for place, child in enumerate(children):
        if place in lines and child.type == "text" and child.level == 0 and not html.open:
            yield lines[place]
        if child.type == "html_inline":
            html.feed(child.content)
