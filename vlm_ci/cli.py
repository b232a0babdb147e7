"""The command line. Exit codes: 0 clean, 1 something found, 2 interrupted, 3 our own error,
4 wrong usage or bad input, 5 nothing ran."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from vlm_ci.errors import UsageError
from vlm_ci.options import DEFAULT_CORPUS, DEFAULT_OUT, OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vlm_ci.options import Option

SUITES = ("recompile", "parity")
CLEAN, FOUND, INTERRUPTED, OWN_ERROR, BAD_INPUT, NOTHING_RAN = range(6)


class _Group(click.Group):
    """A group that suggests the nearest command for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            from vlm_ci.errors import unknown_name

            raise click.UsageError(str(unknown_name("command", args[0], self.commands)), ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vlm-ci")
def cli() -> None:
    """Regression tests for compiled vision-language models.

    Sends random mixes of text, image and video through a compiled model, and fails on anything
    that compiles after warm-up or answers otherwise than eager does.
    """


def _options(options: Iterable[Option]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(list(options)):
            if option.kind is bool:
                names = f"--{option.name}/--no-{option.name}"
                decorate = click.option(names, default=None, help=option.help)
            else:
                decorate = click.option(
                    f"--{option.name}", type=option.kind, metavar=option.metavar, help=option.help
                )
            command = decorate(command)
        return command

    return add


@cli.command()
@_options(OPTIONS)
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
    from vlm_ci import artifacts, locations, runner
    from vlm_ci.report.progress import TerminalProgress

    signal.signal(signal.SIGTERM, _interrupt)
    # pytest captures the terminal's descriptors; the progress line needs one of its own.
    with os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8") as stream:
        progress = TerminalProgress(stream)
        try:
            progress.note("loading torch and transformers")
            for name in settings.targets:
                runner.prepare(settings.for_target(name))
            artifacts.check(settings.out)
            code = _pytest(given, pytest_args, progress, str(locations.suites()), suite)
        finally:
            progress.close()
    raise SystemExit(code)


def _interrupt(number: int, frame: object) -> None:
    """End as Ctrl-C does, so that what was found is kept: a cancelled CI job sends SIGTERM."""
    raise KeyboardInterrupt


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


@cli.command()
@_options(OPTIONS)
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
    from vlm_ci import artifacts, runner
    from vlm_ci.failures import render
    from vlm_ci.report.progress import TerminalProgress
    from vlm_ci.report.terminal import summary

    signal.signal(signal.SIGTERM, _interrupt)
    progress = TerminalProgress(sys.stderr)
    try:
        progress.note("loading torch and transformers")
        runner.prepare(settings)
        artifacts.check(settings.out)
        target = runner.build_target(settings)
        try:
            result = runner.audit(settings, target, progress, repros=repro, say=progress.note)
            geometry = target.envelope.geometry
        finally:
            target.close()
    finally:
        progress.close()
    for failure in result.failures:
        click.echo(render(failure, out=str(settings.out), geometry=geometry) + "\n")
    for text in summary(result, str(settings.out)):
        click.echo(text)
    codes = {"clean": CLEAN, "interrupted": INTERRUPTED, "incomplete": INTERRUPTED}
    raise SystemExit(codes.get(result.verdict, FOUND))


_OF_A_SEARCH = ("examples", "profile", "seed", "database", "corpus", "out")
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
@_options(_REPLAYED)
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
    *("warmup", "profile", "policy", "database", "corpus", "examples"),
    *("reference", "relations"),  # a synthesis compares no logits
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
@_options(_SYNTHESIZED)
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

    before = signal.signal(signal.SIGTERM, _interrupt)
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


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="as JSON")
@click.option("--thorough", is_flag=True, help="also compile with Inductor, which takes longer")
@click.option("--out", metavar="DIR", default=DEFAULT_OUT, help="the folder for results to look at")
def doctor(as_json: bool, thorough: bool, out: str) -> None:
    """Say what this machine has, which observers work, and what to do about the rest."""
    from pathlib import Path

    from vlm_ci import doctor as checks

    report = checks.report(Path(out), thorough=thorough)
    if as_json:
        from vlm_ci.traffic.files import pretty

        click.echo(pretty(report).decode(), nl=False)
    else:
        click.echo(checks.render(report), nl=False)
    raise SystemExit(CLEAN if report.ok else FOUND)


@cli.command()
@click.option("--bugs", is_flag=True, help="list the planted bugs instead")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def targets(bugs: bool, as_json: bool) -> None:
    """List what can be tested here: tiny models, families and recipes, or the planted bugs."""
    from vlm_ci import listing

    click.echo(listing.bugs(as_json) if bugs else listing.targets(as_json), nl=False)


@cli.group(cls=_Group)
def junit() -> None:
    """Join the JUnit files of shards and attempts, and say what to run again."""


@junit.command()
@click.argument("files", nargs=-1, required=True, metavar="A.xml B.xml ...")
@click.option("-o", "--output", required=True, metavar="ALL.xml", help="the file to write")
@click.option("--expect", metavar="FILE", help="node ids that must be there, one a line")
@click.option(
    "--shards", type=click.IntRange(min=1), metavar="N", help="how many shards there must be"
)
def merge(files: tuple[str, ...], output: str, expect: str | None, shards: int | None) -> None:
    """Join JUnit files by test: the last attempt stands, and the history is kept.

    A test that failed and then passed is flaky; one that failed with a mismatch, a recompile or
    another verdict stays failed, whatever a rerun says. What is missing is a failure. Exit code 0:
    nothing failed in the end; 1: something did or is missing; 5: there is no test.
    """
    from pathlib import Path

    from vlm_ci.junit import commands

    listed = Path(expect) if expect else None
    paths = [Path(name) for name in files]
    merged = commands.merge(paths, Path(output), expect=listed, shards=shards, say=click.echo)
    if any(test.broken for test in merged.tests):
        raise SystemExit(FOUND)
    raise SystemExit(CLEAN if merged.tests else NOTHING_RAN)


@junit.command()
@click.argument("file", metavar="ALL.xml")
@click.option(
    "--infrastructure/--product",
    default=None,
    help="only failures of the infrastructure, or only the others",
)
def failed(file: str, infrastructure: bool | None) -> None:
    """Print the node ids to run again, one a line: failed, broken or missing tests.

    For example: vlm-ci junit failed ALL.xml | xargs -r -d '\\n' pytest. Nothing is printed where
    nothing failed; the exit code is 0 in both cases, for merge has said it.
    """
    from pathlib import Path

    from vlm_ci.junit import commands

    def warn(text: str) -> None:
        click.echo(f"vlm-ci: {text}", err=True)

    commands.failed(Path(file), infrastructure=infrastructure, say=click.echo, warn=warn)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; never a traceback for a user's mistake."""
    try:
        cli.main(
            args=list(args) if args is not None else None, prog_name="vlm-ci", standalone_mode=False
        )
    except UsageError as error:
        click.echo(f"vlm-ci: {error}", err=True)
        return BAD_INPUT
    except click.ClickException as error:
        error.show()
        return BAD_INPUT
    except (KeyboardInterrupt, click.Abort):
        click.echo("vlm-ci: interrupted", err=True)
        return INTERRUPTED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else OWN_ERROR
    except Exception:
        click.echo("vlm-ci: an error of vlm_ci's own; please report it with this text:", err=True)
        import traceback

        traceback.print_exc()
        return OWN_ERROR
    return CLEAN


def entry() -> None:
    """The console script."""
    raise SystemExit(main())


if __name__ == "__main__":
    entry()
