"""How logits are judged: by a reference where there is one, by relations beside it, and what is
said where the judgement is weaker."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import processes
import pytest
import torch
from exact import Exact
from small_twin import small_twin
from toy import ToyTarget

from vlm_ci import building, runner
from vlm_ci.checker import Checker, CheckSettings
from vlm_ci.cli import main
from vlm_ci.errors import UsageError
from vlm_ci.listeners import Silent
from vlm_ci.parity.judging import Judge
from vlm_ci.parity.oracle import ReferenceError
from vlm_ci.relating import Relations
from vlm_ci.report.terminal import summary
from vlm_ci.result import Result
from vlm_ci.settings import Settings
from vlm_ci.targets.protocol import Capabilities, Output, TargetInfo
from vlm_ci.traffic.spec import Batch, Image, Text, batch, session
from vlm_ci.warmup import find_plan

SUBTLE, PLAIN = 1e-5, 1e-2  # relative: above rounding in float32, and above its tolerance


def off_by(share: float) -> Callable[..., torch.Tensor]:
    return lambda call, ids, part: call(ids) * (1 + share)


ROUNDED = off_by(1e-7)  # no fault, and not equal to the bit


class Referred(ToyTarget):
    """A toy with a reference, whose answer ``change`` may replace."""

    def __init__(
        self,
        serve: Callable[..., torch.Tensor] = ROUNDED,
        change: Callable[[Output, Batch], Any] = lambda output, part: output,
        **given: Any,
    ) -> None:
        super().__init__(serve, **given)
        self.change = change
        self.asked: list[Batch] = []
        self._wide = copy.deepcopy(self._eager).double()

    def run_reference(self, part: Batch) -> Any:
        self.asked.append(part)
        ids, kinds = self._ids(part)
        with torch.inference_mode():
            return self.change(Output(logits=self._wide(ids), token_kinds=kinds), part)


class TopK(Referred):
    def __init__(self, serve: Callable[..., torch.Tensor]) -> None:
        super().__init__(serve)
        self.capabilities = Capabilities(logits="top-k")

    def run_eager(self, part: Batch) -> Output:
        return self._top(super().run_eager(part))

    def run_compiled(self, part: Batch) -> Output:
        return self._top(super().run_compiled(part))

    def _top(self, output: Output) -> Output:
        values, ids = output.logits.log_softmax(dim=-1).topk(2, dim=-1)
        return Output(logits=values, token_ids=ids, token_kinds=output.token_kinds)


def in_float64(serve: Callable[..., torch.Tensor]) -> Referred:
    target = Referred(lambda call, ids, part: serve(call, ids, part).double())
    target._change_eager = lambda logits: logits.double()
    target.info = TargetInfo(  # type: ignore[attr-defined]
        name="toy", recipe="", backend="", device="cpu", dtype="float64"
    )
    return target


def run(target: Any, *, examples: int = 20, **given: Any) -> Result:
    plan = find_plan(None, target.envelope)
    checker = Checker(target, CheckSettings(plan=plan, examples=examples, **given), Silent())
    try:
        checker.run()
    finally:
        target.close()
    return checker.result


def said(result: Result) -> str:
    (text,) = (text for text in summary(result) if text.startswith("logits "))
    return text


def changed(**given: Any) -> Callable[[Output, Batch], Output]:
    return lambda output, part: Output(
        logits=given.get("logits", lambda own: own)(output.logits),
        token_kinds=given.get("token_kinds", lambda own: own)(output.token_kinds),
    )


def raising(error: Exception) -> Callable[[Output, Batch], Any]:
    def change(output: Output, part: Batch) -> Any:
        raise error

    return change


# -- with a reference, and without --------------------------------------------------------------


def test_a_reference_sees_a_subtle_fault():
    result = run(Referred())
    assert result.verdict == "clean"
    assert result.parity.reference == "float64"
    assert result.parity.weaker == ""
    assert 0 < result.parity.eager_error < 1e-6
    assert "tokens compared with eager, judged by float64; worst error" in said(result)
    result = run(Referred(off_by(SUBTLE)))
    (failure,) = result.failures
    assert (failure.kind, failure.key) == ("mismatch", "logits")
    assert "times what eager's own error against float64 allows" in failure.cause
    assert failure.traffic == session(batch(Text(1)))


WEAKER: dict[str, tuple[Callable[..., Any], str]] = {
    "no run_reference": (ToyTarget, "the target has no run_reference"),
    "top-k": (TopK, "the target answers with the most likely tokens alone"),
    "float64": (in_float64, "there is no type wider than float64"),
    "not wanted": (Referred, "--reference none"),
    "it raises": (
        lambda serve: Referred(serve, raising(NotImplementedError("no kernel\nfor it"))),
        "its reference: NotImplementedError: no kernel",
    ),
    "it says why": (
        lambda serve: Referred(serve, raising(UsageError("writes into a weight"))),
        "writes into a weight",
    ),
    "the same type": (
        lambda serve: Referred(serve, changed(logits=lambda own: own.float())),
        "its reference answers in float32, no wider type",
    ),
    "a narrower type": (
        lambda serve: Referred(serve, changed(logits=lambda own: own.bfloat16())),
        "its reference answers in bfloat16, no wider type",
    ),
}


@pytest.mark.parametrize("why", WEAKER)
def test_without_a_reference_the_tolerance_decides_and_the_result_says_why(why: str):
    make, reason = WEAKER[why]
    given = {"reference": "none"} if why == "not wanted" else {}
    subtle = 1e-9 if why == "float64" else SUBTLE
    result = run(target := make(off_by(subtle)), examples=5, **given)
    assert result.verdict == "clean", result.failures
    assert result.parity.reference == "none"
    assert result.parity.weaker == reason
    assert result.parity.eager_error is None
    assert f"eager by a fixed tolerance, which is weaker ({reason})" in said(result)
    assert len(getattr(target, "asked", ())) <= 1  # it is not asked again
    if why in ("top-k", "it raises"):
        (failure,) = run(make(off_by(PLAIN)), examples=5, **given).failures
        assert failure.key == "logits"
        assert "times what its type allows (tolerance)" in failure.cause


def test_batches_that_the_reference_does_not_answer_are_counted():
    def change(output: Output, part: Batch) -> Output:
        if len(part.requests) == 3:
            raise MemoryError
        return output

    target = Referred(ROUNDED, change)
    result = run(target, examples=40)
    assert result.verdict == "clean"
    assert result.parity.reference == "float64"
    unanswered = sum(len(part.requests) == 3 for part in target.asked)
    assert result.parity.without_reference == unanswered > 1
    assert f"judged by float64 ({unanswered} batches without it, by a tolerance);" in said(result)

    def serve(call: Any, ids: torch.Tensor, part: Batch) -> torch.Tensor:
        return off_by(PLAIN if len(part.requests) == 3 else 1e-7)(call, ids, part)

    (failure,) = run(Referred(serve, change), examples=40).failures
    assert len(failure.traffic.batches[-1].requests) == 3
    assert "(tolerance)" in failure.cause


def test_an_answer_equal_to_eagers_needs_no_reference():
    target = Referred(lambda call, ids, part: call(ids))
    result = run(target)
    assert result.verdict == "clean"
    mixes = {part.modalities for part in find_plan(None, target.envelope).batches}
    assert len(target.asked) == len(mixes)  # it was proved, and then never asked
    assert result.parity.tokens_compared > 100
    assert result.parity.worst.statistic == "equal"


# -- a reference that is none -------------------------------------------------------------------


def test_a_reference_that_computes_something_else_proves_nothing():
    result = run(Referred(ROUNDED, changed(logits=lambda own: own * 1.01)))
    assert result.verdict == "vacuous"
    (failure,) = result.failures
    assert "differ from the float64 reference by 0.0099 of their size" in failure.cause
    assert "at most 0.005 is explained by float32" in failure.cause
    assert "judge with --reference none" in failure.advice
    assert result.strict.batches > 20  # the tolerance goes on
    assert result.parity.weaker == "eager and its reference do not compute the same thing"
    result = run(Referred(off_by(PLAIN), changed(logits=lambda own: own * 1.01)))
    assert result.verdict == "failed"
    assert [failure.kind for failure in result.failures] == ["vacuous", "mismatch"]


def test_that_is_found_for_traffic_which_the_warm_up_lacks_too():
    def change(output: Output, part: Batch) -> Output:
        share = 1.001 if len(part.requests) == 3 else 1.0  # the plan shows that this is too much
        return Output(logits=output.logits * share, token_kinds=output.token_kinds)

    result = run(Referred(ROUNDED, change), examples=40)
    assert result.verdict == "vacuous"
    (failure,) = result.failures
    assert failure.traffic == session(batch(Text(1), Text(1), Text(1)))


BREACHES: dict[str, tuple[Callable[[Output, Batch], Any], str]] = {
    "nothing": (lambda output, part: None, "run_reference returned None; it must be a vlm_ci.Out"),
    "a shorter vocabulary": (
        changed(logits=lambda own: own[..., :5]),
        r"run_reference returned logits that are a float64 tensor \[.*, 5\], where run_eager's are",
    ),
    "other kinds": (
        changed(token_kinds=lambda own: own.clamp(min=0, max=0) + 1),
        "run_reference returned other token_kinds than run_eager; it must answer like run_eager",
    ),
}


@pytest.mark.parametrize(("change", "message"), BREACHES.values(), ids=BREACHES)
def test_a_reference_is_held_to_the_protocol(change: Callable[..., Any], message: str):
    with pytest.raises(UsageError, match=message):
        run(Referred(ROUNDED, change))

    def late(output: Output, part: Batch) -> Any:
        return change(output, part) if len(part.requests) == 3 else output

    with pytest.raises(UsageError, match=message):
        run(Referred(ROUNDED, late), examples=40)


def test_an_eager_twin_that_raises_is_a_finding_still():
    class Failing(Referred):
        def run_eager(self, part: Batch) -> Output:
            if any(isinstance(item, Image) for item in part.items()):
                raise ZeroDivisionError
            return super().run_eager(part)

    (failure,) = run(Failing()).failures
    assert failure.kind == "crash"
    assert "the eager twin raised ZeroDivisionError" in failure.cause
    assert failure.traffic == session(batch(Image(8, 8)))


def test_eager_under_autocast_is_as_far_from_the_reference_as_its_type_explains():
    part = batch([Text(3), Image(8, 8)], Text(4), context="autocast")
    target = small_twin()
    try:
        judge = Judge(target, dtype="float32")
        judge.prove(part)
        assert judge.reference == "float64"
        assert 1e-3 < judge.eager_error < 0.1
        assert judge.judge(target.run_compiled(part), target.run_eager(part), part).passes
        plain = msgspec.structs.replace(part, context="inference_mode")
        rounded = changed(logits=lambda own: own * 1.02)
        with pytest.raises(ReferenceError, match="is explained by float32"):
            judge.judge(target.run_compiled(plain), rounded(target.run_eager(plain), plain), plain)
    finally:
        target.close()


# -- relations ----------------------------------------------------------------------------------


def leaking() -> Exact:  # its eager twin answers so too
    return Exact(lambda part, request, token: 1.0 * (len(part.requests) > 1 and request == 0))


@pytest.fixture
def record(tmp_path: Path, monkeypatch):
    """Run a target in a folder of its own; returns the result, and the folders of its failures."""
    monkeypatch.chdir(tmp_path)

    def run(**given: Any) -> tuple[Result, list[Path]]:
        settings = Settings.from_mapping(
            {"examples": 40, "database": "none", "out": str(tmp_path / "out"), **given}
        )
        target = building.build_target(settings)
        try:
            result = runner.run(settings, target, name=settings.target)
        finally:
            target.close()
        return result, sorted((tmp_path / "out/failures").glob("*"))

    return run


def test_a_broken_relation_is_red_shrunk_and_replayed(record, capsys, monkeypatch):
    result, folders = record(target="test_judging:leaking", relations="all")
    assert result.verdict == "failed"
    assert len(folders) == len(result.failures) > 0
    for failure, folder in zip(result.failures, folders, strict=True):
        assert failure.kind == "mismatch"
        name = failure.location["relation"]
        assert failure.key == f"relation {name}"
        assert failure.cause.startswith(f"{name}: ")
        (part,) = failure.traffic.batches
        assert len(part.requests) == (1 if name == "beside" else 2)
        assert set(part.items()) == {Text(1)}
        assert json.loads((folder / "failure.json").read_bytes())["options"]["relations"] == "all"
        assert main(["replay", str(folder)]) == 1
        shown = capsys.readouterr().out
        assert "it still fails, with the cause that was recorded" in shown
        assert shown.count("mismatch: ") == 2  # as recorded, and now: by this relation alone
        assert main(["replay", str(folder), "--relations", "none"]) == 0
        capsys.readouterr()
    monkeypatch.setattr("test_judging.leaking", Exact)
    assert main(["replay", str(folders[0])]) == 0
    assert "fixed: the recorded failure does not show any more" in capsys.readouterr().out


def test_shrinking_stays_with_a_relation_that_is_broken():
    target = leaking()
    checker = Checker(target, CheckSettings(plan=find_plan(None, target.envelope)), Silent())
    relations = Relations(target, checker.watcher, ("alone", "twice"), checker.result)
    keys, one, two = [], batch(Text(1)), batch(Text(1), Text(1))
    for seed in range(20):  # of two relations each seed chooses one
        part = msgspec.structs.replace(two, seed=seed)
        found = relations.broken_by(part, target.run_compiled(part), (part,))
        keys.append([failure.key for failure in found])
    assert ["relation alone"] in keys
    assert [] not in keys[keys.index(["relation alone"]) :]
    assert not list(relations.broken_by(one, target.run_compiled(one), (one,)))


def test_without_relations_what_both_twins_have_is_not_seen(record):
    result, _ = record(target="test_judging:leaking")
    assert result.verdict == "clean"
    assert result.parity.relations == {}


def test_relations_that_hold_are_counted_and_those_never_judged_are_said(record):
    result, _ = record(target="exact:Exact", relations="twice,pixels,image-order,twice")
    assert result.verdict == "clean"
    assert list(result.parity.relations) == ["twice", "pixels", "image-order"]
    assert f"batches judged by twice {result.parity.relations['twice']}, " in str(summary(result))
    result, _ = record(target="exact:Exact", relations="padding-side", examples=1)
    assert result.parity.relations == {"padding-side": 0}
    assert result.verdict == "clean"
    (warning,) = (text for text in result.warnings if "relation" in text)
    assert warning.startswith("relation padding-side was never judged: ")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--reference", "float64"), "unknown value for --reference 'float64': known: auto, none"),
        (("--relations", "beside,alnoe"), "unknown relation 'alnoe': did you mean 'alone'"),
    ],
)
def test_unknown_names_are_one_message(given: tuple[str, ...], message: str, tmp_path: Path):
    done = processes.run("vlm-ci", "run", *given, cwd=tmp_path)
    assert done.returncode == 4
    assert (done.stdout + done.stderr).count(message) == 1
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.nightly
def test_a_weak_mask_in_both_twins_is_found_and_replayed(record, capsys):
    result, (folder,) = record(bug="weak-mask")
    assert [failure.key for failure in result.failures] == ["relation poisoned-padding"]
    assert main(["replay", str(folder)]) == 1
    assert "it still fails, with the cause that was recorded" in capsys.readouterr().out
    assert main(["replay", str(folder), "--repaired"]) == 0
    assert record(bug="weak-mask", repaired=True)[0].verdict == "clean"
