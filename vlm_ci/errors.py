"""Errors that are the user's to mend. Imports nothing of the project and no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class UsageError(Exception):
    """Wrong usage or bad input: exit code 4, shown as one message without a traceback.

    The message says what was wrong and what would be right.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Build the error for a name that is not among ``known``, with the nearest ones."""
    import difflib  # here, because the plugin imports this module in every pytest session

    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    listing = ", ".join(names) if names else "none"
    return UsageError(f"unknown {kind} {name!r}: {hint}known: {listing}")


def check_int(where: str, value: object, *, minimum: int) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{where} must be a whole number of at least {minimum}, not {value!r}")


def check_choice(where: str, value: object, choices: Iterable[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    allowed = tuple(choices)
    if value not in allowed:
        raise ValueError(f"{where} must be one of {', '.join(allowed)}, not {value!r}")
