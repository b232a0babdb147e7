"""cache key: what a workflow keys the cache of compiled code on."""

from __future__ import annotations

import click

from vlm_ci.cli.base import Group, add_options, cli
from vlm_ci.options import OPTIONS

_OF_THE_KEY = [option for option in OPTIONS if option.field in ("device", "cache_lock")]


@cli.group(cls=Group)
def cache() -> None:
    """The cache of compiled code that `run` and `audit` keep with --cache."""


@cache.command()
@add_options(_OF_THE_KEY)
@click.option("--parts", is_flag=True, help="as JSON, what the key is made of")
def key(parts: bool, **given: str | None) -> None:
    """Print the key under which a run here keeps its cache.

    It depends on torch, triton, transformers, Python, the system, the processor, the GPU,
    Inductor's variables and the lock file, not on the model: what is compiled is found by content.
    """
    from vlm_ci.settings import Settings

    settings = Settings.from_mapping(given)
    from vlm_ci.caching import keys
    from vlm_ci.targets.loading import resolve_device

    found = keys.parts(str(resolve_device(settings.device)), settings.cache_lock)
    if parts:
        from vlm_ci.traffic.files import pretty

        click.echo(pretty(found).decode(), nl=False)
    else:
        click.echo(keys.digest(found))
