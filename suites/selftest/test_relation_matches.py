"""Which tokens a relation compares: matches by hand, and the token that a violation names."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from exact import ROWS, Exact, served, watcher_of
from toy import ENVELOPE

from vlm_ci.parity.relations import (
    RELATIONS,
    Match,
    RelationChecker,
)
from vlm_ci.targets.protocol import Capabilities, Output
from vlm_ci.traffic.envelope import Envelope
from vlm_ci.traffic.spec import Batch, Image, Text, batch, item_seed, pinned


def variants(relation: str, part: Batch = ROWS, envelope: Envelope = ENVELOPE) -> list[Any]:
    return list(RELATIONS[relation].variants(pinned(part), envelope))


def pairs(matches: tuple[Match, ...]) -> list[tuple[int, int, int]]:
    assert all(match.start == match.in_start == 0 for match in matches)
    return [(match.request, match.in_batch, match.in_request) for match in matches]


def test_what_is_matched():
    reverse, turned = variants("permuted")
    assert pairs(reverse.matches) == [(2, 0, 0), (1, 0, 1), (0, 0, 2)]
    assert reverse.batches[0].requests == pinned(ROWS).requests[::-1]
    assert pairs(turned.matches) == [(1, 0, 0), (2, 0, 1), (0, 0, 2)]
    (split,) = variants("split")
    assert [len(part.requests) for part in split.batches] == [1, 2]
    assert pairs(split.matches) == [(0, 0, 0), (1, 1, 0), (2, 1, 1)]
    assert [pairs(variant.matches) for variant in variants("alone")] == [
        [(0, 0, 0)],
        [(1, 0, 0)],
        [(2, 0, 0)],
    ]
    (beside,) = variants("beside")  # there is an image already: it is taken away
    assert beside.batches[0].requests == pinned(ROWS).requests[1:]
    assert pairs(beside.matches) == [(1, 0, 0), (2, 0, 1)]
    texts = batch(Text(5), Text(9))
    (added,) = variants("beside", texts)
    assert added.batches[0].requests[:2] == pinned(texts).requests
    assert added.batches[0].modalities == {"text", "image"}
    assert pairs(added.matches) == [(0, 0, 0), (1, 0, 1)]
    again, after_another = variants("twice")
    assert again.batches == (pinned(ROWS),)
    assert after_another.batches[1] == pinned(ROWS) != after_another.batches[0]
    assert pairs(after_another.matches) == [(0, 1, 0), (1, 1, 1), (2, 1, 2)]
    (longer,) = variants("more-padding")
    assert ENVELOPE.padded_length(longer.batches[0]) == 12 + 5
    bucketed = msgspec.structs.replace(ENVELOPE, buckets=(8, 16, 32))
    (longer,) = variants("more-padding", ROWS, bucketed)
    assert ENVELOPE.padded_length(longer.batches[0]) == 16
    (other,) = variants("padding-side")
    assert other.batches[0].padding == "right"


def test_two_images_are_matched_up_to_the_first_one():
    own, swapped = variants("image-order")
    request = pinned(ROWS).requests[0].items
    assert own.batches[0].requests[0].items == request[:2]
    assert own.matches == (Match(request=0, in_request=0, tokens=3 + 2),)
    both, cut = swapped.batches
    assert both.requests[0].items == (request[0], request[3], request[2], request[1], request[4])
    assert cut.requests[0].items == (request[0], request[3])
    assert swapped.matches == (Match(request=0, in_batch=1, in_request=0, tokens=7, against=0),)
    same = batch([Text(3), Image(8, 16), Image(8, 16)])
    *_, moves = variants("image-order", same)
    assert moves.matches == (Match(request=0, start=3, in_request=0, in_start=3, differ=True),)
    twin = batch([Image(8, 16, seed=4), Image(8, 16, seed=4)])
    assert not any(match.differ for each in variants("image-order", twin) for match in each.matches)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_an_exact_target_keeps_every_relation(padding: str):
    target = Exact()
    checker = RelationChecker(target, watcher_of(target))
    same = [Image(8, 8), Text(2), Image(8, 8)]
    for part in (ROWS, batch(Text(5), Text(9)), batch(same, Text(1), padding=padding)):
        part = msgspec.structs.replace(part, padding=padding)
        assert served(target, checker, part) is None
    assert set(checker.worst.values()) == {0.0}
    for relation, books in checker.books.items():
        assert books.judged > 0, relation
        assert not books.left_out, relation


# The token with a fault, and where it stands in the row that is padded to 12 on the left.
FAULTS = {
    "alone": (2, 4, "text"),
    "permuted": (1, 3, "text"),
    "padding-side": (1, 0, "text"),
    "more-padding": (0, 4, "image"),
    "split": (2, 8, "text"),
    "beside": (1, 2, "text"),
    "image-order": (0, 4, "image"),
    "twice": (0, 11, "text"),
}


@pytest.mark.parametrize("relation", FAULTS)
def test_a_violation_names_the_token(relation: str):
    row, at, modality = FAULTS[relation]
    content = item_seed(ROWS, row, 0)

    def fault(part: Batch, request: int, token: int) -> float:
        """Wrong in the base alone: everything that the relation serves is right."""
        first = item_seed(part, request, 0)
        return 50.0 if not checking and (first, token) == (content, at) else 0.0

    checking = False
    target = Exact(fault)
    checker = RelationChecker(target, watcher_of(target))
    output = target.run_compiled(ROWS)
    checking = True
    checker._seeds[ROWS.modalities] = ""  # a base that no answer equals would look unsteady
    found = checker.check(ROWS, output, [relation])
    assert found is not None
    length = ENVELOPE.row_tokens(ROWS.requests[row])
    assert (found.request, found.token, found.modality) == (row, 12 - length + at, modality)
    assert f"Request {row}, token {12 - length + at} ({modality})" in found.text
    assert math.isfinite(found.ratio)
    assert checker.worst[relation] == found.ratio
    assert set(found.batches) <= set(target.served)


def test_a_swap_that_moves_nothing_is_a_violation():
    class Blind(Exact):
        def run_compiled(self, part: Batch) -> Output:
            requests = tuple(
                msgspec.structs.replace(
                    request,
                    items=tuple(
                        msgspec.structs.replace(item, seed=3) if isinstance(item, Image) else item
                        for item in request.items
                    ),
                )
                for request in part.requests
            )
            return super().run_compiled(msgspec.structs.replace(part, requests=requests))

    target = Blind()
    checker = RelationChecker(target, watcher_of(target))
    found = served(target, checker, batch([Text(2), Image(8, 8), Image(8, 8)]), ["image-order"])
    assert found is not None
    assert (found.request, found.token, found.modality) == (0, 2, "image")
    assert "nothing moved from there on" in found.text


@pytest.mark.parametrize("where", ["base", "variant"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_never_equals(where: str, value: float):
    def fault(part: Batch, request: int, token: int) -> float:
        alone = len(part.requests) == 1
        return value if alone == (where == "variant") and token == 4 else 0.0

    target = Exact(fault)
    checker = RelationChecker(target, watcher_of(target))
    checker._seeds[ROWS.modalities] = ""
    found = served(target, checker, ROWS, ["alone"])
    assert found is not None
    assert found.ratio == math.inf
    assert (found.request, found.token) == (0, 4)
    assert "NaN or Inf" in found.text
    assert served(target, checker, batch(Text(2), Text(3)), ["alone"]) is None


def test_other_tokens_are_a_violation():
    class Short(Exact):
        def run_compiled(self, part: Batch) -> Output:
            output = super().run_compiled(part)
            if len(part.requests) == 1:
                output.token_kinds[0, -1] = -1
            return output

    target = Short()
    found = served(target, RelationChecker(target, watcher_of(target)), ROWS, ["alone"])
    assert found is not None
    assert found.ratio == math.inf
    assert "other tokens stand there" in found.text


# -- top k ------------------------------------------------------------------------------------


class Top(Exact):
    """The exact target behind an interface that gives the three most likely tokens."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.capabilities = Capabilities(logits="top-k")

    def run_compiled(self, part: Batch) -> Output:
        full = super().run_compiled(part)
        best = (full.logits / 50).log_softmax(dim=-1).topk(3, dim=-1)
        return Output(logits=best.values, token_ids=best.indices, token_kinds=full.token_kinds)


def test_top_k_answers_are_compared_by_their_ids():
    target = Top()
    checker = RelationChecker(target, watcher_of(target))
    assert served(target, checker, ROWS) is None
    assert checker.books["alone"].judged == 1
    assert set(checker.worst.values()) == {0.0}

    class Shuffled(Top):
        """Alone: the same tokens in another order; with ``less``, another log-probability."""

        less = 0.0

        def run_compiled(self, part: Batch) -> Output:
            output = super().run_compiled(part)
            if len(part.requests) > 1:
                return output
            assert output.token_ids is not None
            return Output(
                logits=output.logits.flip(-1) - self.less,
                token_ids=output.token_ids.flip(-1),
                token_kinds=output.token_kinds,
            )

    target = Shuffled()
    assert served(target, RelationChecker(target, watcher_of(target)), ROWS, ["alone"]) is None
    target.less = 0.01
    found = served(target, RelationChecker(target, watcher_of(target)), ROWS, ["alone"])
    assert found is not None
    assert 1 < found.ratio < math.inf
