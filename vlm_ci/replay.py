"""Replay: one recorded session again, after the same warm-up, and all that is known of it said."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vlm_ci import building, evidence
from vlm_ci.environment import describe
from vlm_ci.errors import UsageError
from vlm_ci.failures import Failure, headline, render
from vlm_ci.options import DEFAULT_CORPUS
from vlm_ci.report import replay as report
from vlm_ci.report.terminal import line, target_line, warmup_line
from vlm_ci.settings import Layer, Settings
from vlm_ci.targets.loading import is_factory
from vlm_ci.traffic.files import pretty, read_corpus, read_traffic
from vlm_ci.traffic.spec import TRAFFIC_SCHEMA, Session
from vlm_ci.warmed import WarmSlot
from vlm_ci.warmup import Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from vlm_ci.evidence import FailureFile
    from vlm_ci.listeners import Progress
    from vlm_ci.result import Result
    from vlm_ci.strict import Step
    from vlm_ci.targets.protocol import Target
    from vlm_ci.traffic.envelope import Envelope, Geometry

FIXED, FAILS, INTERRUPTED, BAD_INPUT = 0, 1, 2, 4
REPRO_SECONDS = 300.0  # for all tries of one repro
EXAMPLES = 20  # sessions for a failure that belongs to none
# Recorded options that hold for targets of a user's own, which bring everything else.
OF_ANY_TARGET = ("target", "warmup", "policy", "reference", "relations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What is to be replayed: a recorded failure in its folder, or traffic alone (then ``file``
    and ``folder`` are None)."""

    name: str
    session: Session | None
    file: FailureFile | None = None
    failure: Failure | None = None
    notes: tuple[str, ...] = ()
    folder: Path | None = None


def replay(
    name: str,
    given: dict[str, Any],
    *,
    results: Path,
    corpus: Path | None,
    keep: bool,
    say: Callable[[str], object],
    repro: bool = False,
    progress: Progress | None = None,
) -> int:
    """Replay what ``name`` stands for; returns 0 where all of it passes now, 1 where it fails.

    ``given`` are options that win over the recorded ones; ``results`` is where the node id of a
    test is looked up. ``keep`` puts the traffic into ``corpus`` first. ``repro`` writes a script
    of each failure, as it was recorded, into its folder. Nothing that was recorded is changed.

    Raises:
        UsageError: there is no such recording, or it cannot be run here.
    """
    recordings = find(name, results)
    worst = FIXED
    bench = _Bench(progress)
    try:
        for index, recording in enumerate(recordings):
            if index:
                say("")
            if keep:
                say(line("kept", _keep(recording, corpus or Path(DEFAULT_CORPUS))))
            try:
                worst = max(worst, bench.replay(recording, given, say))
                if repro and worst != INTERRUPTED:
                    say(line("repro", _standalone(recording)))
            except UsageError as error:
                if len(recordings) == 1:
                    raise
                say(line("error", str(error)))  # the others may still be replayed
                worst = max(worst, BAD_INPUT)
            if worst == INTERRUPTED:
                break
    finally:
        bench.close()
    return worst


def find(name: str, results: Path) -> list[Recording]:
    """Read what ``name`` stands for: recorded failures, or a traffic file.

    Raises:
        UsageError: there is none, or a file is broken.
    """
    path = Path(name)
    if path.is_file() and _is_traffic(path):
        return [Recording(name=name, session=read_traffic(path))]
    return [
        Recording(
            name=str(recorded.path.parent if recorded.path.name == "failure.json" else path),
            session=recorded.failure.traffic,
            file=recorded.file,
            failure=recorded.failure,
            notes=recorded.notes,
            folder=recorded.path.parent,
        )
        for recorded in evidence.find(name, results)
    ]


def _is_traffic(path: Path) -> bool:
    try:
        content = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return False
    schema = content.get("schema") if isinstance(content, dict) else None
    return schema == TRAFFIC_SCHEMA or (isinstance(content, dict) and "batches" in content)


