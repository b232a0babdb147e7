"""The command line. Exit codes: 0 clean, 1 something found, 2 interrupted, 3 our own error,
4 wrong usage or bad input, 5 nothing ran."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import click

from vlm_ci.errors import UsageError
from vlm_ci.settings import OPTIONS, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

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


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(OPTIONS):
        if option.kind is bool:
            decorate = click.option(f"--{option.name}", is_flag=True, help=option.help)
        else:
            decorate = click.option(
                f"--{option.name}", type=option.kind, metavar=option.metavar, help=option.help
            )
        command = decorate(command)
    return command


@cli.command(context_settings={"ignore_unknown_options": False})
@_run_options
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- PYTEST_ARGS]")
def run(pytest_args: tuple[str, ...], **given: Any) -> None:
    """Check a target: warm up, then one strict exploration judged for recompiles and parity.

    Runs the recompile suite through pytest; what follows -- goes to pytest.
    """
    settings = Settings.from_mapping(given)
    from vlm_ci import artifacts, locations, runner
    from vlm_ci.report.progress import TerminalProgress

    # pytest captures the terminal's descriptors; the progress line needs one of its own.
    with os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8") as stream:
        progress = TerminalProgress(stream)
        try:
            progress.note("loading torch and transformers")
            runner.prepare(settings)
            artifacts.prepare(settings.out)
            code = _pytest(
                given, pytest_args, progress, str(locations.suites()), settings.out / "result.json"
            )
        finally:
            progress.close()
    raise SystemExit(code)


def _pytest(
    given: dict[str, Any],
    extra: Sequence[str],
    progress: Any,
    suites: str,
    result_file: Path,
) -> int:
    import pytest

    import vlm_ci.plugin as plugin

    carrier = plugin.Carrier(progress)
    args = [
        f"{suites}/recompile",
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
        args += ["-p", plugin.__name__]  # reaches the workers of xdist too
    for option in OPTIONS:
        value = given.get(option.field)
        if option.kind is bool:
            args += [f"--vlm-{option.name}"] if value else []
        elif value is not None:
            args.append(f"--vlm-{option.name}={value}")
    # A user's own PYTEST_ADDOPTS are meant for their tests, and would change what runs here.
    os.environ.pop("PYTEST_ADDOPTS", None)
    code = int(pytest.main([*args, *extra], plugins=[carrier]))
    verdicts = {result.verdict for result in carrier.results}
    if code == CLEAN and not verdicts and not result_file.exists():
        return NOTHING_RAN
    if code == FOUND and verdicts == {"incomplete"}:
        return NOTHING_RAN
    if code == FOUND and (verdicts == {"clean"} or not (verdicts or result_file.exists())):
        return OWN_ERROR  # a test failed for a reason that is no verdict
    return code


@cli.command()
@click.option("--bugs", is_flag=True, help="list the planted bugs instead")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def targets(bugs: bool, as_json: bool) -> None:
    """List what can be tested here: tiny models, families and recipes, or the planted bugs."""
    from vlm_ci import listing

    click.echo(listing.bugs(as_json) if bugs else listing.targets(as_json), nl=False)


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
