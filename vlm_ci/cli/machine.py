"""doctor and targets: what this machine has, and what can be tested on it."""

from __future__ import annotations

import click

from vlm_ci.cli.base import CLEAN, FOUND, cli
from vlm_ci.options import DEFAULT_OUT


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
