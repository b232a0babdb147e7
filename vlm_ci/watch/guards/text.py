"""The message of a refusal taken apart: guards, and the user's lines behind them; imports no torch.

The forms are those of torch 2.11 to 2.13: ``get_verbose_code_part``, ``format_user_stack_trace``
and ``get_guard_fail_reason_helper`` in torch/_dynamo/guards.py, ``SLoc`` in symbolic_shapes.py.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """A guard that failed: its ``text`` without entry number and comment, the user's ``line``
    that gave rise to it ("path:LINE in FUNCTION: SOURCE", "" where torch gives none), and the
    ``hint`` that torch adds, or what it says in place of a line."""

    text: str
    line: str = ""
    hint: str = ""


def short_path(path: str) -> str:
    """Cut a path down to what follows ``site-packages/``, or to its last three parts."""
    _head, found, tail = path.rpartition("site-packages/")
    return tail if found else "/".join(path.split("/")[-3:])


_ENTRY = re.compile(r"^\s*(?:-\s*)?\[?(?:!\d+/)?\d+/\d+(?:_\d+)?\]?:\s+(?P<guard>.*)$")
_FRAME = re.compile(r'^\s*(?:-\s*)?File "(?P<path>.*)", line (?P<line>\d+), in (?P<function>.*)$')
_COMMENT = re.compile(r"\s{2,}# ")
_HINT = re.compile(r"\s*\(HINT: (?P<hint>.*)\)\s*$")
# A source line may hold a comment of its own, but a path holds no "#" and no ":".
_PLACE = re.compile(
    r"(?:(?P<source>.*?)\s{2}# )?(?P<path>[^:#()]+):(?P<line>\d+) in (?P<function>[^\s(]+)"
)
# Torch blames the first use of a size for its own specialisation of 0 and 1.
_FIRST_USE = "user code shown is first use of this value"


def parse(message: str) -> tuple[Guard, ...]:
    """Return the failed guards that a refusal names, each once, in torch's order: newest first."""
    found: dict[str, Guard] = {}
    for entry in _entries(message):
        guard = _guard(entry)
        if not (known := found.get(guard.text)) or (guard.line and not known.line):
            found[guard.text] = guard
    return tuple(found.values())


def _entries(message: str) -> Iterator[list[str]]:
    """Yield each guard's lines: its own, and those of the user's stack where torch prints it."""
    entry: list[str] = []
    for line in message.splitlines():
        if match := _ENTRY.match(line):
            if entry:
                yield entry
            entry = [match["guard"]]
        elif entry:
            entry.append(line)
    if entry:
        yield entry


def _guard(entry: list[str]) -> Guard:
    first, hint = entry[0], ""
    if match := _HINT.search(first):
        first, hint = first[: match.start()], match["hint"]
    found = _COMMENT.search(first)
    text, comment = (first[: found.start()], first[found.end() :]) if found else (first, "")
    line = _line_of_stack(entry[1:]) or _line_of_comment(comment)
    if not line and not _PLACE.match(comment):
        hint = hint or comment.strip()
    return Guard(text=text.strip(), line=line, hint=hint)


def _line_of_stack(lines: list[str]) -> str:
    """Return the innermost frame outside torch, the innermost of all where there is none."""
    frames = []
    for index, text in enumerate(lines):
        if match := _FRAME.match(text):
            after = lines[index + 1] if index + 1 < len(lines) else ""
            source = "" if _FRAME.match(after) else re.sub(r"^\s*(?:-\s+)?", "", after).strip()
            frames.append((match["path"], match["line"], match["function"], source))
    own = [frame for frame in frames if "site-packages/torch/" not in frame[0]]
    return _line(*(own or frames)[-1]) if frames else ""


def _line_of_comment(comment: str) -> str:
    # Two bounds of one size have a place each. The user's own comparison tells more.
    places = comment.split(") and ")
    places.sort(key=lambda place: _FIRST_USE in place)
    for place in places:
        if match := _PLACE.match(place):
            path = _from_package(match["path"].strip())
            return _line(path, match["line"], match["function"], (match["source"] or "").strip())
    return ""


def _from_package(path: str) -> str:
    """Complete a path from which torch cut what its own folder's path has in common with it."""
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if module in sys.modules:
        return f"site-packages/{path}"
    return f"site-packages/torch/{path}" if f"torch.{module}" in sys.modules else path


