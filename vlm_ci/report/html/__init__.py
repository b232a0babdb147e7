"""One self-contained HTML page from the records of runs. Pure: records in, text out; no I/O."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from vlm_ci.report.records import Records


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("vlm_ci.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page(records: Records) -> str:
    """Return the page that shows some runs."""
    return _environment().get_template("page.html").render(records=records)
