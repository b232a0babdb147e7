"""A live line while a run works; plain lines where there is no terminal."""

from __future__ import annotations

import os
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PLAIN_INTERVAL = 30.0  # seconds between lines where there is no terminal


class TerminalProgress:
    """Shows how far warm-up and search are."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._live = self._console.is_terminal and not os.environ.get("CI")
        self._bar: Progress | None = None
        self._phase = ""
        self._last = 0.0

    def warming(self, round_number: int, index: int, total: int) -> None:
        """Show the warm-up batch that begins."""
        self._show(f"warm-up, round {round_number}", index, total)

    def searching(self, sessions: int, examples: int, batches: int, failing: int) -> None:
        """Show how many sessions are over."""
        tail = f", {failing} failing, shrinking" if failing else ""
        phase = "shrinking" if failing else "strict"
        self._show(phase, sessions, examples, f"{batches} batches{tail}")

    def note(self, text: str) -> None:
        """Say one line, such as what takes long."""
        if self._live:
            self._show(text, 0, None)
        else:
            self._console.print(f"vlm-ci: {text}", highlight=False)

    def close(self) -> None:
        """Take the live line away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, phase: str, done: int, total: int | None, detail: str = "") -> None:
        changed, self._phase = phase != self._phase, phase
        if not self._live:
            now = time.monotonic()
            if changed or now - self._last >= PLAIN_INTERVAL:
                self._last = now
                count = f" {done}/{total}" if total else ""
                self._console.print(
                    f"vlm-ci: {phase}{count}{', ' + detail if detail else ''}", highlight=False
                )
            return
        if changed:
            self.close()
            self._bar = Progress(
                TextColumn("vlm-ci {task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.add_task(phase, total=total, detail=detail)
            self._bar.start()
        assert self._bar is not None
        self._bar.update(self._bar.task_ids[0], completed=done, detail=detail)
