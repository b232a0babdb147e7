"""``vlm-ci bot``: files and the environment in, records out. Reads files, and asks by the hub."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vlm_ci.bot import commands, decide, entries, events
from vlm_ci.bot import policy as policies
from vlm_ci.bot.engine import Engine
from vlm_ci.bot.facts import Facts, HubError
from vlm_ci.bot.policy import Policy
from vlm_ci.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vlm_ci.bot.facts import Hub
    from vlm_ci.bot.records import Record


NOBODY = Policy(schema=1, allow=())


class Unread(UsageError):
    """The default branch's policy cannot be read. ``shown`` is what everybody may be told of it;
    ``records`` are the answers that were given."""

    def __init__(self, message: str, *, shown: str) -> None:
        super().__init__(message)
        self.shown = shown
        self.records: list[Record] = []


def run(
    *,
    event: str,
    dry_run: bool,
    policy: str | None,
    facts: str | None,
    api: str,
    environment: Mapping[str, str],
) -> tuple[list[Record], bool, str]:
    """Handle an event; return the records, whether something was denied, and why GitHub failed.

    Raises:
        UsageError: a file or the environment is not as it has to be.
        Unread: the policy is not, which the comment has been answered with.
    """
    attempt = environment.get("GITHUB_RUN_ATTEMPT", "1")
    if not attempt.isdecimal():
        raise UsageError(f"GITHUB_RUN_ATTEMPT must be a whole number, not {attempt!r}")
    comment = events.read(_bytes(event), event)
    stated = environment.get("GITHUB_REPOSITORY", comment.repository)
    if stated.lower() != comment.repository.lower():
        raise UsageError(f"{event} is of {comment.repository}, and GITHUB_REPOSITORY says {stated}")
    if facts and not (dry_run and policy):
        raise UsageError("--facts goes with --dry-run and --policy: nothing is asked of GitHub")
    local = policies.read(_bytes(policy), policy) if policy else None
    reason = decide.ignored(comment)
    parsed = commands.parse(comment.body)
    if not reason and not parsed.commands and not parsed.misunderstood:
        reason = "the comment holds no command"
    if reason:
        return [entries.ignored(comment, reason, _now(), dry_run=dry_run)], False, ""
    if facts and local:
        records = entries.rehearse(comment, parsed, local, _facts(facts))
        return records, any(map(entries.failed, records)), ""
    token = environment.get("GITHUB_TOKEN", "")
    if not token and not dry_run:
        raise UsageError("GITHUB_TOKEN is not set; only --dry-run goes without")
    from vlm_ci.bot.github import Client  # here: it takes a second, and a rehearsal needs none

    engine: Engine | None = None
    try:
        with Client(comment.repository, token, api) as hub:
            unread: Unread | None = None
            try:
                read = local or _policy(hub)
            except Unread as error:
                if dry_run or not parsed.commands:
                    raise
                unread, read = error, NOBODY
            engine = Engine(
                event=comment,
                policy=read,
                hub=hub,
                clock=_now,
                sleep=time.sleep,
                attempt=int(attempt),
                server=environment.get("GITHUB_SERVER_URL", "https://github.com"),
            )
            if unread:
                unread.records = engine.without_policy(parsed, unread.shown)
                raise unread
            records = engine.handle(parsed, dry_run=dry_run)
    except HubError as error:
        return (engine.records if engine else []), True, str(error)
    return records, any(map(entries.failed, records)), ""


def _now() -> datetime:
    return datetime.now(UTC)


def _policy(hub: Hub) -> Policy:
    content = hub.file(policies.PATH)
    where = f"{policies.PATH} on the default branch {hub.default_branch()}"
    if content is None:
        shown = f"there is no policy {policies.PATH} on the default branch"
        raise Unread(f"there is no {where}: docs/bot.md shows one", shown=shown)
    try:
        return policies.read(content, where)
    except UsageError as error:
        line = re.search(r"\(at (line \d+)", str(error))
        raise Unread(
            str(error),
            shown=f"the policy {policies.PATH} on the default branch cannot be read"
            f"{f' ({line[1]})' if line else ''}: a maintainer has to mend it",
        ) from None


def _facts(path: str) -> Facts:
    try:
        return msgspec.json.decode(_bytes(path), type=Facts)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: not facts as an audit record has them in `facts`: {error}"
        ) from None


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot read it: {error.strerror}") from None
