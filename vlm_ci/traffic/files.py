"""Traffic, plans and envelopes as JSON files with a schema. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from vlm_ci.errors import UsageError, check_choice
from vlm_ci.traffic.envelope import Envelope
from vlm_ci.traffic.spec import Batch, Session

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PLAN_SCHEMA = "vlm-ci/plan/1"


class PlanFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A warm-up plan on disk: batches in the order in which they are to be run.

    Sizes are in pixels (``height``, ``width``), frames (``frames``) and tokens (``tokens``), never
    in patches or positions of one model. What else is in the file says where the plan comes from:
    ``target``, ``recipe`` and ``options`` are those that it was made for, ``made_with`` the
    versions, ``graphs`` how many graphs each batch compiles in a cold warm-up in this order,
    ``holds`` whether it was verified, and ``note`` what to know about it. All of that may be
    missing.
    """

    schema: str = PLAN_SCHEMA
    target: str = ""
    recipe: str = ""
    options: dict[str, Any] = {}
    made_with: dict[str, str] = {}
    graphs: tuple[int, ...] = ()
    holds: bool | None = None
    note: str = ""
    batches: tuple[Batch, ...]

    def __post_init__(self) -> None:
        check_choice("the schema of the plan", self.schema, (PLAN_SCHEMA,))
        if not self.batches:
            raise ValueError("a plan must hold at least one batch")


def plan_to_json(batches: tuple[Batch, ...]) -> bytes:
    """Return a warm-up plan as the content of a plan file."""
    return pretty(PlanFile(batches=batches))


def read_traffic(path: Path) -> Session:
    """Read a traffic file.

    Raises:
        UsageError: it is not there or not valid; the message names the place in the file.
    """
    session: Session = _load(path, Session, "traffic")
    return session


def read_corpus(folders: Iterable[Path]) -> dict[str, Session]:
    """Read every traffic file (*.json) of some folders, by path, each session once.

    A folder that is not there holds nothing.

    Raises:
        UsageError: a file is not valid; the message names the place in it.
    """
    sessions: dict[str, Session] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            session = read_traffic(path)
            if session not in sessions.values():
                sessions[str(path)] = session
    return sessions


def read_plan(path: Path) -> tuple[Batch, ...]:
    """Read a warm-up plan.

    Raises:
        UsageError: it is not there or not valid; the message names the place in the file.
    """
    plan: PlanFile = _load(path, PlanFile, "plan")
    return plan.batches


def read_envelope(path: Path, default: Envelope) -> Envelope:
    """Read an envelope; what the file leaves out is taken from the target's default.

    Raises:
        UsageError: it is not there or not valid; the message names the place in the file.
    """
    given = _load(path, dict[str, Any], "envelope")
    merged = {**msgspec.to_builtins(default), **given}
    try:
        return msgspec.convert(merged, Envelope)
    except msgspec.ValidationError as error:
        raise UsageError(f"envelope file {path}: {error}") from None


def pretty(value: Any) -> bytes:
    """Return a value as indented JSON that ends with a line break."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _load(path: Path, kind: Any, word: str) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the {word} file {path}: {error.strerror}") from None
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:  # ValidationError is one, and names the place
        raise UsageError(f"{word} file {path}: {error}") from None
