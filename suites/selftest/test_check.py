"""The check over a toy engine: every way to be wrong is called by its name."""

from __future__ import annotations

import msgspec
import pytest
import torch
from toy import ENVELOPE, VOCABULARY, Toy, ToyTarget

import vlm_ci
from vlm_ci.checker import Checker, CheckSettings, Silent, check
from vlm_ci.errors import UsageError
from vlm_ci.result import Result
from vlm_ci.sharding import Shard
from vlm_ci.targets.protocol import Stats
from vlm_ci.traffic.spec import Batch, Image, Session, Text, batch
from vlm_ci.warmup import Plan, named_plan

TEXT_ONLY = named_plan("text-only", ENVELOPE)
FEATURES = torch.zeros(1)
IMAGE = Session((batch(Image(8, 8)),))


def run(target: ToyTarget, *, examples: int = 40, plan: Plan | None = None, **given) -> Result:
    try:
        return check(target, examples=examples, warmup=plan, **given)
    finally:
        target.close()


def kinds(result: Result) -> list[str]:
    return [failure.kind for failure in result.failures]


def is_image(part: Batch) -> bool:
    return "image" in part.modalities


def test_a_healthy_target_is_clean():
    result = run(ToyTarget())
    assert result.verdict == "clean"
    assert result.strict.batches == result.traffic.batches > 40
    assert result.strict.compiles == 0
    assert result.strict.regions_per_step.least == 1
    assert result.parity.tokens_compared > 100
    assert result.warmup.converged
    assert result.warmup.compiles >= 2
    assert "the target cannot perturb images" in " ".join(result.warnings)


def test_a_target_can_be_checked_twice():
    target = ToyTarget()
    try:
        first = vlm_ci.check(target, examples=10)
        second = vlm_ci.check(target, examples=10)
    finally:
        target.close()
    assert first.verdict == second.verdict == "clean"
    assert first.warmup.compiles > 0
    assert second.warmup.compiles == 0


def test_two_runs_with_one_seed_are_the_same_and_other_seeds_differ():
    def traffic(number: int) -> dict:
        return msgspec.to_builtins(run(ToyTarget(), examples=20, seed=number).traffic)

    assert traffic(3) == traffic(3)
    assert traffic(3) != traffic(4)


def test_an_argument_that_appears_is_a_recompile():
    def serve(call, ids, part):
        return call(ids, features=FEATURES) if is_image(part) else call(ids)

    result = run(ToyTarget(serve), plan=TEXT_ONLY)
    assert result.verdict == "failed"
    assert kinds(result) == ["recompile"]
    assert result.failures[0].traffic == IMAGE
    assert result.strict.compiles == 0  # refused before anything was compiled
    assert result.strict.refusals > 0


def test_a_swallowed_refusal_is_still_a_failure():
    def serve(call, ids, part):
        try:
            return call(ids, features=FEATURES) if is_image(part) else call(ids)
        except RuntimeError:
            return call(ids)

    result = run(ToyTarget(serve), plan=TEXT_ONLY)
    assert kinds(result) == ["recompile"]
    assert "swallowed" in result.failures[0].note


def test_code_that_warm_up_never_reached_is_a_new_frame():
    late = torch.compile(lambda x: x.sin() + 1, backend="eager")

    def serve(call, ids, part):
        logits = call(ids)
        return logits + 0 * late(logits) if is_image(part) else logits

    result = run(ToyTarget(serve), plan=TEXT_ONLY)
    assert kinds(result) == ["new-frame"]
    assert "never compiled" in result.failures[0].cause


def test_wrong_logits_are_a_mismatch_and_located():
    def serve(call, ids, part):
        logits = call(ids)
        if is_image(part):
            logits = logits.clone()
            logits[0, 0] += 1
        return logits

    result = run(ToyTarget(serve))
    assert kinds(result) == ["mismatch"]
    location = result.failures[0].location
    assert location is not None
    assert (location["request"], location["token"], location["modality"]) == (0, 0, "text")
    assert location["note"].startswith("the target shows no modules")
    assert result.failures[0].traffic == IMAGE
    assert result.parity.worst is not None
    assert result.parity.worst.ratio > 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_in_the_compiled_twin_are_nonfinite(value):
    result = run(ToyTarget(lambda call, ids, part: call(ids) + value))
    assert kinds(result) == ["nonfinite"]
    assert "compiled logits hold NaN or Inf" in result.failures[0].cause


