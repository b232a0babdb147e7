"""What the watch records: one list of events, and counts derived from it."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

EVENTS = "events.jsonl"  # one event a line: in the folder of a run, and in a failure's
MOST_BYTES = 2_000_000  # of the file of a run


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the compiler did, or a mark of where the run stood.

    ``time`` is in seconds since the epoch; ``step`` counts forwards of the compiled twin from 1,
    within its ``phase`` ("load", "warmup", "canary", "strict" or "end"); ``frame`` names the
    function or the region.
    The kinds are those that the observers list, and "graph", "refusal", "limit-hit" and "stall". A
    "compile" is the start of a Dynamo compilation, one for each frame; a "graph" is one call of
    the backend. The two differ: a frame with a graph break gives several graphs. "phase" and
    "round" mark where a phase and a round of warm-up begin; "left-out" stands in a file for events
    that were too many for it.
    """

    kind: str
    time: float
    phase: str
    step: int
    frame: str = ""
    evidence: dict[str, Any] = {}


def region_class(name: str) -> str:
    """Name all layers of one kind alike: ``layers.3`` becomes ``layers.*``."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def lines(events: Sequence[Event], most: int = MOST_BYTES) -> bytes:
    """Return events as the content of a file of about ``most`` bytes at the most.

    Where they are too many, the first and the last are kept; between them one event "left-out"
    counts the others by kind.
    """
    encoded = [msgspec.json.encode(event) + b"\n" for event in events]
    if sum(map(len, encoded)) <= most:
        return b"".join(encoded)
    head = _fitting(encoded, most // 2)
    tail = len(encoded) - _fitting(encoded[: head - 1 if head else None : -1], most // 2)
    gone = events[head:tail]
    left_out = Event(
        kind="left-out",
        time=gone[0].time,
        phase=gone[0].phase,
        step=gone[0].step,
        evidence={
            "until": gone[-1].time,
            "events": len(gone),
            "kinds": dict(Counter(event.kind for event in gone)),
        },
    )
    return b"".join([*encoded[:head], msgspec.json.encode(left_out) + b"\n", *encoded[tail:]])


def _fitting(encoded: Sequence[bytes], most: int) -> int:
    """Count the lines from the first on that fit into so many bytes together."""
    size = 0
    for count, line in enumerate(encoded):
        size += len(line)
        if size > most:
            return count
    return len(encoded)