def _line(path: str, line: str, function: str, source: str) -> str:
    function = re.sub(r"^torch_dynamo_resume_in_(.+)_at_\d+$", r"\1", function)
    place = f"{short_path(path)}:{line} in {function}"
    if place.startswith(("torch/_dynamo/", "torch/_functorch/")):
        return ""  # where torch itself asks for the guard
    return f"{place}: {source}" if source else place


_INSTALLED = re.compile(r"^(?:check_tensor|___check_type_id)\((?P<name>.+?), \w")
_TENSOR = re.compile(
    r"^(?:tensor|expected type of) '(?P<name>.+?)' (?:\w+ )*?(?:mismatch|to be)"
    r"|(?P<sized>[\w.\[\]'\"]+)\.(?:size|stride)\(\)\["
)


def lacks_line(guard: Guard) -> bool:
    """Whether this is a guard on a tensor, whose line torch knows and does not print."""
    return not guard.line and _TENSOR.search(guard.text) is not None


def with_lines(guards: tuple[Guard, ...], installed: Iterable[str]) -> tuple[Guard, ...]:
    """Give guards on tensors the lines of the installed guards: where each tensor is first used.

    ``installed`` are guards as torch keeps them: ``check_tensor(L['x'], …)  # SOURCE  # …``
    """
    lines: dict[str, str] = {}
    for text in installed:
        if match := _INSTALLED.match(text):
            lines.setdefault(without_scope(match["name"]), _guard([text]).line)
    return tuple(
        replace(guard, line=_nearest_line(match["name"] or match["sized"], lines))
        if not guard.line and (match := _TENSOR.search(guard.text))
        else guard
        for guard in guards
    )


def _nearest_line(name: str, lines: dict[str, str]) -> str:
    """Return the line that uses a tensor. Where it is torch's, as in the forward of a layer whose
    weight it is, return the line outside torch that uses the layer, if there is one."""
    own = lines.get(name, "")
    line, owner = own, name
    while line.startswith("torch/") and "." in owner:
        owner = owner.rpartition(".")[0]
        line = lines.get(owner, line)
    return own if line.startswith("torch/") else line


def without_scope(text: str) -> str:
    """Write local names as the user does: ``L['x']`` becomes ``x``."""
    return re.sub(r"\bL\[\s*(['\"])(.*?)\1\s*\]", r"\2", text)


_PLAIN = (
    (re.compile(r"\b(?:kw|kwds|\w*kwargs)\['(\w+)'\]"), r"\1"),
    (re.compile(r"\bG\['__import_(\w+?)'\]"), lambda m: m[1].replace("_dot_", ".")),
    (re.compile(r"\bG\['(\w+)'\]"), r"\1"),
    (re.compile(r"\._(?:modules|parameters|buffers)\['([^']+)'\]"), r".\1"),
    (re.compile(r"\._(?:modules|parameters|buffers)\b"), ""),
    (re.compile(r"___from_numpy\((\w+)\)"), r"\1"),
    (re.compile(r"___stack(\d+)"), r"(value \1 before a graph break)"),
    (re.compile(r"(\w+)\.__k?w?defaults__\[(\d+|'\w+')\]"), r"default \2 of \1"),
    (re.compile(r"\.size\(\)\[(\d+)\]"), r".shape[\1]"),
    (re.compile(r"\.stride\(\)\[(\d+)\]"), r".stride(\1)"),
    (re.compile(r" \+ \(\(-1\)\*([\w.\[\]]+)\)"), r" - \1"),
)


def plain(guard: Guard) -> str:
    """Write a guard's names as the model's author does: ``self._modules['fc']`` is ``self.fc``."""
    text = without_scope(guard.text)
    if closed := re.match(r'guard on "(\w+)"', guard.hint):
        text = re.sub(r"[\w.]+\.__closure__\[\d+\]\.cell_contents", closed[1], text)
    for pattern, written in _PLAIN:
        text = pattern.sub(written, text)
    return text


# Dimensions are part of a cause, sizes are not.
_DIMENSION = re.compile(r"(?<=index )\d|(?<=shape\[)\d|(?<=stride\()\d")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")


def undigited(text: str) -> str:
    """Return a text that is the same whatever the sizes, addresses and layer numbers in it."""
    text = re.sub(r", type=<(?!class ).*", "", text)  # the object itself, in torch 2.11
    text = re.sub(r"0x[0-9a-f]+", "N", text)
    text = _DIMENSION.sub(_ordinal, text)
    return re.sub(r"\d+", "N", text)


def _ordinal(match: re.Match[str]) -> str:
    dim = int(match[0])
    return _ORDINALS[dim] if dim < len(_ORDINALS) else "N"
