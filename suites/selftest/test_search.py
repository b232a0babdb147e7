"""The search when its time to shrink is over: what was found stays, and nothing else comes out."""

from __future__ import annotations

import pytest
import toy

from vlm_ci.failures import Failure, finding
from vlm_ci.search import Search


def two_causes(session):
    """Fail for one image, and for another reason for more of them."""
    images = sum(kind == "image" for batch in session.batches for kind in batch.modalities)
    if images:
        key = "one" if images == 1 else "more"
        raise finding(Failure(kind="mismatch", cause=key, advice="", key=key, traffic=session))


class Stopping(Search):
    """Its time to shrink is over from the ``last``-th session on; 0: never."""

    last = 0
    tried = 0

    def _shrunk_enough(self) -> bool:
        self.tried += 1
        return 0 < self.last <= self.tried


def searched(last: int, check=two_causes) -> Stopping:
    search = Stopping(toy.ENVELOPE)
    search.last = last
    search.run(check, examples=10, seed=1)
    return search


def test_time_may_be_over_at_any_session():
    """Also while Hypothesis, done with shrinking, raises each of several causes once more."""
    whole = searched(last=0)
    assert set(whole.best) == {"mismatch: one", "mismatch: more"}
    for last in (whole.tried - 2, whole.tried - 1, whole.tried):
        assert set(searched(last).best) == set(whole.best)


def test_an_interrupt_while_several_causes_are_raised_once_more_is_one():
    in_hypothesis = searched(last=0).tried
    for last in (in_hypothesis - 1, in_hypothesis):
        tried = []

        def interrupted(session, last=last, tried=tried):
            tried.append(session)
            if len(tried) == last:
                raise KeyboardInterrupt
            two_causes(session)

        with pytest.raises(KeyboardInterrupt):
            searched(last=0, check=interrupted)
