"""Failing sessions kept from one run to the next, in one of Hypothesis's example databases.

The sessions themselves are kept, not Hypothesis's choices: those mean nothing once a strategy has
changed, and Hypothesis keeps none for a test with a seed of its own. A database only helps: one
that cannot be reached is said, and the run goes on without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from vlm_ci.errors import UsageError
from vlm_ci.traffic.spec import Session

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from hypothesis.database import ExampleDatabase

SECONDS = 3.0  # that a Redis server has for an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Sessions that failed in earlier runs of what ``key`` names.

    ``name`` is the database for messages. What went wrong is in ``problems``; from the first
    problem on the database is left alone. A ``shared`` one is also used by other versions of
    vlm_ci, so that what cannot be read stays in it.
    """

    database: ExampleDatabase
    key: bytes
    name: str = ""
    shared: bool = False
    problems: list[str] = field(default_factory=list)

    @classmethod
    def at(cls, place: Path | str, name: str, *, readonly: bool = False) -> Memory:
        """Return the memory of what ``name`` names: in a folder, or by its URL in a Redis server.

        Raises:
            UsageError: the URL is wrong, or the package for it is not installed.
        """
        from hypothesis.database import DirectoryBasedExampleDatabase, ReadOnlyDatabase

        database: ExampleDatabase
        if isinstance(place, str):
            database = _redis(place)
        else:
            database = DirectoryBasedExampleDatabase(place)
        return cls(
            database=ReadOnlyDatabase(database) if readonly else database,
            key=f"vlm-ci {name}".encode(),
            name=without_credentials(str(place)),
            shared=isinstance(place, str),
        )

    def sessions(self) -> list[Session]:
        """Return the remembered sessions; what cannot be read any more is left out."""
        found = []
        for content in self._fetch():
            try:
                found.append(msgspec.json.decode(content, type=Session))
            except (msgspec.DecodeError, RecursionError):
                if not self.shared:
                    self.database.delete(self.key, content)
        return found

    def update(self, *, passed: Iterable[Session], failed: Iterable[Session]) -> None:
        """Forget the sessions that pass now, and remember those that fail."""
        if self.problems:
            return
        try:
            for session in passed:
                self.database.delete(self.key, msgspec.json.encode(session))
            for session in failed:
                self.database.save(self.key, msgspec.json.encode(session))
        except Exception as error:
            self._give_up(error, "what failed is not remembered there")

    def _fetch(self) -> list[bytes]:
        try:
            return sorted(self.database.fetch(self.key))
        except Exception as error:
            self._give_up(error, "the run goes on without what failed in earlier runs")
            return []

    def _give_up(self, error: Exception, consequence: str) -> None:
        if not self.shared:
            raise error
        # The error's own text is left out: it may quote the URL and with it a password.
        kind = type(error).__name__
        self.problems.append(f"the database {self.name} does not answer ({kind}): {consequence}")


def without_credentials(place: str) -> str:
    """Return a folder as it is, and a URL without user, password and query."""
    scheme, mark, rest = place.partition("://")
    if not mark:
        return place
    return f"{scheme}://{rest.partition('?')[0].partition('#')[0].rpartition('@')[2]}"


def _redis(url: str) -> ExampleDatabase:
    """Return a database in a Redis server, which is not asked anything yet.

    Raises:
        UsageError: the URL is wrong, or the package is not installed.
    """
    try:
        from hypothesis.extra.redis import RedisExampleDatabase
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise UsageError(
            f"--database {without_credentials(url)} needs the package redis: "
            "pip install 'vlm-ci[redis]'"
        ) from None
    try:
        client = Redis.from_url(
            url,
            socket_timeout=SECONDS,
            socket_connect_timeout=SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
    except (ValueError, TypeError):  # their texts may quote the URL
        raise UsageError(
            f"--database {without_credentials(url)} is no URL that redis takes: it should be "
            "redis://USER:PASSWORD@HOST:PORT/N"
        ) from None
    return RedisExampleDatabase(client)
