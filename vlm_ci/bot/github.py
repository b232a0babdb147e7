"""GitHub through githubkit: the only module of the bot that does network I/O. Decides nothing.

No message holds a header, and so none holds the token.
"""

from __future__ import annotations

import base64
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import msgspec
from githubkit import GitHub, Response
from githubkit.exception import (
    GitHubException,
    RateLimitExceeded,
    RequestError,
    RequestFailed,
)

from vlm_ci.bot import answers, artifacts, retries
from vlm_ci.bot.facts import (
    FAILED,
    HubError,
    PullRequest,
    Push,
    Reaction,
    Refused,
    Run,
    Unclear,
)
from vlm_ci.bot.records import APPROVAL
from vlm_ci.bot.words import printable

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from datetime import datetime

T = TypeVar("T")
PAGE = 100
MOST_PAGES = 50  # GitHub itself ends at 1,000 runs; a pull request may have many comments


class Client:
    """One repository on GitHub, as the bot's hub. To be used in a ``with``."""

    def __init__(self, repository: str, token: str, api: str) -> None:
        self._owner, _, self._name = repository.partition("/")
        self._full = repository
        self._github = GitHub(
            token or None,
            base_url=api,
            user_agent="vlm-ci-bot",
            timeout=30,
            ssl_verify=_certificates(),
            http_cache=False,  # a stale answer would be a wrong decision
            auto_retry=retries.Retry(),
        )
        self._default = ""

    def __enter__(self) -> Client:
        self._github.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *_: object) -> None:
        self._github.__exit__()

    # -- reading -----------------------------------------------------------------------------------

    def default_branch(self) -> str:
        if not self._default:
            found = self._get(self._rest.repos.get, answers.Repository)
            self._default = found.default_branch
        return self._default

    def file(self, path: str) -> bytes | None:
        """Return a file of the default branch, or None where there is none."""
        ref = self.default_branch()
        found = self._find(self._rest.repos.get_content, answers.File, path=path, ref=ref)
        return None if found is None else base64.b64decode(found.content)

    def comment_body(self, comment: int) -> str | None:
        found = self._find(self._rest.issues.get_comment, answers.Comment, comment_id=comment)
        return None if found is None else found.body

    def pull_request(self, number: int) -> PullRequest:
        pull = self._get(self._rest.pulls.get, answers.Pull, pull_number=number)
        return answers.pull_of(pull, self._full)

    def forced_at(self, number: int) -> datetime | None:
        """Return when the head was last replaced by a forced push."""
        events = self._pages(
            self._rest.issues.list_events_for_timeline, list[answers.Happening], issue_number=number
        )
        times = [one.created_at for one in events if one.event == "head_ref_force_pushed"]
        return max((time for time in times if time is not None), default=None)

    def pushes(self, branch: str) -> list[Push]:
        """Return the newest changes of a branch of the repository, forced or not."""
        method = self._rest.repos.list_activities
        ref = f"refs/heads/{branch}"
        try:
            response = self._call(method, ref=ref, direction="desc", per_page=PAGE)
        except RequestFailed as error:
            status = error.response.status_code
            if isinstance(error, RateLimitExceeded) or status >= 500:
                raise _failure(error) from None
            raise Refused(_said(error), status=status) from None
        except GitHubException as error:
            raise _failure(error) from None
        found = _decode(response, list[answers.Activity])
        return [Push(sha=one.after, at=one.timestamp) for one in found]

    def role(self, login: str) -> str:
        method = self._rest.repos.get_collaborator_permission_level
        found = self._find(method, answers.Role, username=login)
        if found is None:
            return "none"
        known = ("read", "triage", "write", "maintain", "admin")  # else a role of its own name
        return found.role_name if found.role_name in known else found.permission

    def member(self, team: str, login: str) -> bool | None:
        organisation, _, slug = team.partition("/")
        try:
            response = self._github.rest.teams.get_membership_for_user_in_org(
                organisation, slug, login
            )
            return _decode(response, answers.Member).state == "active"
        except RequestFailed as error:
            if isinstance(error, RateLimitExceeded):
                raise _failure(error) from None
            # 404 also where the token may not look: GitHub does not tell these apart
            return False if error.response.status_code == 404 else None
        except GitHubException as error:
            raise _failure(error) from None

    def runs(self, sha: str) -> list[Run]:
        method = self._rest.actions.list_workflow_runs_for_repo
        pages = self._pages_of(method, answers.Runs, head_sha=sha)
        return [answers.run_of(one) for page in pages for one in page.workflow_runs]

    def run(self, run: int) -> Run:
        return answers.run_of(
            self._get(self._rest.actions.get_workflow_run, answers.Run, run_id=run)
        )

    def failed_jobs(self, run: int) -> int:
        method = self._rest.actions.list_jobs_for_workflow_run
        pages = self._pages_of(method, answers.Jobs, run_id=run, filter_="latest")
        return sum(job.conclusion in FAILED for page in pages for job in page.jobs)

    def archives(
        self, run: int, patterns: tuple[str, ...], most: int
    ) -> list[tuple[str, bytes | None]]:
        """Return names and contents of a run's artifacts whose names match a pattern. What is too
        large has an empty content; what follows ``most`` bytes was not fetched, and has None."""
        method = self._rest.actions.list_workflow_run_artifacts
        pages = self._pages_of(method, answers.Artifacts, run_id=run)
        found = [
            one
            for page in pages
            for one in page.artifacts
            if not one.expired and any(fnmatchcase(one.name, pattern) for pattern in patterns)
        ]
        fetched: list[tuple[str, bytes | None]] = []
        for one in found[: artifacts.MOST_ARCHIVES]:
            content = self._download(one, most)
            most -= most if content is None else len(content)
            fetched.append((one.name, content))
        return fetched

    def dispatched(self, workflow: str, since: datetime) -> list[Run]:
        method = self._rest.actions.list_workflow_runs
        created = f">={since:%Y-%m-%dT%H:%M:%SZ}"
        pages = self._pages_of(
            method, answers.Runs, workflow_id=workflow, event="workflow_dispatch", created=created
        )
        return [answers.run_of(one) for page in pages for one in page.workflow_runs]

    def statuses(self, number: int, login: str) -> list[tuple[int, str]]:
        comments = self._pages(
            self._rest.issues.list_comments, list[answers.Comment], issue_number=number
        )
        return [(one.id, one.body) for one in comments if one.user and one.user.login == login]

    def reactions(self, comment: int, login: str) -> list[Reaction]:
        method = self._rest.reactions.list_for_issue_comment
        found = self._pages(method, list[answers.Reaction], comment_id=comment)
        return [
            Reaction(id=one.id, content=one.content, login=login, created_at=one.created_at)
            for one in found
            if one.user and one.user.login == login
        ]

    # -- changing ----------------------------------------------------------------------------------

    def react(self, comment: int, content: str) -> bool:
        method = self._rest.reactions.create_for_issue_comment
        return self._change(method, comment_id=comment, content=content).status_code == 201

    def unreact(self, comment: int, reaction: int) -> bool:
        method = self._rest.reactions.delete_for_issue_comment
        try:
            self._change(method, comment_id=comment, reaction_id=reaction)
        except Refused as refused:
            if refused.status == 404:
                return False
            raise
        return True

    def write_status(self, number: int, comment: int | None, body: str) -> int:
        issues = self._rest.issues
        if comment is None:
            made = self._change(issues.create_comment, issue_number=number, body=body)
            return _decode(made, answers.Id).id
        self._change(issues.update_comment, comment_id=comment, body=body)
        return comment

    def add_label(self, number: int, label: str) -> None:
        self._change(self._rest.issues.add_labels, issue_number=number, labels=[label])

    def approve(self, sha: str, description: str) -> None:
        self._change(
            self._rest.repos.create_commit_status,
            sha=sha,
            state="success",
            context=APPROVAL,
            description=description,
        )

    def rerun(self, run: int, *, only_failed: bool) -> None:
        actions = self._rest.actions
        method = actions.re_run_workflow_failed_jobs if only_failed else actions.re_run_workflow
        self._change(method, run_id=run)

    def dispatch(self, workflow: str, ref: str, inputs: dict[str, str]) -> None:
        method = self._rest.actions.create_workflow_dispatch
        self._change(method, workflow_id=workflow, ref=ref, inputs=inputs)

    # -- how ---------------------------------------------------------------------------------------

    @property
    def _rest(self) -> Any:
        return self._github.rest

    def _call(self, method: Callable[..., Response[Any]], **arguments: Any) -> Response[Any]:
        return method(self._owner, self._name, **arguments)

    def _get(self, method: Callable[..., Response[Any]], kind: type[T], **arguments: Any) -> T:
        try:
            return _decode(self._call(method, **arguments), kind)
        except GitHubException as error:
            raise _failure(error) from None

    def _find(
        self, method: Callable[..., Response[Any]], kind: type[T], **arguments: Any
    ) -> T | None:
        """Return what is asked for, or None where GitHub has none."""
        try:
            return _decode(self._call(method, **arguments), kind)
        except RequestFailed as error:
            if error.response.status_code == 404:
                return None
            raise _failure(error) from None
        except GitHubException as error:
            raise _failure(error) from None

    def _pages_of(
        self, method: Callable[..., Response[Any]], kind: type[T], **arguments: Any
    ) -> Iterator[T]:
        for page in range(1, MOST_PAGES + 1):
            try:
                response = self._call(method, per_page=PAGE, page=page, **arguments)
            except GitHubException as error:
                raise _failure(error) from None
            yield _decode(response, kind)
            if 'rel="next"' not in response.headers.get("link", ""):
                return
        raise HubError(f"GitHub has more than {MOST_PAGES} pages of {method.__name__}")

    def _pages(
        self, method: Callable[..., Response[Any]], kind: type[list[T]], **arguments: Any
    ) -> list[T]:
        return [one for page in self._pages_of(method, kind, **arguments) for one in page]

    def _change(self, method: Callable[..., Response[Any]], **arguments: Any) -> Response[Any]:
        try:
            return self._call(method, **arguments)
        except RateLimitExceeded as error:
            raise _failure(error) from None
        except RequestFailed as error:
            status = error.response.status_code
            if status >= 500:
                raise Unclear(_said(error)) from None
            raise Refused(_said(error), status=status) from None
        except RequestError as error:
            raise Unclear(f"the network failed: {type(error.exc).__name__}") from None

    def _download(self, artifact: answers.Artifact, most: int) -> bytes | None:
        if artifact.size_in_bytes > artifacts.LARGEST_ARCHIVE:
            return b""
        if artifact.size_in_bytes > most:
            return None
        owner, name = self._owner, self._name
        method = self._rest.actions.download_artifact
        try:
            response = method(owner, name, artifact.id, "zip", stream=True).raw_response
            content = bytearray()
            for piece in response.iter_bytes():
                content += piece
                if len(content) > artifacts.LARGEST_ARCHIVE:  # its stated size lied
                    return b""
                if len(content) > most:
                    return None
            return bytes(content)
        except GitHubException as error:
            raise _failure(error) from None
        except httpx.HTTPError as error:
            raise HubError(f"an artifact broke off: {type(error).__name__}") from None


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _decode(response: Response[Any], kind: type[T]) -> T:
    try:
        return msgspec.json.decode(response.content, type=kind)
    except msgspec.DecodeError as error:
        raise HubError(f"GitHub's answer is not what it documents: {error}") from None


def _failure(error: GitHubException) -> HubError:
    if isinstance(error, RateLimitExceeded):
        seconds = int(error.retry_after.total_seconds())
        return HubError(f"GitHub limits the rate of calls and asks to wait for {seconds} s")
    if isinstance(error, RequestFailed):
        return HubError(_said(error))
    if isinstance(error, RequestError):
        return HubError(f"the network failed: {type(error.exc).__name__}")
    return HubError(f"GitHub failed: {type(error).__name__}")


def _said(error: RequestFailed) -> str:
    """Return what GitHub answered, with the address that was asked and without what was sent."""
    try:
        message = msgspec.json.decode(error.response.content, type=answers.Message).message
    except msgspec.DecodeError:
        message = ""
    where = f"{error.request.method} {error.request.url.path}"
    return f"{error.response.status_code} {printable(message)} ({where})"
