"""The status comment: a ledger in, Markdown out, and back. Performs no I/O.

The state stands in an HTML comment of the bot's own comment. A marker in somebody else's comment
means nothing: whoever reads has to ask for the bot's comments only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from vlm_ci.bot.ledger import DONE, Entry, Ledger, Step, without_oldest
from vlm_ci.bot.words import code

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKER = "<!-- vlm-ci-bot -->"
LONGEST = 60_000  # characters; GitHub takes 65,536
_STATE, _END = "<!-- vlm-ci-bot-state ", " -->"
_CALLS = {
    "rerun": "run again as a whole",
    "rerun-failed": "failed jobs run again",
    "label": "label added",
    "approve": "commit approved",
    "dispatch": "test started",
}
_TO_COME = {
    "rerun": "is run again as a whole",
    "rerun-failed": "has its failed jobs run again",
    "label": "is added as a label",
    "approve": "approves the commit",
    "dispatch": "is started",
}


def render(ledger: Ledger, repository: str, number: int, server: str) -> str:
    """Return the status comment; the oldest entries are left out where it would be too long."""
    while True:
        text = _render(ledger, repository, number, server)
        if len(text) <= LONGEST or len(ledger.entries) <= 1:
            return text
        ledger = without_oldest(ledger, 1)


def read(body: str) -> Ledger | None:
    """Return the ledger of a status comment, or None where the text is none.

    The marker stands first and the state last: what stands between may hold both, in the commands
    and the names of others.
    """
    if not body.startswith(MARKER):
        return None
    _, found, rest = body.rpartition(_STATE)
    try:
        return msgspec.json.decode(rest.partition(_END)[0] if found else "", type=Ledger)
    except msgspec.DecodeError:  # somebody with the right to edit it did so
        return Ledger(lost=True)


def _render(ledger: Ledger, repository: str, number: int, server: str) -> str:
    page = f"{server}/{repository}/pull/{number}"
    lines = [MARKER, "### Commands on this pull request", ""]
    for entry in reversed(ledger.entries):
        lines += [*_entry(entry, page, f"{server}/{repository}"), ""]
    # In JSON an escaped sign means the same, and nothing can end the HTML comment.
    state = msgspec.json.encode(ledger).decode()
    for sign in "<>&":
        state = state.replace(sign, f"\\u{ord(sign):04x}")
    return "\n".join([*lines, f"{_STATE}{state}{_END}", ""])


def _entry(entry: Entry, page: str, repository: str) -> Iterator[str]:
    rehearsed = ", which was a dry run" if entry.dry_run else ""
    comment = f"[a comment]({page}#issuecomment-{entry.comment})"
    yield f"{code(entry.text)} of {code(entry.by)} in {comment}{rehearsed}"
    yield ""
    yield f"- **{entry.verdict}**: {entry.reason}"
    for step in entry.steps:
        yield f"- {_step(step, entry, repository)}"
    for skipped in entry.skipped:
        place = f"[{code(skipped.name)}]({repository}/actions/runs/{skipped.run})"
        yield f"- left alone: {place if skipped.run else code(skipped.name)} {skipped.reason}"
    for note in entry.notes:
        yield f"- {note}"


def _step(step: Step, entry: Entry, repository: str) -> str:
    name = code(step.name)
    if step.run:
        name = f"[{name}]({repository}/actions/runs/{step.run})"
    if step.kind == "dispatch":
        name += f" with {code(step.inputs.get('nodeid', ''))} on {code(step.inputs['runner'])}"
    if step.kind == "approve":
        name += f" for {step.sha[:12]}"
    if entry.dry_run:
        return f"would be done: {name} {_TO_COME[step.kind]}"
    if not step.outcome:
        return f"not done yet: {name} {_TO_COME[step.kind]}"
    done = _CALLS[step.kind] if step.outcome == DONE else step.outcome
    return f"{name}: {done}"
