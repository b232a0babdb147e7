"""A GitHub for tests: a stateful HTTP server on the loopback.

What it is asked and what it answers is validated against githubkit's models, so that it cannot
drift from what GitHub documents. Answers are the world below, filled up with what models require.
"""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

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


class FakeGitHub:
    """The server. ``calls`` has every request that was let through, ``changes`` those that changed
    something, in order; ``problems`` what a real GitHub would never have been asked."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.calls: list[str] = []
        self.changes: list[tuple[str, str, Any]] = []
        self.problems: list[str] = []
        self.dead = False
        self._lock = threading.RLock()
        self._barriers: dict[int, threading.Barrier] = {}
        self._next = 9000
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                fake._serve(self)

            do_GET = do_POST = do_PATCH = do_DELETE = handle_one

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self._store = Server(("127.0.0.1", 0), Handler)  # where artifacts lie: another origin
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.store_url = f"http://127.0.0.1:{self._store.server_port}"

    @contextmanager
    def serving(self) -> Iterator[FakeGitHub]:
        threads = [
            threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            for one in (self._server, self._store)
        ]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            for one in (self._server, self._store):
                one.shutdown()
                one.server_close()

    # -- one request -------------------------------------------------------------------------------

    def _serve(self, handler: Any) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        raw = handler.rfile.read(length)
        parts = urlsplit(handler.path)
        method, path = handler.command, parts.path
        store = handler.server is self._store
        fault = None if store else self._fault(method, path)
        if fault and "barrier" in fault:
            self._barrier(fault).wait(timeout=20)
            fault = None
        if self.dead or (fault and fault.get("drop") == "before"):
            self._drop(handler, fault)
            return
        headers: dict[str, str] = {}
        try:
            if store:
                body: Any = self._blob(handler, path)
                status = 200
            else:
                if fault and "status" in fault:
                    raise Answer(fault["status"], fault.get("message", ""), fault.get("headers"))
                with self._lock:
                    self._authorised(handler)
                    query = dict(parse_qsl(parts.query))
                    status, body, headers = self._route(method, path, query, raw)
        except Answer as answer:
            status, headers = answer.status, answer.headers
            body = models.error(answer.message, status)
        except Exception as error:  # a fault of the fake's, or a request that is none
            self.problems.append(f"{method} {path}: {type(error).__name__}: {error}")
            status, body = 422, models.error(str(error), 422)
        if fault and fault.get("drop") == "after":
            self._drop(handler, fault)
            return
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        content = b"" if status == 204 else content
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def _fault(self, method: str, path: str) -> dict[str, Any] | None:
        with self._lock:
            for fault in self.world.faults:
                if fault.get("times", 1) < 1 or not re.fullmatch(fault["on"], f"{method} {path}"):
                    continue
                if fault.get("let", 0) > 0:
                    fault["let"] -= 1
                    continue
                fault["times"] = fault.get("times", 1) - 1
                if "move_head" in fault:
                    self.world.head_sha = fault["move_head"]
                    return None
                return fault
        return None

    def _barrier(self, fault: dict[str, Any]) -> threading.Barrier:
        with self._lock:
            return self._barriers.setdefault(id(fault), threading.Barrier(fault["barrier"]))

    def _drop(self, handler: Any, fault: dict[str, Any] | None) -> None:
        if fault and fault.get("dies"):
            self.dead = True
        handler.close_connection = True
        handler.connection.close()

    def _authorised(self, handler: Any) -> None:
        if handler.headers.get("Authorization") not in (None, f"token {TOKEN}"):
            raise Answer(401, "Bad credentials")
        if not handler.headers.get("User-Agent"):
            raise Answer(403, "Request forbidden by administrative rules")

    def _blob(self, handler: Any, path: str) -> bytes:
        if handler.headers.get("Authorization"):
            self.problems.append("the token was sent to the store of artifacts")
        number = int(path.rpartition("/")[2])
        artifacts = [one for run in self.world.runs for one in run.get("artifacts", [])]
        found = next(one for one in artifacts if one["id"] == number)
        return found["content"] if "content" in found else zipped(found.get("files", {}))

    def _route(
        self, method: str, path: str, query: dict[str, str], raw: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        repository = f"/repos/{REPOSITORY}"
        inside = path.removeprefix(repository) if path.startswith(repository) else path
        for verb, pattern, name, request in ROUTES:
            found = re.fullmatch(pattern, inside)
            if verb != method or found is None:
                continue
            self.calls.append(f"{method} {inside}")
            body = models.request(request, raw) if request else None
            if method != "GET":
                self.changes.append((method, inside, json.loads(raw) if raw else None))
            result = getattr(self, f"_{name}")(*found.groups(), query=query, body=body)
            status, answer = result if isinstance(result, tuple) else (200, result)
            headers = {}
            if isinstance(answer, Page):
                headers = answer.headers(self.url + path, query)
                answer = answer.body()
            if status == 302:
                headers = {"Location": answer}
                answer = {}
            return status, answer, headers
        raise AssertionError(f"no such endpoint: {method} {path}")

    # -- reading -----------------------------------------------------------------------------------

    def _repository(self, *, query: Any, body: Any) -> Any:
        world = self.world
        return models.make(
            "FullRepository", full_name=REPOSITORY, default_branch=world.default_branch
        )

    def _contents(self, path: str, *, query: Any, body: Any) -> Any:
        assert query.get("ref") == self.world.default_branch, "the policy is the default branch's"
        if self.world.policy is None or path != ".github/vlm-ci-bot.toml":
            raise Answer(404, "Not Found")
        content = base64.encodebytes(self.world.policy.encode()).decode()
        return models.make("ContentFile", path=path, content=content, encoding="base64")

    def _get_comment(self, number: str, *, query: Any, body: Any) -> Any:
        return self._comment(self._find(self.world.comments, int(number)))

    def _pull(self, number: str, *, query: Any, body: Any) -> Any:
        world = self.world
        head = {
            "ref": world.head_branch,
            "sha": world.head_sha,
            "repo": world.head_repository and {"full_name": world.head_repository},
        }
        return models.make(
            "PullRequest",
            number=int(number),
            state=world.state,
            user={"login": world.author},
            head=head,
            base={"ref": "main", "sha": "b" * 40, "repo": {"full_name": REPOSITORY}},
            labels=[{"name": name} for name in world.labels],
        )

    def _timeline(self, number: str, *, query: Any, body: Any) -> Any:
        events = [
            models.make(
                "StateChangeIssueEvent",
                event="head_ref_force_pushed",
                created_at=self.world.at(minutes),
            )
            for minutes in self.world.forced
        ]
        return Page(events, query, self.world.page)

    def _permission(self, login: str, *, query: Any, body: Any) -> Any:
        role = self.world.roles.get(login, "read")
        legacy = {"maintain": "write", "triage": "read"}.get(role, role)
        if role not in ("none", "read", "triage", "write", "maintain", "admin"):
            legacy = "write"  # a role of the organisation's own
        return models.make("RepositoryCollaboratorPermission", permission=legacy, role_name=role)

    def _membership(self, org: str, slug: str, login: str, *, query: Any, body: Any) -> Any:
        team = f"{org}/{slug}"
        if team in self.world.hidden_teams:
            raise Answer(403, "Resource not accessible by integration")
        if login not in self.world.teams.get(team, []):
            raise Answer(404, "Not Found")
        return models.make("TeamMembership", state="active", role="member")

    def _runs(self, *, query: Any, body: Any) -> Any:
        runs = [run for run in self.world.runs if run["head_sha"] == query.get("head_sha")]
        page = Page([self._run_of(run) for run in runs], query, self.world.page)
        page.key, page.model = "workflow_runs", "ReposOwnerRepoActionsRunsGetResponse200"
        return page

    def _workflow_runs(self, workflow: str, *, query: Any, body: Any) -> Any:
        runs = [
            run
            for run in self.world.runs
            if run["path"].endswith(f"/{workflow}") and run["event"] == query.get("event")
        ]
        page = Page([self._run_of(run) for run in runs], query, self.world.page)
        page.key = "workflow_runs"
        page.model = "ReposOwnerRepoActionsWorkflowsWorkflowIdRunsGetResponse200"
        return page

    def _run(self, number: str, *, query: Any, body: Any) -> Any:
        return self._run_of(self._find(self.world.runs, int(number)))

    def _run_of(self, run: dict[str, Any]) -> Any:
        given = {k: v for k, v in run.items() if k not in ("jobs", "artifacts", "minutes", "fails")}
        return models.make("WorkflowRun", created_at=self.world.at(run["minutes"]), **given)

    def _jobs(self, number: str, *, query: Any, body: Any) -> Any:
        run = self._find(self.world.runs, int(number))
        jobs = [
            models.make("Job", conclusion=one, status="completed" if one else "in_progress")
            for one in run.get("jobs", [])
        ]
        page = Page(jobs, query, self.world.page)
        page.key, page.model = "jobs", "ReposOwnerRepoActionsRunsRunIdJobsGetResponse200"
        return page

    def _artifacts(self, number: str, *, query: Any, body: Any) -> Any:
        run = self._find(self.world.runs, int(number))
        artifacts = [
            models.make(
                "Artifact",
                id=one["id"],
                name=one["name"],
                expired=one.get("expired", False),
                size_in_bytes=one.get("size", 100),
            )
            for one in run.get("artifacts", [])
        ]
        page = Page(artifacts, query, self.world.page)
        page.key, page.model = "artifacts", "ReposOwnerRepoActionsRunsRunIdArtifactsGetResponse200"
        return page

    def _zip(self, number: str, *, query: Any, body: Any) -> Any:
        return 302, f"{self.store_url}/blob/{number}"

    def _comments(self, number: str, *, query: Any, body: Any) -> Any:
        return Page([self._comment(one) for one in self.world.comments], query, self.world.page)

    def _reactions(self, number: str, *, query: Any, body: Any) -> Any:
        mine = [one for one in self.world.reactions if one["comment"] == int(number)]
        return Page([self._reaction(one) for one in mine], query, self.world.page)

    def _comment(self, comment: dict[str, Any]) -> Any:
        return models.make(
            "IssueComment",
            id=comment["id"],
            body=comment["body"],
            user={"login": comment["login"]},
        )

    def _reaction(self, reaction: dict[str, Any]) -> Any:
        return models.make(
            "Reaction",
            id=reaction["id"],
            content=reaction["content"],
            user={"login": reaction["login"]},
            created_at=self.world.at(reaction.get("minutes", 0)),
        )

    # -- changing ----------------------------------------------------------------------------------

    def _react(self, number: str, *, query: Any, body: Any) -> Any:
        for one in self.world.reactions:
            if one["comment"] == int(number) and (one["content"], one["login"]) == (
                body.content,
                BOT,
            ):
                return 200, self._reaction(one)
        one = {"id": self._new(), "comment": int(number), "content": body.content, "login": BOT}
        self.world.reactions.append(one)
        return 201, self._reaction(one)

    def _unreact(self, number: str, reaction: str, *, query: Any, body: Any) -> Any:
        self.world.reactions.remove(self._find(self.world.reactions, int(reaction)))
        return 204, {}

    def _post_comment(self, number: str, *, query: Any, body: Any) -> Any:
        assert len(body.body) <= 65_536, "body is too long (maximum is 65536 characters)"
        self.world.comments.append({"id": self._new(), "login": BOT, "body": body.body})
        return 201, self._comment(self.world.comments[-1])

    def _patch_comment(self, number: str, *, query: Any, body: Any) -> Any:
        comment = self._find(self.world.comments, int(number))
        assert comment["login"] == BOT, "somebody else's comment was changed"
        assert len(body.body) <= 65_536, "body is too long (maximum is 65536 characters)"
        comment["body"] = body.body
        return self._comment(comment)

    def _label(self, number: str, *, query: Any, body: Any) -> Any:
        for name in body.labels:
            if name not in self.world.labels:
                self.world.labels.append(name)
        return [models.make("Label", name=name) for name in self.world.labels]

    def _status(self, sha: str, *, query: Any, body: Any) -> Any:
        self.world.approvals.append(sha)
        return 201, models.make("Status", state=body.state, context=body.context)

    def _rerun(self, number: str, verb: str, *, query: Any, body: Any) -> Any:
        run = self._find(self.world.runs, int(number))
        if run["status"] != "completed":
            raise Answer(403, "This workflow is already running")
        if datetime.now(UTC) - self.world.at(run["minutes"]) > timedelta(days=30):
            raise Answer(
                403, "Unable to retry this workflow run because it was created over a month ago"
            )
        if verb == "rerun-failed-jobs" and not any(job in FAILED for job in run.get("jobs", [])):
            raise Answer(403, "This workflow run cannot be retried")
        run["run_attempt"] = run.get("run_attempt", 1) + 1
        run["status"], run["conclusion"] = "queued", None
        if run.pop("fails", False):  # the new attempt is over, and failed, before anybody looks
            run["status"], run["conclusion"] = "completed", "failure"
        return 201, models.make("EmptyObject")

    def _dispatch(self, workflow: str, *, query: Any, body: Any) -> Any:
        assert body.ref == self.world.default_branch, "only the default branch's workflow may run"
        inputs = dict(body.inputs)
        number = self._new()
        self.world.runs.append(
            run(
                number,
                name=workflow,
                path=f".github/workflows/{workflow}",
                event="workflow_dispatch",
                status="queued",
                conclusion=None,
                head_sha="b" * 40,
                head_branch="main",
                display_title=f"{inputs.get('request', '')} {inputs.get('nodeid', '')}",
            )
        )
        return 200, models.make(
            "WorkflowDispatchResponse",
            workflow_run_id=number,
            run_url="https://api.github.com/r",
            html_url="https://github.com/r",
        )

    def _find(self, things: list[dict[str, Any]], number: int) -> dict[str, Any]:
        found = next((one for one in things if one["id"] == number), None)
        if found is None:
            raise Answer(404, "Not Found")
        return found

    def _new(self) -> int:
        self._next += 1
        return self._next


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


# method, path below the repository, the answer's function, the model of what is sent
ROUTES = (
    ("GET", "", "repository", ""),
    ("GET", r"/contents/(.+)", "contents", ""),
    ("GET", r"/issues/comments/(\d+)", "get_comment", ""),
    ("GET", r"/pulls/(\d+)", "pull", ""),
    ("GET", r"/issues/(\d+)/timeline", "timeline", ""),
    ("GET", r"/collaborators/([\w-]+)/permission", "permission", ""),
    ("GET", r"/orgs/([\w-]+)/teams/([\w-]+)/memberships/([\w-]+)", "membership", ""),
    ("GET", r"/actions/runs", "runs", ""),
    ("GET", r"/actions/runs/(\d+)", "run", ""),
    ("GET", r"/actions/runs/(\d+)/jobs", "jobs", ""),
    ("GET", r"/actions/runs/(\d+)/artifacts", "artifacts", ""),
    ("GET", r"/actions/artifacts/(\d+)/zip", "zip", ""),
    ("GET", r"/actions/workflows/([\w.-]+)/runs", "workflow_runs", ""),
    ("GET", r"/issues/(\d+)/comments", "comments", ""),
    ("GET", r"/issues/comments/(\d+)/reactions", "reactions", ""),
    (
        "POST",
        r"/issues/comments/(\d+)/reactions",
        "react",
        "ReposOwnerRepoIssuesCommentsCommentIdReactionsPostBody",
    ),
    ("DELETE", r"/issues/comments/(\d+)/reactions/(\d+)", "unreact", ""),
    (
        "POST",
        r"/issues/(\d+)/comments",
        "post_comment",
        "ReposOwnerRepoIssuesIssueNumberCommentsPostBody",
    ),
    (
        "PATCH",
        r"/issues/comments/(\d+)",
        "patch_comment",
        "ReposOwnerRepoIssuesCommentsCommentIdPatchBody",
    ),
    (
        "POST",
        r"/issues/(\d+)/labels",
        "label",
        "ReposOwnerRepoIssuesIssueNumberLabelsPostBodyOneof0",
    ),
    ("POST", r"/statuses/([0-9a-f]{40})", "status", "ReposOwnerRepoStatusesShaPostBody"),
    (
        "POST",
        r"/actions/runs/(\d+)/(rerun|rerun-failed-jobs)",
        "rerun",
        "ReposOwnerRepoActionsRunsRunIdRerunFailedJobsPostBody",
    ),
    (
        "POST",
        r"/actions/workflows/([\w.-]+)/dispatches",
        "dispatch",
        "ReposOwnerRepoActionsWorkflowsWorkflowIdDispatchesPostBody",
    ),
)
