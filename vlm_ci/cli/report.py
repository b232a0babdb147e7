"""report: records of finished runs as text or as a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vlm_ci.cli.base import BAD_INPUT, CLEAN, cli
from vlm_ci.errors import UsageError
from vlm_ci.options import DEFAULT_OUT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlm_ci.report.markdown import Run


@cli.command()
@click.argument("results", nargs=-1, metavar="[RESULTS]...")
@click.option("--html", metavar="FILE", help="write one page that needs no network")
@click.option(
    "--markdown",
    metavar="[FILE]",
    is_flag=False,
    flag_value="",
    help="write Markdown; without FILE, or where FILE is that, append to the summary of this step "
    "of GitHub Actions (GITHUB_STEP_SUMMARY)",
)
@click.option("--junit", metavar="ALL.xml", help="a merged JUnit file, for tests that need a look")
@click.option("--annotations", is_flag=True, help="print annotations for GitHub Actions")
def report(
    results: tuple[str, ...],
    html: str | None,
    markdown: str | None,
    junit: str | None,
    annotations: bool,
) -> None:
    """Report what runs have left on disk; without an option, as the summary of each.

    RESULTS are folders of results, at any depth, or result.json files (default: vlm-ci-out).
    Exit code 0: it is written, whatever the verdicts; 4: a file is broken, and what could be read
    is written.
    """
    from pathlib import Path

    from vlm_ci.report import actions, records

    if junit is not None and markdown is None:
        raise UsageError("--junit needs --markdown: its tests stand in that report")
    if markdown and Path(markdown).is_dir():
        raise UsageError(
            f"--markdown {markdown}: it is a folder; name a file, or put --markdown after RESULTS"
        )
    found = records.read([Path(name) for name in results or (DEFAULT_OUT,)])
    runs = [actions.run_of(run.result, str(run.folder)) for run in found.runs]
    if html is not None:
        from vlm_ci.report.html import page
        from vlm_ci.report.writing import write

        write(Path(html), page(found))
        click.echo(f"wrote {html}")
    if markdown is not None:
        _write_markdown(runs, markdown, junit)
    if annotations:
        for line in actions.annotation_lines(runs):
            click.echo(line)
    if html is None and markdown is None and not annotations:
        from vlm_ci.report import terminal, warmup

        for run in runs:
            told = terminal if run.result.synthesis is None else warmup
            text = "\n".join(told.summary(run.result, run.out)) + "\n"
            click.echo(actions.for_log(text))
    for problem in found.problems:
        click.echo(f"vlm-ci: {problem}", err=True)
    raise SystemExit(BAD_INPUT if found.problems else CLEAN)


def _write_markdown(runs: Sequence[Run], name: str, junit: str | None) -> None:
    """Write Markdown to a file, or append it to the summary of a step of GitHub Actions.

    Raises:
        UsageError: there is no file to write to, or it cannot be written.
    """
    import os
    from pathlib import Path

    from vlm_ci.junit import commands, words
    from vlm_ci.report import actions, markdown, writing

    summary = os.environ.get(actions.SUMMARY, "")
    if not (name or summary):
        raise UsageError(f"--markdown needs a FILE: {actions.SUMMARY} is not set here")
    tests = words.notes(commands.read(Path(junit))) if junit is not None else []
    path = Path(name or summary)
    if not summary or path.resolve() != Path(summary).resolve():
        writing.write(path, markdown.report(runs, tests=tests))
    elif problem := actions.append_summary(runs, path, tests=tests):
        raise UsageError(problem)
    click.echo(f"wrote {path}")
