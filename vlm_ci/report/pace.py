"""How far a run is and how long it takes: facts in, words and estimates out. Performs no I/O."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW = 60.0  # seconds over which a rate is taken: what is slow at first counts no longer


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a run is doing. ``total`` is None where nobody knows; ``unit`` names what is counted,
    empty where nothing is; ``facts`` stand behind the count."""

    phase: str
    done: int = 0
    total: int | None = None
    unit: str = ""
    facts: tuple[str, ...] = ()
    causes: int = 0


@dataclass(slots=True)
class Pace:
    """The rate of one phase, from when it began with ``done``; times are in seconds of one clock.

    The rate is that of the last minute, and of the whole phase where it is shorter. It falls while
    nothing comes: the time since the last sample counts.
    """

    began: float
    done: int = 0
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._samples.append((self.began, self.done))

    def reached(self, now: float, done: int) -> None:
        """Note that so much is done."""
        self._samples.append((now, done))
        while len(self._samples) > 2 and self._samples[1][0] <= now - WINDOW:
            self._samples.popleft()

    def rate(self, now: float) -> float | None:
        """Return how much is done in a second, None while nothing is."""
        first, last = self._samples[0], self._samples[-1]
        seconds = now - first[0]
        return (last[1] - first[1]) / seconds if last[1] > first[1] and seconds > 0 else None

    def left(self, now: float, total: int | None) -> float | None:
        """Return how many seconds the rest takes at this rate, None where that is not known."""
        rate = self.rate(now)
        if total is None or rate is None:
            return None
        at, done = self._samples[-1]
        return max(0.0, (total - done) / rate - (now - at))


def words(state: State, pace: Pace, now: float) -> str:
    """Return the facts as one line: phase, count, rate, time so far and left, causes."""
    parts = []
    if state.unit:
        count = str(state.done) if state.total is None else f"{state.done}/{state.total}"
        parts.append(f"{count} {state.unit}")
    parts += state.facts
    parts += behind(state, pace, now)
    if now - pace.began >= 1.0:
        parts.append(f"{duration(now - pace.began)} so far")
    return f"{state.phase}: {', '.join(parts)}" if parts else state.phase


def behind(state: State, pace: Pace, now: float) -> list[str]:
    """Return causes, rate and time left, as far as they are known."""
    parts = [f"{state.causes} cause{'s' if state.causes > 1 else ''}"] if state.causes else []
    rate, left = pace.rate(now), pace.left(now, state.total)
    if rate is not None and state.unit:
        parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
    if left is not None and left > 0:
        parts.append(f"about {duration(left)} left")
    return parts


def duration(seconds: float) -> str:
    """Return seconds as people say them: 8 s, 2 min 5 s, 1 h 3 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
