"""Names the place of code so that two machines agree: no folders of theirs, no line numbers."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path


def place_of(path: str, function: str, first_line: int) -> str:
    """Return ``file: Class.function`` of code that begins at ``first_line`` of a file.

    The file stands from its outermost package down. ``function`` is the name that the code has by
    itself; it stands without its class where the file says nothing of it. What Dynamo names after
    a line (the code behind a graph break) and torch after a count (``<eval_with_key>.3``) is named
    alike whatever the number.
    """
    file = re.sub(r">\.\d+$", ">", _portable(path))
    name = _names(path).get(first_line, "")
    if name.rpartition(".")[2] != function:
        name = re.sub(r"_at_\d+(_\d+)?$", "", function)
    return f"{file}: {name}" if file else name


@lru_cache(maxsize=256)
def _portable(path: str) -> str:
    """Return a path from the folder of its outermost package down: its name if it is in none."""
    file = Path(path)
    top = file.parent
    while (top / "__init__.py").is_file():
        top = top.parent
    return file.relative_to(top).as_posix() if path else ""


@lru_cache(maxsize=64)
def _names(path: str) -> dict[int, str]:
    """Return the qualified name of each function of a file by the line at which its code begins,
    its first decorator's if it has any."""
    try:
        with open(path, encoding="utf-8") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return {}
    names: dict[int, str] = {}

    def visit(node: ast.AST, above: str) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                visit(child, above)
                continue
            name = f"{above}{child.name}"
            if isinstance(child, ast.ClassDef):
                visit(child, f"{name}.")
                continue
            first = min([child.lineno, *(one.lineno for one in child.decorator_list)])
            names[first] = name
            visit(child, f"{name}.")

    visit(tree, "")
    return names
