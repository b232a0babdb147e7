"""Outcomes of the probes put in words: which observers work, and what to do where one does not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vlm_ci.doctor import compiler, packages, surroundings
from vlm_ci.doctor.probes import INDUCTOR, OBSERVERS, THOROUGH
from vlm_ci.doctor.records import Check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vlm_ci.doctor.outcomes import Outcome
    from vlm_ci.doctor.records import Status

GROUP = "Observers"
REST = "the rest"


def checks(outcomes: Mapping[str, Outcome]) -> list[Check]:
    """Return a check for each observer; those that take long were tried, or one line names them."""
    found = [_check(GROUP, outcomes[name]) for name in (*OBSERVERS, *THOROUGH) if name in outcomes]
    left_out = [name for name in THOROUGH if name not in outcomes]
    if left_out:
        words = f"not tried (only --thorough does): {', '.join(left_out)}"
        found.append(Check(group=GROUP, name=REST, status="absent", found=words))
    return found


def inductor(outcomes: Mapping[str, Outcome]) -> list[Check]:
    """Return a check for each compile with Inductor that was tried."""
    names = [name for name in INDUCTOR if name in outcomes]
    otherwise = (
        "mend the C++ compiler, if its line says so; else compile a small function by hand with "
        "TORCH_LOGS=+inductor, which shows more"
    )
    return [_check(compiler.GROUP, outcomes[name], otherwise=otherwise) for name in names]


def loading(check: Check, outcome: Outcome | None) -> Check:
    """Return a package's check; where the package is installed and does not load, a broken one."""
    if outcome is None or outcome.state == "works" or check.status in ("broken", "absent"):
        return check
    return Check(
        group=check.group,
        name=check.name,
        status="broken",
        found=f"{packages.installed(check.name)} is installed and does not load: {outcome.found}",
        advice=check.advice
        or f"install it again: {packages.install('--force-reinstall', _same(check.name))}",
    )


_REPORT_IT = (
    "this torch was tested: try a fresh virtual environment, and report it with what "
    "`vlm-ci doctor --json` prints"
)


def _check(group: str, outcome: Outcome, *, otherwise: str = _REPORT_IT) -> Check:
    status: Status = "broken"
    if outcome.state in ("works", "absent"):
        status = "ok" if outcome.state == "works" else "absent"
    return Check(
        group=group,
        name=outcome.probe,
        status=status,
        found=outcome.found,
        advice=_advice(otherwise) if status == "broken" else "",
    )


def _advice(otherwise: str) -> str:
    """Say what most likely keeps a probe from working: the plainest cause, or ``otherwise``."""
    if not packages.installed("torch"):
        return packages.install(packages.constraint("torch"))
    if variable := surroundings.disabling():
        return f"`unset {variable}`: it keeps torch from compiling anything"
    if packages.outside("torch"):
        return f"take a torch that was tested: {packages.install(packages.constraint('torch'))}"
    if os.environ.get("TORCH_LOGS"):
        return "`unset TORCH_LOGS`, which can silence what is observed, and try again"
    return otherwise


def _same(package: str) -> str:
    version = packages.installed(package)
    return f"{package}=={version.split('+')[0]}" if version else package
