"""The payload of an ``issue_comment`` event as a record. Bytes in, a record out; no I/O."""

from __future__ import annotations

import msgspec

from vlm_ci.bot.facts import Event
from vlm_ci.bot.ledger import Moment
from vlm_ci.errors import UsageError


class _User(msgspec.Struct):
    login: str
    type: str = "User"


class _Comment(msgspec.Struct):
    id: int
    body: str
    created_at: Moment
    updated_at: Moment
    user: _User | None


class _Issue(msgspec.Struct):
    number: int
    pull_request: dict[str, object] | None = None


class _Repository(msgspec.Struct):
    full_name: str


class _Payload(msgspec.Struct):
    action: str
    comment: _Comment
    issue: _Issue
    repository: _Repository


def read(content: bytes, source: str) -> Event:
    """Return the event that a payload states.

    Raises:
        UsageError: it is no payload of an issue_comment event.
    """
    try:
        payload = msgspec.json.decode(content, type=_Payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{source}: not the payload of an issue_comment event: {error}") from None
    comment = payload.comment
    user = comment.user or _User(login="ghost")  # the account is gone
    return Event(
        repository=payload.repository.full_name,
        action=payload.action,
        number=payload.issue.number,
        pull_request=payload.issue.pull_request is not None,
        comment=comment.id,
        body=comment.body,
        author=user.login,
        bot=user.type == "Bot" or user.login.endswith("[bot]"),
        created_at=comment.created_at,
        updated_at=comment.updated_at,
    )
