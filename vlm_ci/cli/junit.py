"""junit merge and junit failed: files of shards and attempts as one."""

from __future__ import annotations

import click

from vlm_ci.cli.base import CLEAN, FOUND, NOTHING_RAN, Group, cli


@cli.group(cls=Group)
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
