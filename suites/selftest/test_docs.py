"""The pages tell the truth: the README's first green and first red, every option, every link."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import processes
import pytest

from vlm_ci.options import OPTIONS
from vlm_ci.targets.models import tiny_models

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]


def block(command: str) -> list[str]:
    """Return what the README shows below a command."""
    for found in re.findall(r"^```console\n\$ (.*?)^```$", PAGES[0].read_text(), re.DOTALL | re.M):
        first, *shown = found.splitlines()
        if first.startswith(command):
            return shown
    raise AssertionError(f"the README has no block of {command}")


def plain(line: str) -> str:
    """Take out what differs from machine to machine: versions, times, errors."""
    if line.startswith("environment"):
        return re.sub(r"\d[\w.+]*|\([^)]*\)", "#", line)
    line = re.sub(r"^(baseline +)\S*/(fixtures/)", r"\1\2", line)  # the folder that they lie in
    line = re.sub(r"worst error .*|, \d+ warnings?| \(\d+:\d\d:\d\d\)$", "", line)
    return re.sub(r"\d+\.\d+ ?s\b|\d+%|\(\d+:\d\d:\d\d\)| \(0:.*", "#", line).rstrip()


def vlm_ci(folder: Path, *args: str) -> processes.Done:
    return processes.run("vlm-ci", *args, cwd=folder)


def compare(shown: list[str], output: str) -> None:
    """Each shown line has to occur in the output, in this order; "…" stands for any lines."""
    lines = iter([plain(line) for line in output.splitlines()])
    for line in shown:
        if line != "…" and not line.startswith("vlm-ci: "):
            assert plain(line) in lines, f"the output lacks {line!r}:\n{output}"


@pytest.mark.slow
def test_the_first_green(tmp_path: Path):
    recipe = re.search(r"^\t\$\(BIN\)/vlm-ci (run .*)$", (ROOT / "Makefile").read_text(), re.M)
    assert recipe is not None
    done = vlm_ci(tmp_path, *recipe[1].split())
    assert done.returncode == 0, done.stdout + done.stderr
    shown = block("make run")
    compare(shown, done.stdout)
    for line in shown:
        if line.startswith("vlm-ci: "):
            assert line.split(" ", 2)[1] in done.stderr


@pytest.mark.slow
def test_the_first_red_and_its_replay(tmp_path: Path):
    done = vlm_ci(tmp_path, *"run --bug deepstack-kwarg".split())
    assert done.returncode == 1, done.stdout + done.stderr
    compare(block(".venv/bin/vlm-ci run --bug deepstack-kwarg"), done.stdout)
    (folder,) = (tmp_path / "vlm-ci-out/failures").iterdir()
    again = vlm_ci(tmp_path, "replay", str(folder.relative_to(tmp_path)), "--repaired")
    assert again.returncode == 0, again.stdout + again.stderr
    compare(block(".venv/bin/vlm-ci replay"), again.stdout)


def test_the_page_on_pytest_has_every_option():
    rows = re.findall(r"^\| `--vlm-([\w-]+)", (ROOT / "docs/pytest.md").read_text(), re.M)
    assert rows == [option.name for option in OPTIONS]


def test_the_readme_names_every_tiny_model_and_option():
    text = PAGES[0].read_text()
    for name in tiny_models():
        if name.endswith("-tiny"):
            assert f"`{name}`" in text
    for option in OPTIONS:
        if option.name not in ("bug", "repaired"):
            assert f"`--{option.name}`" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_nothing_speaks_of_a_workplace():
    """The repository speaks of the project alone: no machine's paths."""
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    for name in tracked:
        path = ROOT / name
        if path.suffix in (".md", ".py", ".toml", ".yml", ".json", ".txt") and path.exists():
            assert not re.search(r"(?<![\w.])/(?:work|tmp/venv|root)/", path.read_text()), name
