"""What `vlm-ci run` hands into the pytest session that it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_ci.listeners import Progress
    from vlm_ci.result import Result

CARRIER = "vlm_ci_carrier"


class Carrier:
    """Takes the command line's progress line into the session, and results out of it."""

    __name__ = CARRIER

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.results: list[Result] = []
