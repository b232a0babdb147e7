"""From settings to a result: builds the target and the plan, checks, and writes the evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_ci.errors import UsageError
from vlm_ci.settings import Settings
from vlm_ci.warmup import Plan, find_plan

if TYPE_CHECKING:
    from vlm_ci.checker import Progress
    from vlm_ci.result import Result
    from vlm_ci.targets.protocol import Target
    from vlm_ci.traffic.envelope import Envelope


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


def build_target(settings: Settings) -> Target:
    """Load the target that the settings name, with the planted bug if they name one."""
    from vlm_ci import bugs
    from vlm_ci.targets.loading import load_target

    mutate = None
    if settings.bug is not None:
        mutate = bugs.change(settings.bug, repaired=settings.repaired)
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
        envelope=prepare(settings).envelope,
        mutate=mutate,
    )


def run(settings: Settings, target: Target, progress: Progress | None = None) -> Result:
    """Check a target as the settings say, and write the result and its evidence to ``out``."""
    from vlm_ci import artifacts
    from vlm_ci.checker import Checker, CheckSettings, Silent

    artifacts.prepare(settings.out)
    plan = find_plan(settings.warmup, target.envelope)
    refused = [
        f"batch {index}: {reason}"
        for index, batch in enumerate(plan.batches)
        if (reason := target.envelope.violation(batch))
    ]
    if refused:
        raise UsageError(
            f"warm-up plan {plan.name} holds batches outside the envelope: {'; '.join(refused[:3])}"
        )
    checker = Checker(
        target,
        CheckSettings(examples=settings.examples, seed=settings.seed, plan=plan),
        progress or Silent(),
    )
    if settings.bug is not None:
        checker.result.options["bug"] = settings.bug
        checker.result.options["repaired"] = settings.repaired
    checker.result.warnings += _ignored(settings)
    checker.run()
    artifacts.write(checker.result, checker.watcher.run_events, settings.out)
    return checker.result


def _ignored(settings: Settings) -> list[str]:
    """Say which options do not reach a target that brings its own model."""
    from vlm_ci.targets.loading import is_factory

    if not is_factory(settings.target):
        return []
    options = (
        "recipe",
        "backend",
        "device",
        "dtype",
        "dynamic",
        "mode",
        "fullgraph",
        "recompile_limit",
    )
    given = [name for name in options if getattr(settings, name) != getattr(Settings(), name)]
    return [
        f"--{name.replace('_', '-')} does not apply to {settings.target}, a target of your own"
        for name in given
    ]
