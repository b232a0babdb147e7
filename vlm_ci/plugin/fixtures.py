"""The fixtures of the plugin: settings, traffic, target and check."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vlm_ci.errors import UsageError
from vlm_ci.plugin.configuration import session_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from vlm_ci.plugin.session import VlmSession
    from vlm_ci.result import Result
    from vlm_ci.settings import Settings
    from vlm_ci.targets.protocol import Target
    from vlm_ci.traffic.envelope import Envelope


@pytest.fixture
def vlm_settings(request: pytest.FixtureRequest) -> Settings:
    """The options that hold for this test: command line over marker over ini over default."""
    session = session_of(request.config)
    try:
        return session.settings_of(request.node, getattr(request, "param", None))
    except UsageError as error:
        session.refuse(request.node, error)


@pytest.fixture
def vlm_target(vlm_settings: Settings, request: pytest.FixtureRequest) -> Target:
    """The target that the options name, shared by all tests that name the same one.

    One is alive at a time. A project that builds its target itself overrides this fixture.
    """
    session = session_of(request.config)
    try:
        return session.lease(vlm_settings)
    except UsageError as error:
        session.refuse(request.node, error)


@pytest.fixture
def vlm_envelope(vlm_target: Target) -> Envelope:
    """The traffic that this test's target accepts."""
    return vlm_target.envelope


@pytest.fixture
def vlm_check(
    vlm_settings: Settings, vlm_target: Target, request: pytest.FixtureRequest
) -> Callable[[], Result]:
    """A function that checks the target, records the result, and fails the test on a failure."""
    session = session_of(request.config)

    def check() -> Result:
        return _check(session, request.node, vlm_settings, vlm_target)

    return check


def _check(session: VlmSession, item: pytest.Item, settings: Settings, target: Target) -> Result:
    from vlm_ci.report.actions import for_log
    from vlm_ci.report.failures import failure_text
    from vlm_ci.report.properties import properties

    try:
        result = session.check(item, settings, target)
    except UsageError as error:
        session.refuse(item, error)
    _, out = session.results[-1]
    item.user_properties += properties(result, out, replayable=session.owns(target))
    if result.verdict == "interrupted":
        raise KeyboardInterrupt
    if result.failures:
        text = failure_text(
            result.failures,
            out=out,
            geometry=target.envelope.geometry,
            replayable=session.owns(target),
        )
        pytest.fail(for_log(text), pytrace=False)
    if result.verdict != "clean":
        pytest.fail(f"the run is {result.verdict}: nothing was proved", pytrace=False)
    return result
