"""Policies: how they are read, and that they change the verdict, and nothing else."""

from __future__ import annotations

import pytest
import torch
from toy import ENVELOPE, Toy, ToyTarget

from vlm_ci.checker import Checker, CheckSettings, Silent
from vlm_ci.errors import UsageError
from vlm_ci.failures import KINDS
from vlm_ci.policies import DEFAULTS, Policies, parse
from vlm_ci.report.terminal import summary
from vlm_ci.result import Result
from vlm_ci.warmup import Plan, named_plan

TEXT_ONLY = named_plan("text-only", ENVELOPE)
FEATURES = torch.zeros(1)


def test_what_is_read():
    assert parse("stall=fail") == {"stall": "fail"}
    assert parse(" stall = off , graph-break=budget:12") == {
        "stall": "off",
        "graph-break": "budget:12",
    }
    assert parse("stall=off,stall=warn") == {"stall": "warn"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recompiles=off", "unknown kind in --policy 'recompiles': did you mean 'recompile'"),
        ("mismatch=warn", "unknown kind in --policy 'mismatch'"),
        ("stall", "--policy 'stall' is no policy: write KIND=fail, KIND=warn, KIND=budget:N or"),
        ("=off", "unknown kind in --policy ''"),
        ("stall=off,,", "--policy '' is no policy"),
        ("stall=", "--policy: '' is no policy for stall"),
        ("stall=never", "--policy: 'never' is no policy for stall: write KIND=fail"),
        ("stall=budget", "--policy: 'budget' is no policy for stall"),
        ("stall=budget:0", "--policy: 'budget:0' is no policy for stall"),
        ("stall=budget:-1", "--policy: 'budget:-1' is no policy for stall"),
        ("stall=budget:1.5", "--policy: 'budget:1.5' is no policy for stall"),
    ],
)
def test_what_is_no_policy_is_refused(text: str, message: str):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_kinds_with_a_policy_are_kinds_of_failures_and_wrong_answers_have_none():
    assert DEFAULTS.keys() <= set(KINDS)
    assert DEFAULTS.keys().isdisjoint({"mismatch", "nonfinite", "vacuous", "crash", "hang"})
    for kind in KINDS:
        assert Policies().of(kind) == DEFAULTS.get(kind, "fail")


@pytest.mark.parametrize(
    ("policy", "passes"),
    [
        ("fail", [False, False, False]),
        ("budget:1", [True, False, False]),
        ("budget:2", [True, True, False]),
        ("warn", [True, True, True]),
        ("off", [True, True, True]),
    ],
)
def test_how_many_occurrences_pass(policy: str, passes: list[bool]):
    policies = Policies({"recompile": policy})
    assert [policies.tolerates("recompile", count) for count in (1, 2, 3)] == passes


# -- the verdict -------------------------------------------------------------------------------


def run(target: ToyTarget, plan: Plan, policy: str = "") -> Result:
    policies = Policies(parse(policy)) if policy else Policies()
    checker = Checker(target, CheckSettings(plan=plan, examples=20, policies=policies), Silent())
    try:
        checker.run()
    finally:
        target.close()
    return checker.result


def recompiling(policy: str = "") -> Result:
    """Images bring an argument that the warm-up never passed."""

    def serve(call, ids, part):
        return call(ids, features=FEATURES) if "image" in part.modalities else call(ids)

    return run(ToyTarget(serve), TEXT_ONLY, policy)


def breaking(policy: str = "") -> Result:
    """The graph breaks in warm-up; nothing compiles after it."""

    class Breaking(Toy):
        def forward(self, ids, features=None):
            hidden = self.embed(ids).sin()
            torch._dynamo.graph_break()
            return self.project(hidden)

    return run(ToyTarget(model=Breaking()), named_plan("default", ENVELOPE), policy)


def found(result: Result) -> list[str]:
    return [failure.kind for failure in result.failures]


def tolerated(result: Result) -> list[tuple[str, str]]:
    return [(entry.failure.kind, entry.policy) for entry in result.tolerated]


def lines(result: Result, label: str) -> list[str]:
    return [line for line in summary(result) if line.startswith(label)]


def test_a_recompile_fails_by_default():
    result = recompiling()
    assert (result.verdict, found(result), tolerated(result)) == ("failed", ["recompile"], [])
    assert lines(result, "tolerated") == []


def test_a_warning_is_green_and_told_with_its_count():
    result = recompiling("recompile=warn")
    assert (result.verdict, found(result)) == ("clean", [])
    assert tolerated(result) == [("recompile", "warn")]
    (entry,) = result.tolerated
    assert entry.count > 1
    # What is tolerated is refused all the same: nothing is compiled, and nothing compared.
    assert result.strict.compiles == 0
    assert result.strict.refusals == entry.count
    assert entry.failure.traffic is not None
    (line,) = lines(result, "tolerated")
    assert line.startswith("tolerated      recompile: features ")
    assert line.endswith(f"(warn, {entry.count} times)")


