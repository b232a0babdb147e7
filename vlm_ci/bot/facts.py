"""What a decision rests on, as plain records, and the seam to GitHub. Performs no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from vlm_ci.bot.ledger import Ledger, Moment

if TYPE_CHECKING:
    from datetime import datetime

FAILED = ("failure", "cancelled", "timed_out", "startup_failure")


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """The comment, as the event has it. ``number`` is that of the pull request."""

    repository: str
    action: str
    number: int
    pull_request: bool
    comment: int
    body: str
    author: str
    bot: bool
    created_at: Moment
    updated_at: Moment


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who commented. ``role`` is the permission in the repository, ``none`` without one; a team is
    None where GitHub does not say who is in it."""

    login: str
    role: str = "none"
    author: bool = False
    teams: dict[str, bool | None] = {}


class PullRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A pull request as it is now. ``head_repository`` is empty where the fork is gone;
    ``moved_at`` is the latest time at which GitHub saw the head change, as far as it tells;
    ``unseen`` is what it answers where it does not list the branch's pushes."""

    number: int
    state: str
    author: str
    head_sha: str
    head_branch: str
    head_repository: str
    base_repository: str
    labels: tuple[str, ...] = ()
    moved_at: Moment | None = None
    unseen: str = ""

    @property
    def fork(self) -> bool:
        """Whether its code comes from another repository."""
        return self.head_repository.lower() != self.base_repository.lower()


class Push(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a branch, forced or not, by GitHub's clock. ``sha`` is its head since then."""

    sha: str
    at: Moment


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """Why a run failed, by its JUnit files. ``kind`` is "real" (a verdict that no rerun takes
    back), "infrastructure", "failed" or "unknown"; ``tests`` are some of the tests, with why."""

    kind: str
    says: str = ""
    tests: tuple[tuple[str, str], ...] = ()


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a workflow, at its last attempt. ``failed_jobs`` counts jobs that can be run again
    by themselves, or is None where nobody looked."""

    id: int
    workflow: int
    name: str
    event: str
    status: str
    conclusion: str | None
    attempt: int
    created_at: Moment
    head_sha: str
    head_branch: str
    head_repository: str
    url: str
    title: str = ""
    pull_requests: tuple[int, ...] = ()
    failed_jobs: int | None = None
    cause: Cause | None = None

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than it should."""
        return self.status == "completed" and self.conclusion in FAILED


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a decision rests on; ``default_branch`` is that of the base repository."""

    now: Moment
    default_branch: str
    actor: Actor
    pull_request: PullRequest
    runs: tuple[Run, ...] = ()
    ledger: Ledger = Ledger()
    edited: bool = False


class Reaction(msgspec.Struct, frozen=True, kw_only=True):
    """One reaction to a comment."""

    id: int
    content: str
    login: str
    created_at: Moment


class HubError(Exception):
    """GitHub did not do what it was asked; the message says what it answered, for the user."""


class Refused(HubError):
    """GitHub refused one call for good, for instance because the run is already running."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class Unclear(HubError):
    """A call failed in a way that leaves open whether GitHub did what it was asked."""


class Hub(Protocol):
    """GitHub, as far as the bot needs it.

    Each method raises HubError where GitHub fails for good. One that changes something raises
    Refused where only this call was refused, and Unclear where it may have happened. ``react``
    returns whether the reaction is new, ``unreact`` whether it was there, ``write_status`` the
    comment's number; ``statuses`` are comments of ``login``; ``pushes`` are the newest ones, and
    raise Refused where the token may not see them; ``archives`` fetch ``most`` bytes together,
    and have None for the content of what was not fetched.
    """

    def default_branch(self) -> str: ...
    def file(self, path: str) -> bytes | None: ...
    def comment_body(self, comment: int) -> str | None: ...
    def pull_request(self, number: int) -> PullRequest: ...
    def forced_at(self, number: int) -> datetime | None: ...
    def pushes(self, branch: str) -> list[Push]: ...
    def role(self, login: str) -> str: ...
    def member(self, team: str, login: str) -> bool | None: ...
    def runs(self, sha: str) -> list[Run]: ...
    def run(self, run: int) -> Run: ...
    def failed_jobs(self, run: int) -> int: ...
    def archives(
        self, run: int, patterns: tuple[str, ...], most: int
    ) -> list[tuple[str, bytes | None]]: ...
    def dispatched(self, workflow: str, since: datetime) -> list[Run]: ...
    def statuses(self, number: int, login: str) -> list[tuple[int, str]]: ...
    def reactions(self, comment: int, login: str) -> list[Reaction]: ...

    def react(self, comment: int, content: str) -> bool: ...
    def unreact(self, comment: int, reaction: int) -> bool: ...
    def write_status(self, number: int, comment: int | None, body: str) -> int: ...
    def add_label(self, number: int, label: str) -> None: ...
    def approve(self, sha: str, description: str) -> None: ...
    def rerun(self, run: int, *, only_failed: bool) -> None: ...
    def dispatch(self, workflow: str, ref: str, inputs: dict[str, str]) -> None: ...
