"""When a failed call to GitHub is made again, and how long to wait before. Performs no I/O."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import TYPE_CHECKING

import httpx
from githubkit.exception import RateLimitExceeded, RequestError, RequestFailed
from githubkit.typing import RetryOption

if TYPE_CHECKING:
    from githubkit.exception import GitHubException

MOST = 3  # times that one call is made again
LONGEST = timedelta(seconds=120)  # one wait; a job that sleeps holds a runner
TOTAL = timedelta(seconds=300)  # all waits of a handling, less than a claim holds
REPEATABLE = ("GET", "PATCH")  # twice is the same as once
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Retry:
    """githubkit's retry decision: bounded in number, in each wait and in all waits together."""

    def __init__(self) -> None:
        self.waited = timedelta()

    def __call__(self, error: GitHubException, count: int) -> RetryOption:
        """Return whether to make the call again after a failure, the ``count``-th being 0."""
        wait = _wait(error, count)
        if wait is None or count >= MOST or wait > LONGEST or self.waited + wait > TOTAL:
            return RetryOption(do_retry=False)
        self.waited += wait
        return RetryOption(do_retry=True, retry_after=wait)


def _wait(error: GitHubException, count: int) -> timedelta | None:
    """Return how long to wait, or None where the call must not be made again.

    A call that was limited was not made. After another failure one that changes something may have
    been, unless nothing was sent.
    """
    if isinstance(error, RateLimitExceeded):
        # Whoever was told to wait comes back a little later than the others.
        return error.retry_after + timedelta(seconds=random.uniform(0, 0.5))
    if isinstance(error, RequestFailed):
        again = error.response.status_code >= 500 and error.request.method in REPEATABLE
    elif isinstance(error, RequestError):
        again = isinstance(error.exc, NEVER_SENT) or (
            isinstance(error.exc, httpx.TransportError) and error.exc.request.method in REPEATABLE
        )
    else:
        again = False
    return timedelta(seconds=0.5 * 2**count * random.uniform(0.5, 1.5)) if again else None
