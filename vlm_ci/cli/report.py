"""report: records of finished runs as text or as a page."""

from __future__ import annotations

import click

from vlm_ci.cli.base import BAD_INPUT, CLEAN, cli
from vlm_ci.options import DEFAULT_OUT


@cli.command()
@click.argument("results", nargs=-1, metavar="[RESULTS]...")
@click.option("--html", metavar="FILE", help="write one page that needs no network")
def report(results: tuple[str, ...], html: str | None) -> None:
    """Report what runs have left on disk; without an option, as the summary of each.

    RESULTS are folders of results, at any depth, or result.json files (default: vlm-ci-out).
    Exit code 0: it is written, whatever the verdicts; 4: a file is broken, and what could be read
    is written.
    """
    from pathlib import Path

    from vlm_ci.report import records

    found = records.read([Path(name) for name in results or (DEFAULT_OUT,)])
    if html is not None:
        from vlm_ci.report.html import page
        from vlm_ci.report.writing import write

        write(Path(html), page(found))
        click.echo(f"wrote {html}")
    if html is None:
        from vlm_ci.report.terminal import summary

        for run in found.runs:
            click.echo("\n".join(summary(run.result, str(run.folder))) + "\n")
    for problem in found.problems:
        click.echo(f"vlm-ci: {problem}", err=True)
    raise SystemExit(BAD_INPUT if found.problems else CLEAN)
