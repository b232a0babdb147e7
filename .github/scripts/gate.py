#!/usr/bin/env python3
"""Decides whether a commit may run on a GPU runner. Asks GitHub at the time of the run.

A rerun replays the event of its first attempt, so that the labels and the head that the event names
are old. The standard library alone: it runs before anything is installed.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import api

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONTEXT = "vlm-ci/approved"
SHA = re.compile(r"[0-9a-f]{40}")


class Refused(Exception):
    """The commit may not run; the text says why, and what would let it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """The commit that may run. ``trusted``: it was written by who may write to the repository."""

    sha: str
    trusted: bool


def judge(
    pull: Mapping[str, Any],
    statuses: Sequence[Mapping[str, Any]],
    *,
    sha: str,
    label: str,
    approvers: Sequence[str],
) -> Passed:
    """Judge the commit of a pull request by what GitHub says of both now.

    ``statuses`` are those of the commit, the newest first; ``label`` may be empty.

    Raises:
        Refused: it may not run.
    """
    if pull["state"] != "open":
        raise Refused(f"pull request {pull['number']} is {pull['state']}")
    head = pull["head"]
    if head["sha"] != sha:
        raise Refused(
            f"{sha} is not the head of pull request {pull['number']} any more; "
            f"{head['sha']} is: run that one"
        )
    labels = [one["name"] for one in pull["labels"]]
    if label and label not in labels:
        raise Refused(
            f"pull request {pull['number']} has no label {label}: comment /tag-and-rerun-ci"
        )
    own = pull["base"]["repo"]["full_name"]
    # A fork that was deleted is no repository any more.
    if head["repo"] is not None and head["repo"]["full_name"] == own:
        return Passed(sha=sha, trusted=True)
    # Anybody with a token of the repository may set a status, so that it counts who did; and the
    # newest one stands, so that an approval can be taken back.
    newest = next((one for one in statuses if one["context"] == CONTEXT), None)
    by = newest["creator"]["login"] if newest and newest["creator"] else "nobody"
    if newest is None or newest["state"] != "success" or by not in approvers:
        said = f"the newest is {newest['state']} by {by}" if newest else "it has none"
        raise Refused(
            f"{sha} comes from a fork and needs a status {CONTEXT} of its own, success by "
            f"{' or '.join(approvers)}; {said}: a maintainer comments /tag-and-rerun-ci {sha}"
        )
    return Passed(sha=sha, trusted=False)


def decide(environment: Mapping[str, str]) -> Passed:
    """Decide on the commit that the step's environment names.

    Raises:
        Refused: it may not run.
        api.ApiError: GitHub did not answer.
    """
    names = ("GITHUB_REPOSITORY", "PULL_REQUEST", "SHA")
    repository, number, sha = (environment[name] for name in names)
    if not SHA.fullmatch(sha):
        raise Refused(f"{sha!r} is no full commit SHA: 40 hexadecimal digits")
    if not number:
        # GitHub serves the commits of forks under the name of the repository they come from: only
        # the commit that the run itself is of is known to be its own.
        if sha != environment["GITHUB_SHA"]:
            raise Refused(f"{sha} without a pull request: name the pull request that it is of")
        return Passed(sha=sha, trusted=True)
    if not number.isascii() or not number.isdecimal():
        raise Refused(f"{number!r} is no number of a pull request")
    return judge(
        api.call(f"repos/{repository}/pulls/{number}"),
        api.pages(f"repos/{repository}/commits/{sha}/statuses?per_page=100"),
        sha=sha,
        label=environment["LABEL"],
        approvers=environment["APPROVERS"].split(),
    )


def main() -> int:
    """Write the outputs of the step, or say why there are none."""
    try:
        shards = int(os.environ["SHARDS"])
        if not 1 <= shards <= 256:
            raise Refused(f"{shards} shards: a matrix has 1 to 256 jobs")
        passed = decide(os.environ)
    except (Refused, api.ApiError, ValueError) as error:
        print(f"::error title=not on a GPU runner::{one_line(str(error))}")
        return 1
    outputs = {
        "sha": passed.sha,
        "trusted": str(passed.trusted).lower(),
        "shards": json.dumps(list(range(1, shards + 1))),
        "count": str(shards),
    }
    with open(os.environ["GITHUB_OUTPUT"], "a", encoding="utf-8") as stream:
        stream.writelines(f"{name}={value}\n" for name, value in outputs.items())
    print(f"{passed.sha} may run; trusted: {outputs['trusted']}")
    return 0


def one_line(text: str) -> str:
    """Return a text as the data of one workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


if __name__ == "__main__":
    sys.exit(main())
