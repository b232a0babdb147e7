"""What `vlm-ci run` hands into the pytest session that it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vlm_ci.report.progress import TerminalProgress
    from vlm_ci.result import Result

CARRIER = "vlm_ci_carrier"


class Carrier:
    """Takes the command line's progress line into the session, and results out of it.

    Workers of pytest-xdist have no carrier: their controller shows how many tests are over.
    """

    __name__ = CARRIER

    def __init__(self, progress: TerminalProgress) -> None:
        self.progress = progress
        self.results: list[Result] = []
        self._workers = False
        self._tests: set[str] = set()
        self._begun: set[str] = set()
        self._over: set[str] = set()

    def pytest_configure(self, config: pytest.Config) -> None:
        """Find out whether the tests run here; if not, pytest's own dots have the line."""
        self._workers = bool(getattr(config.option, "numprocesses", None))
        if self._workers:
            self.progress.without_line()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """Learn which tests there are."""
        self._tests.update(ids)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins, here or on a worker."""
        self._begun.add(nodeid)
        self._tell()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test is over."""
        self._over.add(nodeid)
        self._tell()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self) -> None:
        """Leave the terminal to what pytest says of a test."""
        if not self._workers:
            self.progress.rest()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Leave the terminal to pytest's report."""
        self.progress.rest()

    def _tell(self) -> None:
        if self._workers:
            causes = sum(len(result.failures) for result in self.results)
            running = len(self._begun - self._over)
            self.progress.testing(len(self._over), len(self._tests), running, causes)
