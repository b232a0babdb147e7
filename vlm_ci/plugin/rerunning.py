"""A finding stands: no plugin that runs a failed test again in one session makes it green.

Across sessions ``vlm-ci junit merge`` sees to it, by the same rule (``junit.rules``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vlm_ci.junit.rules import verdicts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vlm_ci.result import Result

FINDING = pytest.StashKey[str]()
NOTE = "this is a finding: that the test is run again changes nothing about it"


def note(item: pytest.Item, report: pytest.TestReport, results: Iterable[Result]) -> None:
    """Keep the text of a failed test whose results hold what no rerun takes back."""
    if report.when != "call" or not report.failed or FINDING in item.stash:
        return
    kinds = ", ".join(failure.kind for result in results for failure in result.failures)
    if verdicts(kinds):
        item.stash[FINDING] = report.longreprtext


def refuse(item: pytest.Item) -> None:
    """Fail a test that is run again after such a failure, with the same text."""
    if FINDING in item.stash:
        raise pytest.fail.Exception(f"{item.stash[FINDING]}\n\n{NOTE}", pytrace=False)
