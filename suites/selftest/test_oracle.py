"""The rule: each statistic sees a fault of its own, and none sees anything in noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from fakes import Fake

from vlm_ci.parity import oracle
from vlm_ci.parity.comparison import Comparison, Location
from vlm_ci.parity.judging import Judge
from vlm_ci.parity.oracle import RULE, Measured, decide, measure
from vlm_ci.targets.protocol import Output
from vlm_ci.traffic.spec import Text, batch

VOCABULARY = 64
NOISE = 1e-4  # of eager, in the size of the logits
KINDS = torch.tensor([[0, 0, 1, 1, 0, 0], [-1, -1, 0, 1, 1, 0]], dtype=torch.int8)
HERE = (0, 3)  # the token at which a fault is planted
BATCH = batch(Text(6), Text(4))
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def normal(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Case:
    """Logits of a batch whose truth is known: eager's with noise, compiled's with other noise."""

    def __init__(
        self, seed: int = 0, *, size: float = NOISE, dtype: torch.dtype = torch.float32
    ) -> None:
        shape = (*KINDS.shape, VOCABULARY)
        self.kinds = KINDS
        self.truth = normal(seed, *shape)
        self.eager = (self.truth + size * normal(seed + 1000, *shape)).to(dtype)
        self.compiled = (self.truth + size * normal(seed + 2000, *shape)).to(dtype)

    def outputs(self) -> tuple[Output, Output, Output]:
        logits = (self.compiled, self.eager, self.truth)
        return tuple(Output(logits=one, token_kinds=self.kinds) for one in logits)  # type: ignore[return-value]

    def measured(self) -> Measured:
        return measure(*self.outputs())

    def decided(self) -> Comparison:
        return decide(self.measured(), *self.outputs()[:2])

    def exceeded(self) -> set[str]:
        found = self.measured().exceeded(RULE)
        return {name for name, value in found.items() if float(value.max()) > 1}

    def add(self, place: tuple[int, int], error: torch.Tensor | float) -> None:
        """Let the compiled twin be wrong at a token, by multiples of the noise."""
        self.compiled[place] = (self.truth[place] + NOISE * error).float()


# Errors in multiples of the noise. Of 64 normal errors the largest is about 2.5.
SIGNS = 1.0 - 2.0 * (torch.arange(VOCABULARY) % 2)


def everywhere(case: Case) -> None:
    """Each logit is off by 5; none by more, so that no peak shows."""
    case.add(HERE, 5 * SIGNS)


def a_whole_row(case: Case) -> None:
    """Each token of a row is off by less than a single one may be."""
    for token in range(KINDS.shape[1]):
        case.add((0, token), 3.4 * SIGNS)


def one_logit(case: Case) -> None:
    """One logit of 64 is off, of the least likely token."""
    error = normal(5, VOCABULARY)
    error[int(case.truth[HERE].argmin())] = 18
    case.add(HERE, error)


def two_change_places(case: Case) -> None:
    """The two most likely tokens change places, though the reference tells them apart."""
    first, second = case.truth[HERE].topk(2).indices.tolist()
    case.truth[HERE][second] = case.truth[HERE][first] - 15 * NOISE
    case.eager[HERE] = (case.truth[HERE] + NOISE * normal(3, VOCABULARY).clamp(-2.5, 2.5)).float()
    error = normal(5, VOCABULARY)
    error[first], error[second] = -7.8, 7.8
    case.add(HERE, error)


def the_likely_ones(case: Case) -> None:
    """The eight tokens that hold all the probability are off; 56 others hide it."""
    case.truth[HERE][:] = -10.0
    case.truth[HERE][:8] = 10 + 0.01 * torch.arange(8, dtype=torch.float64)
    scale = float(case.truth[HERE].square().mean().sqrt())  # errors are relative to it
    case.eager[HERE] = (case.truth[HERE] + scale * NOISE * normal(3, VOCABULARY)).float()
    error = normal(5, VOCABULARY)
    error[:8] = 7.5 * SIGNS[:8]
    case.add(HERE, scale * error)


FAULTS: dict[str, Callable[[Case], None]] = {
    "token": everywhere,
    "row": a_whole_row,
    "peak": one_logit,
    "rank": two_change_places,
    "kl": the_likely_ones,
}


@pytest.mark.parametrize("statistic", FAULTS)
def test_each_statistic_sees_a_fault_that_no_other_sees(statistic: str):
    case = Case()
    assert case.exceeded() == set()
    FAULTS[statistic](case)
    assert case.exceeded() == {statistic}
    found = case.decided()
    assert not found.passes
    assert found.statistic == statistic
    first = (0, 0) if statistic == "row" else HERE
    assert found.first is not None
    assert (found.first.request, found.first.token) == first
    for other in (name for name in FAULTS if name != statistic):
        assert not decide(
            case.measured(), *case.outputs()[:2], rule=replace(RULE, **{other: 1e-9})
        ).passes
    blind = replace(RULE, **{statistic: 1e9})
    assert decide(case.measured(), *case.outputs()[:2], rule=blind).passes


@pytest.mark.parametrize("dtype", FLOATS)
def test_noise_of_the_size_of_eagers_passes(dtype: str):
    size = 10 * torch.finfo(FLOATS[dtype]).eps
    worst = []
    for seed in range(200):
        found = Case(seed, size=size, dtype=FLOATS[dtype]).decided()
        assert found.passes, (seed, found.statistic, found.ratio)
        worst.append(found.ratio)
    assert 0.3 < max(worst) < 1.0
    for seed in range(20):  # and 5 times that does not
        case = Case(seed, size=size, dtype=FLOATS[dtype])
        case.compiled = Case(seed, size=5 * size, dtype=FLOATS[dtype]).compiled
        assert not case.decided().passes


def test_what_the_reference_leaves_undecided_is_not_asked():
    case = Case()
    first, second = case.truth[HERE].topk(2).indices.tolist()
    case.truth[HERE][second] = case.truth[HERE][first] - 2 * NOISE
    case.eager[HERE] = (case.truth[HERE] + NOISE * normal(3, VOCABULARY)).float()
    error = normal(5, VOCABULARY)
    error[first], error[second] = -1.5, 1.5
    case.add(HERE, error)
    assert int(case.compiled[HERE].argmax()) == second
    assert case.decided().passes


def test_the_fifth_most_likely_token_counts_and_the_sixth_does_not():
    for place, seen in ((4, True), (5, False)):
        case = Case()
        order = case.truth[HERE].argsort(descending=True)
        one, other = int(order[place]), int(order[place + 1])
        case.truth[HERE][order[place + 2 :]] -= 1.0  # out of the way
        scale = float(case.truth[HERE].square().mean().sqrt())
        case.truth[HERE][other] = case.truth[HERE][one] - 15 * scale * NOISE
        case.eager[HERE] = (case.truth[HERE] + scale * NOISE * normal(3, VOCABULARY)).float()
        error = normal(5, VOCABULARY)
        error[one], error[other] = -7.8, 7.8
        case.add(HERE, scale * error)
        assert case.exceeded() == ({"rank"} if seen else set())


def test_a_row_decides_only_where_no_token_stands_out():
    case = Case()
    a_whole_row(case)
    alone = case.decided()
    assert alone.statistic == "row"
    assert bool((alone.ratios[0] > 1).all())
    case.add((1, 4), 5 * SIGNS)
    found = case.decided()
    assert found.statistic == "token"
    assert found.at == found.first == Location(request=1, token=4, modality="image")
    assert int((found.ratios > 1).sum()) == 1


def test_the_first_wrong_token_of_the_first_wrong_request_is_named_beside_the_worst():
    case = Case()
    for place, size in (((0, 2), 6.0), ((0, 5), 5.0), ((1, 3), 5.0), ((1, 5), 9.0)):
        case.add(place, size * SIGNS)
    found = case.decided()
    assert found.first == Location(request=0, token=2, modality="image")
    assert found.at == Location(request=1, token=5, modality="text")
    assert found.ratio == float(found.ratios[1, 5]) == float(found.ratios.nan_to_num().max())
    assert found.error == float((case.compiled - case.eager)[1, 5].double().abs().max())
    wrong = (found.ratios > 1).nonzero().tolist()
    assert wrong == [[0, 2], [0, 5], [1, 3], [1, 5]]


# -- padding, NaN, sizes ------------------------------------------------------------------------


@pytest.mark.parametrize("twin", ["compiled", "eager", "truth"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_stands_at_padding_is_left_out(twin: str, value: float):
    case, plain = Case(), Case().decided()
    getattr(case, twin)[KINDS < 0] = value
    found = case.decided()
    assert found.passes
    assert found.ratio == plain.ratio
    assert found.tokens == int((KINDS >= 0).sum())
    assert torch.equal(found.ratios.isnan(), KINDS < 0)
    assert torch.equal(found.ratios.nan_to_num(), plain.ratios.nan_to_num())
    assert found.ratios.dtype == torch.float64


def judged(case: Case) -> Comparison:
    compiled, eager, truth = case.outputs()
    target = Fake(run_reference=lambda part: truth)
    return Judge(target, dtype="float32").judge(compiled, eager, BATCH)


@pytest.mark.parametrize("twin", ["compiled", "eager"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_never_pass(twin: str, value: float):
    case = Case()
    assert judged(case).passes
    logits = getattr(case, twin)
    logits[1, 4, 7] = logits[0, 5, 1] = value
    found = judged(case)
    assert not found.passes
    assert found.nonfinite == twin
    assert found.first == Location(request=0, token=5, modality="text")
    assert (found.ratios > 1).nonzero().tolist() == [[0, 5], [1, 4]]
    both = Case()
    both.compiled[1, 4, 7] = both.eager[1, 4, 7] = value
    assert judged(both).nonfinite == "eager"  # nothing can be compared with it


def test_a_reference_with_nan_proves_nothing():
    case = Case()
    case.truth[0, 0, 0] = float("nan")
    with pytest.raises(oracle.ReferenceError, match=r"differ from the .* by nan"):
        judged(case)


def one_token(vocabulary: int) -> Case:
    case = Case()
    case.kinds = torch.zeros(1, 1, dtype=torch.int8)
    for name in ("truth", "eager", "compiled"):
        setattr(case, name, getattr(case, name)[:1, :1, :vocabulary].clone())
    return case


@pytest.mark.parametrize("vocabulary", [1, 2, 5, 6, VOCABULARY])
def test_a_batch_of_one_token(vocabulary: int):
    case = one_token(vocabulary)
    case.compiled = (case.truth - (case.eager - case.truth)).float()  # as far on the other side
    found = case.decided()
    assert found.passes
    assert found.tokens == 1
    assert found.at == Location(request=0, token=0, modality="text")
    case.compiled = (case.truth + 10 * (case.eager - case.truth)).float()
    assert case.decided().first == found.at


# -- the noise ----------------------------------------------------------------------------------


def test_where_eager_is_exact_the_type_is_the_measure():
    unit = torch.finfo(torch.float32).eps / 2
    case = Case()
    case.truth = case.truth.float().double()
    case.eager = case.truth.float()
    for times, passes in ((1.0, True), (8.0, False)):
        noise = times * unit * normal(9, *case.truth.shape)
        case.compiled = (case.truth + noise).float()
        assert case.measured().eager == 0.0
        assert case.decided().passes == passes


def test_where_eager_is_exact_by_luck_the_batch_is_the_measure():
    case = Case()
    case.truth = case.truth.float().double()
    case.eager[HERE] = case.truth[HERE].float()
    assert case.decided().passes
    everywhere(case)
    assert case.decided().first == Location(request=0, token=3, modality="image")


def test_where_eager_is_worse_than_the_batch_its_own_error_is_the_measure():
    case = Case()
    case.eager[HERE] = (case.truth[HERE] + 10 * NOISE * normal(3, VOCABULARY)).float()
    case.add(HERE, 12 * SIGNS)
    assert case.decided().passes


def test_one_token_that_eager_gets_wrong_excuses_no_other():
    for tokens, size, statistic in (([3], 8, "token"), (range(6), 6, "row")):
        case = Case()
        case.eager[0, 5] = (case.truth[0, 5] + 1e3 * NOISE * normal(3, VOCABULARY)).float()
        assert case.decided().passes
        for token in tokens:
            case.add((0, token), size * SIGNS)
        assert case.exceeded() == {statistic}


@pytest.mark.parametrize("seed", range(5))
def test_errors_of_two_sizes_in_one_request_are_no_mismatch(seed: int):
    """As where the vision tower multiplies in TF32, and text before an image is exact."""
    case = Case(seed, size=NOISE)
    for token in (2, 3, 4, 5):
        for answer, shift in ((case.eager, 5), (case.compiled, 6)):
            error = 1e4 * NOISE * normal(10 * seed + token + shift, VOCABULARY)
            answer[0, token] = (case.truth[0, token] + error).float()
    assert case.decided().passes, case.decided()


def test_the_scale_of_the_logits_changes_nothing():
    case = Case()
    everywhere(case)
    plain = case.measured()
    for name in ("truth", "eager", "compiled"):
        setattr(case, name, getattr(case, name) * 1024)  # exact in every type
    scaled = case.measured()
    for name in ("token", "row", "peak", "rank"):
        torch.testing.assert_close(getattr(scaled, name), getattr(plain, name), rtol=1e-9, atol=0)
    assert case.decided().first == Location(request=0, token=3, modality="image")


@pytest.mark.parametrize("tokens", [1, 3, 10])
def test_chunks_change_nothing(tokens: int, monkeypatch):
    case = Case()
    the_likely_ones(case)
    plain = case.measured()
    monkeypatch.setattr(oracle, "CHUNK", tokens * VOCABULARY)
    sizes = []
    real = oracle._raw
    monkeypatch.setattr(oracle, "_raw", lambda *parts: sizes.append(len(parts[0])) or real(*parts))
    chunked = case.measured()
    assert max(sizes) == tokens
    assert sum(sizes) == int((KINDS >= 0).sum())
    for field in fields(Measured):
        one, other = getattr(chunked, field.name), getattr(plain, field.name)
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other)), field.name
