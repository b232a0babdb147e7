"""The example database: a folder, a read-only one, and a Redis server that a fleet shares."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy

from vlm_ci import locations, memory
from vlm_ci.building import target_key
from vlm_ci.errors import UsageError
from vlm_ci.memory import Memory, without_credentials
from vlm_ci.runner import run
from vlm_ci.settings import Settings
from vlm_ci.traffic.spec import Batch, Request, Session, Text

OWN_CORPUS = len(list((locations.fixtures() / "traffic").glob("*.json")))
SERVER = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(
    SERVER is None, reason="needs redis-server, of the package redis-server"
)


def session(tokens: int) -> Session:
    return Session((Batch((Request((Text(tokens),)),)),))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server with a password; its URL."""
    assert SERVER is not None
    port = free_port()
    folder = tmp_path_factory.mktemp("redis")
    process = subprocess.Popen(
        [
            *(SERVER, "--port", str(port), "--bind", "127.0.0.1", "--requirepass", "s3cret"),
            *("--save", "", "--dir", str(folder)),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"redis://:s3cret@127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


@needs_redis
def test_what_one_machine_remembers_another_one_tries(server: str):
    one, other = Memory.at(server, "x"), Memory.at(server, "x")
    assert one.sessions() == []
    one.update(passed=[], failed=[session(1), session(2)])
    assert set(other.sessions()) == {session(1), session(2)}
    assert Memory.at(server, "another target").sessions() == []
    other.update(passed=[session(1)], failed=[])
    assert one.sessions() == [session(2)]
    assert one.problems == other.problems == []


@needs_redis
def test_what_another_version_wrote_stays_in_a_shared_database(server: str):
    one = Memory.at(server, "y")
    one.database.save(one.key, b'{"of": "another version"}')
    one.database.save(one.key, b"[" * 100_000)
    assert one.sessions() == []
    assert len(list(one.database.fetch(one.key))) == 2


@needs_redis
def test_a_readonly_database_is_read_and_left_alone(server: str, tmp_path: Path):
    for place in (server, tmp_path / "examples"):
        Memory.at(place, "z").update(passed=[], failed=[session(3)])
        reader = Memory.at(place, "z", readonly=True)
        assert reader.sessions() == [session(3)]
        reader.update(passed=[session(3)], failed=[session(4)])
        assert Memory.at(place, "z").sessions() == [session(3)]


def nan() -> toy.ToyTarget:
    """Wrong for every batch."""
    return toy.ToyTarget(lambda call, ids, batch: call(ids) + float("nan"))


def checked(out: Path, **given: object):
    """Run a check of ``nan`` and return its result; as a machine with its own folder would."""
    settings = Settings.from_mapping(
        {"target": "test_database:nan", "examples": 10, "out": str(out), **given}
    )
    return run(settings, nan(), name=settings.target)


@needs_redis
def test_a_fleet_tries_first_what_one_machine_found(server: str, tmp_path: Path):
    first = checked(tmp_path / "one", database=server)
    assert first.traffic.examples > 0
    second = checked(tmp_path / "two", database=server, seed=99)
    assert second.traffic.examples == 0  # found before anything was generated
    assert second.traffic.corpus == OWN_CORPUS + 1
    assert "s3cret" not in (tmp_path / "two/result.json").read_text()


@pytest.mark.parametrize("listening", [False, True], ids=["refused", "silent"])
def test_a_server_that_does_not_answer_is_a_warning_and_nothing_hangs(
    tmp_path: Path, monkeypatch, listening: bool
):
    monkeypatch.setattr(memory, "SECONDS", 0.5)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        if listening:
            one.listen()  # takes the connection and says nothing
        port = one.getsockname()[1]
        began = time.monotonic()
        found = Memory.at(f"redis://me:s3cret@127.0.0.1:{port}/0?ssl=x", "x")
        assert found.sessions() == []
        found.update(passed=[session(1)], failed=[session(2)])
        assert time.monotonic() - began < 30
        result = checked(tmp_path, database=f"redis://me:s3cret@127.0.0.1:{port}/0")
    (problem,) = found.problems
    assert problem.startswith(f"the database redis://127.0.0.1:{port}/0 does not answer (")
    (warning,) = [text for text in result.warnings if "database" in text]
    assert warning.endswith("the run goes on without what failed in earlier runs")
    assert [failure.kind for failure in result.failures] == ["nonfinite"]
    written = json.loads((tmp_path / "result.json").read_text())
    assert warning in written["warnings"]
    assert "s3cret" not in json.dumps(written)


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("redis://me:s3cret@host:1/0", "redis://host:1/0"),
        ("rediss://:a@b@host/3?password=s3cret", "rediss://host/3"),
        ("redis://host", "redis://host"),
        (".hypothesis/a@b", ".hypothesis/a@b"),
    ],
)
def test_credentials_are_never_shown(place: str, shown: str):
    assert without_credentials(place) == shown


def test_a_wrong_url_is_one_message_without_its_password():
    with pytest.raises(UsageError) as caught:
        Settings.from_mapping({"database": "http://me:s3cret@host"})
    assert str(caught.value) == (
        "--database takes a folder, none or redis://HOST:PORT/N, not a URL with http://"
    )
    with pytest.raises(UsageError) as caught:
        Memory.at("redis://me:s3cret@host:port/0", "x")
    assert str(caught.value) == (
        "--database redis://host:port/0 is no URL that redis takes: it should be "
        "redis://USER:PASSWORD@HOST:PORT/N"
    )


def test_the_package_for_redis_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "hypothesis.extra.redis", None)
    with pytest.raises(UsageError, match=r"needs the package redis: pip install 'vlm-ci\[redis\]'"):
        Memory.at("redis://host", "x")


def test_the_key_of_a_memory_does_not_hold_the_shard():
    """Sessions that one shard found are tried by all, also when their number changes."""
    assert target_key(Settings.from_mapping({"shard": "1/3"})) == target_key(Settings())
