"""What is done about each kind of thing that the watch sees: fail, warn, a budget, or nothing.

Wrong answers have no policy: a mismatch always fails. Imports no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlm_ci.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping

# The kinds of failure that have a policy, each with what holds where nobody says otherwise.
DEFAULTS = {
    "recompile": "fail",
    "new-frame": "fail",
    "limit-hit": "fail",
    "eager-fallback": "fail",
    "graph-break": "warn",
    "graph-capture": "fail",
    "graph-skip": "warn",
    "triton-compile": "fail",
    "stall": "warn",
    "baseline": "fail",
}
_FORM = "KIND=fail, KIND=warn, KIND=budget:N or KIND=off, several with commas between them"


def parse(text: str, name: str = "--policy") -> dict[str, str]:
    """Read policies such as ``stall=fail,graph-break=budget:3``.

    Raises:
        UsageError: a kind or a policy is unknown; ``name`` is what the message calls the option.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        kind, equals, policy = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UsageError(f"{name} {part.strip()!r} is no policy: write {_FORM}")
        if kind not in DEFAULTS:
            raise unknown_name(f"kind in {name}", kind, DEFAULTS)
        if policy not in ("fail", "warn", "off") and not re.fullmatch(r"budget:[1-9]\d*", policy):
            raise UsageError(f"{name}: {policy!r} is no policy for {kind}: write {_FORM}")
        found[kind] = policy
    return found


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies of a run; ``given`` are those that differ from ``DEFAULTS`` or were asked for.

    A budget of N lets N occurrences pass: steps of the search in which that happened, events of the
    warm-up, or lines that are worse than in the baseline. From the next one on it fails.
    """

    given: Mapping[str, str] = field(default_factory=dict)

    def of(self, kind: str) -> str:
        """Return the policy of a kind of failure; what has none fails."""
        return self.given.get(kind, DEFAULTS.get(kind, "fail"))

    def tolerates(self, kind: str, count: int) -> bool:
        """Whether the ``count``-th occurrence, from 1, passes."""
        policy = self.of(kind)
        if policy.startswith("budget:"):
            return count <= int(policy.removeprefix("budget:"))
        return policy != "fail"
