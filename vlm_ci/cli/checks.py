"""run, audit, replay and warmup: the commands that build a target."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from vlm_ci.cli.base import (
    CLEAN,
    FOUND,
    INTERRUPTED,
    NOTHING_RAN,
    OWN_ERROR,
    add_options,
    cli,
    end_as_ctrl_c_does,
)
from vlm_ci.errors import UsageError
from vlm_ci.options import DEFAULT_CORPUS, DEFAULT_OUT, OPTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

SUITES = ("recompile", "parity")


@cli.command()
@add_options(OPTIONS)
@click.option(
    "--suite",
    type=click.Choice(SUITES),
    default=SUITES[0],
    help="recompile: one exploration; parity: each relation in a test of its own as well",
)
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- PYTEST_ARGS]")
def run(pytest_args: tuple[str, ...], suite: str, **given: Any) -> None:
    """Check a target: warm up, then one strict exploration judged for recompiles and parity.

    Runs a suite through pytest; what follows -- goes to pytest.
    """
    from vlm_ci.settings import Settings

    settings = Settings.from_mapping(given)
    from vlm_ci import artifacts, building, locations
    from vlm_ci.report.progress import TerminalProgress

    signal.signal(signal.SIGTERM, end_as_ctrl_c_does)
    # pytest captures the terminal's descriptors; the progress line needs one of its own.
    with os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8") as stream:
        progress = TerminalProgress(stream)
        try:
            progress.note("loading torch and transformers")
            for name in settings.targets:
                building.prepare(settings.for_target(name))
            artifacts.check(settings.out)
            code = _pytest(given, pytest_args, progress, str(locations.suites()), suite)
        finally:
            progress.close()
    raise SystemExit(code)


def _pytest(
    given: dict[str, Any], extra: Sequence[str], progress: Any, suites: str, suite: str
) -> int:
    from importlib.metadata import entry_points

    import pytest

    from vlm_ci.plugin.carrier import Carrier

    carrier = Carrier(progress)
    args = [
        f"{suites}/{suite}",
        "-c",
        f"{suites}/run.ini",
        "--rootdir",
        suites,
        "-p",
        "no:cacheprovider",
        "-p",
        "no:logging",
        "--no-header",
        "-q",
        "-rN",
        "--disable-warnings",
    ]
    installed = any(entry.name == "vlm_ci" for entry in entry_points(group="pytest11"))
    if not installed or os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD"):
        args += ["-p", "vlm_ci.plugin"]  # reaches the workers of xdist too
    for option in OPTIONS:
        value = given.get(option.field)
        if option.kind is bool and value is not None:
            args.append(f"--vlm-{option.name}" if value else f"--no-vlm-{option.name}")
        elif value is not None:
            args.append(f"--vlm-{option.name}={value}")
    # A user's own PYTEST_ADDOPTS are meant for their tests, and would change what runs here.
    os.environ.pop("PYTEST_ADDOPTS", None)
    code = int(pytest.main([*args, *extra], plugins=[carrier]))
    verdicts = {result.verdict for result in carrier.results}
    if code == CLEAN and not verdicts:
        return NOTHING_RAN
    if code == FOUND and not verdicts & {"failed", "vacuous"}:
        # A test failed for a reason that is no verdict, or a run did not come to its end.
        if "incomplete" not in verdicts:
            return OWN_ERROR
        served = any(result.strict.batches for result in carrier.results)
        return INTERRUPTED if served else NOTHING_RAN
    return code


_OF_BASELINES = ("baselines", "update_baselines")  # which a run alone compares with
_AUDITED = [option for option in OPTIONS if option.field not in _OF_BASELINES]


@cli.command()
@add_options(_AUDITED)
@click.option("--repro/--no-repro", default=True, help="write a standalone script for each cause")
def audit(repro: bool, **given: Any) -> None:
    """Find all root causes: search, shrink, add what was found to the warm-up, search again.

    It ends when a whole search finds nothing new. Each cause is reported once, with its own
    smallest session, advice and a standalone script, under OUT/failures.
    """
    from vlm_ci.settings import Settings

    settings = Settings.from_mapping(given)
    if len(settings.targets) > 1:
        raise UsageError(f"--target {settings.target!r}: an audit takes one target")
    from vlm_ci import artifacts, building, runner
    from vlm_ci.failures import render
    from vlm_ci.report import actions, pages
    from vlm_ci.report.progress import TerminalProgress
    from vlm_ci.report.terminal import line, summary

    signal.signal(signal.SIGTERM, end_as_ctrl_c_does)
    progress = TerminalProgress(sys.stderr)
    try:
        progress.note("loading torch and transformers")
        building.prepare(settings)
        artifacts.check(settings.out)
        target = building.build_target(settings)
        try:
            result = runner.audit(settings, target, progress, repros=repro, say=progress.note)
            geometry = target.envelope.geometry
        finally:
            target.close()
    finally:
        progress.close()
    shown = [
        render(failure, out=str(settings.out), geometry=geometry) + "\n"
        for failure in result.failures
    ]
    shown += summary(result, str(settings.out))
    shown.append(line("report", pages.keep([settings.out], settings.out)))
    for text in shown:
        click.echo(actions.for_log(text))
    actions.tell([(result, str(settings.out))], settings.github, say=click.echo)
    codes = {"clean": CLEAN, "interrupted": INTERRUPTED, "incomplete": INTERRUPTED}
    raise SystemExit(codes.get(result.verdict, FOUND))


_OF_THE_CACHE = ("cache", "cache_scope", "cache_lock")
_OF_A_FLEET = ("database", "database_readonly", "evidence", "shard", "durations", "commit")
_OF_A_SEARCH = (
    *("examples", "profile", "seed", "corpus", "out", "github"),
    *_OF_THE_CACHE,
    *_OF_BASELINES,
    *_OF_A_FLEET,
)
_REPLAYED = [option for option in OPTIONS if option.field not in _OF_A_SEARCH]


@cli.command()
@click.argument("failure")
@click.option(
    "--keep", is_flag=True, help="put its traffic into the corpus, which every run tries first"
)
@click.option(
    "--repro",
    is_flag=True,
    help="also write repro.py beside it: a script without vlm_ci, run before it is kept",
)
@click.option("--corpus", metavar="DIR", help=f"the corpus (default {DEFAULT_CORPUS})")
@click.option(
    "--out", metavar="DIR", default=DEFAULT_OUT, help="the results to look a node id up in"
)
@add_options(_REPLAYED)
def replay(
    failure: str, keep: bool, repro: bool, corpus: str | None, out: str, **given: Any
) -> None:
    """Run one recorded failure again, verbosely.

    FAILURE is a failure's folder or file, a folder of results, a traffic file, or the node id of a
    test, which is looked up in --out. The recorded target, options, plan and envelope hold; what
    is given here wins over them. Exit code 0: it is fixed; 1: it still fails.
    """
    from pathlib import Path

    from vlm_ci import replay as replaying

    code = replaying.replay(
        failure,
        given,
        results=Path(out),
        corpus=Path(corpus) if corpus else None,
        keep=keep,
        repro=repro,
        say=click.echo,
    )
    raise SystemExit(code)


_OF_A_CHECK = (
    *("warmup", "profile", "policy", "corpus", "examples", "github"),
    *_OF_A_FLEET,
    *("reference", "relations"),  # a synthesis compares no logits
    *_OF_THE_CACHE,  # and counts what a cold start compiles
    *_OF_BASELINES,
)
_SYNTHESIZED = [option for option in OPTIONS if option.field not in _OF_A_CHECK]


@cli.command()
@click.option(
    "--examples",
    type=int,
    metavar="N",
    default=500,
    show_default=True,
    help="how many further sessions the plan has to hold for",
)
@add_options(_SYNTHESIZED)
def warmup(examples: int, **given: Any) -> None:
    """Make a warm-up plan for an envelope, as small as it gets: OUT/plan.json.

    The plan is accepted when N sessions compile nothing after a cold warm-up in a fresh process.
    Exit code 0: there is one; 1: the number of graphs has no bound, or is above the recompile
    limit, and the report says why; 2: interrupted, and OUT/plan.partial.json holds what there was.
    """
    from vlm_ci.settings import Settings

    settings = Settings.from_mapping({**given, "examples": examples, "database": "none"})
    from vlm_ci.report import warmup as report
    from vlm_ci.report.progress import TerminalProgress
    from vlm_ci.synthesis import make

    before = signal.signal(signal.SIGTERM, end_as_ctrl_c_does)
    progress = TerminalProgress(sys.stderr)
    try:
        progress.note("loading torch and transformers")
        result = make.synthesize(settings, progress)
    finally:
        progress.close()
        signal.signal(signal.SIGTERM, before)
    for text in report.summary(result, str(settings.out)):
        click.echo(text)
    codes = {"clean": CLEAN, "interrupted": INTERRUPTED}
    raise SystemExit(codes.get(result.verdict, FOUND))
