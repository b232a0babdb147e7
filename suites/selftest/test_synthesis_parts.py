"""The parts of warm-up synthesis: sizes, growing, pruning, unbounded dimensions."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
from synthesis_targets import GENERIC, images_of, many_images, per_image
from toy import ENVELOPE, ToyTarget

from vlm_ci.synthesis import sizes
from vlm_ci.synthesis.bench import Bench
from vlm_ci.synthesis.examples import examples
from vlm_ci.synthesis.growth import Grower
from vlm_ci.synthesis.pruning import prune
from vlm_ci.synthesis.sweep import dimensions, is_growing, run_sweep, sweeps
from vlm_ci.traffic.spec import Batch, Image, Text, batch
from vlm_ci.watch import internals


@pytest.fixture(autouse=True)
def _limit():
    limit = internals.recompile_limit()
    yield
    internals.set_recompile_limit(limit)


@pytest.fixture
def bench():
    """Make benches; their targets are closed afterwards."""
    made: list[Bench] = []

    def build(target: ToyTarget) -> Bench:
        made.append(Bench(target))
        return made[-1]

    yield build
    for one in made:
        one.close()
        one.target.close()


# -- sizes ------------------------------------------------------------------------------------


def test_generic_sizes_take_the_place_of_accidental_ones():
    square = batch([Text(1), Image(8, 8)], [Text(2), Image(16, 16)])
    general = sizes.generalise(square, ENVELOPE, lambda candidate: True)
    assert ENVELOPE.violation(general) is None
    assert sizes.accidents(general, ENVELOPE) == 0
    assert [type(item) for item in general.items()] == [type(item) for item in square.items()]


def test_a_size_that_is_the_cause_stays():
    def refused(candidate: Batch) -> bool:
        return any(item == Image(8, 8) for item in candidate.items())

    cause = batch([Text(1), Image(8, 8)], [Text(2), Image(16, 16)])
    general = sizes.generalise(cause, ENVELOPE, refused)
    assert general.requests[0].items[1] == Image(8, 8)
    assert general.requests[0].items[0] != Text(1)
    assert general.requests[1].items != cause.requests[1].items


def test_rows_of_one_length_stay_of_one_length():
    equal = batch(Text(2), Text(2), Text(2))
    general = sizes.generalise(equal, ENVELOPE, lambda candidate: True)
    assert len(set(general.requests)) == 1
    assert general.requests[0].items[0].tokens > 3


def test_a_plan_has_generic_sizes_first_and_corners_last():
    corners = [batch(Text(1)), batch(Text(1), Text(1)), batch([Text(9), Image(8, 8)])]
    plan = sizes.ordered([*corners, GENERIC], ENVELOPE)
    assert plan[0] == GENERIC
    scores = [sizes.accidents(one, ENVELOPE) for one in plan]
    assert scores == sorted(scores)


def test_one_seed_gives_the_same_examples_and_others_give_others():
    first, again, other = (list(islice(examples(ENVELOPE, s), 15)) for s in (3, 3, 4))
    assert first == again != other


# -- growing and pruning ----------------------------------------------------------------------


def test_a_plan_grows_by_a_generic_batch_for_what_was_refused(bench):
    one = bench(many_images())
    grower = Grower(bench=one, plan=[GENERIC])
    assert grower.cold() is None
    assert grower.grow(examples(ENVELOPE, 0), quiet=30) is None
    added = [part for part in grower.plan if images_of(part) >= 5]
    assert added
    assert any(sizes.accidents(part, ENVELOPE) <= 1 for part in added)
    for part in [*added, batch(*[[Image(8, 8)] * 2] * 3), batch(Text(1))]:
        assert one.problem(part) is None
    assert grower.curve[-1].graphs > grower.curve[0].graphs


def test_what_compiles_nothing_cold_goes_at_once(bench):
    grower = Grower(bench=bench(ToyTarget()), plan=[GENERIC, batch(Text(5), Text(9))])
    assert grower.cold() is None
    assert grower.plan == [GENERIC]
    assert grower.dropped == 1


def test_pruning_leaves_out_what_another_batch_covers(bench):
    one = bench(ToyTarget())
    same = batch(Text(2), Text(2))  # compiles with rows = length, which the generic graph covers
    plan = (same, GENERIC, batch(Text(5)))
    assert all(one.cold(plan).compiles)
    left, books = prune(one, plan, [batch(Text(4), Text(9))])
    assert left == (GENERIC, batch(Text(5)))
    assert books.not_needed == 1
    assert books.needed == 2


def test_pruning_stops_when_its_time_is_over(bench):
    plan = (GENERIC, batch(Text(5)))
    left, books = prune(bench(ToyTarget()), plan, [], time_limit=-1.0)
    assert left == plan
    assert books.untried == 2


# -- unbounded --------------------------------------------------------------------------------


def test_a_dimension_grows_when_its_values_go_on_compiling():
    assert is_growing([1, 1, 1, 1])
    assert is_growing([2, 1, 0, 1, 1, 1])
    assert not is_growing([3, 1, 0, 0, 1])  # an accident, and the 1 at the end
    assert not is_growing([1, 1, 1, 1, 0, 0])


def test_sweeps_vary_one_dimension_within_the_envelope():
    for dimension in dimensions(ENVELOPE):
        measures = []
        for value in dimension.values:
            part = dimension.build(value)
            assert ENVELOPE.violation(part) is None
            measures.append(dimension.measure(part))
        assert all(second > first for first, second in pairwise(measures)), dimension.name


def test_the_growing_dimension_is_named_beside_a_control(bench):
    one = bench(per_image())
    found = {sweep.dimension: sweep for sweep in sweeps(one, [])}
    assert found["number of images"].growing
    assert all(compiles for _, compiles in found["number of images"].rows)
    assert [name for name, sweep in found.items() if sweep.growing] == ["number of images"]
    assert found["image height (pixels)"].control
    assert found["text length (tokens)"].control


def test_a_healthy_target_grows_in_no_dimension(bench):
    one = bench(ToyTarget())
    one.lift_limit()
    assert not any(run_sweep(one, dimension).growing for dimension in dimensions(ENVELOPE))
