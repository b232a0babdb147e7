"""Targets that answer with the most likely tokens: what they promise, and how they are compared."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import FLOAT32, TWO, Fake, answer, kinds_of, top_k
from toy import VOCABULARY, ToyTarget

from vlm_ci.checker import check
from vlm_ci.parity.comparison import compare, moved
from vlm_ci.targets.answers import ProtocolError, checked
from vlm_ci.targets.protocol import Capabilities, Output
from vlm_ci.traffic.spec import Batch

TOP_K = {
    "no ids": (lambda part: answer(part), "no token_ids (logits are a float32 tensor [2, 5, 8])"),
    "ids of another type": (
        lambda part: top_k(part, token_ids=torch.zeros(2, 5, 2, dtype=torch.int32)),
        "token_ids that are a int32 tensor [2, 5, 2]; they must be int64",
    ),
    "another shape": (
        lambda part: top_k(part, token_ids=torch.zeros(2, 5, 3, dtype=torch.int64)),
        "of the shape of the logits [2, 5, 2]",
    ),
    "raw logits": (
        lambda part: top_k(part, logits=torch.full((2, 5, 2), 4.5)),
        "a log-probability of 4.5; log-probabilities are at most 0",
    ),
    "an id twice": (
        lambda part: top_k(part, token_ids=torch.ones(2, 5, 2, dtype=torch.int64)),
        "a token id twice among the top k of one position",
    ),
    "a negative id": (
        lambda part: top_k(part, token_ids=torch.tensor([-1, 2]).expand(2, 5, 2)),
        "the token id -1; token ids are at least 0",
    ),
}


@pytest.mark.parametrize(("given", "message"), TOP_K.values(), ids=TOP_K)
def test_top_k_answers_are_held_to_their_promise(given: Any, message: str):
    target = Fake(capabilities=Capabilities(logits="top-k"), run_eager=given)
    with pytest.raises(ProtocolError) as caught:
        checked(target).run_eager(TWO)
    assert message in str(caught.value)


def few(*pairs: tuple[int, float]) -> Output:
    """The answer for one position: token ids with their log-probabilities."""
    ids, values = zip(*pairs, strict=True)
    return Output(
        logits=torch.tensor([[values]], dtype=torch.float32),
        token_ids=torch.tensor([[ids]]),
        token_kinds=torch.zeros(1, 1, dtype=torch.int8),
    )


INF = math.inf
EXPECTED = few((3, -0.5), (7, -2.0), (1, -3.0))
CASES = {
    "the same": (EXPECTED, True),
    "another order": (few((1, -3.0), (3, -0.5), (7, -2.0)), True),
    "within tolerance": (few((3, -0.5005), (7, -2.0), (1, -3.0)), True),
    "one value beyond it": (few((3, -0.51), (7, -2.0), (1, -3.0)), False),
    "just below the cut": (few((3, -0.5), (7, -2.0), (9, -3.0005)), True),
    "just above the cut": (few((3, -0.5), (7, -2.0), (9, -2.9995)), True),
    "far above the cut": (few((3, -0.5), (7, -2.0), (9, -2.9)), False),
    # Eager's third token is missing, though it stands above everything that came.
    "a token was lost": (few((3, -0.5), (7, -2.0), (9, -9.0)), False),
    "the first was lost": (few((9, -0.5), (7, -2.0), (1, -3.0)), False),
    "fewer of them": (few((3, -0.5), (7, -2.0)), True),
    "fewer, and not the largest": (few((3, -0.5), (1, -3.0)), False),
    "more of them": (few((3, -0.5), (7, -2.0), (1, -3.0), (9, -4.0)), True),
    "more, one too large": (few((3, -0.5), (7, -2.0), (1, -3.0), (9, -2.5)), False),
    "a probability that became 0": (few((3, -0.5), (7, -2.0), (1, -INF)), False),
    "nan": (few((3, -0.5), (7, -2.0), (1, math.nan)), False),
    "+inf": (few((3, INF), (7, -2.0), (1, -3.0)), False),
}


@pytest.mark.parametrize(("actual", "passes"), CASES.values(), ids=CASES)
def test_the_top_k_rule(actual: Output, passes: bool):
    assert compare(actual, EXPECTED, FLOAT32).passes is passes
    assert compare(EXPECTED, actual, FLOAT32).passes is passes  # neither side is special


def test_a_probability_of_0_equals_itself_and_nothing_else():
    zero = few((3, 0.0), (7, -INF))
    assert compare(zero, zero, FLOAT32).ratio == 0
    assert compare(few((3, 0.0), (9, -INF)), zero, FLOAT32).passes  # 7 and 9 are both at 0
    assert compare(few((3, 0.0), (7, -80.0)), zero, FLOAT32).ratio == INF
    assert compare(few((3, 0.0), (9, -80.0)), zero, FLOAT32).ratio == INF
    assert compare(zero, zero, FLOAT32).nonfinite is None
    assert compare(few((3, math.nan), (7, -1.0)), zero, FLOAT32).nonfinite == "compiled"


def test_a_token_named_twice_is_no_answer():
    twice = few((3, -0.5), (3, -0.5), (7, -2.0))
    for one, other in ((twice, EXPECTED), (EXPECTED, twice)):
        with pytest.raises(ValueError, match="names a token twice"):
            compare(one, other, FLOAT32)


def test_full_logits_are_compared_with_the_top_of_them():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 50) * 3
    full = Output(logits=logits, token_kinds=kinds_of(TWO))
    best = logits.log_softmax(dim=-1).topk(4, dim=-1)
    top = Output(logits=best.values, token_ids=best.indices, token_kinds=kinds_of(TWO))
    assert compare(top, full, FLOAT32).passes
    assert compare(full, top, FLOAT32).passes
    wrong = replace(top, logits=top.logits - 0.1)
    assert not compare(wrong, full, FLOAT32).passes
    assert not compare(replace(top, token_ids=(top.token_ids + 1) % 50), full, FLOAT32).passes


def test_moved_says_by_how_many_nats():
    assert moved(EXPECTED, EXPECTED) == 0
    assert moved(EXPECTED, few((3, -0.75), (7, -2.0), (1, -3.0))) == pytest.approx(0.25)
    # Token 9 is new: it stands at least 1.5 above eager's smallest.
    assert moved(few((9, -1.5), (7, -2.0), (1, -3.0)), EXPECTED) == pytest.approx(2.5)


class TopToy(ToyTarget):
    """The toy engine behind an interface that gives the three most likely tokens."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self.capabilities = Capabilities(logits="top-k")

    def _top(self, output: Output) -> Output:
        best = output.logits.log_softmax(dim=-1).topk(3, dim=-1)
        return replace(output, logits=best.values, token_ids=best.indices)

    def run_eager(self, part: Batch) -> Output:
        return self._top(super().run_eager(part))

    def run_compiled(self, part: Batch) -> Output:
        return self._top(super().run_compiled(part))

    def run_perturbed(self, part: Batch, modality: str) -> Output:
        ids, kinds = self._ids(part)
        with torch.inference_mode():
            return self._top(Output(logits=self._eager(VOCABULARY - 1 - ids), token_kinds=kinds))


def test_a_run_over_top_k_answers_is_judged_like_any_other():
    def shift(call: Any, ids: torch.Tensor, part: Batch) -> torch.Tensor:
        logits = call(ids)
        if "image" in part.modalities:
            logits = logits.clone()
            logits[0, 0, 5] += 1
        return logits

    results = []
    for serve in (None, shift):
        target = TopToy(serve)
        try:
            results.append(check(target, examples=30))
        finally:
            target.close()
    clean, failed = results
    assert clean.verdict == "clean"
    assert clean.parity.canary.moved == clean.parity.canary.applied == 1
    assert clean.parity.tokens_compared > 100
    assert [failure.kind for failure in failed.failures] == ["mismatch"]
    location = failed.failures[0].location
    assert location is not None
    assert (location["request"], location["token"], location["modality"]) == (0, 0, "text")
