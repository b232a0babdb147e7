"""The plugin's hooks for xdist: how many workers, a GPU for each, a target on one worker.

Every pytest session imports this module: what it imports is light. Where xdist is absent, the hooks
are never called.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from vlm_ci.plugin.configuration import SESSION, STARTED, is_configured, is_vlm, session_of

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from xdist.remote import Producer
    from xdist.scheduler import Scheduling

CHOSEN = pytest.StashKey[bool]()  # somebody said how tests are distributed
STATED = pytest.StashKey[bool]()  # on the controller: the JUnit file says which shard it is
COLLECTED = pytest.StashKey[int]()  # on the controller: how many tests there are to run
RAN = (0, 1, 5)  # exit codes of pytest: passed, failed, and there was nothing to run
TARGETS = pytest.StashKey[dict[str, int]]()  # on the controller: the target of each node id


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """See what the user chose before xdist makes ``--dist load`` of ``-n``."""
    config.stash[STARTED] = time.time()
    option = config.option
    chosen = getattr(option, "dist", "no") != "no" or getattr(option, "distload", False)
    config.stash[CHOSEN] = chosen
    return (yield)


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> Generator[None, int, int]:
    """Say how many workers ``-n auto`` means, unless somebody else says it."""
    count = yield
    if not is_configured(config):
        return count
    from vlm_ci.plugin import workers

    return workers.automatic(config, count) if workers.is_ours(config) else count


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: Any) -> None:
    """Give each worker its GPU and its share of the cores, before it exists."""
    if is_configured(config):
        from vlm_ci.plugin import workers

        workers.prepare(config, specs)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker its GPU, and listen to which tests have which target."""
    from vlm_ci.plugin import workers

    workers.introduce(node.config, node)
    targets = node.config.stash.setdefault(TARGETS, {})
    channel = node.gateway.newchannel()  # closed with the gateway
    channel.setcallback(targets.update)
    node.workerinput["vlm_ci_targets"] = channel


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """In a worker: say which tests have which target, before xdist says what was collected."""
    channel = getattr(session.config, "workerinput", {}).get("vlm_ci_targets")
    if channel is not None and any(map(is_vlm, session.items)):
        from vlm_ci.plugin.session import TARGET

        items = [item for item in session.items if TARGET in item.stash]
        channel.send({item.nodeid: item.stash[TARGET] for item in items})


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    """Note how many tests a worker collected: all of them collect the same."""
    node.config.stash[COLLECTED] = len(ids)


@pytest.hookimpl(trylast=True, optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """Keep the tests of a target together where nobody chose a way of distribution."""
    if config.stash.get(CHOSEN, False) or config.getoption("dist") != "load":
        return None
    from vlm_ci.plugin.scheduling import TargetScheduling

    targets: dict[str, int] = config.stash.setdefault(TARGETS, {})
    return TargetScheduling(config, log, targets)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take what a worker met when it closed its target, or that it died."""
    output = getattr(node, "workeroutput", {})
    # A worker that ended in its collection says what it collected too: its exit status tells.
    if output.get("exitstatus") in RAN:
        _state_shard(node.config)
    told = output.get("vlm_ci", {})
    if any(told.values()):
        session_of(node.config).hear(told)
    used = is_configured(node.config) or SESSION in node.config.stash
    if used and error and error != "keyboard-interrupt":
        session_of(node.config).deaths[node.gateway.id] = str(error)


def _state_shard(config: pytest.Config) -> None:
    """Let the JUnit file state the shard, once: its tests, if it has any, were run."""
    if is_configured(config) and not config.stash.get(STATED, False):
        from vlm_ci.plugin import provenance

        config.stash[STATED] = True
        count = config.stash.get(COLLECTED, None)
        provenance.state_shard(config, session_of(config).settings, count)


@pytest.hookimpl(trylast=True, optionalhook=True)
def pytest_handlecrashitem(report: Any) -> None:
    """Say with the crash of a worker which session it was serving, if it served one."""
    _state_shard(report.node.config)
    state = session_of(report.node.config)
    state.deaths.pop(report.node.gateway.id, None)
    report.longrepr = "\n\n".join([str(report.longrepr), *state.salvage(report)])
