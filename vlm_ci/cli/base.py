"""The group of commands, its exit codes, and the options that commands share.

Exit codes: 0 clean, 1 something found, 2 interrupted, 3 our own error, 4 wrong usage or bad input,
5 nothing ran.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vlm_ci.options import Option

CLEAN, FOUND, INTERRUPTED, OWN_ERROR, BAD_INPUT, NOTHING_RAN = range(6)


class Group(click.Group):
    """A group that suggests the nearest command for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            from vlm_ci.errors import unknown_name

            raise click.UsageError(str(unknown_name("command", args[0], self.commands)), ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vlm-ci")
def cli() -> None:
    """Regression tests for compiled vision-language models.

    Sends random mixes of text, image and video through a compiled model, and fails on anything
    that compiles after warm-up or answers otherwise than eager does.
    """


def add_options(options: Iterable[Option]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of a run, each None where it is not given."""

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


def end_as_ctrl_c_does(number: int, frame: object) -> None:
    """End as Ctrl-C does, so that what was found is kept: a cancelled CI job sends SIGTERM."""
    raise KeyboardInterrupt
