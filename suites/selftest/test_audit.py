"""The audit: every root cause once, each with its own smallest session, and what mends it."""

from __future__ import annotations

import json
from pathlib import Path

import processes
import pytest
import torch
from toy import ENVELOPE, ToyTarget

import vlm_ci as package
from vlm_ci import evidence, runner
from vlm_ci.auditor import Auditor
from vlm_ci.checker import CheckSettings
from vlm_ci.errors import UsageError
from vlm_ci.failures import identity
from vlm_ci.result import Result
from vlm_ci.settings import Settings
from vlm_ci.traffic.spec import Image, Session, Text, batch
from vlm_ci.warmup import Plan, named_plan

HERE = str(Path(__file__).parent)
TEXT_ONLY = named_plan("text-only", ENVELOPE)
FEATURES = torch.zeros(1)


def vlm_ci(*args: str, cwd: Path, **env: str) -> processes.Done:
    """Run the command in a process of its own."""
    return processes.run("vlm-ci", *args, cwd=cwd, **env)


def audit(target: ToyTarget, *, examples: int = 30, plan: Plan = TEXT_ONLY) -> Result:
    try:
        return package.audit(target, examples=examples, warmup=plan)
    finally:
        target.close()


def images(part) -> int:
    return sum(isinstance(item, Image) for item in part.items())


def two_causes(call, ids, part):
    """An argument that appears with an image, and ids of another type with three requests."""
    if images(part):
        return call(ids, features=FEATURES)
    return call(ids.int() if len(part.requests) > 2 else ids)


def test_a_healthy_target_has_no_causes():
    result = audit(ToyTarget())
    assert result.verdict == "clean"
    assert result.command == "audit"
    assert result.audit is not None
    assert result.audit.complete
    assert (result.audit.rounds, result.audit.extensions) == (1, 0)
    assert result.audit.extension_compiles == 0
    assert result.strict.batches > 30


def test_each_shard_searches_its_part(tmp_path: Path):
    def of(**given: str) -> Result:
        out = tmp_path / (given.get("shard", "all").replace("/", "-"))
        options = {"out": str(out), "examples": 25, "database": "none", **given}
        target = ToyTarget()
        try:
            return runner.audit(Settings.from_mapping(options), target, repros=False)
        finally:
            target.close()

    first, second, whole = of(shard="1/2"), of(shard="2/2"), of()
    assert [one.part for one in (first, second, whole)] == ["1/2", "2/2", ""]
    assert [one.shard for one in (first, second, whole)] == ["1/2", "2/2", ""]
    assert [one.traffic.examples for one in (first, second, whole)] == [15, 10, 25]
    served = first.traffic.batches + second.traffic.batches
    assert served == whole.traffic.batches
    counts = dict.fromkeys(whole.traffic.corners, 0)
    for one in (first, second):
        for name, count in one.traffic.corners.items():
            counts[name] += count
    assert counts == whole.traffic.corners


def test_each_cause_is_reported_once_with_its_own_smallest_session():
    result = audit(ToyTarget(two_causes))
    found = [failure for failure in result.failures if failure.kind != "limit-hit"]
    assert [failure.kind for failure in found] == ["recompile", "recompile"]
    assert len(set(map(identity, found))) == 2
    sessions = [failure.traffic for failure in found]
    assert Session((batch(Image(8, 8)),)) in sessions
    assert Session((batch([Text(1)], [Text(1)], [Text(1)]),)) in sessions
    assert all("does not occur" in failure.note for failure in found)
    assert all(failure.advice for failure in result.failures)
    assert result.audit is not None
    assert result.audit.complete
    assert result.audit.extensions >= 2
    assert result.audit.extension_compiles >= 2
    assert result.strict.compiles == 0  # inside a search nothing is ever compiled
    assert len(result.strict.shrink_seconds) >= 2


def test_wrong_logits_do_not_hide_what_compiles_again():
    def serve(call, ids, part):
        if images(part):
            return call(ids, features=FEATURES)
        return call(ids) + (len(part.requests) == 2)

    result = audit(ToyTarget(serve))
    assert sorted(failure.kind for failure in result.failures) == ["mismatch", "recompile"]
    assert result.audit is not None
    assert result.audit.complete


def test_what_no_warmup_mends_is_said_and_does_not_go_on_for_ever():
    calls = iter(range(10**6))

    def serve(call, ids, part):
        if images(part):
            return call(ids, features=[FEATURES] * (next(calls) % 1000 + 1))
        return call(ids)

    class Listed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(32, 32)

        def forward(self, ids, features=()):
            return self.embed(ids).sin() + len(features) * 0

    result = audit(ToyTarget(serve, model=Listed()), examples=10)
    (failure,) = [one for one in result.failures if one.kind == "recompile"]
    assert "even after a warm-up" in failure.note or "came back" in failure.note
    assert result.audit is not None
    assert result.audit.rounds < 10


