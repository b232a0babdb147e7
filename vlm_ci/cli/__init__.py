"""The command line: ``vlm-ci`` and its commands, one module for those that belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vlm_ci.cli import bot, cache, checks, junit, machine, report
from vlm_ci.cli.base import BAD_INPUT, CLEAN, INTERRUPTED, OWN_ERROR, cli
from vlm_ci.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["bot", "cache", "checks", "entry", "junit", "machine", "main", "report"]


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
