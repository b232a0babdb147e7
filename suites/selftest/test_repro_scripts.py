"""The scripts of every kind, context and recipe, and which warm-up is tried first; none is run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from repros import ONE, WARM, check_form, failure_of, file_of
from repros import recorded as recorded
from repros import without_vlm_ci as without_vlm_ci

from vlm_ci import Image, Text, batch, repro, session
from vlm_ci.evidence import FailureFile
from vlm_ci.repro import causes

# -- scripts of all kinds, not run ---------------------------------------------------------------

CONTEXTS = ("inference_mode", "no_grad", "grad", "autocast", "thread", "outside_inputs")
SCRIPTS = {
    **{kind: failure_of(kind, "k") for kind in ("recompile", "new-frame", "limit-hit")},
    "logits": failure_of("mismatch", "logits"),
    "shape": failure_of("mismatch", "shape"),
    "nonfinite": failure_of("nonfinite", "eager"),
    "none": failure_of("eager-fallback", "none: model"),
    "some": failure_of("eager-fallback", "some calls: model"),
    "fewer": failure_of("eager-fallback", "fewer: ", cause="7 executed; warm-up executed 9 for x"),
    "crash": failure_of("crash", "the compiled twin ValueError"),
    "eager": failure_of("crash", "the eager twin ValueError"),
    "warm-up": failure_of("crash", "warm-up ValueError"),
    **{
        context: failure_of("recompile", traffic=session(batch(Text(3), context=context)))
        for context in CONTEXTS
    },
    "quotes": failure_of("recompile", cause='it says "x" and \\N{x} """'),
}


