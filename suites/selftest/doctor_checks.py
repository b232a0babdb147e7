"""What the tests of ``vlm-ci doctor`` share."""

from __future__ import annotations

from collections.abc import Iterable

from vlm_ci.doctor.probes import OBSERVERS
from vlm_ci.doctor.records import Check

ON_A_GPU = ("CUDA graph captures", "Triton kernels", "Triton autotuning")
ON_THE_CPU = [name for name in OBSERVERS if name not in ON_A_GPU]


def by_name(checks: Iterable[Check]) -> dict[str, Check]:
    """Return checks by what they looked at."""
    return {check.name: check for check in checks}
