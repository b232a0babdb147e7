"""The state of the fake GitHub, and what its endpoints answer with."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import github_models as models

TOKEN = "ghs_not-a-real-token"
BOT = "github-actions[bot]"
REPOSITORY = "octo/engine"
HEAD = "a" * 40
FAILED = ("failure", "cancelled", "timed_out")


def zipped(files: dict[str, str]) -> bytes:
    """Return a zip file of names and texts."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return packed.getvalue()


@dataclass
class World:
    """The state. Times are datetimes; ``now`` is that of the comment under test."""

    now: datetime
    policy: str | None = None
    default_branch: str = "main"
    head_sha: str = HEAD
    head_branch: str = "topic"
    head_repository: str | None = REPOSITORY
    state: str = "open"
    author: str = "alice"
    labels: list[str] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)
    teams: dict[str, list[str]] = field(default_factory=dict)
    hidden_teams: list[str] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    comments: list[dict[str, Any]] = field(default_factory=list)
    reactions: list[dict[str, Any]] = field(default_factory=list)
    forced: list[float] = field(default_factory=list)
    # of the head's branch: [commit, minutes]; None is one of the head, long ago
    pushes: list[list[Any]] | None = None
    approvals: list[str] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)
    page: int = 100

    def at(self, minutes: float) -> datetime:
        return self.now + timedelta(minutes=minutes)


class Answer(Exception):
    """An answer other than the usual one."""

    def __init__(self, status: int, message: str = "", headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


class Page:
    """One page of a list, and where the next one is."""

    def __init__(self, things: list[Any], query: dict[str, str], most: int) -> None:
        size = min(int(query.get("per_page", 30)), most)
        number = int(query.get("page", 1))
        self.things = things[(number - 1) * size : number * size]
        self.total = len(things)
        self.more = number * size < len(things)
        self.number = number
        self.key = self.model = ""

    def headers(self, url: str, query: dict[str, str]) -> dict[str, str]:
        if not self.more:
            return {}
        return {"Link": f'<{url}?page={self.number + 1}>; rel="next", <{url}?page=9>; rel="last"'}

    def body(self) -> Any:
        if not self.key:
            return self.things
        return models.make(self.model, total_count=self.total, **{self.key: self.things})


def run(number: int, **given: Any) -> dict[str, Any]:
    """Return a run of the world, by default one of the pull request's head that failed."""
    event = given.get("event", "pull_request")
    made: dict[str, Any] = {
        "id": number,
        "name": f"unit-{number}",
        "workflow_id": number,
        "path": ".github/workflows/unit.yml",
        "event": event,
        "status": "completed",
        "conclusion": "failure",
        "run_attempt": 1,
        "minutes": -60,
        "head_sha": HEAD,
        "head_branch": "topic",
        "head_repository": {"full_name": REPOSITORY},
        "display_title": "a change",
        "jobs": ["failure"],
    }
    made |= given
    if isinstance(made["head_repository"], str):
        made["head_repository"] = {"full_name": made["head_repository"]}
    for place, one in enumerate(made.get("artifacts", [])):
        one.setdefault("id", number * 100 + place)
    return made
