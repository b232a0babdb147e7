"""Whether what a script printed is the recorded cause. Pure: texts in, words out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vlm_ci.failures import ENDED
from vlm_ci.watch.internals import parse_guards, short_path

if TYPE_CHECKING:
    from vlm_ci.failures import Failure

_PLACE = re.compile(r"filename: '(?P<path>.*?)', function name: '(?P<name>.*?)'")
_LIMIT = re.compile(r"function: '(?P<name>.*)' \((?P<path>.*):\d+\)")
_FRAME = re.compile(r"^(?P<name>\S+) \((?P<path>.*?):\d+\)")
_ORDINARY = re.compile(r"(size|stride) mismatch at index")
_ONE = re.compile(r"^N <= .*\.size\(\)\[N\]$")


def difference(failure: Failure, returncode: int, output: str) -> str:
    """Say in what a script's outcome differs from the recorded failure; empty where it does not.

    Line numbers and sizes do not count. Of a refusal's guards one of those has to fail that tell
    the recorded cause (``telling``): a size that a shorter warm-up holds to be static does not.
    """
    if returncode < 0 and failure.key == ENDED:
        return ""
    if returncode == 0:
        return _last(output)
    if returncode != 1:
        return f"it ended with exit code {returncode}: {_last(output)}"
    if failure.kind in ("recompile", "new-frame"):
        return _refusal(failure, output)
    if failure.kind == "limit-hit":
        return _limit(failure, output)
    if expected := _marks(failure):
        return "" if re.search(expected, output, re.MULTILINE) else _last(output)
    return f"nothing is known of kind {failure.kind}"


def telling(failure: Failure) -> frozenset[str]:
    """Return the guards that tell a failure from others, digits replaced by N.

    These are, the first that there are: guards on an argument that appears, vanishes or changes its
    type; guards against a size of 1, where one is 1; guards that the cause names; guards on other
    things than sizes; all of them.
    """
    guards = {undigited(guard) for guard in failure.guards}
    heavy, ones = [], False
    for one in failure.difference:
        if one["aspect"].startswith("size "):
            ones |= "1" in (one["warm"], one["now"])
        elif one["aspect"] != "layout":
            heavy.append(undigited(one["path"]))
    named = re.compile("|".join(rf"\b{re.escape(path)}(?!\w)" for path in heavy) or "(?!)")
    choices = (
        {guard for guard in guards if named.search(plain(guard))},
        {guard for guard in guards if ones and _ONE.search(guard)},
        {guard for guard in guards if plain(guard) in failure.key},
        {guard for guard in guards if not _ORDINARY.search(guard)},
    )
    return frozenset(next(filter(None, choices), guards))


def undigited(text: str) -> str:
    """Replace numbers by N."""
    return re.sub(r"\d+", "N", text)


def plain(guard: str) -> str:
    """Write arguments as the caller does: ``kwargs['mask']`` becomes ``mask``."""
    return re.sub(r"kwargs\['(\w+)'\]", r"\1", guard)


def _refusal(failure: Failure, output: str) -> str:
    place = _PLACE.search(output)
    if place is None:
        return _last(output)
    if reason := _elsewhere(failure, place):
        return f"torch refused {reason}"
    found = {undigited(guard) for guard in parse_guards(output)}
    if failure.kind == "new-frame":
        return f"another guard failed: {min(found)}" if found else ""
    if found & telling(failure):
        return ""
    return f"another guard failed: {min(found)}" if found else "the frame was never compiled"


def _limit(failure: Failure, output: str) -> str:
    places = list(_LIMIT.finditer(output))
    if not places:
        return _last(output)
    reasons = [_elsewhere(failure, place) for place in places]
    return "" if "" in reasons else f"the limit was reached at {reasons[0]}"


def _elsewhere(failure: Failure, place: re.Match[str]) -> str:
    """Name the frame, where it is not the recorded one."""
    frame = _FRAME.search(failure.frame)
    found = undigited(f"{place['name']} ({short_path(place['path'])})")
    if frame is None or found == undigited(f"{frame['name']} ({frame['path']})"):
        return ""
    return f"{place['name']} ({short_path(place['path'])}), not {frame['name']}"


def _marks(failure: Failure) -> str:
    """Return the pattern of what a script prints that shows the failure."""
    if failure.kind == "nonfinite":
        return rf"^the {failure.key} logits hold NaN or Inf"
    if failure.kind == "mismatch":
        return (
            "^compiled logits .*, eager ones"
            if failure.key == "shape"
            else r"^worst difference (?!0\b(?!\.\d*[1-9]))"
        )
    if failure.kind == "eager-fallback":
        return r"^\d+ (compiled regions executed|of \d+ calls executed no region)"
    if failure.kind == "crash":
        raised = re.search(r"raised (\w+): (.{,20})", failure.cause)
        return rf"^{raised[1]}: {re.escape(raised[2])}" if raised else ""
    return ""


def _last(output: str) -> str:
    """Return what a script ended with."""
    if place := _PLACE.search(output):
        return f"torch refused {place['name']} ({short_path(place['path'])})"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
