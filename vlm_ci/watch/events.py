"""What the watch records: one list of events, and counts derived from it."""

from __future__ import annotations

import re
from typing import Any

import msgspec

EVENTS = "events.jsonl"  # one event a line: in the folder of a run, and in a failure's


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the compiler did.

    ``time`` is in seconds since the epoch; ``step`` counts forwards of the compiled twin from 1,
    within its ``phase`` ("load", "warmup", "canary" or "strict"); ``frame`` names the function or
    the region.
    The kinds are those that the observers list, and "graph", "refusal" and "limit-hit". A
    "compile" is the start of a Dynamo compilation, one for each frame; a "graph" is one call of
    the backend. The two differ: a frame with a graph break gives several graphs.
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
