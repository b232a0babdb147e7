"""One self-contained HTML page from the records of runs. Pure: records in, text out; no I/O.

All that comes from records is escaped by the templates, or stands in drawings as XML text. The
page's policy lets nothing be fetched and no script run, and no style but its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vlm_ci.report.html.view import tone, view

if TYPE_CHECKING:
    from vlm_ci.report.records import Records

GENERATOR = '<meta name="generator" content="vlm-ci">'  # in the first lines of a page of ours


# What HTML does not allow in text: control characters, lone surrogates and non-characters.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def _printable(value: object) -> object:
    """Replace what HTML has no way to write."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", value)
    return value


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("vlm_ci.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    made.filters["tone"] = tone
    return made


def page(records: Records) -> str:
    """Return the page that shows some runs."""
    made = _environment()
    assert made.loader is not None
    style = made.loader.get_source(made, "style.css")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return made.get_template("page.html").render(
        page=view(records),
        style=Markup(style),
        generator=Markup(GENERATOR),
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'",
    )
