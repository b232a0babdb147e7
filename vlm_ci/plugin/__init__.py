"""The pytest plugin: options, fixtures and the summary. Hooks never measure.

Importing it loads neither torch, transformers nor hypothesis; a project without vlm tests pays
for the options alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from vlm_ci.errors import UsageError
from vlm_ci.settings import OPTIONS, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vlm_ci.checker import Progress
    from vlm_ci.result import Result
    from vlm_ci.targets.protocol import Target

SETTINGS = pytest.StashKey[Settings]()
RESULTS = pytest.StashKey[list["Result"]]()
CARRIER = "vlm_ci_carrier"


class Carrier:
    """Takes the command line's progress line into the session, and results out of it."""

    __name__ = CARRIER

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.results: list[Result] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of a run with the prefix ``--vlm-``."""
    group = parser.getgroup("vlm-ci", "compiled vision-language models (vlm_ci)")
    for option in OPTIONS:
        name = f"--vlm-{option.name}"
        dest = f"vlm_{option.field}"
        if option.kind is bool:
            group.addoption(name, dest=dest, action="store_true", default=None, help=option.help)
        else:
            group.addoption(
                name,
                dest=dest,
                type=option.kind,
                default=None,
                metavar=option.metavar,
                help=option.help,
            )


def pytest_configure(config: pytest.Config) -> None:
    """Read the options once; a wrong one ends the session with exit code 4."""
    given = {option.field: config.getoption(f"vlm_{option.field}") for option in OPTIONS}
    try:
        config.stash[SETTINGS] = Settings.from_mapping(given)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[RESULTS] = []


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the summary of each run of this session."""
    results = config.stash[RESULTS]
    if not results:
        return
    from vlm_ci.report.terminal import summary

    terminalreporter.section("vlm-ci")
    for result in results:
        for line in summary(result, str(config.stash[SETTINGS].out)):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def vlm_settings(pytestconfig: pytest.Config) -> Settings:
    """The options of this run."""
    return pytestconfig.stash[SETTINGS]


@pytest.fixture(scope="session")
def vlm_target(vlm_settings: Settings) -> Iterator[Target]:
    """The target that the options name; one is alive at a time, closed at the end."""
    from vlm_ci import runner

    try:
        target = runner.build_target(vlm_settings)
    except UsageError as error:
        pytest.exit(str(error), returncode=4)
    try:
        yield target
    finally:
        target.close()


@pytest.fixture
def vlm_check(
    vlm_settings: Settings, vlm_target: Target, request: pytest.FixtureRequest
) -> Callable[[], Result]:
    """A function that checks the target, records the result, and fails the test on a failure."""
    config = request.config
    carrier: Any = config.pluginmanager.get_plugin(CARRIER)

    def check() -> Result:
        from vlm_ci import runner
        from vlm_ci.failures import render

        earlier = len(config.stash[RESULTS])
        settings = vlm_settings
        if earlier:  # each run of a session keeps its results
            settings = replace(settings, out=settings.out / f"run-{earlier + 1}")
        try:
            result = runner.run(settings, vlm_target, carrier.progress if carrier else None)
        except UsageError as error:
            pytest.exit(str(error), returncode=4)
        config.stash[RESULTS].append(result)
        if carrier:
            carrier.results.append(result)
        request.node.user_properties += [
            ("vlm_ci_verdict", result.verdict),
            ("vlm_ci_batches", str(result.strict.batches)),
            ("vlm_ci_compiles_after_warmup", str(result.strict.compiles)),
        ]
        if result.verdict == "interrupted":
            raise KeyboardInterrupt
        if result.failures:
            pytest.fail("\n\n".join(map(render, result.failures)), pytrace=False)
        if result.verdict != "clean":
            pytest.fail(f"the run is {result.verdict}: nothing was proved", pytrace=False)
        return result

    return check
