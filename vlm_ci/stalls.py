"""Finds shapes that cost much more at their first use than when repeated, and which operators pay.

Nothing is compiled that Dynamo sees: a library builds a plan, or chooses an algorithm, or loads a
kernel. Measures; ``strict`` judges.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vlm_ci.traffic.spec import Batch, Image, Item, Request, Text, Video
from vlm_ci.watch import internals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vlm_ci.policies import Policies
    from vlm_ci.targets.protocol import Target
    from vlm_ci.traffic.envelope import Envelope
    from vlm_ci.watch.events import Event
    from vlm_ci.watch.watcher import Watcher

FACTOR = 2.0  # how many times its repeat a first use has to take
LEAST = 0.010  # seconds that a first use has to cost more than its repeat
ALWAYS = 8  # new shapes of each kind that are repeated whatever they took, to learn of repeats
MOST = 8  # stalls of each kind, after which no more are looked for
OPERATORS = 3


def unwatched(device: str, policies: Policies, *, in_process: bool) -> str:
    """Say why stalls are not watched; empty where they are."""
    if not in_process:
        return "the target is out of process"
    if policies.of("stall") == "off":
        return "their policy is off"
    if not device.startswith("cuda") and "stall" not in policies.given:
        return "a CPU's timings are too noisy"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A first use and its repeat, in seconds; ``operators`` are those whose own time on the CPU
    grew most in the first use of another new shape of the same kind, with that growth in seconds:
    of the first shape of the kind that was profiled.
    """

    first: float
    repeat: float
    operators: tuple[tuple[str, float], ...]
    note: str


class StallWatch:
    """Repeats new shapes that seem slow, and confirms it on a fresh shape of the same kind.

    A shape is what a batch is besides its seed. ``factor`` is how many times its repeat a first
    use has to take; less than ``LEAST`` seconds in all is never a stall. The profiler names who
    pays once for each kind: what it notes takes it many times longer to add up than the batch took.
    """

    def __init__(self, target: Target, watcher: Watcher, *, factor: float = FACTOR) -> None:
        self._target = target
        self._watcher = watcher
        self._factor = factor
        self._seen: set[object] = set()
        self._repeats: dict[frozenset[str], list[float]] = {}  # by the modalities of a batch
        self._stalls: Counter[frozenset[str]] = Counter()
        self._payers: dict[frozenset[str], tuple[tuple[str, float], ...]] = {}
        self.events: list[tuple[Batch, Event]] = []
        self._profiled = False

    def look(self, batch: Batch, seconds: float) -> Stall | None:
        """Judge a batch that was just served in ``seconds``; serves it again if it has to.

        ``events`` then holds what the watch saw meanwhile, each with the batch that was served.
        """
        self.events = []
        shape = _shape(batch)
        if shape in self._seen:
            return None
        self._seen.add(shape)
        kind = batch.modalities
        repeats = self._repeats.setdefault(kind, [])
        enough = len(repeats) >= ALWAYS and seconds < self._factor * statistics.median(repeats)
        if enough or self._stalls[kind] >= MOST:
            return None
        repeat = self._serve(batch)
        if repeat is None:
            return None
        repeats.append(repeat)
        found = self._confirm(batch, seconds, repeat) if self._is_slower(seconds, repeat) else None
        self._stalls[kind] += found is not None
        return found

    def _is_slower(self, first: float, repeat: float) -> bool:
        return first >= self._factor * repeat and first - repeat >= LEAST

    def _confirm(self, batch: Batch, first: float, repeat: float) -> Stall | None:
        """Serve a fresh shape of the same kind twice, and compare."""
        fresh = next((one for one in self._variants(batch) if _shape(one) not in self._seen), None)
        if fresh is None:
            note = "the envelope has no other shape of this kind: no operator could be named"
            return Stall(first=first, repeat=repeat, operators=(), note=note)
        self._seen.add(_shape(fresh))
        known = self._payers.get(batch.modalities, ())
        measure = self._time if known else self._profile
        measured = [measure(fresh), measure(fresh)]
        if measured[0] is None or measured[1] is None:
            return None  # a refusal, which the search will find: nothing confirms the stall
        (slow, before), (fast, after) = measured[0], measured[1]
        if not self._is_slower(slow, fast):
            return None  # it was a pause of the machine's, not the shape
        note = (
            f"{'served' if known else 'profiled on'} a fresh shape of the same kind: "
            f"{slow * 1e3:.0f} ms, repeated {fast * 1e3:.0f} ms: {fresh!r}"
            f"{'; an earlier one was profiled' if known else ''}"
        )
        if not known:
            grown = sorted(
                ((name, spent - after.get(name, 0.0)) for name, spent in before.items()),
                key=lambda pair: -pair[1],
            )
            known = tuple((name, more) for name, more in grown[:OPERATORS] if more > 0.05 * slow)
            self._payers[batch.modalities] = known
        return Stall(first=first, repeat=repeat, operators=known, note=note)

    def _variants(self, batch: Batch) -> Iterator[Batch]:
        """Yield batches of the same structure with other sizes, within the envelope."""
        envelope = self._target.envelope
        for index, request in enumerate(batch.requests):
            for place, item in enumerate(request.items):
                for other in _other_sizes(item, envelope):
                    items = (*request.items[:place], other, *request.items[place + 1 :])
                    requests = list(batch.requests)
                    requests[index] = Request(items)
                    changed = Batch(tuple(requests), batch.seed, batch.padding, batch.context)
                    if envelope.violation(changed) is None:
                        yield changed

    def _time(self, batch: Batch) -> tuple[float, dict[str, float]] | None:
        """Serve a batch as ``_profile`` does, without the profiler."""
        seconds = self._serve(batch)
        return None if seconds is None else (seconds, {})

    def _profile(self, batch: Batch) -> tuple[float, dict[str, float]] | None:
        """Serve a batch; returns its seconds and each operator's own seconds on the CPU."""
        if not self._profiled:  # the profiler itself has a slow first use
            self._profiled = True
            with torch.profiler.profile():
                torch.ones(1)
        cpu = torch.profiler.ProfilerActivity.CPU
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 2.11 explains its cycles
            with torch.profiler.profile(activities=[cpu]) as profiler:
                seconds = self._serve(batch)
        if seconds is None:
            return None
        return seconds, {
            event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()
        }

    def _serve(self, batch: Batch) -> float | None:
        """Serve a batch strictly; returns its seconds, None where it was refused."""
        self._watcher.begin_step()
        events = len(self._watcher.events)
        before, started = self._target.stats().forward_seconds, time.perf_counter()
        try:
            with internals.strict():
                self._target.run_compiled(batch)
        except Exception:  # what it shows is found when the search serves such a batch
            return None
        finally:
            self._watcher.end_step()
            self.events += [(batch, event) for event in self._watcher.events[events:]]
        elapsed = time.perf_counter() - started
        after = self._target.stats().forward_seconds
        return elapsed if before is None or after is None else after - before


def _shape(batch: Batch) -> object:
    return (batch.requests, batch.padding, batch.context)


def _other_sizes(item: Item, envelope: Envelope) -> Iterator[Item]:
    """Yield items of the same kind and another size."""
    if isinstance(item, Text):
        for change in (1, 2, 3, 5, 7, -1, -2):
            if item.tokens + change > 0:
                yield Text(item.tokens + change)
        return
    sides = envelope.image_sides if isinstance(item, Image) else envelope.video_sides
    for height in sides:
        for width in sides:
            if (height, width) == (item.height, item.width):
                continue
            if isinstance(item, Image):
                yield Image(height, width)
            else:
                yield Video(item.frames, height, width)
