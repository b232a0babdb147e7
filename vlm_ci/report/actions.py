"""What a step of GitHub Actions is told: the summary of its job, and annotations.

The one part of the reports that reads the environment and the checkout, and appends to the file of
the summary. Writes nothing else.
"""

from __future__ import annotations

import ast
import os
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from vlm_ci import evidence
from vlm_ci.errors import UsageError
from vlm_ci.report import markdown
from vlm_ci.report.annotations import Place, commands, defused
from vlm_ci.report.markdown import MOST_BYTES, Run, TestNote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vlm_ci.result import Result

SUMMARY = "GITHUB_STEP_SUMMARY"
_NOT_OURS = {"node_modules", "site-packages", "dist-packages", "__pycache__"}


def in_actions(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a step of GitHub Actions."""
    return environ.get("GITHUB_ACTIONS") == "true"


def for_log(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return text for the log of a step, where text of others must not be a workflow command."""
    return defused(text) if in_actions(environ) else text


def tell(
    results: Sequence[tuple[Result, str]],
    wanted: bool | None,
    *,
    say: Callable[[str], object],
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Print the annotations of some results, given with their folders, and append to the summary
    of the step.

    ``wanted`` is the option: None does so where this is a step of GitHub Actions.
    """
    if not results or wanted is False:
        return
    runs = [run_of(result, out) for result, out in results]
    if wanted or in_actions(environ):
        for line in annotation_lines(runs, environ):
            say(line)
    path = environ.get(SUMMARY)
    if path and (problem := append_summary(runs, Path(path))):
        say(f"vlm-ci: {problem}")


def run_of(result: Result, out: str) -> Run:
    """Return a run with what its folder knows besides: the geometry of its model, and whether it
    can be replayed."""
    for failure in result.failures:
        if failure.path:
            try:
                file = evidence.read(Path(out) / failure.path / "failure.json").file
            except UsageError:
                continue
            geometry = file.envelope.geometry if file.envelope is not None else None
            return Run(result=result, out=out, geometry=geometry, replayable=file.loadable)
    return Run(result=result, out=out)


def append_summary(runs: Sequence[Run], path: Path, *, tests: Sequence[TestNote] = ()) -> str:
    """Append a report to the file of a step's summary; return what went wrong, or nothing.

    It is kept within GitHub's limit together with what the file holds.
    """
    try:
        before = path.read_bytes() if path.exists() else b""
        apart = b"" if not before else b"\n" if before.endswith(b"\n") else b"\n\n"
        room = MOST_BYTES - len(before) - len(apart)
        text = markdown.report(runs, tests=tests, most=room)
        if not text:
            return f"{path} has no room for a summary: GitHub takes 1 MiB for a step"
        with path.open("ab") as stream:
            stream.write(apart + text.encode())
    except OSError as error:
        return f"cannot write the summary of the step to {path}: {error.strerror or error}"
    return ""


def annotation_lines(runs: Sequence[Run], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the annotations of some runs, at files of the checkout that this step works on."""
    checkout = Checkout(Path(environ.get("GITHUB_WORKSPACE") or Path.cwd()))
    return commands([(run.result, run.out) for run in runs], checkout)


class Checkout:
    """The files below a folder, found by the ends of their paths.

    A record names a file by the last parts of its path. What lies in an environment of Python's is
    not of the checkout: no diff has it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._files: dict[str, list[str]] | None = None

    def locate(self, path: str, line: int) -> Place | None:
        """Return the file of the checkout that a path means, None where none or several do."""
        if Path(path).is_absolute() and Path(path).is_relative_to(self.root):
            path = str(Path(path).relative_to(self.root))
        parts = PurePosixPath(path).parts
        if not parts or ".." in parts:
            return None
        found = [
            one
            for one in self._named(parts[-1])
            if PurePosixPath(one).parts[-len(parts) :] == parts
        ]
        if path in found:
            found = [path]
        return Place(path=found[0], line=line) if len(found) == 1 else None

    def find_test(self, nodeid: str) -> Place | None:
        """Return where the test of a node id is defined."""
        path, *names = nodeid.partition("[")[0].split("::")
        place = self.locate(path, 0)
        if place is None:
            return None
        try:
            tree = ast.parse((self.root / place.path).read_bytes())
        except (OSError, SyntaxError, ValueError):
            return place
        return Place(path=place.path, line=_line_of(tree, names))

    def _named(self, name: str) -> list[str]:
        if self._files is None:
            self._files = defaultdict(list)
            for folder, folders, files in os.walk(self.root):
                folders[:] = [
                    one
                    for one in folders
                    if one not in _NOT_OURS
                    and not one.startswith(".")
                    and not Path(folder, one, "pyvenv.cfg").exists()
                ]
                for file in files:
                    if file.endswith(".py"):
                        whole = Path(folder, file).relative_to(self.root).as_posix()
                        self._files[file].append(whole)
        return self._files.get(name, [])


def _line_of(tree: ast.AST, names: Sequence[str]) -> int:
    """Return the line of a function in its classes, 0 where it is not there."""
    line = 0
    for name in names:
        for node in ast.iter_child_nodes(tree):
            named = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if named and node.name == name:  # type: ignore[attr-defined]
                tree, line = node, node.lineno  # type: ignore[attr-defined]
                break
        else:
            return 0
    return line
