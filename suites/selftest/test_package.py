"""The package as a whole: lazy imports, layers, private parts of torch, schemas, the wheel."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import types
from pathlib import Path

import processes
import pytest

import vlm_ci
from vlm_ci import schemas
from vlm_ci.traffic.files import pretty

HEAVY = ("torch", "transformers", "hypothesis", "numpy")


def _python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import vlm_ci",
        "import vlm_ci.plugin",
        "import vlm_ci.cli",
        "import vlm_ci; vlm_ci.Text(3); vlm_ci.Envelope()",
        "from vlm_ci import listing; listing.targets(False)",
        "from vlm_ci import listing; listing.bugs(True)",
    ],
)
def test_light_imports_load_nothing_heavy(statement: str):
    loaded = _python(f"{statement}; import sys; print([m for m in {HEAVY} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_import_takes_under_150_ms_over_a_bare_interpreter():
    def seconds(code: str) -> float:
        return min(processes.cpu_seconds(code) for _ in range(7))

    assert seconds("import vlm_ci") - seconds("pass") < 0.150


def test_public_names_exist():
    for name in vlm_ci.__all__:
        value = getattr(vlm_ci, name)
        assert not isinstance(value, types.ModuleType), name
        assert name in dir(vlm_ci)
    with pytest.raises(AttributeError, match="no attribute 'audits'"):
        _ = vlm_ci.audits  # type: ignore[attr-defined]


def test_private_parts_of_torch_stay_where_they_are_allowed(repository: Path):
    allowed = {"watch/internals.py", "watch/caches.py", "watch/stages.py", "targets/backends.py"}
    users = set()
    for path in (repository / "vlm_ci").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = [f"{node.value.id}.{node.attr}"]
            private = ("torch._dynamo", "torch._inductor", "torch._C", "torch._functorch")
            if any(name.startswith(private) for name in names):
                users.add(str(path.relative_to(repository / "vlm_ci")))
    assert users <= allowed, users - allowed


def test_modules_are_short(repository: Path):
    long = {
        str(path): lines
        for path in (repository / "vlm_ci").rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_shipped_schemas_are_those_of_the_types():
    for name, schema in schemas.generate().items():
        shipped = (schemas.FOLDER / name).read_bytes()
        assert shipped == pretty(schema), f"{name} is stale: python -m vlm_ci.schemas"
        assert json.loads(shipped)["$schema"] == schemas.DIALECT
