"""Commands in a comment's Markdown: text in, commands and misunderstandings out. Performs no I/O.

A command is a line of a plain paragraph that starts with ``/``. Nothing in a code block, a quote, a
list, a heading, a table, HTML or emphasis is one.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass, field, replace

from vlm_ci.bot import markdown
from vlm_ci.bot.words import code

LONGEST = 65_536  # characters of a comment, as GitHub has it
MOST = 5  # commands in a comment
LONGEST_ID = 500  # characters of a node id

RERUN_FAILED, TAG, TAG_AND_RERUN = "rerun-failed-ci", "tag-run-ci-label", "tag-and-rerun-ci"
RERUN_TEST, STATUS = "rerun-test", "ci-status"
_COMMON = {"--help": "says how the command is used", "--dry-run": "says what would be done"}
_SHA = "[SHA]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a command is written: its argument, and its options with what follows them."""

    argument: str
    options: tuple[str, ...]
    says: str


FORMS = {
    RERUN_FAILED: Form(
        argument=_SHA,
        options=("--anyway",),
        says="runs the failed jobs of the pull request's head again",
    ),
    TAG: Form(argument=_SHA, options=(), says="adds the label that starts the GPU tests"),
    TAG_AND_RERUN: Form(
        argument=_SHA, options=("--anyway",), says="adds the label, then runs failed jobs again"
    ),
    RERUN_TEST: Form(
        argument="NODEID",
        options=("--runner NAME", "--repeat N", "--replay", "--sha SHA"),
        says="runs one test of the pull request's head",
    ),
    STATUS: Form(argument="", options=(), says="lists the runs of the pull request's head"),
}

