"""Whether a run may save what it compiles: trusted or not. Reads the CI's variables, no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

TRUSTED, UNTRUSTED = "trusted", "untrusted"

# GitHub starts these for people who may write to the repository.
_OWN_EVENTS = ("push", "schedule", "workflow_dispatch", "merge_group", "release")
_PULL_EVENTS = (
    "pull_request",
    "pull_request_target",
    "pull_request_review",
    "pull_request_review_comment",
)
_OFF = ("", "0", "false")


class Scope(NamedTuple):
    """ "trusted" or "untrusted", and why."""

    name: str
    why: str


def find(wanted: str, environment: Mapping[str, str] | None = None) -> Scope:
    """Return the scope of this run; ``wanted`` is "trusted", "untrusted", or "auto".

    By itself a run is trusted outside CI, and in GitHub Actions where people who may write to the
    repository started it for the repository's own code. Whatever cannot be told is untrusted.
    """
    env = os.environ if environment is None else environment
    if wanted != "auto":
        return Scope(wanted, "the options say so")
    if env.get("GITHUB_ACTIONS", "").lower() not in _OFF:
        return _on_github(env)
    if env.get("CI", "").lower() not in _OFF:
        return Scope(
            UNTRUSTED,
            "this CI does not say whose code runs; --cache-scope trusted says it is yours",
        )
    return Scope(TRUSTED, "no CI runs it")


def _on_github(env: Mapping[str, str]) -> Scope:
    event = env.get("GITHUB_EVENT_NAME", "")
    if env.get("GITHUB_ACTOR") == "dependabot[bot]":  # GitHub treats its branches as a fork's
        return Scope(UNTRUSTED, "Dependabot started it")
    if event in _OWN_EVENTS:
        return Scope(TRUSTED, f"a {event} of the repository itself")
    if event not in _PULL_EVENTS:
        return Scope(UNTRUSTED, f"an event {event!r} does not say whose code runs")
    source, own = _head(env), env.get("GITHUB_REPOSITORY", "")
    if not source or not own:
        return Scope(UNTRUSTED, f"the {event} does not name the repository it comes from")
    if source.lower() != own.lower():
        return Scope(UNTRUSTED, f"a {event} from the fork {source}")
    return Scope(TRUSTED, f"a {event} from the repository itself")


def _head(env: Mapping[str, str]) -> str:
    """Return OWNER/NAME of the repository that a pull request comes from, "" where unknown."""
    try:
        payload: Any = json.loads(Path(env.get("GITHUB_EVENT_PATH", "")).read_text("utf-8"))
        return str(payload["pull_request"]["head"]["repo"]["full_name"])
    except (OSError, ValueError, KeyError, TypeError):  # a fork that is deleted has no repo
        return ""
