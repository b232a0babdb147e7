"""Engines that the tests of the workflows name, from the root of a checkout."""

from __future__ import annotations

from suites.selftest.toy import ToyTarget


def wrong() -> ToyTarget:
    """Answers wrongly where a batch has more than one request."""
    return ToyTarget(lambda call, ids, batch: call(ids) + (len(batch.requests) > 1))
