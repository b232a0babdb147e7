"""A small model, failure files of it, and what every standalone repro has to be."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from vlm_ci import Image, Model, Text, batch, building, families, runner, session
from vlm_ci.evidence import FailureFile
from vlm_ci.failures import Failure
from vlm_ci.settings import Settings
from vlm_ci.targets import models
from vlm_ci.traffic.files import plan_to_json, pretty

MODEL = Model(
    name="small-llava",
    family=families.load("llava"),
    config={
        **models.find("llava-tiny").config,
        "vision_feature_layer": -1,
        "text_config": {**models.find("llava-tiny").config["text_config"], "num_hidden_layers": 1},
        "vision_config": {
            **models.find("llava-tiny").config["vision_config"],
            "num_hidden_layers": 1,
        },
    },
)
NAMED = "repros:MODEL"
WARM = batch([Text(6), Image(16, 16), Text(4)])
ONE = batch(Text(1))


def file_of(failure: Failure, **changes: object) -> FailureFile:
    """A failure file as a run writes it."""
    known = {
        "target": NAMED,
        "recipe": "decoder-layers",
        "backend": "eager",
        "options": {"device": "cpu", "dtype": "float32", "dynamic": True, "recompile_limit": 8},
        "warmup": "plan.json",
        "plan": (WARM,),
        **changes,
    }
    return FailureFile(failure=failure, **known)


def failure_of(kind: str, key: str = "", **changes: object) -> Failure:
    known = {"cause": f"a {kind}", "advice": "none", "traffic": session(ONE), **changes}
    return Failure(kind=kind, key=key, **known)


def refusal(function: str, path: str, *guards: str) -> str:
    """What torch prints of a refused call."""
    entries = "".join(f"\n    - 0/{n}: {guard}  # code" for n, guard in enumerate(guards))
    failed = f"\n    triggered by the following guard failure(s):{entries}" if guards else ""
    return (
        "Detected recompile when torch.compile stance is 'fail_on_recompile'. filename: "
        f"'/x/site-packages/{path}', function name: '{function}', line number: 7{failed}\n"
    )


@pytest.fixture
def without_vlm_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every import of vlm_ci fail in the processes that are started."""
    folder = tmp_path / "blocked"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['vlm_ci'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def check_form(path: Path) -> ast.Module:
    """Check that a script is short and imports torch, transformers and the standard library."""
    lines = path.read_text().splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 100
    tree = ast.parse("\n".join(lines))
    assert ast.get_docstring(tree)
    named = {
        module.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
        )
    }
    assert named - set(sys.stdlib_module_names) == {"torch", "transformers"}
    return tree


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real failure: text of one token, after a warm-up with an image."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "plan.json").write_bytes(plan_to_json((WARM,)))
    traffic = folder / "corpus"
    traffic.mkdir()
    (traffic / "one.json").write_bytes(pretty(session(ONE)))
    settings = Settings.from_mapping(
        {
            "target": NAMED,
            "warmup": str(folder / "plan.json"),
            "corpus": str(traffic),
            "examples": 1,
            "database": "none",
            "out": str(folder / "out"),
        }
    )
    target = building.build_target(settings)
    try:
        runner.run(settings, target, name=NAMED)
    finally:
        target.close()
    (found,) = (folder / "out/failures").iterdir()
    return found
