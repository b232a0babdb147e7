"""Warm-up synthesis from settings to files: verdicts, proof in a fresh process, plan files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import msgspec
import pytest
from synthesis_targets import GENERIC, Bucketing, Silent, images_of
from toy import ENVELOPE

from vlm_ci.cli import main
from vlm_ci.errors import UsageError
from vlm_ci.result import Pruned, Result
from vlm_ci.schemas import generate
from vlm_ci.settings import Settings
from vlm_ci.synthesis import make
from vlm_ci.synthesis.growth import Grower
from vlm_ci.synthesis.verification import verify
from vlm_ci.targets.models import tiny_models
from vlm_ci.traffic.files import plan_to_json, read_plan
from vlm_ci.traffic.spec import Text, batch
from vlm_ci.warmup import find_plan
from vlm_ci.watch import internals

ROOT = Path(__file__).resolve().parents[2]
ROWS = tuple(batch(*[Text(12)] * rows) for rows in (1, 2, 3, 4))


@pytest.fixture(autouse=True)
def _limit():
    limit = internals.recompile_limit()
    yield
    internals.set_recompile_limit(limit)


def synthesize(tmp_path: Path, progress: Silent | None = None, **given) -> Result:
    settings = Settings.from_mapping({"out": str(tmp_path), "database": "none", **given})
    return make.synthesize(settings, progress or Silent())


# -- from settings to files -------------------------------------------------------------------


def test_an_unbounded_target_is_a_failure_that_names_the_number_of_images(tmp_path, capsys):
    argv = ["warmup", "--target", "synthesis_targets:per_image", "--examples", "20"]
    assert main([*argv, "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "verdict        unbounded: the number of graphs grows with the number of images" in shown
    assert "(control): new compiles by value" in shown
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["synthesis"]["status"] == "unbounded"
    assert result["synthesis"]["growing"][0] == "number of images"
    (failure,) = result["failures"]
    assert failure["kind"] == "unbounded"
    assert failure["traffic"]["batches"]
    capsys.readouterr()
    assert main(["replay", str(tmp_path / failure["path"])]) == 1  # it is refused there again
    assert "refused" in capsys.readouterr().out
    assert (tmp_path / failure["path"] / "failure.json").is_file()
    assert not (tmp_path / "plan.json").exists()
    part = json.loads((tmp_path / "plan.partial.json").read_text())
    assert part["holds"] is False
    assert "grows with the number of images" in part["note"]


def test_a_plan_is_made_verified_and_read_again(tmp_path, capsys):
    argv = ["warmup", "--target", "toy:factory", "--examples", "20", "--seed", "5"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "verdict        bounded: the plan holds" in shown.out
    assert "vlm-ci: loading torch and transformers" in shown.err
    content = json.loads((tmp_path / "result.json").read_text())
    jsonschema.validate(content, generate()["result.schema.json"])
    result = msgspec.convert(content, Result)
    books = result.synthesis
    assert result.command == "warmup"
    assert result.verdict == "clean"
    assert books is not None
    assert books.status == "bounded"
    (proof,) = books.verifications
    assert proof.held
    assert proof.process not in (0, os.getpid())
    assert proof.seeds == [6, 7]
    assert (proof.examples, proof.compiles, proof.refused) == (20, 0, 0)
    assert books.pruned.compiled_nothing > 0
    written = json.loads((tmp_path / "plan.json").read_text())
    jsonschema.validate(written, generate()["plan.schema.json"])
    assert written["holds"] is True
    assert sum(written["graphs"]) == books.graphs
    assert not (tmp_path / "plan.partial.json").exists()
    plan = find_plan(str(tmp_path / "plan.json"), ENVELOPE)
    assert len(plan.batches) == books.batches


@pytest.mark.nightly
def test_the_fresh_process_catches_a_plan_in_the_wrong_order():
    settings = Settings(target="synthesis_targets:Bucketing")
    envelope = Bucketing().envelope

    def outcome(plan):
        return verify(
            settings, envelope, plan, seeds=[1, 2], examples=20, lifted=False, progress=Silent()
        )

    held = outcome(ROWS)
    assert held.verification.held
    assert held.called
    shuffled = outcome((batch(Text(5), Text(5)), *ROWS))
    assert not shuffled.verification.held
    assert shuffled.verification.refused > 0
    assert shuffled.found[0].smallest.requests


@pytest.mark.nightly
def test_a_limit_that_is_too_low_says_how_many_variants_are_needed(tmp_path):
    result = synthesize(tmp_path, target="synthesis_targets:limited", examples=20)
    books = result.synthesis
    assert books is not None
    assert books.status == "limit"
    assert books.limit == 2
    assert books.variants == 4
    assert "forward" in books.limit_frame
    (failure,) = result.failures
    assert failure.kind == "limit-hit"
    assert "needs 4 variants" in failure.cause
    assert result.verdict == "failed"
    assert not any(sweep.growing for sweep in books.sweeps)
    assert internals.recompile_limit() == 2  # put back


@pytest.mark.nightly
def test_what_the_fresh_process_refuses_joins_the_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(Grower, "grow", lambda self, sessions, **given: None)
    monkeypatch.setattr(make, "prune", lambda bench, plan, judges, **given: (plan, Pruned()))
    result = synthesize(tmp_path, target="synthesis_targets:many_images", examples=20)
    books = result.synthesis
    assert books is not None
    assert books.status == "bounded"
    assert [proof.held for proof in books.verifications] == [False, True]
    assert books.verifications[0].seeds == [1, 2]
    assert books.verifications[1].seeds == [3, 4]
    assert any(images_of(part) >= 5 for part in read_plan(tmp_path / "plan.json"))


@pytest.mark.parametrize(
    ("name", "kind"), [("sometimes_eager", "eager-fallback"), ("crashing", "crash")]
)
def test_what_no_warm_up_helps_ends_it_with_a_failure(tmp_path, name, kind):
    result = synthesize(tmp_path, target=f"synthesis_targets:{name}", examples=20)
    assert result.synthesis is not None
    assert result.synthesis.status == "not-held"
    assert [failure.kind for failure in result.failures] == [kind]
    assert result.verdict == "failed"
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("stage", ["serving examples", "verifying in a fresh process"])
def test_an_interrupt_keeps_the_plan_so_far(tmp_path, stage):
    result = synthesize(tmp_path, Silent(stage), target="toy:factory", examples=10)
    assert result.verdict == "interrupted"
    assert not (tmp_path / "plan.json").exists()
    assert read_plan(tmp_path / "plan.partial.json")
    assert "unfinished" in json.loads((tmp_path / "plan.partial.json").read_text())["note"]
    assert json.loads((tmp_path / "result.json").read_text())["verdict"] == "interrupted"


def test_bad_input_is_said_before_anything_is_made(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert main(["warmup", "--target", "toy:factory,llava-tiny", *out]) == 4
    assert "a plan belongs to one target" in capsys.readouterr().err
    assert main(["warmup", "--target", "synthesis_targets:out_of_process", *out]) == 4
    assert "a call there cannot be refused" in capsys.readouterr().err
    assert main(["warmup", "--target", "toy:factory", "--examples", "0", *out]) == 4
    (tmp_path / "plan.json").write_bytes(plan_to_json((GENERIC,)))
    assert main(["warmup", "--target", "toy:factory", "--out", str(tmp_path)]) == 4
    assert "was not left by an earlier run" in capsys.readouterr().err
    assert read_plan(tmp_path / "plan.json") == (GENERIC,)


def test_an_old_plan_file_is_still_read_and_an_unknown_field_is_not(tmp_path):
    old = tmp_path / "old.json"
    old.write_text(
        '{"batches": [{"requests": [{"items": [{"kind": "text", "tokens": 3}]}]}],'
        ' "schema": "vlm-ci/plan/1"}'
    )
    assert read_plan(old) == (batch(Text(3)),)
    old.write_text(old.read_text().replace('"batches"', '"patches": 1, "batches"'))
    with pytest.raises(UsageError, match="patches"):
        read_plan(old)


def test_an_engine_reads_a_plan_with_nothing_but_json(tmp_path):
    path = tmp_path / "plan.json"
    path.write_bytes(plan_to_json((GENERIC, batch(Text(1)))))
    script = ROOT / "docs/examples/read_plan.py"
    assert "vlm_ci" not in script.read_text().split('"""')[2]
    done = subprocess.run(
        [sys.executable, "-I", str(script), str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second, third = done.stdout.splitlines()
    assert first == "batch 1, row 1: 7 tokens of text, image of 16 x 24 pixels"
    assert second == "batch 1, row 2: 11 tokens of text"
    assert third == "batch 2, row 1: 1 tokens of text"


# -- the real model ---------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.slow
def test_a_plan_for_the_layers_of_the_tiny_model(tmp_path):
    result = synthesize(tmp_path, target="qwen3-vl-tiny", examples=20)
    books = result.synthesis
    assert books is not None
    assert books.status == "bounded"
    assert books.batches <= 8
    assert len(books.serves) == books.graphs > 0
    assert {use.batch for use in books.serves} == set(range(books.batches))
    served = sum(use.batches for use in books.serves)
    assert served == books.verifications[-1].batches  # each batch runs one graph, in every layer
    assert all("transformers" in use.place for use in books.serves)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("recipe", "most"), [("decoder-layers", 8), ("language-model", 12)])
def test_the_plan_of_each_language_recipe_is_small_and_holds(tmp_path, recipe, most):
    assert "qwen3-vl-tiny" in tiny_models()
    settings = Settings.from_mapping(
        {"recipe": recipe, "examples": 500, "out": str(tmp_path), "database": "none"}
    )
    started = sum(os.times()[:4])
    result = make.synthesize(settings, Silent())
    assert sum(os.times()[:4]) - started < 180  # seconds of the CPU, the fresh process included
    assert result.verdict == "clean"
    plan = read_plan(tmp_path / "plan.json")
    assert len(plan) <= most
    proof = verify(
        settings, None, plan, seeds=[991, 992], examples=1000, lifted=False, progress=Silent()
    ).verification
    assert proof.held
    assert (proof.examples, proof.compiles, proof.refused) == (1000, 0, 0)


@pytest.mark.nightly
@pytest.mark.slow
def test_the_vision_blocks_are_unbounded_in_the_number_of_images(tmp_path):
    result = synthesize(tmp_path, recipe="vision", examples=500)
    books = result.synthesis
    assert books is not None
    assert books.status == "unbounded"
    assert books.growing[0] == "number of images"
    assert any(sweep.control for sweep in books.sweeps)
    assert [failure.kind for failure in result.failures] == ["unbounded"]