def _keep(recording: Recording, corpus: Path) -> str:
    """Put traffic into the corpus; returns where it lies."""
    if recording.session is None:
        return "nothing: this failure has no traffic"
    try:
        for name, session in read_corpus([corpus]).items():
            if session == recording.session:
                return f"{name} (it was there already)"
        words = headline(recording.failure) if recording.failure else Path(recording.name).stem
        slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:48].rstrip("-")
        content = pretty(recording.session)
        path = corpus / f"{slug}-{zlib.crc32(content):08x}.json"
        corpus.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"cannot write to the corpus {corpus}: {error.strerror}") from None
    return f"{path}: every later run tries it first"


def _standalone(recording: Recording) -> str:
    """Write the standalone repro of a recorded failure; returns what came of it."""
    from vlm_ci import repro

    if recording.file is None or recording.folder is None:
        return "none: this is traffic alone; a repro needs a recorded failure"
    try:
        made = repro.write(recording.file, recording.folder, timeout=REPRO_SECONDS)
    except OSError as error:
        raise UsageError(f"cannot write a repro to {recording.folder}: {error.strerror}") from None
    if made.path is None:
        return f"none: {made.note}"
    if not made.reproduced:
        return f"{made.path} does not reproduce: {made.note}"
    return f"{made.path} reproduces in a fresh process{f'; {made.note}' if made.note else ''}"


