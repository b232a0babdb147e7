"""vlm_ci: regression tests for compiled vision-language models.

Public names are loaded when they are first used; importing the package imports neither torch,
transformers nor hypothesis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_ci.auditor import audit
    from vlm_ci.checker import check
    from vlm_ci.errors import UsageError
    from vlm_ci.failures import Failure
    from vlm_ci.families.base import Encoded, Family, Parts
    from vlm_ci.result import Result
    from vlm_ci.targets.loading import load_target
    from vlm_ci.targets.models import Model
    from vlm_ci.targets.protocol import Capabilities, Output, Stats, Target, TargetInfo
    from vlm_ci.traffic.envelope import Envelope, Geometry
    from vlm_ci.traffic.spec import Batch, Image, Request, Session, Text, Video, batch, session
    from vlm_ci.warmup import Plan, named_plan

_HOMES = {
    "vlm_ci.auditor": ("audit",),
    "vlm_ci.checker": ("check",),
    "vlm_ci.errors": ("UsageError",),
    "vlm_ci.failures": ("Failure",),
    "vlm_ci.families.base": ("Encoded", "Family", "Parts"),
    "vlm_ci.result": ("Result",),
    "vlm_ci.targets.loading": ("load_target",),
    "vlm_ci.targets.models": ("Model",),
    "vlm_ci.targets.protocol": ("Capabilities", "Output", "Stats", "Target", "TargetInfo"),
    "vlm_ci.traffic.envelope": ("Envelope", "Geometry"),
    "vlm_ci.traffic.spec": (
        "Batch",
        "Image",
        "Request",
        "Session",
        "Text",
        "Video",
        "batch",
        "session",
    ),
    "vlm_ci.warmup": ("Plan", "named_plan"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Batch",
    "Capabilities",
    "Encoded",
    "Envelope",
    "Failure",
    "Family",
    "Geometry",
    "Image",
    "Model",
    "Output",
    "Parts",
    "Plan",
    "Request",
    "Result",
    "Session",
    "Stats",
    "Target",
    "TargetInfo",
    "Text",
    "UsageError",
    "Video",
    "audit",
    "batch",
    "check",
    "load_target",
    "named_plan",
    "session",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vlm_ci' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
