"""Right answers: logits beside a reference, and every metamorphic relation by itself."""

import pytest

RELATIONS = (
    "alone",
    "permuted",
    "padding-side",
    "more-padding",
    "poisoned-padding",
    "beside",
    "pixels",
    "image-order",
    "split",
    "twice",
)
FEW = 30  # examples for each relation, where nobody says how many


def test_logits(vlm_check):
    """The compiled twin is no further from the reference than eager's own error explains."""
    result = vlm_check()
    assert result.parity.tokens_compared
    assert result.parity.canary.moved == result.parity.canary.applied
    if result.parity.reference == "none":
        pytest.skip(f"judged by a fixed tolerance, which is weaker: {result.parity.weaker}")


@pytest.mark.parametrize(
    "relation",
    [pytest.param(name, marks=pytest.mark.vlm(relations=name, examples=FEW)) for name in RELATIONS],
)
def test_relation(relation, vlm_check):
    """A property of the compiled twin holds, whatever eager answers."""
    result = vlm_check()
    if not result.parity.relations[relation]:
        why = [text for text in result.warnings if text.startswith(f"relation {relation} ")]
        pytest.skip("; ".join(why))


def test_warm_up_order(vlm_target, vlm_settings):
    """What was warmed up first decides no answer."""
    from vlm_ci.parity.relations import WARM_UP_ORDER, check_warm_up_order
    from vlm_ci.synthesis.examples import examples
    from vlm_ci.warmup import find_plan

    plan = find_plan(vlm_settings.warmup, vlm_target.envelope).batches
    sessions = examples(vlm_target.envelope, vlm_settings.seed)
    batches = [batch for _, one in zip(range(FEW), sessions, strict=False) for batch in one.batches]
    violation = check_warm_up_order(vlm_target, plan, batches)
    if violation is not None:
        pytest.fail(f"{WARM_UP_ORDER.name}: {violation.text}", pytrace=False)
