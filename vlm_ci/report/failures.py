"""The text of failures, in a red test and in reports. Pure: failures in, text out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_ci.failures import Failure, headline, render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlm_ci.traffic.envelope import Geometry


def failure_text(
    failures: Sequence[Failure], *, out: str, geometry: Geometry | None, replayable: bool
) -> str:
    """Return all causes of a red test, each once; the first line alone tells the most.

    Several causes are counted on the first line, which is all that the short summary shows.
    """
    texts = [
        render(failure, out=out, geometry=geometry, replayable=replayable) for failure in failures
    ]
    if len(failures) == 1:
        return texts[0]
    others = len(failures) - 1
    first = f"{headline(failures[0])} (and {others} more cause{'s' if others > 1 else ''})"
    return "\n\n".join([first, *texts])


def text_of(failure: Failure, *, out: str, geometry: Geometry | None, replayable: bool) -> str:
    """Return a failure that was read back as text that stands alone; of one that is not as we write
    it, its cause."""
    try:
        return render(failure, out=out, geometry=geometry, replayable=replayable)
    except (KeyError, TypeError):  # what its place or its arguments hold is anybody's
        return headline(failure)
