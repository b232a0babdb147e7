"""Calls GitHub's REST API through ``gh``, which holds the token. Knows no workflow.

Runs on a bare runner: the standard library alone.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any


class ApiError(Exception):
    """GitHub, or the way to it, refused a call."""


def call(path: str, *, method: str = "GET", fields: dict[str, Any] | None = None) -> Any:
    """Return what one call of the API answers, as plain data.

    Raises:
        ApiError: it was refused, or the answer is no JSON.
    """
    command = ["gh", "api", "--method", method, path]
    if fields is not None:
        command += ["--input", "-"]
    return _run(command, None if fields is None else json.dumps(fields))


def pages(path: str) -> list[Any]:
    """Return all entries of a list, from all of its pages.

    Raises:
        ApiError: it was refused, or the answer is no JSON.
    """
    lists = _run(["gh", "api", "--paginate", "--slurp", path], None)
    return [entry for entries in lists for entry in entries]


def _run(command: list[str], given: str | None) -> Any:
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ApiError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        raise ApiError(f"{' '.join(command)}: {done.stderr.strip()}")
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise ApiError(f"{' '.join(command)}: the answer is no JSON: {error}") from error
