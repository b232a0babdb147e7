"""The page on a model of one's own: its commands run as shown, its code is that of the examples."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import processes
import pytest

from conftest import ROOT

PAGE = ROOT / "docs" / "own-model.md"
EXAMPLES = ROOT / "docs" / "examples"


@dataclass
class Command:
    """One command of the page: the lines shown below it, and the exit code asked of it."""

    text: str
    shown: list[str] = field(default_factory=list)
    code: int = 0


def blocks() -> list[list[Command]]:
    """Read the console blocks of the page; ``$ echo $?`` tells the code of the command above."""
    found: list[list[Command]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        asked = False
        commands: list[Command] = []
        for line in block.splitlines():
            if line == "$ echo $?":
                asked = True
            elif line.startswith("$ "):
                commands.append(Command(line.removeprefix("$ ")))
                asked = False
            elif asked:
                commands[-1].code = int(line)
            else:
                commands[-1].shown.append(line)
        found.append(commands)
    return found


def plain(line: str) -> str:
    """Take out what differs from machine to machine: measured figures, and runs of blanks."""
    return " ".join(re.sub(r"\d+\.\d+(e[+-]\d+)?|\b\d{3,}\b|\d+e[+-]\d+", "#", line).split())


def occurs(shown: str, output: list[str]) -> bool:
    """Whether a shown line is a line of the output; "…" stands for anything."""
    pattern = re.escape(plain(shown)).replace("…", ".*")
    return any(re.fullmatch(pattern, line) for line in output)


# By night: what compiles a real model, or starts a child process.
NIGHTLY = ("llava", "own_family", "engine_over_pipe")


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(
            block,
            id=block[0].text,
            marks=[pytest.mark.nightly] if any(name in block[0].text for name in NIGHTLY) else [],
        )
        for block in blocks()
    ],
)
def test_the_page_tells_the_truth(block: list[Command], tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", ".*", "vlm-ci-out")
    folder = shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=ignored)
    for command in block:
        argv = shlex.split(command.text)
        if argv[0] in ("vlm-ci", "pytest"):
            done = processes.run(*argv, cwd=folder)
            code, text = done.returncode, done.stdout + done.stderr
        else:
            plain_run = subprocess.run(
                argv, cwd=folder, capture_output=True, text=True, check=False
            )
            code, text = plain_run.returncode, plain_run.stdout
        assert code == command.code, text
        output = [plain(line) for line in text.splitlines()]
        missing = [line for line in command.shown if line != "…" and not occurs(line, output)]
        assert not missing, text


def test_the_page_shows_something_of_every_way():
    commands = [command for block in blocks() for command in block]
    text = " ".join(command.text for command in commands)
    for way in ("own_recipe:", "own_family:", "engine_in_process:", "engine_over_pipe:", "pytest"):
        assert way in text
    assert [command.code for command in commands].count(1) >= 2  # a reader sees red too
    assert all(command.shown for command in commands)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short_and_on_a_page(path: Path):
    assert len(path.read_text().splitlines()) < 150
    pages = [page.read_text() for page in (ROOT / "docs").glob("*.md")]
    assert any(f"(examples/{path.name})" in page for page in pages)


def test_the_code_on_the_page_is_that_of_the_examples():
    everything = "\n".join(path.read_text() for path in EXAMPLES.glob("*.py"))
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        if "…" not in block:
            for line in block.splitlines():
                assert line in everything, line
