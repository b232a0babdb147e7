"""Standalone repros: a failure as one Python file that needs torch and transformers alone.

It is run in a fresh process before it is written out; one that does not reproduce says so in its
first line. Compiles nothing in this process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_ci.errors import UsageError
from vlm_ci.repro import causes, script
from vlm_ci.repro.building import KINDS, Material, Unwritable, material

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vlm_ci.evidence import FailureFile

MOST_LINES = 60  # a script has fewer, the mark included
MOST_TRIES = 6
NAME = "repro.py"
MARK = "# DOES NOT REPRODUCE: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Repro:
    """What came of it. ``path`` is None where no script can be written, and ``note`` says why.

    ``output`` is what the script printed, stdout and stderr, when it was run; ``note`` is empty
    where it reproduces and nothing is to be added; ``seconds`` is the time that all tries took.
    """

    path: Path | None
    reproduced: bool
    output: str = ""
    note: str = ""
    seconds: float = 0.0


def write(file: FailureFile, folder: Path, *, timeout: float = 120.0) -> Repro:
    """Write ``folder``/repro.py for a recorded failure.

    The shortest warm-up comes first: the batch of the plan that is most like the failing one, then
    two, then as many as fit into a script, then others alone. The first script that shows the
    recorded cause in a fresh process is kept, else the last one, marked. ``timeout`` is in
    seconds, for all tries.

    Raises:
        OSError: the folder cannot be written to.
    """
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        ready = material(file)
    except (Unwritable, UsageError) as error:
        return Repro(path=None, reproduced=False, note=str(error), seconds=_since(started))
    assert file.failure is not None
    output, why, lines = "", f"it was not run: {timeout:g} s were not enough", []
    for lines in _scripts(ready):
        left = timeout - _since(started)
        if left <= 0:
            break
        try:
            returncode, output = _run(lines, left)
        except subprocess.TimeoutExpired:
            why = f"it had not ended after {timeout:g} s"
            break
        why = causes.difference(file.failure, returncode, output)
        if not why:
            break
    note = ready.note
    if why:
        note = f"{ready.note}: {why}" if ready.note else why
        lines = [textwrap.shorten(MARK + note, 100, placeholder=" …"), *lines]
    if len(lines) >= MOST_LINES:
        too_long = f"it has {len(lines)} lines, because its batches are large"
        note = f"{note}; {too_long}" if note else too_long
    path = folder / NAME
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Repro(path=path, reproduced=not why, output=output, note=note, seconds=_since(started))


def _scripts(ready: Material) -> Iterator[list[str]]:
    """Yield scripts that are short enough: with more and more of the warm-up, then with one other
    batch each, because what does not help may stand in the way of what fits in."""

    def lines(chosen: tuple[int, ...]) -> list[str]:
        warm_up = [ready.warm_up[index] for index in sorted(chosen)]
        return script.render(ready.scene, warm_up, ready.session)

    def fits(chosen: tuple[int, ...]) -> bool:
        return len(lines(chosen)) < MOST_LINES - 1

    order = ready.order
    sizes = range(len(order) + 1)
    least = 0 if ready.scene.kind in script.UNREFUSED else min(1, len(order))
    most = max([least, *(size for size in sizes if fits(order[:size]))])
    choices = [order[:most]]
    if ready.growing:
        choices = [order[:size] for size in range(least, min(3, most))] + choices
        choices += [(index,) for index in order[1:] if fits((index,))]
    for chosen in list(dict.fromkeys(choices))[:MOST_TRIES]:
        yield lines(chosen)


def _run(lines: list[str], timeout: float) -> tuple[int, str]:
    """Run a script in a folder of its own; returns its exit code and all that it printed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(path)],
            cwd=folder,
            env=os.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    return done.returncode, done.stdout


def _since(started: float) -> float:
    return time.perf_counter() - started


__all__ = ["KINDS", "Repro", "write"]
