"""From settings and a target to a result: checks, and writes the evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from vlm_ci import locations, reruns
from vlm_ci.building import plan_for, target_key
from vlm_ci.errors import UsageError
from vlm_ci.failures import Script
from vlm_ci.memory import Memory
from vlm_ci.policies import Policies
from vlm_ci.settings import Settings, attempt
from vlm_ci.traffic.files import read_corpus

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vlm_ci.artifacts import ResultsFolder
    from vlm_ci.baselines.use import Baseline
    from vlm_ci.caching.use import CompileCache
    from vlm_ci.checker import CheckSettings
    from vlm_ci.listeners import Progress
    from vlm_ci.reruns import Recordings
    from vlm_ci.result import EvidenceUse, Result
    from vlm_ci.sharding import Shard
    from vlm_ci.targets.protocol import Target
    from vlm_ci.traffic.spec import Session
    from vlm_ci.warmed import WarmSlot
    from vlm_ci.warmup import Plan


REPRO_TIMEOUT = 300.0  # seconds for one standalone script, all tries together


def run(
    settings: Settings,
    target: Target,
    progress: Progress | None = None,
    *,
    test: str = "",
    name: str | None = None,
    own: bool = False,
    slot: WarmSlot | None = None,
    recordings: Recordings | None = None,
    part: Shard | None = None,
    keep: Callable[[Result], None] = lambda result: None,
) -> Result:
    """Check a target as the settings say; results are written to ``out`` while it goes on.

    ``test`` is the node id of the test that asks, ``name`` the name by which the target can be
    loaded again, None where it cannot be; ``own`` says that the settings did not build it.
    ``recordings`` is the evidence of an earlier attempt, read before anything was written;
    ``part`` is the part of the search that this run does, None for all of it.
    ``keep`` is given the result when the run is over, also where an exception such as a test
    runner's timeout ends it.

    Raises:
        UsageError: bad input, or a target that breaks its protocol.
    """
    from vlm_ci import artifacts
    from vlm_ci.checker import Checker
    from vlm_ci.listeners import Silent
    from vlm_ci.targets.answers import checked

    checked(target)
    artifacts.check(settings.out)
    plan = plan_for(settings, target)
    ignored = _ignored(settings, own=own)
    baseline = _baseline(settings, target, name=name)
    sessions, used = _evidence(settings, target, recordings, test=test, name=name)
    check_settings = _check_settings(
        settings, target, plan, name=name, baseline=baseline, evidence=sessions, part=part
    )
    checker = Checker(
        target,
        check_settings,
        progress or Silent(),
        warmed=slot.take(target, plan) if slot is not None else None,
    )
    result = checker.result
    result.evidence, result.part = used, str(part or "")
    cache = None if checker.warmed is not None else _cache(settings, result)
    books = _open_books(settings, target, plan, result, test=test, name=name, ignored=ignored)
    checker.keep_in(books, cache)
    try:
        checker.run()
    except UsageError:
        raise
    except BaseException:
        keep(result)
        raise
    finally:
        if cache is not None:
            cache.close()
        if slot is not None:
            slot.put(target, checker.warmed)
    keep(result)
    return result


def audit(
    settings: Settings,
    target: Target,
    progress: Progress | None = None,
    *,
    repros: bool = True,
    say: Callable[[str], object] = lambda text: None,
) -> Result:
    """Find all root causes of a target that the settings built; results are written to ``out``
    while it goes on, each cause with the warm-up under which it was found. ``repros`` asks for a
    standalone script for each, which is run; ``say`` hears of it.

    Raises:
        UsageError: bad input, or a target that breaks its protocol.
    """
    from vlm_ci import artifacts
    from vlm_ci.auditor import Auditor
    from vlm_ci.targets.answers import checked

    checked(target)
    artifacts.check(settings.out)
    plan = plan_for(settings, target)
    ignored = _ignored(settings, own=False)
    name = settings.target
    recordings = reruns.gather(settings.evidence) if settings.evidence is not None else None
    sessions, used = _evidence(settings, target, recordings, test="", name=name)
    check_settings = _check_settings(
        settings,
        target,
        plan,
        name=name,
        command="audit",
        evidence=sessions,
        part=settings.shard,
    )
    auditor = Auditor(target, check_settings, progress)
    result = auditor.result
    result.evidence, result.part = used, str(settings.shard or "")
    cache = _cache(settings, result)
    books = _open_books(settings, target, plan, result, test="", name=name, ignored=ignored)
    auditor.keep_in(books, cache)
    try:
        auditor.run()
    finally:
        if cache is not None:
            cache.close()
    if repros and result.verdict != "interrupted":
        _write_repros(books, result, say)
    return result


def _write_repros(books: ResultsFolder, result: Result, say: Callable[[str], object]) -> None:
    """Write a standalone script for each failure; an interrupt keeps those that are written."""
    from vlm_ci import repro

    done = list(result.failures)
    try:
        for index, failure in enumerate(done):
            say(f"standalone repro {index + 1} of {len(done)}")
            written = repro.write(
                books.file_of(failure), books.out / failure.path, timeout=REPRO_TIMEOUT
            )
            script = Script(
                path=f"{failure.path}/{written.path.name}" if written.path else "",
                reproduced=written.reproduced,
                note=written.note,
            )
            done[index] = msgspec.structs.replace(failure, repro=script)
    finally:
        books.update(result, done)


def _check_settings(
    settings: Settings,
    target: Target,
    plan: Plan,
    *,
    name: str | None,
    command: str = "run",
    baseline: Baseline | None = None,
    evidence: tuple[Session, ...] = (),
    part: Shard | None = None,
) -> CheckSettings:
    from vlm_ci.checker import CheckSettings

    return CheckSettings(
        examples=settings.examples,
        seed=settings.seed,
        plan=plan,
        command=command,
        corpus=tuple(read_corpus(corpus_folders(settings)).values()),
        memory=_memory(settings, name or target.name),
        evidence=evidence,
        part=part,
        target=name,
        policies=Policies(settings.policy),
        baseline=baseline,
        reference=settings.reference,
        relations=settings.relations,
    )


def _open_books(
    settings: Settings,
    target: Target,
    plan: Plan,
    result: Result,
    *,
    test: str,
    name: str | None,
    ignored: list[str],
) -> ResultsFolder:
    """Say in the result what the settings brought, and begin its folder anew."""
    from vlm_ci import artifacts

    result.test = test
    result.shard = str(settings.shard or "")
    result.commit, result.attempt = settings.commit, attempt()
    if settings.bug is not None:
        result.options["bug"] = settings.bug
        result.options["repaired"] = settings.repaired
    result.options |= {"reference": settings.reference, "relations": settings.relations}
    if settings.policy:
        result.options["policy"] = dict(settings.policy)
    result.warnings += ignored
    if result.evidence is not None:
        result.warnings += reruns.warnings(result.evidence)
    result.warmup.plan = plan.name
    artifacts.prepare(settings.out)  # not before: bad input leaves earlier results alone
    return artifacts.ResultsFolder(
        settings.out,
        artifacts.evidence_of(
            result,
            plan=plan.batches,
            envelope=target.envelope,
            test=test,
            loadable=name is not None,
        ),
    )


def corpus_folders(settings: Settings) -> tuple[Path, ...]:
    """Return the folders of recorded traffic: our own, and the user's."""
    return (locations.fixtures() / "traffic", settings.corpus)