_WORD = re.compile(r"/([A-Za-z][A-Za-z0-9_-]{0,63})\Z")
_WHOLE_SHA = re.compile(r"[0-9a-f]{40}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
# path::name[parameters], with classes between; no blank outside the brackets, no empty part; what
# begins with @ is a file of options to pytest
_NODE_ID = re.compile(r"[^\s:\[\]`@-][^\s:\[\]`]*(?:::[A-Za-z_]\w*)+(?:\[[^`]*\])?\Z", re.ASCII)
_PIECE = re.compile(r"`([^`]+)`(?=\s|\Z)|([^\s`]+)(?=\s|\Z)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command. ``sha`` is the commit that it names, or an empty text; ``number`` is its place
    in the comment, from 1; ``text`` the line as it was typed."""

    name: str
    text: str = field(default="", compare=False)
    number: int = field(default=1, compare=False)
    sha: str = ""
    node_id: str = ""
    runner: str = ""
    repeat: int = 1
    replay: bool = False
    anyway: bool = False
    help: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Misunderstood:
    """A line that looks like a command and is none: what it says, and why it is none."""

    line: str
    reason: str
    number: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What a comment asks for, in its order; a command that stands twice counts once."""

    commands: tuple[Command, ...] = ()
    misunderstood: tuple[Misunderstood, ...] = ()


class _Wrong(Exception):
    """Why a line is no command."""


def parse(body: str) -> Parsed:
    """Return the commands of a comment. Never raises: what is no command is none."""
    if len(body) > LONGEST:
        return Parsed()
    commands: dict[Command, Command] = {}
    misunderstood: list[Misunderstood] = []
    lines = [line for line in markdown.plain_lines(body) if line.startswith("/")]
    for line in lines:
        number = len(commands) + len(misunderstood) + 1
        if number > MOST:
            text = f"a comment holds at most {MOST} commands; this and what follows is left out"
            misunderstood.append(Misunderstood(line=line, reason=text, number=number))
            break
        try:
            command = _command(line)
        except _Wrong as wrong:
            misunderstood.append(Misunderstood(line=line, reason=str(wrong), number=number))
        else:
            if command is not None and command not in commands:
                commands[command] = replace(command, number=number, text=line)
    return Parsed(commands=tuple(commands.values()), misunderstood=tuple(misunderstood))


def usage(name: str) -> str:
    """Return how a command is written."""
    form = FORMS[name]
    options = [f"[{option}]" for option in (*form.options, *_COMMON)]
    return " ".join(part for part in (f"/{name}", form.argument, *options) if part)


def _command(line: str) -> Command | None:
    """Return the command of a line, or None where the line is not meant to be one.

    Raises:
        _Wrong: it is meant to be one, and is none.
    """
    text = line.rstrip(" \t")
    word, _, rest = text.replace("\t", " ").partition(" ")
    found = _WORD.match(word)
    if found is None or found[1] not in FORMS:
        _check_near(word)
        return None
    if not text.replace("\t", " ").isascii() or not text.replace("\t", " ").isprintable():
        raise _Wrong(f"it holds {_strange(text)}; a command is plain ASCII, so type it anew")
    return _arguments(found[1], _pieces(rest))


def _check_near(word: str) -> None:
    """Raise where a word is nearly a command; other lines with a slash are not the bot's."""
    shown = "".join(c for c in word[:80] if not _invisible(c))
    plain = unicodedata.normalize("NFKC", shown).strip().lstrip("/").lower().replace("_", "-")
    near = difflib.get_close_matches(plain, FORMS, n=1, cutoff=0.8)
    if near and not word.isascii():
        raise _Wrong(
            f"it holds {_strange(word)}; a command is plain ASCII: did you mean /{near[0]}?"
        )
    if near:
        raise _Wrong(f"there is no such command: did you mean /{near[0]}?")


def _invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cf", "Cc", "Mn", "Me")


def _strange(text: str) -> str:
    strange = next((c for c in text if not (c.isascii() and c.isprintable())), "")
    name = unicodedata.name(strange, "a control character") if strange else ""
    return f"the character U+{ord(strange):04X} ({name})" if strange else "another character"


def _pieces(rest: str) -> list[str]:
    """Split arguments at blanks; what stands between backticks is one.

    Raises:
        _Wrong: a backtick has no partner.
    """
    found: list[str] = []
    place = 0
    while place < len(rest):
        if rest[place] == " ":
            place += 1
            continue
        piece = _PIECE.match(rest, place)
        if piece is None:
            raise _Wrong("a backtick in it has no partner; an argument with blanks stands in two")
        found.append(piece[1] or piece[2])
        place = piece.end()
    return found


def _arguments(name: str, pieces: list[str]) -> Command:
    form = FORMS[name]
    known = {option.split()[0]: option for option in (*form.options, *_COMMON)}
    values: dict[str, object] = {}
    argument: str | None = None
    rest = iter(pieces)
    for piece in rest:
        if piece.startswith("--"):
            if piece not in known:
                near = difflib.get_close_matches(piece, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                raise _Wrong(f"/{name} has no option {_short(piece)}: {hint}")
            field = piece[2:].replace("-", "_")
            if field in values:
                raise _Wrong(f"{piece} stands there twice")
            takes = " " in known[piece]
            values[field] = _value(piece, next(rest, None)) if takes else True
        elif argument is None and form.argument:
            argument = piece
        else:
            raise _Wrong(f"{_short(piece)} is too much; write: {usage(name)}")
    if values.get("help"):
        return Command(name=name, help=True)
    if argument is not None and form.argument == _SHA:
        values["sha"] = _sha(argument)
    elif form.argument == "NODEID":
        values["node_id"] = _node_id(argument)
    return Command(name=name, **values)  # type: ignore[arg-type]


def _value(option: str, text: str | None) -> str | int:
    if text is None or text.startswith("--"):
        raise _Wrong(f"{option} needs a value")
    if option == "--repeat":
        if not re.fullmatch(r"[1-9][0-9]{0,5}", text):
            raise _Wrong(f"--repeat needs a whole number of at least 1, not {_short(text)}")
        return int(text)
    if option == "--sha":
        return _sha(text)
    if not _NAME.match(text):
        raise _Wrong(f"{_short(text)} is no runner's name: letters, digits, dots, - and _")
    return text


def _sha(text: str) -> str:
    if not _WHOLE_SHA.match(text):
        raise _Wrong(f"{_short(text)} is no commit: name all its 40 digits, in lower case")
    return text


def _node_id(text: str | None) -> str:
    if text is None:
        raise _Wrong("it names no test: a node id is path::name or path::name[parameters]")
    if len(text) > LONGEST_ID:
        raise _Wrong(f"the node id is longer than {LONGEST_ID} characters")
    path = text.partition("::")[0]
    if not _NODE_ID.match(text) or ".." in path.split("/") or path.startswith(("/", "~")):
        raise _Wrong(
            f"{_short(text)} is no node id: path::name or path::name[parameters], the path "
            "relative to the repository; one with blanks stands in backticks"
        )
    return text


def _short(text: str) -> str:
    return code(text, 60)
