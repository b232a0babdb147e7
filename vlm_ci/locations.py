"""Where the suites and fixtures are: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    packaged = _PACKAGE / f"_{name}"
    return packaged if packaged.is_dir() else _PACKAGE.parent / name


def suites() -> Path:
    """The folder of the suites."""
    return _folder("suites")


def fixtures() -> Path:
    """The folder of tiny models, planted bugs and recorded traffic."""
    return _folder("fixtures")
