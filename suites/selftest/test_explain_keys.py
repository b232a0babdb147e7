"""Keys of explanations: one for each cause, whatever the sizes."""

from __future__ import annotations

import dataclasses
import re

import pytest
import refused
import torch
from refusals import CASES, refusal_of, small

from vlm_ci.watch.explain import explain

T = torch.ones
call = refused.call

SIZES = {
    "static size": (
        small(refused.loop, (call(T(3)), call(T(4))), call(T(5))),
        small(refused.loop, (call(T(13)), call(T(11))), call(T(27))),
    ),
    "below 2": (
        small(refused.total, (call(T(3)), call(T(4))), call(T(1))),
        small(refused.total, (call(T(30)), call(T(40))), call(T(1))),
    ),
    "multiple": (
        small(refused.fours, (call(T(8)), call(T(12))), call(T(13))),
        small(refused.fours, (call(T(16)), call(T(32))), call(T(21))),
    ),
    "duck shape": (
        small(refused.both, (call(T(3), T(3)),), call(T(3), T(4)), dynamic=True),
        small(refused.both, (call(T(8), T(8)),), call(T(9), T(5)), dynamic=True),
    ),
    "number": (
        small(refused.many, (call(T(3), 5), call(T(3), 7)), call(T(3), 20)),
        small(refused.many, (call(T(3), 4), call(T(3), 8)), call(T(3), 33)),
    ),
    "argument": (
        small(refused.optional, (call(T(3)),), call(T(3), T(3))),
        small(refused.optional, (call(T(7)),), call(T(7), T(7))),
    ),
    "length": (
        small(refused.entries, (call(T(3), [T(3)]),), call(T(3), [T(3), T(3)])),
        small(refused.entries, (call(T(3), [T(3)] * 4),), call(T(3), [T(3)] * 6)),
    ),
}


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("signed", [True, False], ids=["by signature", "by guards"])
def test_a_cause_has_one_key_whatever_the_sizes(kind, signed):
    keys = set()
    for number, case in enumerate(SIZES[kind]):
        named = dataclasses.replace(case, name=f"{kind}, sizes {number}")
        refusal, now, warm = refusal_of(named)
        keys.add(explain(refusal.failed, now if signed else None, warm).key)
    assert len(keys) == 1


def test_other_causes_have_other_keys():
    names = (
        "grad mode",
        "autocast",
        "was None",
        "keyword appears",
        "dtype",
        "rank",
        "requires_grad",
        "inference tensor",
        "static size",
        "below 2",
        "duck shape",
        "lower bound",
        "multiple",
        "stride",
        "integer",
        "symbolic integer",
        "length",
        "keys",
        "None attribute",
        "integer attribute",
        "string attribute",
    )
    for signed in (True, False):
        keys = {}
        for name in names:
            refusal, now, warm = refusal_of(CASES[name])
            key = explain(refusal.failed, now if signed else None, warm).key
            keys.setdefault(key, []).append(name)
        assert not {key: found for key, found in keys.items() if len(found) > 1}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "tensor 'x' size mismatch at index 0. expected 3, actual 4",
            "tensor 'x' size mismatch at index 1. expected 3, actual 4",
        ),
        ("2 <= x.size()[0]", "2 <= x.size()[1]"),
        ("x.size()[0] == y.size()[1]", "x.size()[1] == y.size()[0]"),
    ],
)
def test_dimensions_are_part_of_the_key_and_sizes_are_not(one, other):
    assert explain([one], None, []).key != explain([other], None, []).key
    assert (
        explain([one], None, []).key
        == explain([re.sub(r"(?<=expected )\d", "7", one)], None, []).key
    )
