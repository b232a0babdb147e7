"""From settings to a target and its warm-up plan; checks names, files and device before that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_ci.errors import UsageError
from vlm_ci.warmup import Plan, find_plan

if TYPE_CHECKING:
    from vlm_ci.settings import Settings
    from vlm_ci.targets.protocol import Target
    from vlm_ci.traffic.envelope import Envelope


# What tells one target from another, besides its warm-up.
TARGET_FIELDS = (
    "target", "recipe", "backend", "device", "dtype", "dynamic", "mode", "fullgraph",
    "recompile_limit", "envelope", "bug", "repaired",
)  # fmt: skip


def target_key(settings: Settings) -> tuple[object, ...]:
    """Return what tells the target of these settings from others."""
    return tuple(getattr(settings, name) for name in TARGET_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What is known before a model is built; None for a target that brings its own."""

    envelope: Envelope | None
    plan: Plan | None


def prepare(settings: Settings) -> Prepared:
    """Check names, files, device and envelope before anything expensive begins.

    Raises:
        UsageError: something is unknown, unreadable, or does not fit the model.
    """
    from vlm_ci import bugs
    from vlm_ci.families.base import check_envelope
    from vlm_ci.parity import relations
    from vlm_ci.targets import loading, models, recipes
    from vlm_ci.targets.backends import CompileOptions

    CompileOptions(
        backend=settings.backend,
        dynamic=settings.dynamic,
        mode=settings.mode,
        fullgraph=settings.fullgraph,
        recompile_limit=settings.recompile_limit,
    )
    recipes.load(settings.recipe)
    relations.parse(settings.relations)
    loading.resolve_dtype(settings.dtype)
    loading.resolve_device(settings.device)
    if loading.is_factory(settings.target):
        for option, given in (("bug", settings.bug), ("envelope", settings.envelope)):
            if given is not None:
                raise UsageError(
                    f"--{option} does not apply to {settings.target!r}, a target of your own: it "
                    "brings its model and its envelope"
                )
        return Prepared(envelope=None, plan=None)
    source = models.find(settings.target)
    if settings.bug is not None:
        planted = models.find(bugs.find(settings.bug).target).family.name
        if planted != source.family.name:
            raise UsageError(
                f"--bug {settings.bug} is planted in a model of family {planted}; target "
                f"{settings.target} is of family {source.family.name}"
            )
    envelope = source.family.envelope(source.config)
    if settings.envelope is not None:
        from vlm_ci.traffic.files import read_envelope

        envelope = read_envelope(settings.envelope, envelope)
        check_envelope(source.family, source.config, envelope)
    return Prepared(envelope=envelope, plan=find_plan(settings.warmup, envelope))


def build_target(settings: Settings, *, envelope: Envelope | None = None) -> Target:
    """Load the target that the settings name, with the planted bug if they name one.

    ``envelope`` stands in place of the one that the settings name.
    """
    from vlm_ci import bugs
    from vlm_ci.targets.loading import load_target

    bug = bugs.find(settings.bug) if settings.bug is not None else None
    mutate = bugs.change(bug.name, repaired=settings.repaired) if bug else None
    return load_target(
        settings.target,
        recipe=settings.recipe,
        backend=settings.backend,
        dynamic=settings.dynamic,
        mode=settings.mode,
        fullgraph=settings.fullgraph,
        recompile_limit=settings.recompile_limit,
        device=settings.device,
        dtype=settings.dtype,
        envelope=envelope or prepare(settings).envelope,
        mutate=mutate,
        in_both=bug is not None and bug.in_both,
    )


def plan_for(settings: Settings, target: Target) -> Plan:
    """Return the warm-up plan that the settings name, for this target's envelope.

    Raises:
        UsageError: there is none, or it holds batches that the envelope does not allow.
    """
    plan = find_plan(settings.warmup, target.envelope)
    check_plan(plan, target.envelope)
    return plan


def check_plan(plan: Plan, envelope: Envelope) -> None:
    """Refuse a plan with batches outside the envelope.

    Raises:
        UsageError: it has some; the message names the first three.
    """
    refused = [
        f"batch {index}: {reason}"
        for index, batch in enumerate(plan.batches)
        if (reason := envelope.violation(batch))
    ]
    if refused:
        raise UsageError(
            f"warm-up plan {plan.name} holds batches outside the envelope: {'; '.join(refused[:3])}"
        )