def _baseline(settings: Settings, target: Target, *, name: str | None) -> Baseline | None:
    """Return what the run is compared with; what we bring is that of targets of ours."""
    if settings.baselines is None:
        return None
    from vlm_ci.baselines.use import open_baseline

    info = getattr(target, "info", None)
    return open_baseline(
        settings.baselines,
        name or (info.name if info is not None else target.name),
        shipped=name is not None,
        envelope=(settings.envelope, target.envelope) if settings.envelope is not None else None,
        updates=settings.update_baselines,
    )


def _memory(settings: Settings, name: str) -> Memory | None:
    """Return the memory of this target alone: what fails on another one may pass on this."""
    if settings.database is None:
        return None
    parts = (name, *target_key(settings)[1:], settings.warmup)
    return Memory.at(
        settings.database, " ".join(map(str, parts)), readonly=settings.database_readonly
    )


def _evidence(
    settings: Settings,
    target: Target,
    recordings: Recordings | None,
    *,
    test: str,
    name: str | None,
) -> tuple[tuple[Session, ...], EvidenceUse | None]:
    """Return the sessions of an earlier attempt that belong to this run, and what is said of it."""
    if recordings is None:
        return (), None
    from vlm_ci.targets.protocol import info_of

    info = info_of(target)
    options = {"device": info.device, "dtype": info.dtype, **info.options}
    if settings.bug is not None:
        options |= {"bug": settings.bug, "repaired": settings.repaired}
    wanted = reruns.Wanted(
        test=test,
        target=name or info.name,
        recipe=info.recipe,
        backend=info.backend,
        options=options,
        envelope=target.envelope,
    )
    return reruns.choose(recordings, wanted)


def _cache(settings: Settings, result: Result) -> CompileCache | None:
    """Return the cache that the settings name, its record and its warnings in the result.

    Raises:
        UsageError: the lock file cannot be read.
    """
    if settings.cache is None:
        return None
    from vlm_ci.caching.use import CompileCache

    cache = CompileCache(
        settings.cache,
        device=str(result.options["device"]),
        backend=result.backend,
        scope=settings.cache_scope,
        lock=settings.cache_lock,
        warn=result.warnings.append,
    )
    result.cache = cache.use
    return cache


def _ignored(settings: Settings, *, own: bool) -> list[str]:
    """Say which options do not reach a target that brings its own model.

    Raises:
        UsageError: a bug or an envelope is among them, without which the run means something else.
    """
    from vlm_ci.targets.loading import is_factory

    if not own and not is_factory(settings.target):
        return []
    for option, value in (("bug", settings.bug), ("envelope", settings.envelope)):
        if own and value is not None:
            raise UsageError(
                f"the option {option} does not apply here: this test builds its target itself"
            )
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
