"""What ``make lint`` says of workflows and actions: clean as they are, red when one is broken."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / ".github/scripts"
needs_shellcheck = pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not installed (Debian has it)"
)


def tool(name: str) -> str:
    """Return a command of the environment that runs these tests; skip where there is none."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed: it is one of the extra dev")
    return found


@pytest.fixture
def tree(repository: Path, tmp_path: Path) -> Path:
    """A copy of what is checked, to be broken."""
    shutil.copytree(repository / ".github", tmp_path / ".github")
    return tmp_path


def change(tree: Path, name: str, old: str, new: str) -> None:
    path = tree / ".github" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def called(*command: str, cwd: Path, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**{n: v for n, v in os.environ.items() if n != "CI"}, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def shell(tree: Path, **environment: str) -> tuple[int, str]:
    script = str(SCRIPTS / "shell_steps.py")
    return called(sys.executable, script, ".github", cwd=tree, **environment)


def zizmor(tree: Path) -> tuple[int, str]:
    options = ("--offline", "--no-progress", "--persona", "auditor", "--strict-collection")
    return called(tool("zizmor"), *options, "--format", "plain", ".github", cwd=tree)


def schema(tree: Path) -> tuple[int, str]:
    files = sorted(str(path) for path in (tree / ".github/workflows").glob("*.yml"))
    command = (tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows")
    return called(*command, *files, cwd=tree)


def test_lint_runs_all_of_these_checks(repository: Path) -> None:
    recipe = (
        (repository / "Makefile").read_text().partition("\nlint: ")[2].partition("\ninstall")[0]
    )
    for part in (
        "zizmor --offline",
        "--persona auditor",
        "vendor.github-workflows .github/workflows/*.yml $(EXAMPLES)/*.yml",
        "vendor.github-actions .github/actions/*/action.yml",
        "vendor.dependabot",
        "shell_steps.py .github .ci/run $(EXAMPLES)",
    ):
        assert part in recipe


def test_all_is_clean_as_it_is(tree: Path) -> None:
    assert zizmor(tree)[0] == 0, zizmor(tree)[1]
    assert schema(tree)[0] == 0, schema(tree)[1]
    code, said = shell(tree)
    assert code == 0, said
    assert re.search(r"[1-9]\d* run steps and [1-9]\d* scripts are clean", said)


@pytest.mark.parametrize(
    ("name", "old", "new", "rule"),
    [
        pytest.param(
            "actions/bot/action.yml",
            '"$GITHUB_ACTION_PATH/bot.sh"',
            "${{ github.event.comment.body }}",
            "template-injection",
            id="template-injection",
        ),
        pytest.param(
            "workflows/ci.yml",
            "actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd # v6.0.2",
            "actions/checkout@v6",
            "unpinned-uses",
            id="unpinned-action",
        ),
        pytest.param(
            "workflows/nightly.yml",
            "permissions: {}",
            "permissions: write-all",
            "excessive-permissions",
            id="permissions",
        ),
        pytest.param(
            "workflows/gpu.yml",
            "persist-credentials: false",
            "persist-credentials: true",
            "artipacked",
            id="credentials",
        ),
        pytest.param(
            "workflows/pull-request.yml",
            "  pull_request:\n",
            "  pull_request_target:\n",
            "dangerous-triggers",
            id="trigger",
        ),
        pytest.param(
            "dependabot.yml",
            "    cooldown:\n      default-days: 7\n",
            "",
            "dependabot-cooldown",
            id="cooldown",
        ),
    ],
)
def test_a_security_fault_is_red(tree: Path, name: str, old: str, new: str, rule: str) -> None:
    change(tree, name, old, new)
    code, said = zizmor(tree)
    assert code != 0
    assert f"[{rule}]" in said


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("runs-on: ubuntu-24.04", "runs_on: ubuntu-24.04", id="misspelt-key"),
        pytest.param("timeout-minutes: 20", "timeout-minutes: soon", id="wrong-type"),
    ],
)
def test_a_fault_of_the_schema_is_red(tree: Path, old: str, new: str) -> None:
    change(tree, "workflows/ci.yml", old, new)
    code, said = schema(tree)
    assert code != 0
    assert "ci.yml" in said


@needs_shellcheck
@pytest.mark.parametrize(
    ("name", "old", "wrong"),
    [
        pytest.param("workflows/ci.yml", "make test", "rm $1/x", id="line"),
        pytest.param(
            "workflows/ci.yml", "make test", f"|\n{' ' * 10}true\n{' ' * 10}rm $1/x", id="block"
        ),
        pytest.param("actions/merge/merge.sh", '-p "$shards"', "-p $shards", id="action"),
        pytest.param("actions/vlm-ci/check.sh", '"$EVIDENCE"', "$EVIDENCE", id="script"),
    ],
)
def test_a_shell_fault_is_red_at_its_line(tree: Path, name: str, old: str, wrong: str) -> None:
    change(tree, name, old, wrong)
    line = (tree / ".github" / name).read_text().partition(wrong)[0].count("\n") + 1
    line += wrong.count("\n")
    code, said = shell(tree)
    assert code == 1
    assert re.search(rf"\.github/{name}:{line}:.*SC2086|:{line}:.*\[SC2086\]", said), said