@pytest.fixture
def unrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write scripts as if they reproduced, without running them."""
    monkeypatch.setattr(repro, "_run", lambda lines, timeout: (1, ""))
    monkeypatch.setattr(causes, "difference", lambda failure, returncode, output: "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_kind_and_context_fits(name: str, tmp_path: Path, unrun):
    plans = {
        "warm-up": (WARM, ONE),
        "limit-hit": (WARM, ONE),
        **{context: (batch(Text(9), context=context),) for context in CONTEXTS},
    }
    file = file_of(SCRIPTS[name], plan=plans.get(name, (WARM,)))
    made = repro.write(file, tmp_path)
    assert made.path is not None
    check_form(made.path)


@pytest.mark.parametrize("target", ["qwen3-vl-tiny", "qwen2.5-vl-tiny", "llava-tiny"])
@pytest.mark.parametrize("recipe", ["decoder-layers", "language-model", "vision", "whole"])
def test_every_recipe_names_its_modules(target: str, recipe: str, tmp_path: Path, unrun):
    made = repro.write(
        file_of(failure_of("recompile"), target=target, recipe=recipe, plan=(ONE,)), tmp_path
    )
    assert made.path is not None
    check_form(made.path)
    line = next(line for line in made.path.read_text().splitlines() if ".compile(" in line)
    looped = recipe in ("decoder-layers", "vision")
    assert line.startswith("    part.compile(") is looped


def test_options_reach_the_script(tmp_path: Path, unrun):
    options = {
        "device": "cuda",
        "dtype": "bfloat16",
        "dynamic": None,
        "mode": "reduce-overhead",
        "fullgraph": True,
        "recompile_limit": 3,
    }
    made = repro.write(
        file_of(failure_of("recompile"), backend="inductor", options=options), tmp_path
    )
    assert made.path is not None
    check_form(made.path)
    text = made.path.read_text()
    for part in (
        'part.compile(backend="inductor", fullgraph=True, mode="reduce-overhead")',
        "torch._dynamo.config.recompile_limit = 3",
        'model.to("cuda").eval()',
        "torch.randn(shape, dtype=torch.bfloat16)",
        "cudagraph_mark_step_begin()",
        "torch.clone",
    ):
        assert part in text


def test_mixed_contexts_stand_at_their_batches(tmp_path: Path, unrun):
    failure = failure_of("recompile", traffic=session(batch(Text(3), context="grad")))
    made = repro.write(file_of(failure), tmp_path)
    assert made.path is not None
    check_form(made.path)
    text = made.path.read_text()
    assert 'dict(context="grad", input_ids=' in text
    assert 'dict(context="inference_mode", input_ids=' in text
    assert 'if context == "grad":' in text


# -- which warm-up is tried ----------------------------------------------------------------------


def tries(file: FailureFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """How many batches each script that is tried warms up with."""
    seen: list[int] = []

    def run(lines: list[str], timeout: float) -> tuple[int, str]:
        tree = ast.parse("\n".join(lines))
        sizes = {
            node.targets[0].id: len(node.value.elts)
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.List)
        }
        seen.append(sizes.get("WARM_UP", 0))
        return 0, "clean"

    monkeypatch.setattr(repro, "_run", run)
    made = repro.write(file, tmp_path)
    assert made.note.endswith("clean")
    assert made.path is not None
    check_form(made.path)
    return seen


PLAN = (batch(Text(9), Text(4)), batch(Text(11)), WARM, batch(Text(3)))


def test_the_nearest_batches_come_first(monkeypatch, tmp_path: Path):
    failure = failure_of("recompile", traffic=session(batch(Text(2))))
    assert tries(file_of(failure, plan=PLAN), monkeypatch, tmp_path) == [1, 2, 4, 1, 1, 1]
    failure = failure_of("mismatch", "logits", traffic=session(batch(Text(2))))
    assert tries(file_of(failure, plan=PLAN), monkeypatch, tmp_path)[:4] == [0, 1, 2, 4]


def test_a_limit_takes_the_plan_up_to_its_batch(monkeypatch, tmp_path: Path):
    failure = failure_of("limit-hit", traffic=session(WARM))
    assert tries(file_of(failure, plan=PLAN), monkeypatch, tmp_path) == [3]


def test_what_runs_after_a_limit_is_not_what_reaches_it(tmp_path: Path, unrun):
    """The batch that ran eagerly is the first to be left out where not all of the plan fits."""
    failure = failure_of("eager-fallback", "some calls: x", note="the recompile limit (8) was")
    made = repro.write(file_of(failure, plan=(WARM, ONE)), tmp_path)
    assert made.path is not None
    text = made.path.read_text()
    assert "[500]*16" in text.partition("WARM_UP")[2].partition("SESSION")[0]


def test_a_planted_bug_is_tried_once_and_named(monkeypatch, tmp_path: Path):
    options = {"device": "cpu", "dtype": "float32", "bug": "warmup-none"}
    file = file_of(failure_of("recompile"), plan=PLAN, options=options)
    assert tries(file, monkeypatch, tmp_path) == [4]
    first = (tmp_path / "repro.py").read_text().splitlines()[0]
    assert first == (
        "# DOES NOT REPRODUCE: without vlm_ci there is no planted bug warmup-none: clean"
    )


def test_what_does_not_fit_says_so(tmp_path: Path, unrun):
    """Many large batches: the shortest script is written all the same, and its note says why."""
    large = batch(*([Text(n), Image(16, 16), Text(n)] for n in range(1, 40)))
    made = repro.write(
        file_of(failure_of("recompile", traffic=session(large)), target="qwen3-vl-tiny"), tmp_path
    )
    assert made.path is not None
    assert "lines, because its batches are large" in made.note


def test_time_is_bounded(tmp_path: Path):
    made = repro.write(file_of(failure_of("recompile")), tmp_path, timeout=2.0)
    assert not made.reproduced
    # On a slow machine the time is over before the script is written.
    assert made.note in ("it had not ended after 2 s", "it was not run: 2 s were not enough")
    assert made.path is not None
    assert made.path.read_text().startswith(f"# DOES NOT REPRODUCE: {made.note}\n")