@pytest.mark.nightly
def test_more_variants_than_the_limit_are_a_cause_of_their_own():
    before = torch._dynamo.config.recompile_limit
    warm = audit(ToyTarget(), examples=1).warmup.compiles
    torch._dynamo.config.recompile_limit = warm
    try:
        result = audit(ToyTarget(two_causes))
        assert torch._dynamo.config.recompile_limit == warm
    finally:
        torch._dynamo.config.recompile_limit = before
    limits = [one for one in result.failures if one.kind == "limit-hit"]
    assert len(limits) == 1
    assert "compiled variants of forward" in limits[0].cause
    assert f"limit is {warm}" in limits[0].cause
    assert [one.kind for one in result.failures].count("recompile") == 2


def test_an_interrupt_keeps_what_was_found():
    served = iter(range(10**6))

    def serve(call, ids, part):
        if images(part):
            return call(ids, features=FEATURES)
        if next(served) > 160:
            raise KeyboardInterrupt
        return call(ids)

    target = ToyTarget(serve)
    auditor = Auditor(target, CheckSettings(plan=TEXT_ONLY, examples=200, command="audit"))
    try:
        auditor.run()
    finally:
        target.close()
    assert auditor.result.verdict == "interrupted"
    assert [failure.kind for failure in auditor.result.failures] == ["recompile"]


def test_numbers_are_checked():
    target = ToyTarget()
    with pytest.raises(UsageError, match="examples must be a whole number of at least 1"):
        package.audit(target, examples=0)
    target.close()


ENGINE = """
from toy import ToyTarget
from test_audit import two_causes
def factory():
    return ToyTarget(two_causes)
def clean():
    return ToyTarget()
"""


def test_the_command_writes_each_cause_with_the_warmup_it_was_found_under(tmp_path: Path):
    (tmp_path / "engine.py").write_text(ENGINE)
    common = ("--examples", "20", "--out", "out", "--database", "none")
    done = vlm_ci(
        "audit",
        *("--target", "engine:factory", "--warmup", "text-only", *common),
        cwd=tmp_path,
        PYTHONPATH=HERE,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["command"] == "audit"
    assert result["audit"]["complete"]
    found = [entry for entry in result["failures"] if entry["kind"] == "recompile"]
    assert len(found) == 2
    files = [evidence.read(tmp_path / "out" / entry["path"] / "failure.json") for entry in found]
    first, second = files
    assert first.file.plan == TEXT_ONLY.batches
    grown = (*TEXT_ONLY.batches, *first.failure.traffic.batches)
    assert second.file.plan[: len(grown)] == grown
    assert second.file.options["recompile_limit"] == 64
    assert len(list((tmp_path / "out/failures").iterdir())) == len(result["failures"])
    assert "repro      none:" in done.stdout  # a target of one's own cannot be rebuilt
    assert "audit " in done.stdout
    again = vlm_ci("replay", f"out/{found[1]['path']}", cwd=tmp_path, PYTHONPATH=HERE)
    assert again.returncode == 1, again.stdout + again.stderr
    assert "it still fails" in again.stdout


def test_a_clean_audit_is_exit_code_0(tmp_path: Path):
    (tmp_path / "engine.py").write_text(ENGINE)
    done = vlm_ci(
        "audit", "--target", "engine:clean", "--examples", "5", cwd=tmp_path, PYTHONPATH=HERE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict        clean" in done.stdout


def test_several_targets_are_refused(tmp_path: Path):
    done = vlm_ci("audit", "--target", "qwen3-vl-tiny,llava-tiny", cwd=tmp_path)
    assert done.returncode == 4
    assert "an audit takes one target" in done.stderr


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(1300)  # each of four repros is tried several times, in processes of its own
def test_the_language_model_of_qwen3_vl_has_at_least_four_causes(tmp_path: Path):
    done = processes.run(
        *("vlm-ci", "audit"),
        *("--target", "qwen3-vl-tiny", "--recipe", "language-model", "--backend", "eager"),
        *("--warmup", "text-only", "--out", "out", "--database", "none"),
        cwd=tmp_path,
        timeout=1200,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    result = json.loads((tmp_path / "out/result.json").read_text())
    causes = [entry for entry in result["failures"] if entry["kind"] == "recompile"]
    assert len(causes) >= 4
    assert len({entry["key"] for entry in causes}) == len(causes)
    for entry in causes:
        assert entry["advice"]
        assert entry["repro"]["reproduced"], entry["repro"]
        assert "does not occur" in entry["note"]
    assert result["audit"]["complete"]
    assert result["strict"]["compiles"] == 0