def test_an_expression_in_a_run_step_is_red_without_shellcheck(tree: Path) -> None:
    new = 'run: make test TARGET="${{ inputs.target }}"'
    change(tree, "workflows/ci.yml", "run: make test", new)
    line = (tree / ".github/workflows/ci.yml").read_text().partition(new)[0].count("\n") + 1
    code, said = shell(tree, PATH="/nowhere")
    assert code == 1
    assert f"ci.yml:{line}: an expression inside of a run step" in said


def test_another_shell_is_not_passed_over(tree: Path) -> None:
    change(tree, "workflows/ci.yml", "shell: bash", "shell: pwsh")
    code, said = shell(tree)
    assert code == 1
    assert "shell 'pwsh' is not checked" in said


def test_without_shellcheck_it_says_so_and_ci_fails(tree: Path) -> None:
    code, said = shell(tree, PATH="/nowhere")
    assert code == 0
    assert "SKIPPED: shellcheck is not installed" in said
    code, said = shell(tree, PATH="/nowhere", CI="true")
    assert code == 1
    assert "CI may not do without it" in said


def test_the_tools_are_all_but_what_runs_models_and_tests(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"].get("bot", [])]
    names = {re.split(r"[<>=\[;]", line)[0].lower() for line in needed}
    heavy = {"hypothesis", "pytest", "pytest-xdist", "torch", "transformers"}
    line = re.search(r"^TOOLS := (.*)$", (repository / "Makefile").read_text(), re.MULTILINE)
    assert line is not None
    assert names - heavy <= set(line[1].lower().split())


def test_each_suppression_has_its_reason(repository: Path) -> None:
    files = [*(repository / ".github").rglob("*.yml"), *(repository / ".github").rglob("*.sh")]
    lines = [line for path in files for line in path.read_text().splitlines()]
    ignored = [line for line in lines if "zizmor: ignore" in line or "shellcheck disable" in line]
    assert ignored
    for line in ignored:
        assert re.search(r"(ignore\[[\w-]+\]|disable=SC\d+) \w+(\W+\w+){3,}", line), line


def test_every_action_is_pinned_to_one_commit(repository: Path) -> None:
    files = (repository / ".github").rglob("*.yml")
    used = [
        found
        for path in files
        for found in re.findall(r"uses: ([\w/-]+)@(\S+)(.*)", path.read_text())
    ]
    pins = {name.removesuffix("/restore").removesuffix("/save"): set() for name, _, _ in used}
    for name, commit, comment in used:
        assert re.fullmatch(r"[0-9a-f]{40}", commit)
        assert re.match(r" # v\d+\.\d+\.\d+$", comment)
        pins[name.removesuffix("/restore").removesuffix("/save")].add(commit + comment)
    assert all(len(commits) == 1 for commits in pins.values()), pins


def test_no_job_goes_without_a_limit_or_with_more_rights_than_stated(repository: Path) -> None:
    from workflow_runner import load

    for path in sorted((repository / ".github/workflows").glob("*.yml")):
        workflow = load(path)
        assert workflow["permissions"] == {}, path.name
        assert "concurrency" in workflow, path.name
        for name, job in workflow["jobs"].items():
            assert "permissions" in job, (path.name, name)
            assert "uses" in job or "timeout-minutes" in job, (path.name, name)


@pytest.fixture
def steps_of() -> Callable[[Path], list[tuple[int, str | None, str]]]:
    """The reader of run steps: line, shell and text of each."""
    spec = importlib.util.spec_from_file_location("shell_steps", SCRIPTS / "shell_steps.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["shell_steps"] = module
    spec.loader.exec_module(module)
    return lambda path: [(one.line, one.shell, one.text) for one in module.steps(path)]


def test_the_shell_of_a_step_is_the_nearest_that_is_named(
    steps_of: Callable[[Path], list[tuple[int, str | None, str]]], tmp_path: Path
) -> None:
    path = tmp_path / "w.yml"
    path.write_text(
        "defaults: {run: {shell: sh}}\n"
        "jobs:\n"
        "  one:\n"
        "    defaults: {run: {shell: bash}}\n"
        "    steps:\n"
        "      - run: a\n"
        "      - run: |\n"
        "          b\n"
        "          c\n"
        "        shell: python\n"
        "  two:\n"
        "    steps:\n"
        "      - uses: x\n"
        "      - run: d\n"
    )
    assert steps_of(path) == [(6, "bash", "a"), (8, "python", "b\nc\n"), (14, "sh", "d")]