def test_nan_in_both_twins_is_nonfinite_too():
    result = run(
        ToyTarget(
            lambda call, ids, part: call(ids) * float("nan"),
            change_eager=lambda logits: logits * float("nan"),
        )
    )
    assert kinds(result) == ["nonfinite"]
    assert "eager logits" in result.failures[0].cause


def test_another_shape_of_logits_is_a_mismatch():
    result = run(ToyTarget(lambda call, ids, part: call(ids)[:, :, :-1]))
    assert kinds(result) == ["mismatch"]
    assert "have shape" in result.failures[0].cause


def test_an_exception_on_a_mix_is_a_crash():
    def serve(call, ids, part):
        if is_image(part):
            raise IndexError("no such image")
        return call(ids)

    result = run(ToyTarget(serve), plan=TEXT_ONLY)
    assert kinds(result) == ["crash"]
    assert "IndexError: no such image" in result.failures[0].cause
    assert result.failures[0].traffic == IMAGE


def test_an_exception_in_warm_up_is_a_crash_with_its_batch():
    def serve(call, ids, part):
        raise IndexError("at once")

    result = run(ToyTarget(serve))
    assert kinds(result) == ["crash"]
    assert result.failures[0].cause.startswith("warm-up raised IndexError")
    assert result.strict.batches == 0


def test_code_that_is_never_compiled_is_an_eager_fallback():
    # torch.nn.Sequential.compile() compiles nothing and says nothing.
    def compile_model(module, backend):
        module.compile(backend=backend)
        return module

    stack = torch.nn.Sequential(torch.nn.Embedding(VOCABULARY, 16), torch.nn.Linear(16, VOCABULARY))
    result = run(ToyTarget(model=stack, compile_model=compile_model))
    assert result.verdict == "failed"
    assert kinds(result) == ["eager-fallback"]
    assert result.warmup.compiles == result.strict.compiles == 0


def test_compiled_code_that_is_passed_by_is_an_eager_fallback():
    eager = Toy()
    result = run(
        ToyTarget(lambda call, ids, part: eager(ids) if is_image(part) else call(ids), model=eager),
        plan=TEXT_ONLY,
    )
    assert kinds(result) == ["eager-fallback"]
    assert result.failures[0].traffic == IMAGE
    assert result.strict.regions_per_step.least == 0


def test_state_that_one_session_leaves_behind_stays_out_of_the_next():
    def serve(call, ids, part):
        if is_image(part):
            torch.set_float32_matmul_precision("high")
        return call(ids)

    before = torch.get_float32_matmul_precision()
    result = run(ToyTarget(serve), plan=TEXT_ONLY)
    assert torch.get_float32_matmul_precision() == before
    assert kinds(result) == ["recompile"]
    assert result.failures[0].traffic == IMAGE


def test_a_limit_reached_in_warm_up_is_reported_with_the_fallback_it_causes():
    def serve(call, ids, part):
        return call(ids, layout=f"{tuple(ids.shape)}")

    class Layouts(Toy):
        def forward(self, ids, layout=""):
            return ids if layout == "none" else super().forward(ids)

    plan = Plan(name="lengths", batches=tuple(batch(Text(n)) for n in range(1, 12)))
    limit = torch._dynamo.config.recompile_limit
    result = run(ToyTarget(serve, model=Layouts()), plan=plan)
    assert kinds(result) == ["limit-hit", "eager-fallback"]
    assert result.warmup.compiles == limit == torch._dynamo.config.recompile_limit
    assert "recompile limit" in result.failures[1].note


def test_fewer_regions_than_warm_up_executed_is_an_eager_fallback():
    def serve(call, ids, part):
        logits = call(ids)
        # Twice in warm-up, once for larger batches.
        return call(ids) if ids.numel() < 40 else logits

    small = tuple(batch(Text(n), Text(n + 1)) for n in (3, 5)) + tuple(
        batch(Text(n)) for n in (7, 1)
    )
    plan = Plan(name="small", batches=(*small, batch(Text(1), Text(1)), batch(Text(4), Text(4))))
    result = run(ToyTarget(serve), plan=plan)
    assert kinds(result) == ["eager-fallback"]
    assert "1 compiled regions executed; warm-up executed 2" in result.failures[0].cause


