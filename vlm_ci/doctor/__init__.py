"""What this machine has, which observers work, and what to do about the rest.

Importing it loads no torch, and ``report`` does not load torch into this process: what has to be
tried with torch is tried in a process of its own, which may crash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_ci.doctor import compiler, launch, machine, observers, packages, surroundings
from vlm_ci.doctor.loads import LOADS
from vlm_ci.doctor.probes import INDUCTOR, OBSERVERS, THOROUGH
from vlm_ci.doctor.records import Check, Report, first_line, render

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vlm_ci.doctor.outcomes import Outcome

__all__ = ["Check", "Report", "render", "report"]

_THOROUGH_TIMEOUT = 600.0  # seconds; Inductor's first compile takes minutes on a slow machine


def report(out: Path, *, thorough: bool = False) -> Report:
    """Look at this machine. ``out`` is the folder for results; it is not made.

    ``thorough`` compiles with Inductor too, for the CPU and for a GPU, which takes 20 s and more.
    """
    outcomes = _probe(thorough=thorough)
    loaded = outcomes["torch"].torch if "torch" in outcomes else None
    gpu = loaded is not None and bool(loaded.gpus)

    def installed() -> list[Check]:
        found = [*packages.checks(), *packages.optional(gpu=gpu)]
        return [observers.loading(check, outcomes.get(check.name)) for check in found]

    sections: dict[str, Callable[[], list[Check]]] = {
        packages.GROUP: installed,
        machine.GROUP: lambda: machine.checks(out, loaded),
        compiler.GROUP: lambda: [
            compiler.check(thorough=thorough),
            *observers.inductor(outcomes),
        ],
        observers.GROUP: lambda: observers.checks(outcomes),
        surroundings.PLUGIN_GROUP: surroundings.plugin,
        surroundings.GROUP: surroundings.variables,
    }
    return Report.of(check for group, look in sections.items() for check in _look(group, look))


def _look(group: str, look: Callable[[], list[Check]]) -> list[Check]:
    """Return a section's checks; an error of ours costs that section, not the report."""
    try:
        return look()
    except Exception as error:
        return [
            Check(
                group=group,
                name="doctor",
                status="warning",
                found=f"this could not be looked at: {first_line(error)}",
                advice="report it: this is an error of vlm_ci's own",
            )
        ]


def _probe(*, thorough: bool) -> dict[str, Outcome]:
    loads = [name for name in LOADS if packages.installed(name)]
    outcomes = launch.probe([*loads, *OBSERVERS])
    if thorough:
        outcomes |= launch.probe(
            [*INDUCTOR, *THOROUGH], timeout=_THOROUGH_TIMEOUT, fresh_cache=True
        )
    return outcomes
