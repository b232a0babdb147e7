"""The progress line: its figures, on a terminal and without one; no model runs."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from vlm_ci.listeners import Silent
from vlm_ci.plugin.carrier import Carrier
from vlm_ci.report import pace, progress
from vlm_ci.report.pace import Pace, State
from vlm_ci.report.progress import PLAIN_INTERVAL, TerminalProgress


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock, on a terminal outside CI."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Clock()


@pytest.fixture
def plain(clock: Clock) -> Iterator[tuple[TerminalProgress, io.StringIO]]:
    """A progress that writes to no terminal, and what it writes."""
    stream = io.StringIO()
    shown = TerminalProgress(stream, clock)
    yield shown, stream
    shown.close()


# -- rates ---------------------------------------------------------------------------------------


def test_the_rate_is_that_of_what_was_done_since_the_phase_began():
    rate = Pace(began=100.0, done=5)
    assert rate.rate(101.0) is None
    assert rate.left(101.0, 20) is None
    rate.reached(110.0, 15)
    assert rate.rate(110.0) == 1.0
    assert rate.left(110.0, 20) == 5.0
    assert rate.left(110.0, None) is None


def test_the_rate_falls_while_nothing_comes_and_the_time_left_does_not_go_up_and_down():
    rate = Pace(began=0.0)
    rate.reached(10.0, 10)
    assert rate.rate(20.0) == 0.5
    assert rate.left(10.0, 30) == 20.0
    assert rate.left(20.0, 30) == 30.0  # 20 more at 0.5/s, of which 10 s are over


def test_the_rate_is_that_of_the_last_minute():
    rate = Pace(began=0.0)
    rate.reached(600.0, 1)  # one batch that compiled for ten minutes
    for second in range(1, 121):
        rate.reached(600.0 + second, 1 + second)
    assert rate.rate(720.0) == pytest.approx(1.0)
    assert rate.left(720.0, 181) == pytest.approx(60.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (3780, "1 h 3 min")],
)
def test_seconds_in_words(seconds: float, words: str):
    assert pace.duration(seconds) == words


def test_the_words_of_a_state():
    rate = Pace(began=0.0)
    state = State(phase="search", done=40, total=100, unit="examples", facts=("120 batches",),
                  causes=2)  # fmt: skip
    rate.reached(20.0, 40)
    assert pace.words(state, rate, 20.0) == (
        "search: 40/100 examples, 120 batches, 2 causes, 2.0/s, about 30 s left, 20 s so far"
    )
    slow = Pace(began=0.0)
    slow.reached(90.0, 2)
    state = State(phase="warm-up, round 1", done=2, total=9, unit="batches")
    assert pace.words(state, slow, 90.0) == (
        "warm-up, round 1: 2/9 batches, 45.0 s each, about 5 min 15 s left, 1 min 30 s so far"
    )


# -- without a terminal --------------------------------------------------------------------------


def test_lines_come_at_most_every_thirty_seconds(plain, clock: Clock):
    shown, stream = plain
    times = []
    for number in range(1, 1001):
        before = stream.tell()
        shown.searching(number, 2000, number * 3, 0)
        if stream.tell() > before:
            times.append(clock.now)
        clock.now += 0.25
    assert [later - earlier for earlier, later in pairwise(times)] == [30.0] * 8
    lines = stream.getvalue().splitlines()
    assert lines[0] == "vlm-ci: search: 1/2000 examples, 3 batches"
    assert lines[1] == (
        "vlm-ci: search: 121/2000 examples, 363 batches, 4.0/s, about 7 min 50 s left, 30 s so far"
    )


def test_a_change_of_phase_is_no_reason_for_a_line(plain, clock: Clock):
    shown, stream = plain
    shown.note("loading torch and transformers")
    shown.warming(1, 0, 9)
    shown.note("canary and reference")
    assert stream.getvalue() == "vlm-ci: loading torch and transformers\n"
    clock.now += 31
    shown.beat()
    assert stream.getvalue().splitlines()[1:] == ["vlm-ci: canary and reference: 31 s so far"]


def test_a_silent_compiler_is_reported_by_the_thread(plain, clock: Clock, monkeypatch):
    shown, stream = plain
    monkeypatch.setattr(progress, "LOOK_INTERVAL", 0.01)
    shown.warming(2, 3, 9)
    clock.now += 60
    deadline = time.monotonic() + 120
    while stream.getvalue().count("\n") < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stream.getvalue().splitlines() == [
        "vlm-ci: warm-up, round 2: 3/9 batches",
        "vlm-ci: warm-up, round 2: 3/9 batches, 1 min 0 s so far",
    ]


def test_after_close_nothing_is_written_and_no_thread_is_left(clock: Clock, monkeypatch):
    monkeypatch.setattr(progress, "LOOK_INTERVAL", 0.01)
    stream = io.StringIO()
    shown = TerminalProgress(stream, clock)
    shown.searching(1, 10, 1, 0)
    assert [one for one in threading.enumerate() if one.name == "vlm-ci"]
    shown.close()
    assert not [one for one in threading.enumerate() if one.name == "vlm-ci"]
    before = stream.getvalue()
    clock.now += 1000
    shown.searching(2, 10, 1, 0)
    shown.note("late")
    shown.beat()
    shown.close()
    assert stream.getvalue() == before
    assert not [one for one in threading.enumerate() if one.name == "vlm-ci"]


def test_a_stream_that_is_gone_ends_the_thread_alone(clock: Clock, monkeypatch):
    monkeypatch.setattr(progress, "LOOK_INTERVAL", 0.01)
    stream = io.StringIO()
    shown = TerminalProgress(stream, clock)
    shown.note("working")
    (thread,) = [one for one in threading.enumerate() if one.name == "vlm-ci"]
    stream.close()
    clock.now += 31
    thread.join(30)
    assert not thread.is_alive()
    shown.close()


def test_at_rest_nothing_is_written(plain, clock: Clock):
    shown, stream = plain
    shown.searching(1, 10, 1, 0)
    shown.rest()
    clock.now += 100
    shown.beat()
    assert stream.getvalue().count("\n") == 1


def test_shrinking_counts_what_it_tries(plain, clock: Clock):
    shown, stream = plain
    shown.searching(7, 100, 20, 0)
    for number in range(1, 64):
        clock.now += 0.5
        shown.searching(7, 100, 20 + number, 1)
    assert stream.getvalue().splitlines()[1] == (
        "vlm-ci: search, shrinking: 60 sessions tried, 80 batches, 1 cause, 2.0/s, 30 s so far"
    )


def test_an_audit_says_which_search_it_is_and_all_its_causes(plain, clock: Clock):
    shown, stream = plain
    shown.auditing(1, 0)
    shown.searching(5, 300, 9, 2)
    shown.auditing(3, 2)
    clock.now += 30
    shown.searching(1, 300, 12, 0)
    assert stream.getvalue().splitlines() == [
        "vlm-ci: search 1",
        "vlm-ci: search 3: 1/300 examples, 12 batches, 2 causes, 30.0 s each, "
        "about 2 h 29 min left, 30 s so far",
    ]


def test_workers_are_told_by_tests(plain, clock: Clock):
    shown, stream = plain
    carrier = Carrier(shown)
    carrier.pytest_configure(_Config(numprocesses=2))  # type: ignore[arg-type]
    carrier.pytest_xdist_node_collection_finished(None, ["a", "b", "c"])
    carrier.pytest_runtest_logstart("a")
    carrier.pytest_runtest_logstart("b")
    carrier.pytest_runtest_logreport()
    clock.now += 60
    carrier.pytest_runtest_logfinish("a")
    assert stream.getvalue().splitlines() == [
        "vlm-ci: tests on workers: 0/3 tests, 1 running",
        "vlm-ci: tests on workers: 1/3 tests, 1 running, 60.0 s each, "
        "about 2 min 0 s left, 1 min 0 s so far",
    ]


def test_pytest_has_the_terminal_when_it_reports(plain, clock: Clock):
    shown, stream = plain
    carrier = Carrier(shown)
    carrier.pytest_configure(_Config())  # type: ignore[arg-type]
    for report in (carrier.pytest_runtest_logreport, carrier.pytest_sessionfinish):
        shown.searching(1, 10, 1, 0)
        report()
        clock.now += 100
        shown.beat()
    assert stream.getvalue() == "vlm-ci: search: 1/10 examples, 1 batch\n" + (
        "vlm-ci: search: 1/10 examples, 1 batch\n"
    )


class _Config:
    def __init__(self, **option: object) -> None:
        self.option = type("Options", (), option)


# -- a terminal ----------------------------------------------------------------------------------


def on_a_terminal(clock: Clock, *, use, width: int = 140) -> str:
    """Return what a progress writes to a terminal."""
    leader, follower = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(leader, 65536):
                seen.append(data)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(follower, "w", encoding="utf-8") as stream:
        shown = TerminalProgress(stream, clock)
        use(shown)
        shown.close()
    reader.join(30)
    os.close(leader)
    return b"".join(seen).decode()


def test_a_terminal_has_a_live_line_that_is_taken_away(clock: Clock):
    def use(shown: TerminalProgress) -> None:
        shown.searching(10, 100, 30, 0)
        clock.now += 10
        shown.searching(30, 100, 90, 0)
        time.sleep(0.5)  # rich draws ten times a second
        clock.now += 7  # nothing happens, and the clock goes on
        time.sleep(0.5)

    text = on_a_terminal(clock, use=use)
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "30/100 90 batches, 2.0/s, about 35 s left 0:00:10" in drawn
    assert "0:00:17" in drawn
    assert text.rstrip("\n").endswith("\x1b[2K")  # the line is erased
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor is there again


def test_what_counts_nothing_at_first_gets_its_count(clock: Clock):
    def use(shown: TerminalProgress) -> None:
        shown.auditing(2, 1)
        clock.now += 4
        shown.searching(1, 60, 1, 0)
        time.sleep(0.3)

    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", on_a_terminal(clock, use=use))
    assert "vlm-ci search 2 1 cause 0:00:00" in drawn
    assert " 1/60 1 batch, 1 cause, 4.0 s each, about 3 min 56 s left 0:00:04" in drawn


def test_a_narrow_terminal_keeps_one_line(clock: Clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")

    def use(shown: TerminalProgress) -> None:
        shown.searching(1, 3000, 3, 0)
        clock.now += 10
        shown.searching(1500, 3000, 12345, 0)
        time.sleep(0.3)

    drawn = on_a_terminal(clock, use=use)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn).replace("\n", "").split("\r")
    assert "vlm-ci search 1500/3000 12345 batches, 149.9/s, ab… 0:00:10" in lines
    assert max(map(len, lines)) <= 60


@pytest.mark.parametrize("variables", [{"CI": "true"}, {"TERM": "dumb"}], ids=["ci", "dumb"])
def test_under_ci_a_terminal_gets_plain_lines(clock: Clock, monkeypatch, variables: dict[str, str]):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FORCE_COLOR", "1")

    def use(shown: TerminalProgress) -> None:
        for number in range(1, 301):
            shown.searching(number, 300, number, 0)
            clock.now += 1

    text = on_a_terminal(clock, use=use)
    assert "\x1b" not in text
    assert len(text.splitlines()) == 300 / PLAIN_INTERVAL


def test_everything_that_hears_of_a_run_can_be_told_everything():
    told = ("warming", "searching", "auditing", "note")
    assert all(callable(getattr(one, name)) for one in (Silent, TerminalProgress) for name in told)


def test_progress_imports_no_torch(tmp_path: Path):
    code = "import sys, vlm_ci.report.progress; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
