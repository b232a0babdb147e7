"""An interrupt that Python drops ends the run all the same."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import synthesis_targets
from toy import ToyTarget

from vlm_ci import interrupts
from vlm_ci.checker import Checker, CheckSettings
from vlm_ci.listeners import Silent
from vlm_ci.settings import Settings
from vlm_ci.strict import StrictRunner
from vlm_ci.synthesis import make
from vlm_ci.traffic.spec import Text, batch
from vlm_ci.warmup import Plan

SETTINGS = CheckSettings(
    plan=Plan(name="two", batches=(batch(Text(5), Text(7)), batch(Text(3)))), reference="none"
)


@pytest.fixture(autouse=True)
def _handled() -> Iterator[None]:
    """Python's own handler of Ctrl-C, which a job in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def drop() -> Iterator[list[str]]:
    """Send Ctrl-C in a callback of the garbage collector while the list says so."""
    when: list[str] = []

    def callback(phase: str, info: dict[str, int]) -> None:
        if when:
            when.clear()
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # here its handler runs
                pass

    gc.callbacks.append(callback)
    yield when
    gc.callbacks.remove(callback)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("moment", ["warm-up", "search", "last batch"])
def test_a_dropped_interrupt_ends_the_run(moment: str, drop: list[str]):
    served: list[int] = []
    first = {"warm-up": 1, "search": 40, "last batch": 10**9}[moment]

    def serve(call, ids, one):
        served.append(1)
        if len(served) == first:
            drop.append("now")
            gc.collect()
        return call(ids)

    def after_the_last(runner: StrictRunner) -> None:
        drop.append("now")
        gc.collect()

    target = ToyTarget(serve)
    checker = Checker(target, SETTINGS, Silent())
    if moment == "last batch":
        checker.drive(after_the_last)
    else:
        checker.run()
        assert first <= len(served) <= first + 5
    assert checker.result.verdict == "interrupted"
    target.close()


class Dropping(synthesis_targets.Silent):
    """A progress that drops an interrupt in the first stage that says so."""

    def __init__(self, drop: list[str]) -> None:
        super().__init__()
        self.drop = drop

    def note(self, text: str) -> None:
        if not self.notes:
            self.drop.append("now")
            gc.collect()
        super().note(text)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dropped_interrupt_ends_a_synthesis(tmp_path: Path, drop: list[str]):
    settings = Settings.from_mapping(
        {"target": "toy:factory", "examples": 10, "out": str(tmp_path), "database": "none"}
    )
    result = make.synthesize(settings, Dropping(drop))
    assert result.verdict == "interrupted"


@interrupts.remembered()
def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass


def test_handlers_are_put_back_and_a_taken_interrupt_is_over():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert signal.getsignal(signal.SIGINT) is before
    interrupts.check()


def test_a_handler_that_raises_nothing_ends_nothing():
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with interrupts.remembered():
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):
                pass
            interrupts.check()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
