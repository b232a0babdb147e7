"""What JUnit files say of where they come from: shard, part, commit, attempt. Judges nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm_ci.junit.records import ATTEMPT, COMMIT, PART, SHARD, TESTS
from vlm_ci.plugin.splitting import PART as SPLIT
from vlm_ci.settings import attempt

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from vlm_ci.result import Result
    from vlm_ci.settings import Settings
    from vlm_ci.sharding import Shard

Pairs = list[tuple[str, str]]


def of_session(settings: Settings) -> Pairs:
    """Return the properties of every test of a session; what nobody states is left out."""
    number = attempt()
    pairs = [
        (SHARD, str(settings.shard or "")),
        (COMMIT, settings.commit),
        (ATTEMPT, str(number) if number else ""),
    ]
    return [(name, value) for name, value in pairs if value]


def split(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """Return what says the shard, and the rest."""
    shard = [pair for pair in pairs if pair[0] == SHARD]
    return shard, [pair for pair in pairs if pair not in shard]


def state_shard(config: pytest.Config, settings: Settings, tests: int | None = None) -> None:
    """Let the JUnit file of this session say which shard it is, and how many tests there are."""
    counted = [(TESTS, str(tests))] if tests is not None else []
    state_of_suite(config, split(of_session(settings))[0] + counted)


def of_part(part: Shard | None) -> Pairs:
    """Return what one test states beside that: which part of it this machine does."""
    return [(PART, str(part))] if part is not None else []


def state(settings: Settings, items: Sequence[pytest.Item]) -> None:
    """Note at each test what the JUnit file says of where it runs, and which part of it."""
    pairs = of_session(settings)
    for item in items:
        item.user_properties += pairs + of_part(item.stash.get(SPLIT, None))


def of_result(result: Result) -> Pairs:
    """Return the same of a test whose process died, from the result that it left."""
    pairs = [(SHARD, result.shard), (PART, result.part), (COMMIT, result.commit)]
    pairs.append((ATTEMPT, str(result.attempt) if result.attempt else ""))
    return [(name, value) for name, value in pairs if value]


def state_of_suite(config: pytest.Config, pairs: Pairs) -> None:
    """Let the JUnit file of this session state them too: a test whose worker dies before it has a
    report carries none, and a shard without tests has none to carry them."""
    for plugin in config.pluginmanager.get_plugins():
        add: Any = getattr(plugin, "add_global_property", None)
        if callable(add):  # pytest's own writer of JUnit files
            for name, value in pairs:
                add(name, value)


def state_of_test(config: pytest.Config, report: Any, pairs: Pairs) -> None:
    """Let the JUnit file state them of a test whose worker died: pytest writes a report's own
    properties at its teardown, which there was none of."""
    report.user_properties += pairs
    for plugin in config.pluginmanager.get_plugins():
        reporter: Any = getattr(plugin, "node_reporter", None)
        if callable(reporter) and hasattr(plugin, "add_global_property"):
            for name, value in pairs:
                reporter(report).add_property(name, value)
