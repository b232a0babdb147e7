"""Who handles a comment: at most one at a time, and nobody twice. Speaks to GitHub by the hub.

The claim is the reaction "eyes": GitHub answers whether it is new, which it is
for one of two who ask at once. A claim whose holder is gone is taken over by deleting it, which
also succeeds for one. A final reaction says that the comment is done with.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from vlm_ci.bot.facts import Event, Hub

CLAIM = "eyes"
DONE, DENIED, CONFUSED = "rocket", "-1", "confused"
FINAL = (DONE, DENIED, CONFUSED)
LEASE = timedelta(minutes=15)  # longer than a handling may wait for GitHub


def claim(event: Event, hub: Hub, login: str, *, attempt: int, now: datetime) -> str:
    """Claim a comment; return an empty text, or why it is not to be handled.

    ``attempt`` is that of the workflow's run: a later one means that the earlier is over.

    Raises:
        HubError: GitHub does not answer.
    """
    mine = hub.reactions(event.comment, login)
    if any(reaction.content in FINAL for reaction in mine):
        return "the comment was handled before"
    held = next((reaction for reaction in mine if reaction.content == CLAIM), None)
    if held is not None:
        if attempt <= 1 and now - held.created_at < LEASE:
            minutes = int(LEASE.total_seconds() // 60)
            return (
                f"another handling claimed the comment at {held.created_at:%H:%M:%S} UTC; where it "
                f"died, run this job again, or wait for {minutes} minutes"
            )
        if not hub.unreact(event.comment, held.id):
            return "another handling took the comment over at the same time"
    if not hub.react(event.comment, CLAIM):
        return "another handling claimed the comment at the same time"
    return ""
