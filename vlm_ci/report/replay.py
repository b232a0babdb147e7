"""What a replay says. Pure: records in, lines of text out."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from vlm_ci.failures import Failure, headline, identity
from vlm_ci.report.terminal import line
from vlm_ci.traffic import drawing
from vlm_ci.traffic.spec import Session
from vlm_ci.watch.events import region_class

if TYPE_CHECKING:
    from vlm_ci.parity.comparison import Comparison
    from vlm_ci.strict import Step
    from vlm_ci.traffic.envelope import Geometry

COMPARED = ("vlm_ci", "python", "torch", "transformers", "device", "hardware")


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Say which versions and devices differ from those of the recording."""
    return [
        line("differs", f"{name} was {then[name]} and is {now.get(name)} now; trying anyway")
        for name in COMPARED
        if name in then and then[name] != now.get(name)
    ]


def step(step: Step, number: int, total: int, geometry: Geometry | None) -> list[str]:
    """Say what one batch did: traffic, calls of compiled code, refusals, logits."""
    rows = drawing.draw(Session((step.batch,)), geometry)
    lines = [line(f"batch {number} of {total}", rows[0]), *(line("", row) for row in rows[1:])]
    lines.append(line("", repr(step.batch)))
    regions = "an unknown number of" if step.regions is None else step.regions
    lines.append(line("  regions", f"{regions} compiled regions executed"))
    calls = defaultdict(list)
    for call in step.calls:
        calls[region_class(call.region)].append(call)
    for name, group in calls.items():
        executed = sum(call.regions for call in group)
        many = f"{len(group)} calls" if len(group) > 1 else "1 call"
        lines.append(line("  call", f"{name}: {many}, {executed} regions"))
        signature = group[0].signature
        if signature is not None:
            lines += [
                line("", f"  {path}: {signature.describe(path)}")
                for path, aspects in signature.aspects.items()
                if aspects["type"] != "state"
            ]
    for refusal, _, region in step.refusals:
        where = f" in {region}" if region else ""
        lines.append(line("  refused", f"{refusal.frame}{where}"))
        lines += [line("  guard", guard) for guard in refusal.guards]
    lines.append(line("  logits", _logits(step.comparison)))
    return lines


def _logits(comparison: Comparison | None) -> str:
    if comparison is None:
        return "not reached"
    if comparison.at is None:
        return f"{comparison.tokens} tokens compared"
    at = comparison.at
    place = f"request {at.request}, token {at.token}, {at.modality}"
    if comparison.nonfinite:
        return f"{comparison.nonfinite} ones hold NaN or Inf ({place})"
    return (
        f"{comparison.tokens} tokens compared; worst error {comparison.error:.3g}, "
        f"{comparison.ratio:.3g} of what is allowed ({place})"
    )


def outcome(recorded: Failure | None, found: list[Failure]) -> str:
    """Say whether the recorded failure still shows."""
    if recorded is None:
        return "it fails" if found else "clean: this traffic passes"
    if identity(recorded) in map(identity, found):
        return "it still fails, with the cause that was recorded"
    if found:
        causes = "; ".join(map(headline, found))
        return f"it fails, with another cause than the one that was recorded: {causes}"
    tail = f" ({recorded.note})" if recorded.note else ""
    return f"fixed: the recorded failure does not show any more{tail}"
