"""vlm-ci bot: a comment on a pull request becomes GitHub calls."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from vlm_ci.cli.base import CLEAN, FOUND, NOTHING_RAN, OWN_ERROR, cli

if TYPE_CHECKING:
    from vlm_ci.bot.records import Record

EXTRA = ("githubkit", "httpx", "markdown_it")  # what only the bot needs


@cli.command()
@click.option("--event", required=True, metavar="FILE", help="the payload of issue_comment")
@click.option("--dry-run", is_flag=True, help="print the decision and the calls, and make none")
@click.option("--policy", metavar="FILE", help="in place of the default branch's file")
@click.option("--facts", metavar="FILE", help="with --dry-run: recorded facts, and no network")
@click.option("--audit", metavar="FILE", help="append a JSON record of each decision; - is stdout")
@click.option(
    "--api-url",
    metavar="URL",
    default=lambda: os.environ.get("GITHUB_API_URL", "https://api.github.com"),
    help="GitHub's API  [default: $GITHUB_API_URL]",
)
def bot(
    event: str,
    dry_run: bool,
    policy: str | None,
    facts: str | None,
    audit: str | None,
    api_url: str,
) -> None:
    """Do what a comment on a pull request asks for: /rerun-failed-ci and its relatives.

    Reads GITHUB_TOKEN, GITHUB_REPOSITORY, GITHUB_RUN_ATTEMPT and GITHUB_SERVER_URL. Exit code 0:
    all that was asked for was done; 1: something was denied or not understood; 3: GitHub does not
    answer, and the job may be run again; 5: there is nothing to do.
    """
    from vlm_ci.errors import UsageError

    if audit is not None and audit != "-":
        try:
            open(audit, "a", encoding="utf-8").close()  # before anything is done
        except OSError as error:
            raise UsageError(f"{audit}: cannot write it: {error.strerror}") from None
    try:
        from vlm_ci.bot import job

        records, failed, failure = job.run(
            event=event,
            dry_run=dry_run,
            policy=policy,
            facts=facts,
            api=api_url,
            environment=os.environ,
        )
    except UsageError as error:
        _write(getattr(error, "records", []), audit)  # what the comment was answered
        raise
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        raise UsageError(f"the bot needs {error.name}: pip install 'vlm-ci[bot]'") from None
    _write(records, audit)
    if failure:
        click.echo(f"vlm-ci bot: {failure}", err=True)
        raise SystemExit(OWN_ERROR)
    if all(record.verdict == "ignored" for record in records):
        raise SystemExit(NOTHING_RAN)
    raise SystemExit(FOUND if failed else CLEAN)


def _write(records: list[Record], audit: str | None) -> None:
    import msgspec

    from vlm_ci.bot.records import text

    lines = [msgspec.json.encode(record).decode() for record in records]
    if audit == "-":
        for line in lines:
            click.echo(line)
        return
    if audit is not None:
        with open(audit, "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    for record in records:
        for line in text(record):
            click.echo(line)
