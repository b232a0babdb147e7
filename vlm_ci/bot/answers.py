"""GitHub's answers, as far as they are read, and the bot's records of them. Performs no I/O.

Only the few fields that are needed: GitHub's answers differ from its schemas now and then.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from vlm_ci.bot import facts


class Named(msgspec.Struct):
    full_name: str


class User(msgspec.Struct):
    login: str


class Ref(msgspec.Struct):
    ref: str
    sha: str
    repo: Named | None = None


class Label(msgspec.Struct):
    name: str


class Pull(msgspec.Struct):
    number: int
    state: str
    head: Ref
    labels: list[Label]
    user: User | None = None


class Number(msgspec.Struct):
    number: int


class Run(msgspec.Struct):
    id: int
    workflow_id: int
    event: str
    created_at: datetime
    head_sha: str
    html_url: str
    status: str | None = None
    conclusion: str | None = None
    name: str | None = None
    run_attempt: int = 1
    head_branch: str | None = None
    head_repository: Named | None = None
    display_title: str = ""
    pull_requests: list[Number] | None = None


class Runs(msgspec.Struct):
    workflow_runs: list[Run]


class Job(msgspec.Struct):
    conclusion: str | None = None


class Jobs(msgspec.Struct):
    jobs: list[Job]


class Artifact(msgspec.Struct):
    id: int
    name: str
    size_in_bytes: int
    expired: bool


class Artifacts(msgspec.Struct):
    artifacts: list[Artifact]


class Comment(msgspec.Struct):
    id: int
    body: str = ""
    user: User | None = None


class Reaction(msgspec.Struct):
    id: int
    content: str
    created_at: datetime
    user: User | None = None


class Role(msgspec.Struct):
    permission: str
    role_name: str = ""


class Member(msgspec.Struct):
    state: str


class Happening(msgspec.Struct):
    event: str = ""
    created_at: datetime | None = None


class Activity(msgspec.Struct):
    after: str
    timestamp: datetime


class Repository(msgspec.Struct):
    default_branch: str


class File(msgspec.Struct):
    content: str


class Id(msgspec.Struct):
    id: int


class Message(msgspec.Struct):
    message: str = ""


def pull_of(pull: Pull, base: str) -> facts.PullRequest:
    """Return a pull request as the bot knows it; ``base`` is its repository."""
    return facts.PullRequest(
        number=pull.number,
        state=pull.state,
        author=pull.user.login if pull.user else "",
        head_sha=pull.head.sha,
        head_branch=pull.head.ref,
        head_repository=pull.head.repo.full_name if pull.head.repo else "",
        base_repository=base,
        labels=tuple(label.name for label in pull.labels),
    )


def run_of(run: Run) -> facts.Run:
    """Return a run as the bot knows it."""
    return facts.Run(
        id=run.id,
        workflow=run.workflow_id,
        name=run.name or f"workflow {run.workflow_id}",
        event=run.event,
        status=run.status or "unknown",
        conclusion=run.conclusion,
        attempt=run.run_attempt,
        created_at=run.created_at,
        head_sha=run.head_sha,
        head_branch=run.head_branch or "",
        head_repository=run.head_repository.full_name if run.head_repository else "",
        url=run.html_url,
        title=run.display_title,
        pull_requests=tuple(one.number for one in run.pull_requests or []),
    )
