"""JSON schemas of the files that vlm_ci reads and writes; the files lie beside this module.

``python -m vlm_ci.schemas`` writes them anew from the types.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

FOLDER = Path(__file__).parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def generate() -> dict[str, dict[str, Any]]:
    """Return the schema of each kind of file, by the name of the schema's own file."""
    from vlm_ci.baselines.records import BaselineFile
    from vlm_ci.bot.policy import Policy
    from vlm_ci.bot.records import Record
    from vlm_ci.evidence import FailureFile
    from vlm_ci.result import Result
    from vlm_ci.traffic.envelope import Envelope
    from vlm_ci.traffic.files import PlanFile
    from vlm_ci.traffic.spec import Session

    kinds = {
        "result": Result,
        "failure": FailureFile,
        "traffic": Session,
        "plan": PlanFile,
        "envelope": Envelope,
        "baseline": BaselineFile,
        "bot-policy": Policy,
        "bot-decision": Record,
    }
    return {
        f"{name}.schema.json": {"$schema": DIALECT, **msgspec.json.schema(kind)}
        for name, kind in kinds.items()
    }


def write() -> None:
    """Write every schema beside this module."""
    from vlm_ci.traffic.files import pretty

    for name, schema in generate().items():
        (FOLDER / name).write_bytes(pretty(schema))