def test_a_warm_up_that_never_ends_is_reported():
    state = {"calls": 0}

    class Counting(Toy):
        def forward(self, ids, call=""):
            return ids if call == "none" else super().forward(ids)

    def serve(call, ids, part):
        state["calls"] += 1
        return call(ids, call=f"call {state['calls']}")

    plan = Plan(name="one", batches=(batch(Text(5)),))
    torch._dynamo.config.recompile_limit = 100
    try:
        result = run(ToyTarget(serve, model=Counting()), plan=plan, max_rounds=4)
    finally:
        torch._dynamo.config.recompile_limit = 8
    assert kinds(result) == ["unbounded"]
    assert "still compiled in round 4" in result.failures[0].cause
    assert not result.warmup.converged
    assert result.strict.batches == 0


def test_a_target_out_of_process_is_judged_by_its_counts():
    def serve(call, ids, part):
        return call(ids, features=FEATURES) if is_image(part) else call(ids)

    result = run(ToyTarget(serve, in_process=False), plan=TEXT_ONLY)
    assert "recompile" in kinds(result)
    assert "counted" in result.failures[0].cause
    assert not result.strict.refusing


def test_an_interrupt_keeps_what_was_found():
    calls = {"shrinking": 0}

    def serve(call, ids, part):
        if is_image(part):
            calls["shrinking"] += 1
            if calls["shrinking"] > 4:
                raise KeyboardInterrupt
            return call(ids) + 1
        return call(ids)

    target = ToyTarget(serve)
    checker = Checker(target, CheckSettings(plan=TEXT_ONLY), Silent())
    try:
        checker.run()
    finally:
        target.close()
    assert checker.result.verdict == "interrupted"
    assert kinds(checker.result) == ["mismatch"]
    assert checker.result.failures[0].traffic is not None


def test_an_interrupt_in_warm_up_ends_the_run():
    def serve(call, ids, part):
        raise KeyboardInterrupt

    assert run(ToyTarget(serve)).verdict == "interrupted"


def test_corners_that_were_not_reached_are_named():
    result = run(ToyTarget(), examples=2)
    assert result.verdict == "clean"
    assert "were not reached by 2 examples: " in " ".join(result.warnings)


def test_corners_that_a_part_did_not_reach_may_be_those_of_other_parts():
    target = ToyTarget()
    try:
        plan = named_plan("default", ENVELOPE)
        settings = CheckSettings(plan=plan, examples=11, part=Shard(2, 2))
        checker = Checker(target, settings, Silent())
        checker.run()
    finally:
        target.close()
    said = "were not reached by 1 examples of part 2/2; other parts may have reached them: "
    assert said in " ".join(checker.result.warnings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"examples": 0}, "examples must be a whole number of at least 1, not 0"),
        ({"examples": 2.5}, "examples must be a whole number"),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"max_rounds": 1}, "max_rounds must be a whole number of at least 2"),
        ({"warmup": "text-onyl"}, "did you mean 'text-only'"),
        ({"warmup": "absent.json"}, "cannot read the plan file absent.json"),
    ],
)
def test_bad_arguments_are_refused(given, message):
    target = ToyTarget()
    with pytest.raises(UsageError, match=message):
        check(target, **given)
    target.close()


class Uncounted(ToyTarget):
    """Says nothing about what it compiles."""

    def stats(self) -> Stats:
        return Stats()


def test_a_target_that_counts_nothing_starts_cold_each_time():
    from vlm_ci import warmed

    target = Uncounted()
    assert not warmed.is_untouched(target)
    target.close()
    assert warmed.is_untouched(ToyTarget())


def test_an_audit_and_a_check_leave_foreign_results_alone(tmp_path):
    from vlm_ci import artifacts

    (tmp_path / "result.json").write_text('{"mine": 1}')
    with pytest.raises(UsageError, match="was not left by an earlier run"):
        artifacts.prepare(tmp_path)
    assert (tmp_path / "result.json").read_text() == '{"mine": 1}'