def test_the_logits_of_what_was_refused_are_not_compared():
    """What it would have answered is not known: here the model swallows the refusal."""

    def serve(call, ids, part):
        if "image" not in part.modalities:
            return call(ids)
        try:
            return call(ids, features=FEATURES)
        except RuntimeError:
            return call(ids) + 1  # wrong, but only because the call was refused

    result = run(ToyTarget(serve), TEXT_ONLY, "recompile=warn")
    assert (result.verdict, found(result), tolerated(result)) == (
        "clean",
        [],
        [("recompile", "warn")],
    )
    assert result.parity.tokens_compared > 0


def test_a_budget_holds_until_it_is_spent():
    result = recompiling("recompile=budget:1")
    assert (result.verdict, found(result)) == ("failed", ["recompile"])
    assert [(entry.policy, entry.count) for entry in result.tolerated] == [("budget:1", 1)]
    result = recompiling("recompile=budget:1000")
    assert (result.verdict, found(result)) == ("clean", [])
    assert 1 < result.tolerated[0].count < 1000


def test_what_is_off_is_not_even_told():
    result = recompiling("recompile=off")
    assert (result.verdict, found(result), tolerated(result)) == ("clean", [], [])
    assert result.strict.refusals > 0
    assert lines(result, "tolerated") == []


def test_another_kind_s_policy_changes_nothing():
    result = recompiling("stall=off,new-frame=warn,eager-fallback=off")
    assert (result.verdict, found(result)) == ("failed", ["recompile"])


@pytest.mark.parametrize(
    ("policy", "verdict", "failures", "tolerates"),
    [
        ("", "clean", [], ["graph-break"]),
        ("graph-break=fail", "failed", ["graph-break"], []),
        ("graph-break=budget:1000", "clean", [], ["graph-break"]),
        ("graph-break=budget:1", "failed", ["graph-break"], []),
        ("graph-break=off", "clean", [], []),
    ],
)
def test_a_graph_break_of_the_warm_up(policy, verdict, failures, tolerates):
    result = breaking(policy)
    assert (result.verdict, found(result)) == (verdict, failures)
    assert [kind for kind, _ in tolerated(result)] == tolerates
    assert result.warmup.graph_breaks > 1


def test_a_wrong_answer_fails_whatever_the_policies():
    everything_off = ",".join(f"{kind}=off" for kind in DEFAULTS)
    target = ToyTarget(lambda call, ids, part: call(ids) + 1)
    result = run(target, named_plan("default", ENVELOPE), everything_off)
    assert found(result) == ["mismatch"]


def test_a_run_in_which_everything_is_tolerated_proves_nothing():
    def serve(call, ids, part):
        return call(ids.int())

    class Warmed(ToyTarget):
        def warm_up(self, part):
            with torch.inference_mode():
                self._compiled(self._ids(part)[0])

    result = run(Warmed(serve), TEXT_ONLY, "recompile=off,new-frame=off,eager-fallback=off")
    assert (result.verdict, found(result)) == ("vacuous", ["vacuous"])
    assert "came to its logits" in result.failures[0].cause


def test_a_tolerated_refusal_hides_neither_another_one_nor_a_crash():
    new = torch.compile(lambda x: x * 2, backend="eager")

    def swallow(call, *args, **given):
        try:
            call(*args, **given)
        except RuntimeError:
            pass

    def two(call, ids, part):
        if "image" in part.modalities:
            swallow(new, FEATURES)
            swallow(call, ids, features=FEATURES)
        return call(ids)

    result = run(ToyTarget(two), TEXT_ONLY, "new-frame=off")
    assert (result.verdict, found(result)) == ("failed", ["recompile"])

    def crashing(call, ids, part):
        if "image" in part.modalities:
            swallow(call, ids, features=FEATURES)
            raise ValueError("no more")
        return call(ids)

    result = run(ToyTarget(crashing), TEXT_ONLY, "recompile=off")
    assert (result.verdict, found(result)) == ("failed", ["crash"])


def test_a_tolerated_event_does_not_hide_another_of_the_same_step():
    limit = torch._dynamo.config.recompile_limit

    def serve(call, ids, part):
        if "image" in part.modalities:
            with torch.compiler.set_stance("default"):
                function = torch.compile(lambda x, n: x * n, backend="eager", dynamic=False)
                for number in range(limit + 2):
                    function(torch.ones(3), str(number).__len__() + number)
        return call(ids)

    result = run(ToyTarget(serve), TEXT_ONLY, "recompile=warn,new-frame=warn")
    assert "limit-hit" in found(result)
