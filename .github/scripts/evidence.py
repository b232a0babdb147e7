#!/usr/bin/env python3
"""Finds the newest run of a commit that left results, for another run to replay what failed in it.

Where there is none it says so and names no run. The standard library alone.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import api

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MOST_RUNS = 10  # that are asked for their artifacts


def choose(
    runs: Sequence[dict[str, Any]], artifacts: Callable[[int], Sequence[dict[str, Any]]]
) -> int | None:
    """Return the newest run that failed and whose shards' artifacts are still there, or None."""
    failed = [run for run in runs if run["conclusion"] not in ("success", "skipped", None)]
    for run in sorted(failed, key=lambda one: str(one["created_at"]), reverse=True)[:MOST_RUNS]:
        names = [one["name"] for one in artifacts(run["id"]) if not one["expired"]]
        if any("-shard-" in name for name in names):
            return int(run["id"])
    return None


def main() -> int:
    """Write the run's number as an output of the step."""
    place = f"repos/{os.environ['GITHUB_REPOSITORY']}/actions/runs"
    sha = os.environ["SHA"]
    try:
        runs = api.call(f"{place}?head_sha={sha}&per_page=100")["workflow_runs"]
        run = choose(
            runs, lambda one: api.call(f"{place}/{one}/artifacts?per_page=100")["artifacts"]
        )
    except api.ApiError as error:
        print(f"::error title=evidence::{' '.join(str(error).split())}")
        return 1
    if run is None:
        print(f"::warning title=evidence::no run of {sha} failed and left results: no replay")
        return 0
    with open(os.environ["GITHUB_OUTPUT"], "a", encoding="utf-8") as stream:
        stream.write(f"run={run}\n")
    print(f"what failed in run {run} is replayed first")
    return 0


if __name__ == "__main__":
    sys.exit(main())
