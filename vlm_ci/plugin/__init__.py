"""The pytest plugin: options, marker, fixtures, header and summary. Hooks never measure.

Every pytest session of whoever has vlm_ci installed imports this module: what it imports is light,
and a session without vlm tests pays for the options alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vlm_ci.errors import UsageError
from vlm_ci.plugin.configuration import (
    MARKER_LINE,
    SESSION,
    add_options,
    is_configured,
    is_sharded,
    is_used,
    is_vlm,
    session_of,
)
from vlm_ci.plugin.distribution import (
    pytest_cmdline_main,
    pytest_collection_finish,
    pytest_configure_node,
    pytest_handlecrashitem,
    pytest_testnodedown,
    pytest_xdist_auto_num_workers,
    pytest_xdist_make_scheduler,
    pytest_xdist_node_collection_finished,
    pytest_xdist_setupnodes,
)
from vlm_ci.plugin.fixtures import vlm_check, vlm_envelope, vlm_settings, vlm_target

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

__all__ = [
    "pytest_cmdline_main",
    "pytest_collection_finish",
    "pytest_configure_node",
    "pytest_handlecrashitem",
    "pytest_testnodedown",
    "pytest_xdist_auto_num_workers",
    "pytest_xdist_make_scheduler",
    "pytest_xdist_node_collection_finished",
    "pytest_xdist_setupnodes",
    "vlm_check",
    "vlm_envelope",
    "vlm_settings",
    "vlm_target",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of a run with the prefix ``--vlm-``, each with an ini twin."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; read the options once where any is given: a wrong one ends here."""
    config.addinivalue_line("markers", MARKER_LINE)
    if is_configured(config):
        session_of(config)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what is tested with what, where an option or an ini value shows that something is."""
    if not is_configured(config):
        return None
    from vlm_ci.plugin.workers import workers_of

    note = workers_of(config).note
    return session_of(config).header() + (f"\nvlm-ci: {note}" if note else "")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each target where the options name several."""
    if is_used(metafunc.fixturenames) and "vlm_settings" in metafunc.fixturenames:
        names = session_of(metafunc.config).targets_of(metafunc.definition)
        if len(names) > 1:
            metafunc.parametrize("vlm_settings", names, ids=names, indirect=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests of this shard. Check the markers; put the tests of one target side by side,
    so that it is warmed once."""
    if not any(map(is_vlm, items)) and not is_sharded(config):
        return
    state = session_of(config)
    from vlm_ci.plugin import provenance, splitting

    try:
        left = splitting.share(state, items)
        ordered = iter(state.order([item for item in items if is_vlm(item)]))
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    items[:] = [next(ordered) if is_vlm(item) else item for item in items]
    if left:
        config.hook.pytest_deselected(items=left)
    stating = [item for item in items if is_vlm(item) or is_sharded(config)]
    provenance.state(state.settings, stating)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Let the JUnit file state commit and attempt; the shard, once there are tests to run."""
    if is_configured(session.config):
        from vlm_ci.plugin import provenance

        pairs = provenance.of_session(session_of(session.config).settings)
        provenance.state_of_suite(session.config, provenance.split(pairs)[1])


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Let the JUnit file state the shard: what ended before has run nothing of it, and is missing.

    A controller of xdist begins this loop before its workers have collected: see
    ``distribution.pytest_testnodedown``.
    """
    controls = session.config.pluginmanager.has_plugin("dsession")
    if is_configured(session.config) and not controls and not session.config.option.collectonly:
        from vlm_ci.plugin import provenance

        # Modules that could not be collected end the session here, and say it themselves.
        tests = None if session.testsfailed else len(session.items)
        provenance.state_shard(session.config, session_of(session.config).settings, tests)


def pytest_report_collectionfinish(config: pytest.Config, items: Sequence[pytest.Item]) -> str:
    """Say what is tested with what, where the tests alone show that something is."""
    if is_configured(config) or not any(map(is_vlm, items)):
        return ""
    return session_of(config).header()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Hand the results of a test to its report, which xdist carries to the controller."""
    report = yield
    if SESSION in item.config.stash:
        item.config.stash[SESSION].attach(item, report)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """A finding stands: a plugin that runs a failed test again does not make it green."""
    if SESSION in item.config.stash:
        from vlm_ci.plugin import rerunning

        rerunning.refuse(item)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """The live target is idle between tests."""
    if SESSION in item.config.stash:
        item.config.stash[SESSION].end_of_test()


@pytest.hookimpl(tryfirst=True)  # before the JUnit file takes the properties
def pytest_runtest_logreport(report: Any) -> None:
    """Take what a worker's report carries."""
    # The node is set by xdist, on the controller.
    if hasattr(report, "node") and any(name.startswith("vlm_ci") for name in vars(report)):
        session_of(report.node.config).receive(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Close the target that is still alive, write the page; bad input is exit code 4."""
    state = session.config.stash.get(SESSION, None)
    if state is not None:
        state.close()
        state.write_page()
        if state.in_worker:
            session.config.workeroutput["vlm_ci"] = state.told()  # type: ignore[attr-defined]
        if session.exitstatus == pytest.ExitCode.OK and state.deaths:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        found = any(result.failures for result, _ in state.results)
        if not found and (
            (session.exitstatus == pytest.ExitCode.TESTS_FAILED and state.refused)
            or (session.exitstatus == pytest.ExitCode.OK and state.problems)
        ):
            session.exitstatus = pytest.ExitCode.USAGE_ERROR


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the summary of each run of this session."""
    state = config.stash.get(SESSION, None)
    lines = state.summary() if state is not None else []
    if state is not None and lines:
        terminalreporter.section("vlm-ci")
        for line in lines:
            terminalreporter.write_line(line)
        state.tell_github(terminalreporter.write_line)
