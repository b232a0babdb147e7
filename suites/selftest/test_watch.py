"""Signatures, observers of torch, and the comparison of logits."""

from __future__ import annotations

import logging

import pytest
import torch

from vlm_ci.parity.comparison import TOLERANCES, compare
from vlm_ci.targets.protocol import Output
from vlm_ci.watch import logs, state
from vlm_ci.watch.signatures import Binder, nearest
from vlm_ci.watch.watcher import Watcher, region_class


def call(hidden, mask=None, features=None, **extra):
    """A callable whose arguments are recorded."""


BIND = Binder(call)
HIDDEN = torch.zeros(2, 7, 4)
MASK = torch.ones(2, 7)


def record(*args, **kwargs):
    return BIND(args, kwargs)


def test_signature_names_positional_and_nested_arguments():
    signature = record(HIDDEN, MASK, features=[torch.zeros(3), None], flag=True)
    assert signature.describe("hidden") == "float32 tensor [2, 7, 4] on cpu"
    assert signature.describe("features") == "list of 2"
    assert signature.describe("features[1]") == "None"
    assert signature.describe("flag") == "bool True"
    assert signature.describe("absent") == "not passed"


def test_a_view_is_told_from_a_contiguous_tensor():
    assert "strides ordered [1, 0]" in record(torch.zeros(3, 4).T).describe("hidden")
    assert "expanded" in record(torch.zeros(1, 4).expand(3, 4)).describe("hidden")


def test_nearest_prefers_the_call_that_differs_in_sizes_only():
    far, near = record(HIDDEN, None), record(torch.zeros(3, 9, 4), torch.ones(3, 9))
    match = nearest(record(HIDDEN, MASK), [far, near])
    assert match is not None
    assert match.warm is near
    assert match.causes == ()
    assert {difference.path for difference in match.sizes} == {"hidden", "mask"}


def test_grad_mode_is_part_of_the_signature():
    with torch.no_grad():
        warm = record(HIDDEN)
    match = nearest(record(HIDDEN), [warm])
    assert match is not None
    assert [str(cause) for cause in match.causes] == ["grad mode is True; in warm-up it was False"]


def test_layers_of_one_kind_are_one_region_class():
    assert region_class("model.layers.11.mlp.0") == "model.layers.*.mlp.*"


KINDS = torch.tensor([[-1, 0, 1], [2, 0, 0]], dtype=torch.int8)


def output(logits: torch.Tensor) -> Output:
    return Output(logits=logits, token_kinds=KINDS)


def test_equal_logits_pass_and_padding_is_left_out():
    logits = torch.randn(2, 3, 8)
    other = logits.clone()
    other[0, 0] = float("nan")  # padding
    comparison = compare(output(other), output(logits), TOLERANCES["float32"])
    assert comparison.passes
    assert comparison.tokens == 5


@pytest.mark.parametrize(
    ("place", "modality"), [((0, 2), "image"), ((1, 0), "video"), ((1, 2), "text")]
)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_wrong_token_is_found_where_it_is(place, modality, dtype):
    logits = torch.randn(2, 3, 8).to(getattr(torch, dtype))
    other = logits.clone()
    other[place] += 3
    comparison = compare(output(other), output(logits), TOLERANCES[dtype])
    assert not comparison.passes
    assert comparison.at is not None
    assert (comparison.at.request, comparison.at.token) == place
    assert comparison.at.modality == modality


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("twins", [("compiled",), ("eager",), ("compiled", "eager")])
def test_nonfinite_logits_never_pass(value, twins):
    logits = {name: torch.ones(2, 3, 8) for name in ("compiled", "eager")}
    for name in twins:
        logits[name][1, 1, 3] = value
    comparison = compare(output(logits["compiled"]), output(logits["eager"]), TOLERANCES["float32"])
    assert not comparison.passes
    assert comparison.nonfinite == ("eager" if "eager" in twins else "compiled")
    assert comparison.at is not None
    assert (comparison.at.request, comparison.at.token) == (1, 1)


def test_the_tolerance_is_the_one_documented():
    tolerance = TOLERANCES["float32"]
    logits = torch.full((2, 3, 8), 2.0)
    allowed = tolerance.atol * 2.0 + tolerance.rtol * 2.0
    for share, passes in ((0.99, True), (1.01, False)):
        other = logits.clone()
        other[1, 1, 0] += share * allowed
        assert compare(output(other), output(logits), tolerance).passes is passes


def test_large_logits_do_not_pass_for_want_of_range():
    logits = torch.full((2, 3, 8), 1e20)
    other = logits.clone()
    other[1, 1, 0] = -1e20
    assert not compare(output(other), output(logits), TOLERANCES["float32"]).passes


def test_another_type_of_logits_is_an_error():
    with pytest.raises(ValueError, match=r"torch.float64, eager ones torch.float32"):
        compare(
            output(torch.ones(2, 3, 8).double()), output(torch.ones(2, 3, 8)), TOLERANCES["float32"]
        )


def test_process_state_is_restored():
    before = torch.get_float32_matmul_precision(), torch.is_grad_enabled()
    with state.preserving_state():
        torch.set_float32_matmul_precision("medium")
        torch.set_grad_enabled(not before[1])
    assert (torch.get_float32_matmul_precision(), torch.is_grad_enabled()) == before


def test_shapes_that_differ_are_an_error():
    with pytest.raises(ValueError, match=r"\[2, 3, 8\], eager ones \[2, 3, 9\]"):
        compare(output(torch.ones(2, 3, 8)), output(torch.ones(2, 3, 9)), TOLERANCES["float32"])


def test_the_limit_is_seen_where_torch_s_logs_are_silenced():
    logger = logging.getLogger("torch._dynamo.convert_frame")
    logger.setLevel(logging.CRITICAL)  # what TORCH_LOGS=-dynamo does
    seen = []
    try:
        with logs.reporting_limits(lambda function, reason: seen.append(function)):
            logger.warning("torch._dynamo hit config.%s", "recompile_limit (8)")
        assert logger.level == logging.CRITICAL
    finally:
        logger.setLevel(logging.NOTSET)
    assert seen == ["unknown"]


def test_foreign_handlers_leave_torch_s_trace_alone():
    logger = logging.getLogger("torch.__trace")
    own, foreign = list(logger.handlers), logging.StreamHandler()
    logger.addHandler(foreign)
    Watcher().begin_step()
    assert foreign not in logger.handlers
    assert [handler for handler in own if type(handler).__module__.startswith("torch.")] == (
        logger.handlers
    )


def test_what_is_served_aside_belongs_to_no_step_and_the_count_never_falls():
    watcher = Watcher()
    watcher.begin_step()
    watcher.region_executed(1)
    with watcher.aside():
        for _ in range(2):
            watcher.begin_step()
            watcher.region_executed(2)
            watcher.region_executed(2)
    assert (watcher.regions, dict(watcher.executed)) == (5, {1: 1})
    watcher.begin_step()
    assert (watcher.regions, dict(watcher.executed)) == (5, {})
