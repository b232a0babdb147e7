"""The endpoints of the fake GitHub: each reads or changes the world."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import github_models as models
from github_world import BOT, FAILED, REPOSITORY, Answer, Page, World, run


class Endpoints:
    """One method for each endpoint; a pair is a status and an answer."""

    world: World
    store_url: str
    _next = 9000

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

    def _activity(self, *, query: Any, body: Any) -> Any:
        world = self.world
        pushes = [[world.head_sha, -120]] if world.pushes is None else world.pushes
        ref = f"refs/heads/{world.head_branch}"
        newest_first = sorted(pushes, key=lambda push: push[1], reverse=True)
        return [
            models.make(
                "Activity",
                ref=ref,
                after=sha,
                timestamp=world.at(minutes),
                activity_type="push",
                actor={"login": world.author},
            )
            for sha, minutes in newest_first
            if query.get("ref") == ref
        ][: int(query.get("per_page", 30))]

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
                display_title=f"GPU {inputs.get('nodeid', '')} {inputs.get('request', '')}",
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


# method, path below the repository, the answer's function, the model of what is sent
ROUTES = (
    ("GET", "", "repository", ""),
    ("GET", r"/contents/(.+)", "contents", ""),
    ("GET", r"/issues/comments/(\d+)", "get_comment", ""),
    ("GET", r"/pulls/(\d+)", "pull", ""),
    ("GET", r"/issues/(\d+)/timeline", "timeline", ""),
    ("GET", r"/activity", "activity", ""),
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

# the method of githubkit's whose parameters an endpoint may be asked with; others take none
QUERIES = {
    "contents": "repos.get_content",
    "timeline": "issues.list_events_for_timeline",
    "activity": "repos.list_activities",
    "runs": "actions.list_workflow_runs_for_repo",
    "jobs": "actions.list_jobs_for_workflow_run",
    "artifacts": "actions.list_workflow_run_artifacts",
    "workflow_runs": "actions.list_workflow_runs",
    "comments": "issues.list_comments",
    "reactions": "reactions.list_for_issue_comment",
}