class _Bench:
    """The target of the last recording; recordings of one run share it, warm."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._target: Target | None = None
        self._key: object = None
        self._slot = WarmSlot()

    def close(self) -> None:
        target, self._target = self._target, None
        if target is not None:
            target.close()

    def replay(
        self, recording: Recording, given: dict[str, Any], say: Callable[[str], object]
    ) -> int:
        from vlm_ci.checker import Checker, CheckSettings
        from vlm_ci.listeners import Silent
        from vlm_ci.policies import Policies

        file = recording.file
        if file is not None and not file.loadable and not given.get("target"):
            raise UsageError(
                f"{recording.name} was recorded on {file.target}, which {file.test} built itself: "
                "run that test again, or name the target with --target package.module:factory"
            )
        if recording.failure is not None and recording.failure.kind == "baseline":
            raise UsageError(
                f"{recording.name} belongs to a whole run: run it again, as it was, to compare it "
                "with its baseline"
            )
        settings = settings_of(recording, given)
        say(line("replay", recording.name))
        if recording.failure is not None:
            say(line("recorded", headline(recording.failure)))
        for note in recording.notes:
            say(line("differs", f"{note}; trying anyway"))
        target = self._load(settings, _envelope(recording, given))
        plan = _plan(recording, given, settings, target)
        if recording.session is not None:
            for batch in recording.session.batches:
                if reason := target.envelope.violation(batch):
                    raise UsageError(
                        f"the traffic of {recording.name} is outside the envelope of "
                        f"{settings.target}: {reason}"
                    )
        checker = Checker(
            target,
            CheckSettings(
                plan=plan,
                command="replay",
                target=settings.target,
                examples=EXAMPLES,
                policies=Policies(settings.policy),
                reference=settings.reference,
                relations=settings.relations,
            ),
            self._progress or Silent(),
            warmed=self._slot.take(target, plan),
        )
        result = checker.result
        if settings.bug is not None:
            result.options |= {"bug": settings.bug, "repaired": settings.repaired}
        say(line("target", target_line(result)))
        if recording.file is not None:
            now = describe(settings.device)
            for text in report.differences(recording.file.environment, now):
                say(text)
        self._serve(recording, checker, say)
        self._slot.put(target, checker.warmed)
        if result.verdict == "interrupted":
            return INTERRUPTED
        return _judge(recording, result, target.envelope.geometry, say)

    def _serve(self, recording: Recording, checker: Any, say: Callable[[str], object]) -> None:
        total = len(recording.session.batches) if recording.session else 0
        geometry = checker.target.envelope.geometry
        number = 0

        def on_step(step: Step) -> None:
            nonlocal number
            number += 1
            if number == 1:
                say(line("warm-up", warmup_line(checker.result)))
            for text in report.step(step, number, total, geometry):
                say(text)

        if recording.session is None:
            say(line("traffic", f"none was recorded: searching {EXAMPLES} sessions again"))
        checker.replay(recording.session, on_step)
        if not number:
            say(line("warm-up", warmup_line(checker.result)))

    def _load(self, settings: Settings, envelope: Envelope | None) -> Target:
        key = (settings, envelope)
        if self._target is None or key != self._key:
            self.close()
            # The recorded plan and envelope stand for the files, which may be gone.
            known = envelope is not None
            building.prepare(
                replace(settings, warmup="default", envelope=None) if known else settings
            )
            self._target = building.build_target(settings, envelope=envelope)
            self._key = key
        return self._target


def _judge(
    recording: Recording, result: Result, geometry: Geometry, say: Callable[[str], object]
) -> int:
    for failure in result.failures:
        say("")
        say(render(failure, geometry=geometry))
    say("")
    say(line("verdict", report.outcome(recording.failure, result.failures)))
    return FAILS if result.failures else FIXED


def settings_of(recording: Recording, given: dict[str, Any]) -> Settings:
    """Return the settings of a recorded run, under what is given now.

    Raises:
        UsageError: a given value is wrong, or a target of one's own cannot be imported.
    """
    file = recording.file
    if file is None:
        return Settings.from_mapping(given)
    dynamic = {True: "true", False: "false", None: "auto"}
    recorded: dict[str, Any] = {
        "target": file.target,
        "recipe": file.recipe,
        "backend": file.backend,
        "warmup": file.warmup,
        **{name: file.options.get(name) for name in ("device", "dtype", "mode", "bug")},
        "recompile_limit": file.options.get("recompile_limit"),
        "fullgraph": file.options.get("fullgraph"),
        "repaired": file.options.get("repaired"),
        "policy": _policy_text(recording),
        "reference": file.options.get("reference"),
        "relations": _relation(recording) or file.options.get("relations"),
    }
    if "dynamic" in file.options:
        value = file.options["dynamic"]
        if not (value is None or isinstance(value, bool)):
            raise UsageError(f"dynamic in {recording.name} must be true, false or null")
        recorded["dynamic"] = dynamic[value]
    if is_factory(file.target):  # it brings all of this itself
        recorded = {name: recorded[name] for name in OF_ANY_TARGET}
    label = f"in {recording.name}"
    return Settings.from_layers(
        [
            Layer(values=recorded, wording=lambda option: f"{option.field} {label}"),
            Layer(values=given),
        ]
    )


def _relation(recording: Recording) -> str | None:
    """Return the metamorphic relation that the recorded failure breaks."""
    place = recording.failure.location if recording.failure is not None else None
    return place.get("relation") if place else None


def _policy_text(recording: Recording) -> str | None:
    """Return the recorded policies as the command line writes them."""
    policy = recording.file.options.get("policy") if recording.file is not None else None
    if not policy:
        return None
    if not isinstance(policy, dict):
        raise UsageError(f"policy in {recording.name} must be an object of kinds and policies")
    return ",".join(f"{kind}={what}" for kind, what in policy.items())


def _envelope(recording: Recording, given: dict[str, Any]) -> Envelope | None:
    """Return the recorded envelope, unless another one or another target is asked for."""
    if recording.file is None or given.get("envelope") or given.get("target"):
        return None
    return recording.file.envelope


def _plan(recording: Recording, given: dict[str, Any], settings: Settings, target: Target) -> Plan:
    """Return the recorded plan, unless another one is asked for."""
    file = recording.file
    if file is None or not file.plan or given.get("warmup") or given.get("target"):
        return building.plan_for(settings, target)
    plan = Plan(name=file.warmup, batches=file.plan)
    building.check_plan(plan, target.envelope)
    return plan
