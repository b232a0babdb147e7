"""Making a failing session smaller after Hypothesis has: structure first, then sizes.

Hypothesis shrinks the choices that built a session, and stays within the corner that found it.
This pass works on the session itself, so that the smallest form does not depend on the corner.
Imports neither torch nor Hypothesis.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vlm_ci.traffic.spec import Batch, Image, Item, Request, Session, Text, Video

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vlm_ci.traffic.envelope import Envelope

TIME_LIMIT = 6.0  # seconds for one failure
LEAST_TRIED = 12  # sessions that are tried whatever the time: a slow target takes longer


def complexity(session: Session) -> tuple[int, ...]:
    """Order sessions: fewer batches, requests, items, pictures; then smaller sizes and seeds."""
    items = [item for batch in session.batches for item in batch.items()]
    return (
        len(session.batches),
        sum(len(batch.requests) for batch in session.batches),
        len(items),
        sum(not isinstance(item, Text) for item in items),
        sum(isinstance(item, Video) for item in items),
        sum(_size(item) for item in items),
        sum(batch.seed for batch in session.batches),
        sum(batch.padding != "left" for batch in session.batches),
    )


def _size(item: Item) -> int:
    if isinstance(item, Text):
        return item.tokens
    area = item.height * item.width
    return area * item.frames if isinstance(item, Video) else area


def reduce(
    session: Session,
    fails: Callable[[Session], bool],
    envelope: Envelope,
    *,
    time_limit: float = TIME_LIMIT,
) -> Session:
    """Return the smallest session found for which ``fails`` still holds, within the envelope.

    Greedy: the first simpler session that still fails is taken, until none does or the time (in
    seconds) is over and ``LEAST_TRIED`` were tried.
    """
    deadline = time.monotonic() + time_limit
    tried = {session}

    def in_time() -> bool:
        return time.monotonic() < deadline or len(tried) <= LEAST_TRIED

    improved = True
    while improved and in_time():
        improved = False
        for candidate in simpler(session, envelope):
            if not in_time():
                break
            if candidate in tried or complexity(candidate) >= complexity(session):
                continue
            tried.add(candidate)
            if any(envelope.violation(batch) for batch in candidate.batches):
                continue
            if fails(candidate):
                session, improved = candidate, True
                break
    return session


def simpler(session: Session, envelope: Envelope) -> Iterator[Session]:
    """Yield simpler sessions, the largest steps first."""
    batches = session.batches
    for index in range(len(batches)):
        if len(batches) > 1:
            yield Session((batches[index],))
    for index in range(len(batches)):
        if len(batches) > 1:
            yield Session(batches[:index] + batches[index + 1 :])
    for index, batch in enumerate(batches):
        for smaller in _simpler_batches(batch, envelope):
            yield Session((*batches[:index], smaller, *batches[index + 1 :]))


def _simpler_batches(batch: Batch, envelope: Envelope) -> Iterator[Batch]:
    requests = batch.requests
    for index in range(len(requests)):
        if len(requests) > 1:
            yield _with(batch, (requests[index],))
    for index in range(len(requests)):
        if len(requests) > 1:
            yield _with(batch, requests[:index] + requests[index + 1 :])
    for index in range(len(requests) - 1):  # two requests become one
        merged = Request(requests[index].items + requests[index + 1].items)
        yield _with(batch, (*requests[:index], merged, *requests[index + 2 :]))
    for index, request in enumerate(requests):
        for smaller in _simpler_requests(request, envelope):
            yield _with(batch, (*requests[:index], smaller, *requests[index + 1 :]))
    for change in (
        Batch(requests, 0, batch.padding, batch.context),
        Batch(requests, batch.seed, envelope.padding[0], batch.context),
        Batch(requests, batch.seed, batch.padding, envelope.contexts[0]),
    ):
        if change != batch:
            yield change


def _with(batch: Batch, requests: tuple[Request, ...]) -> Batch:
    return Batch(requests, batch.seed, batch.padding, batch.context)


def _simpler_requests(request: Request, envelope: Envelope) -> Iterator[Request]:
    items = request.items
    for index in range(len(items)):
        if len(items) > 1:
            yield Request((items[index],))
    for index in range(len(items)):
        if len(items) > 1:
            yield Request(items[:index] + items[index + 1 :])
    for index, item in enumerate(items):
        for smaller in _simpler_items(item, envelope):
            yield Request((*items[:index], smaller, *items[index + 1 :]))


def _simpler_items(item: Item, envelope: Envelope) -> Iterator[Item]:
    if isinstance(item, Text):
        low = envelope.tokens[0]
        for tokens in _smaller(item.tokens, low):
            yield Text(tokens)
        return
    if "text" in envelope.modalities:
        yield Text(envelope.tokens[0])
    if isinstance(item, Image):
        for height, width in _smaller_sides(item.height, item.width, envelope.image_sides):
            yield Image(height, width)
        return
    if "image" in envelope.modalities and item.height in envelope.image_sides:
        yield Image(item.height, item.width)
    for frames in _smaller(item.frames, envelope.frames[0]):
        yield Video(frames, item.height, item.width)
    for height, width in _smaller_sides(item.height, item.width, envelope.video_sides):
        yield Video(item.frames, height, width)


def _smaller(value: int, low: int) -> Iterator[int]:
    """Yield the lowest value, the middle, and the next lower one."""
    yield from dict.fromkeys(n for n in (low, (low + value) // 2, value - 1) if low <= n < value)


def _smaller_sides(height: int, width: int, allowed: list[int]) -> Iterator[tuple[int, int]]:
    low = allowed[0]
    heights = [allowed[i] for i in _smaller(allowed.index(height), 0)] if height > low else []
    widths = [allowed[i] for i in _smaller(allowed.index(width), 0)] if width > low else []
    yield from ((low, low),) if (height, width) != (low, low) else ()
    yield from ((smaller, width) for smaller in heights)
    yield from ((height, smaller) for smaller in widths)
