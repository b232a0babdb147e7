#!/usr/bin/env python3
"""Checks the shell of every run step of workflows and actions with shellcheck. Changes nothing.

A run step may not hold an expression: its text would become shell before bash reads it. Values go
through ``env``. Exit codes: 0 clean, 1 something found, 4 a file cannot be read.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

# What the runner puts around a step: `bash -eo pipefail` where the shell is named, `bash -e` else.
OPTIONS = {"bash": "set -eo pipefail", "sh": "set -e", None: "set -e"}
EXPRESSION = re.compile(r"\$\{\{")
INSTALL = "Debian's package shellcheck has it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The shell of one run step; ``line`` is that of its first line in the file."""

    file: Path
    line: int
    shell: str | None
    text: str


def steps(path: Path) -> Iterator[Step]:
    """Yield the run steps of a workflow or of a composite action."""
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    whole = _fields(root)
    jobs = [_fields(job) for job in _fields(whole.get("jobs")).values()]
    for job in [*jobs, _fields(whole.get("runs"))]:
        shells = [_default_shell(job), _default_shell(whole)]
        for node in getattr(job.get("steps"), "value", []):
            step = _fields(node)
            if "run" not in step:
                continue
            run = step["run"]
            named = step["shell"].value if "shell" in step else None
            yield Step(
                file=path,
                line=run.start_mark.line + (2 if run.style in ("|", ">") else 1),
                shell=next((shell for shell in (named, *shells) if shell), None),
                text=run.value,
            )


def _fields(node: Any) -> dict[str, Any]:
    """Return the fields of a mapping, each still a node that knows its line."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {key.value: value for key, value in node.value}


def _default_shell(part: dict[str, Any]) -> str | None:
    shell = _fields(_fields(part.get("defaults")).get("run")).get("shell")
    return None if shell is None else str(shell.value)


def problems(step: Step, shellcheck: str | None) -> Iterator[str]:
    """Yield what is wrong with a step, each with its file and line."""
    for number, line in enumerate(step.text.splitlines()):
        if EXPRESSION.search(line):
            yield (
                f"{step.file}:{step.line + number}: an expression inside of a run step becomes "
                "shell; pass the value through env"
            )
    if step.shell not in OPTIONS:
        yield f"{step.file}:{step.line}: shell {step.shell!r} is not checked; use bash"
    elif shellcheck is not None:
        dialect = step.shell or "bash"
        script = f"#!/usr/bin/env {dialect}\n{OPTIONS[step.shell]}\n{step.text}"
        before = 2  # lines of the script that stand before the step
        command = [shellcheck, "--shell", dialect, "--format", "json", "-"]
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
        if done.returncode > 1:
            raise SystemExit(f"shellcheck did not work: {done.stderr.strip()}")
        for found in json.loads(done.stdout):
            line = step.line + found["line"] - 1 - before
            yield f"{step.file}:{line}: SC{found['code']} {found['level']}: {found['message']}"


def main(argv: list[str] | None = None) -> int:
    """Check files and folders; print what is wrong and how much was looked at."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="workflows, actions, scripts, folders")
    given = parser.parse_args(argv).paths
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None and os.environ.get("CI"):
        print(f"shellcheck is not installed, and CI may not do without it: {INSTALL}")
        return 1
    files = [path for one in given for path in _files(one)]
    scripts = [path for path in files if path.suffix not in (".yml", ".yaml")]
    found: list[str] = []
    count = 0
    for path in files:
        if path in scripts:
            continue
        try:
            for step in steps(path):
                count += 1
                found += problems(step, shellcheck)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            print(f"cannot read {path}: {error}")
            return 4
    if shellcheck is not None and scripts:
        done = subprocess.run([shellcheck, "--format", "gcc", *map(str, scripts)], check=False)
        found += ["a script has faults (above)"] if done.returncode else []
    print("\n".join(found) or f"{count} run steps and {len(scripts)} scripts are clean")
    if shellcheck is None:
        print(f"SKIPPED: shellcheck is not installed, so no shell was checked ({INSTALL})")
    return 1 if found else 0


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(one for one in path.rglob("*") if one.suffix in (".yml", ".yaml", ".sh"))


if __name__ == "__main__":
    sys.exit(main())
