"""Commands in fresh processes that have torch imported already, which saves 8 s for each."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PRELOADED = (
    "hypothesis",
    "networkx",  # Dynamo imports both when it compiles for the first time
    "pytest",
    "torch.export",
    "transformers.models.auto.modeling_auto",
    "vlm_ci.checker",
    "vlm_ci.targets.transformers_twin",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a command returned and printed."""

    returncode: int
    stdout: str
    stderr: str


@cache
def context() -> Any:
    """Return what starts processes that have torch imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def cpu_seconds(code: str) -> float:
    """Return the processor time that a bare interpreter takes for some code: what else runs on the
    machine does not count."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = spent()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return spent() - before


def run(*argv: str, cwd: Path, timeout: float = 550, **environment: str) -> Done:
    """Run ``vlm-ci …`` or ``pytest …`` in a folder; what it imports from there comes first.

    What the surrounding test run says in its variables does not reach it.
    """
    with tempfile.TemporaryDirectory() as logs:
        process = start(*argv, cwd=cwd, logs=Path(logs), **environment)
        return wait(process, Path(logs), timeout=timeout)


def start(*argv: str, cwd: Path, logs: Path, **environment: str) -> Any:
    """Begin what ``run`` runs; what it prints goes into a folder."""
    own = ("PYTEST_XDIST", "PYTEST_CURRENT_TEST", "PYTEST_ADDOPTS", "PYTEST_VERSION", "CI")
    own += ("GITHUB_",)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    process = context().Process(
        target=_serve, args=(argv, str(cwd), str(logs), {**variables, **environment})
    )
    process.start()
    return process


def wait(process: Any, logs: Path, *, timeout: float = 550) -> Done:
    """Wait for what was started; a process that takes longer is killed."""
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"it took longer than {timeout} s: {(logs / 'out').read_text()}")
    assert process.exitcode is not None
    return Done(
        returncode=process.exitcode,
        stdout=(logs / "out").read_text(),
        stderr=(logs / "err").read_text(),
    )


def _serve(argv: tuple[str, ...], folder: str, logs: str, environment: dict[str, str]) -> None:
    """Do what the entry points do, in a process that was made for it."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{logs}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [folder, *environment.get("PYTHONPATH", "").split(os.pathsep)]
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    sys.argv = list(argv)
    if argv[0] == "pytest":
        import pytest

        code = int(pytest.main(["-p", "no:cacheprovider", *argv[1:]]))
    else:
        from vlm_ci.cli import main

        code = main(argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
