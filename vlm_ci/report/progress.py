"""A live line while a run works; where there is no terminal, or under CI, a line every 30 seconds.

A thread keeps the clock moving while a compiler is silent. It knows no torch, and ends with
``close``, after which nothing is written.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from vlm_ci.report.pace import Pace, State, behind, words

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN_INTERVAL = 30.0  # seconds between lines where there is no terminal
BAR, WIDE = 16, 100  # characters of the bar, and of a terminal that has room for one
LOOK_INTERVAL = 1.0  # seconds between two looks at whether a line is due


class TerminalProgress:
    """Shows how far warm-up and search are, at what rate, and how long the rest takes.

    ``clock`` gives seconds, and never goes back. Use it in one process, and ``close`` it.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._console = Console(file=stream)
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = terminal and not _under_ci()
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._state: State | None = None
        self._pace = Pace(began=clock())
        self._bar: Progress | None = None
        self._thread: threading.Thread | None = None
        self._written: float | None = None  # when the last line was
        self._search, self._known = 0, 0  # of an audit: the search that goes on, causes before it
        self._tried = 0  # sessions that shrinking has tried

    # -- events ------------------------------------------------------------------------------

    def warming(self, round_number: int, index: int, total: int) -> None:
        """Show the warm-up batch that begins."""
        self._show(State(phase=f"warm-up, round {round_number}", done=index, total=total,
                         unit="batches", causes=self._known))  # fmt: skip

    def searching(self, sessions: int, examples: int, batches: int, failing: int) -> None:
        """Show how many sessions are over."""
        name = f"search {self._search}" if self._search else "search"
        facts, causes = (f"{batches} batch{'es' if batches != 1 else ''}",), self._known + failing
        if failing:
            self._tried += 1
            state = State(phase=f"{name}, shrinking", done=self._tried, unit="sessions tried",
                          facts=facts, causes=causes)  # fmt: skip
        else:
            self._tried = 0
            state = State(phase=name, done=sessions, total=examples, unit="examples",
                          facts=facts, causes=causes)  # fmt: skip
        self._show(state)

    def auditing(self, search: int, causes: int) -> None:
        """Another search of an audit begins; so many causes are known."""
        self._search, self._known, self._tried = search, causes, 0
        self.note(f"search {search}")

    def testing(self, done: int, total: int, running: int, causes: int) -> None:
        """Show how many tests of the workers are over; each has its own output."""
        self._show(State(phase="tests on workers", done=done, total=total or None, unit="tests",
                         facts=(f"{running} running",), causes=causes))  # fmt: skip

    def note(self, text: str) -> None:
        """Show what begins, such as what takes long."""
        self._show(State(phase=text, causes=self._known))

    def rest(self) -> None:
        """Take the line away until something happens: another has the terminal."""
        with self._lock:
            self._state = None
            self._take_away()

    def without_line(self) -> None:
        """Write plain lines from here on, also on a terminal."""
        self.rest()
        self._live = False

    def close(self) -> None:
        """Take the live line away, for good."""
        with self._lock:
            self._closed.set()
            self._take_away()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # -- what is shown -----------------------------------------------------------------------

    def _show(self, state: State) -> None:
        with self._lock:
            if self._closed.is_set():
                return
            now, before = self._clock(), self._state
            same = before is not None and before.phase == state.phase and before.done <= state.done
            if not same:
                self._pace = Pace(began=now, done=state.done)
            if not (same and before is not None and bool(before.total) == bool(state.total)):
                self._take_away()  # the line has other columns
            if same:
                self._pace.reached(now, state.done)
            self._state = state
            if self._live:
                self._draw(state)
            else:
                self.beat()

    def beat(self) -> None:
        """Write a line where one is due."""
        with self._lock:
            state, now = self._state, self._clock()
            if self._closed.is_set() or self._live or state is None:
                return
            if self._written is None or now - self._written >= PLAIN_INTERVAL:
                self._written = now
                self._stream.write(f"vlm-ci: {words(state, self._pace, now)}\n")
                self._stream.flush()
            if self._thread is None:
                self._thread = threading.Thread(target=self._go_on, daemon=True, name="vlm-ci")
                self._thread.start()

    def _go_on(self) -> None:
        while not self._closed.wait(LOOK_INTERVAL):
            try:
                self.beat()
            except (OSError, ValueError):  # the stream is gone
                return

    def _draw(self, state: State) -> None:
        if self._bar is None:
            counted: list[ProgressColumn] = [MofNCompleteColumn()] if state.total else []
            if counted and self._console.width >= WIDE:
                counted.insert(0, BarColumn(bar_width=BAR))
            # What others print goes above the line, unless a test runner captures it.
            redirect = self._stream is sys.stderr
            self._bar = Progress(
                TextColumn("vlm-ci {task.description}", markup=False, table_column=_whole()),
                *counted,
                _Facts(self),
                TimeElapsedColumn(table_column=_whole()),
                console=self._console,
                transient=True,
                get_time=self._clock,
                redirect_stdout=redirect,
                redirect_stderr=redirect,
            )
            self._bar.add_task(state.phase, total=state.total, completed=state.done)
            self._bar.tasks[0].start_time = self._pace.began
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=state.done, total=state.total)

    def _take_away(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def room(self, task: Task) -> int:
        """Return how many characters of a live line are left for the facts: it stays one line."""
        width = self._console.width
        taken = len(f"vlm-ci {task.description}  0:00:00 ")
        if task.total is not None:
            taken += 2 * len(f"{task.total:.0f}") + 2 + (BAR + 1 if width >= WIDE else 0)
        return max(1, width - taken)

    def facts(self) -> str:
        """Return what stands behind the count of the live line."""
        state, pace = self._state, self._pace
        if state is None:
            return ""
        counted = [f"{state.done} {state.unit}"] if state.unit and not state.total else []
        return ", ".join([*counted, *state.facts, *behind(state, pace, self._clock())])


class _Facts(ProgressColumn):
    """The rate, the time left and the causes, worked out whenever the line is drawn."""

    max_refresh = None

    def __init__(self, progress: TerminalProgress) -> None:
        super().__init__(table_column=_whole())
        self._progress = progress

    def render(self, task: Task) -> Text:
        """Return the facts as they are now."""
        text = Text(self._progress.facts())
        text.truncate(self._progress.room(task), overflow="ellipsis")
        return text


def _whole() -> Column:
    return Column(no_wrap=True)


def _under_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")
