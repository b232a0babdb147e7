#!/usr/bin/env python3
"""Writes what a night found into one issue, and closes it after a clean night.

The issue is known by a marker in its body. It is updated night by night; a comment is added when
other things are found than the night before, because an edit notifies nobody. The standard library
alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import api

if TYPE_CHECKING:
    from collections.abc import Sequence

LABEL = "vlm-ci-nightly"
AUTHOR = "github-actions[bot]"
TITLE = "Nightly search: findings"
MARKER = re.compile(r"<!-- vlm-ci nightly ([0-9a-f]{12}) -->")
LONGEST = 60_000  # characters; GitHub takes 65,536
FOUND = ("failed", "infrastructure", "missing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What one search of the night left: its merged verdicts, and its report in Markdown."""

    name: str
    verdicts: str
    report: str

    @property
    def findings(self) -> list[str]:
        """The lines of the verdicts that say what is wrong."""
        return [line for line in self.verdicts.splitlines() if line.startswith(FOUND)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the API that changes something."""

    method: str
    path: str
    fields: dict[str, Any]


def read(folder: Path) -> list[Search]:
    """Read the merged results of a night, one folder for each search."""
    return [
        Search(name=one.name, verdicts=_text(one / "merge.txt"), report=_text(one / "summary.md"))
        for one in sorted(folder.glob("*"))
        if one.is_dir()
    ]


def plan(
    searches: Sequence[Search],
    issues: Sequence[dict[str, Any]],
    *,
    failed: bool,
    repository: str,
    run: str,
) -> list[Call]:
    """Return what has to change on GitHub. ``issues`` are the open ones with our label."""
    ours = [
        one
        for one in issues
        if one["user"]["login"] == AUTHOR
        and "pull_request" not in one
        and MARKER.search(one["body"] or "")
    ]
    issue = min(ours, key=lambda one: int(one["number"]), default=None)
    path = f"repos/{repository}/issues"
    if not failed:
        if issue is None:
            return []
        at = f"{path}/{issue['number']}"
        return [
            Call(method="POST", path=f"{at}/comments", fields={"body": f"A clean night: {run}"}),
            Call(method="PATCH", path=at, fields={"state": "closed"}),
        ]
    findings = [f"{one.name}: {line}" for one in searches for line in one.findings]
    fingerprint = hashlib.sha256("\n".join(sorted(findings)).encode()).hexdigest()[:12]
    body = _body(searches, fingerprint, run)
    if issue is None:
        fields = {"title": TITLE, "body": body, "labels": [LABEL]}
        return [Call(method="POST", path=path, fields=fields)]
    at = f"{path}/{issue['number']}"
    calls = [Call(method="PATCH", path=at, fields={"body": body})]
    before = MARKER.search(issue["body"])
    if before is not None and before.group(1) != fingerprint:
        text = f"Other findings than the night before: {run}\n\n{_code(findings)}"
        comment = Call(method="POST", path=f"{at}/comments", fields={"body": text[:LONGEST]})
        calls.append(comment)
    return calls


def _body(searches: Sequence[Search], fingerprint: str, run: str) -> str:
    head = f"<!-- vlm-ci nightly {fingerprint} -->\nThe last night that found something: {run}\n"
    if not searches:
        return f"{head}\nNo merged results: the searches did not come to their end.\n"
    share = (LONGEST - len(head)) // len(searches)
    parts = []
    for one in searches:
        part = f"\n## {one.name}\n\n{_code(one.verdicts.splitlines())}\n\n{one.report}\n"
        cut = "\n\n(Cut here; the artifacts hold all of it.)\n"
        parts.append(part if len(part) <= share else part[: share - len(cut)] + cut)
    return head + "".join(parts)


def _code(lines: Sequence[str]) -> str:
    """Return lines as code: nothing in them is Markdown, a mention or an end of the block."""
    return "\n".join(f"    {line}" for line in lines)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def main() -> int:
    """Do what the plan says; the environment is that of a workflow's step."""
    repository = os.environ["GITHUB_REPOSITORY"]
    server, number = os.environ["GITHUB_SERVER_URL"], os.environ["GITHUB_RUN_ID"]
    run = f"{server}/{repository}/actions/runs/{number}"
    try:
        issues = api.pages(f"repos/{repository}/issues?state=open&labels={LABEL}&per_page=100")
        failed = os.environ["RESULT"] != "success"
        searches = read(Path(sys.argv[1]))
        for call in plan(searches, issues, failed=failed, repository=repository, run=run):
            api.call(call.path, method=call.method, fields=call.fields)
            print(f"{call.method} {call.path}")
    except api.ApiError as error:
        print(f"::error title=nightly issue::{' '.join(str(error).split())}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
