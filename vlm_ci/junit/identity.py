"""Node ids of pytest: as JUnit files write them, and back. Performs no I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vlm_ci.errors import UsageError
from vlm_ci.junit.records import ERROR, Case, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# What XML cannot hold: pytest writes the code of such a character in its place.
_ILLEGAL = re.compile(r"[^\t\n\r\x20-\x7e\x80-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def legal(text: str) -> str:
    """Return the text as XML can hold it, as pytest does: ``#x1B`` for an escape character."""
    return _ILLEGAL.sub(
        lambda hit: f"#x{ord(hit[0]):02X}" if ord(hit[0]) <= 0xFF else f"#x{ord(hit[0]):04X}", text
    )


def address(nodeid: str) -> tuple[str, str]:
    """Return classname and name that pytest gives a node id in a JUnit file."""
    path, bracket, parameters = nodeid.partition("[")
    names = path.split("::")
    names[0] = _module(names[0])
    names[-1] += bracket + parameters
    return legal(".".join(names[:-1])), legal(names[-1])


def expected(lines: Iterable[str], source: str) -> list[str]:
    """Return the node ids that ``pytest --collect-only -q`` printed, each once.

    They end at the first blank line; a line without ``::`` before the first of them is a header.

    Raises:
        UsageError: there are none, or another line stands between them.
    """
    found: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if "::" in text:
            found[text] = None
        elif found and text.strip():
            raise UsageError(f"{source}: line {number} is no node id: {text[:80]!r}")
        elif found:
            break
    if not found:
        raise UsageError(
            f"{source} has no node ids: it must hold what `pytest --collect-only -q` prints"
        )
    return list(found)


def distinct(case: Case) -> str:
    """Return the file where it tells tests apart: pytest's classname says its module already."""
    if not case.file or _inside(case.classname, _module(case.file)) is not None:
        return ""
    return case.file


def is_collection(case: Case) -> bool:
    """Whether this stands for a module that could not be collected, not for a test."""
    return not case.classname and any(
        problem.message == "collection failure" for problem in case.problems
    )


def is_internal(case: Case) -> bool:
    """Whether this is pytest's own internal error, which belongs to no test."""
    return (case.classname, case.name) == ("pytest", "internal")


INTERRUPTED = "interrupted"  # the type of the error that stands for the rest of a session
STOPPED = "the session was interrupted: a test was running, and those after it are in no file"


def interruption(shards: Sequence[tuple[int, int]], text: str = STOPPED) -> Case:
    """Return the error that stands for the rest of a session that was interrupted, as by the
    cancellation of its job: of the test that was running pytest writes a case without a name."""
    where = "".join(f" of shard {index}/{count}" for index, count in shards[:1])
    problem = Problem(outcome=ERROR, message=text, text=text, type=INTERRUPTED)
    return Case(name=f"interrupted session{where}", outcome=ERROR, problems=(problem,))


def is_interruption(case: Case) -> bool:
    """Whether this stands for the rest of a session that was interrupted, not for a test."""
    return not case.classname and any(one.type == INTERRUPTED for one in case.problems)


def node_id(case: Case, is_file: Callable[[str], bool]) -> str:
    """Return the node id of a case: ``file::Class::test[parameters]``.

    Where the case names no file, the classname's longest beginning that is a file; where none is,
    its parts up to the first that begins with a capital letter, which is a class by convention.
    """
    if not case.classname:
        if is_collection(case):
            return case.file or _path(case.name, is_file)[0]
        return f"{case.file}::{case.name}" if case.file else case.name
    file, classes = _path(case.classname, is_file)
    if case.file:
        named = case.file.replace("\\", "/")
        inside = _inside(case.classname, _module(named))
        if inside is not None:
            file, classes = named, inside
        elif not is_file(file):
            file = named
            classes = _classes_below(case.classname, _module(named), classes)
    return "::".join([file, *classes, case.name])


def _module(path: str) -> str:
    return re.sub(r"\.py$", "", path.replace("\\", "/").replace("/", "."))


def _inside(classname: str, module: str) -> list[str] | None:
    """Return the classes of a classname below a module, or None where it lies elsewhere."""
    if classname == module:
        return []
    return classname[len(module) + 1 :].split(".") if classname.startswith(module + ".") else None


def _classes_below(classname: str, module: str, fallback: list[str]) -> list[str]:
    """Return the classes where the classname begins with an end of the module's name."""
    parts = classname.split(".")
    for count in range(len(parts), 0, -1):
        if ("." + module).endswith("." + ".".join(parts[:count])):
            return parts[count:]
    return parts if parts[0][:1].isupper() else fallback


def _path(dotted: str, is_file: Callable[[str], bool]) -> tuple[str, list[str]]:
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        path = "/".join(parts[:count])
        if is_file(f"{path}.py"):
            return f"{path}.py", parts[count:]
        whole = ".".join(path.rsplit("/", 1))  # another ending than .py: docs/page.md
        if count > 1 and is_file(whole):
            return whole, parts[count:]
    classes = [index for index, part in enumerate(parts) if index and part[:1].isupper()]
    count = classes[0] if classes else len(parts)
    return "/".join(parts[:count]) + ".py", parts[count:]
