"""The first module of each planted fault of values is named, on real models."""

from __future__ import annotations

from typing import Any

import pytest

from vlm_ci import bugs
from vlm_ci.parity.comparison import TOLERANCES, compare
from vlm_ci.parity.localisation import localise
from vlm_ci.targets.loading import load_target
from vlm_ci.traffic.spec import Batch, Image, Request, Session, Text, Video
from vlm_ci.warmup import named_plan

CANDIDATES = (
    Batch(
        (
            Request((Image(8, 16), Text(4), Image(8, 16), Text(3))),
            Request((Text(3), Image(8, 16), Text(12))),
        )
    ),
    Batch((Request((Video(6, 8, 16), Text(3))), Request((Text(2),))), seed=3),
    Batch((Request((Text(12),)),), seed=7),
    Batch((Request((Image(8, 8), Video(1, 8, 8))),)),
)
NAMED = [bug.name for bug in bugs.all_bugs() if bug.module and bug.expects == "mismatch"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name if name == "deepstack-shift" else pytest.param(name, marks=pytest.mark.nightly)
        for name in NAMED
    ],
)
def test_the_first_module_of_a_planted_bug_is_named(name: str):
    bug = bugs.find(name)
    mutate = bugs.change(name, repaired=False)
    target: Any = load_target(bug.target, recipe=bug.recipe, mutate=mutate, **bug.options)
    try:
        if bugs.first(name)(CANDIDATES[0], target.envelope.geometry) is None:
            for one in named_plan(bug.warmup, target.envelope).batches:
                target.warm_up(one)  # what was served before decides
        for one in CANDIDATES:
            target.warm_up(one)
        tolerance = TOLERANCES["float32"]
        for one in CANDIDATES:
            comparison = compare(target.run_compiled(one), target.run_eager(one), tolerance)
            if not comparison.passes:
                break
        at = comparison.at
        assert at is not None
        assert not comparison.passes
        said = localise(target, Session((one,)), at.request, at.token)
    finally:
        target.close()
    assert f"{said.module}.".startswith(f"{bug.module}.")
    assert (said.stage, said.region) == ("model code", "")
