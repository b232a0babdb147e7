"""A project outside the repository that uses the plugin: what the tests of the plugin share."""

from __future__ import annotations

import sys

import processes
import pytest

SUITE = """
    def test_mixed_traffic(vlm_check):
        vlm_check()
"""
BROKEN = """
    import os
    from toy import ToyTarget

    def nan():
        return ToyTarget(lambda call, ids, batch: call(ids) + float("nan"))

    def dying():
        def serve(call, ids, batch):
            if len(batch.requests) > 3:
                os._exit(7)
            return call(ids)
        return ToyTarget(serve)
"""
WORKERS = pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
WORKERS_BY_NIGHT = pytest.mark.parametrize(
    "workers", [(), pytest.param(("-n2",), marks=pytest.mark.nightly)], ids=["alone", "xdist"]
)


class Project:
    """A project outside the repository that uses the plugin."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.path = pytester.path
        self.makepyfile = pytester.makepyfile
        self.makeconftest = pytester.makeconftest
        self.runpytest_inprocess = pytester.runpytest_inprocess
        self._subprocess = pytester.runpytest_subprocess

    def run(self, *args: str) -> pytest.RunResult:
        """Run pytest in a process of its own."""
        if any(arg.startswith(("-n", "--tx")) for arg in args):
            return self._subprocess(*args)
        done = processes.run("pytest", *args, cwd=self.path)
        sys.stdout.write(done.stdout)  # for the report, should this test fail
        return pytest.RunResult(
            done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), 0.0
        )


def shown(done: pytest.RunResult) -> str:
    """Return all that a run of pytest printed."""
    return done.stdout.str() + done.stderr.str()
