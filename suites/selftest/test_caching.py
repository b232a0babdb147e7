"""The compile cache: its key, who may save it, and what becomes of a bundle that is damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from vlm_ci.caching import bundles, keys
from vlm_ci.caching.use import INDUCTOR, TRITON, CompileCache
from vlm_ci.cli import main
from vlm_ci.errors import UsageError
from vlm_ci.watch import caches


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of any CI, and with no folder chosen."""
    for name in ("CI", "GITHUB_ACTIONS", INDUCTOR, TRITON):
        monkeypatch.delenv(name, raising=False)


class Kept:
    """A cache folder, and runs over it that compile what they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.warnings: list[str] = []

    def run(self, *names: str, content: bytes = b"compiled", **given: Any) -> tuple[Any, set[str]]:
        """Let a run that compiles these files begin and save; return its record and what was
        there when it began."""
        cache = CompileCache(self.folder, warn=self.warnings.append, **given)
        try:
            cache.load()
            inductor = Path(os.environ[INDUCTOR])
            there = {str(p.relative_to(inductor)) for p in inductor.rglob("*") if p.is_file()}
            for name in names:
                (inductor / name).parent.mkdir(parents=True, exist_ok=True)
                (inductor / name).write_bytes(content)
            cache.save()
        finally:
            cache.close()
            _forget()
        return cache.use, there

    @property
    def bundle(self) -> Path:
        (found,) = self.folder.rglob("*.vlmcache")
        return found


def _forget() -> None:
    """Take away what this process keeps of bundles, as its end does."""
    from vlm_ci.caching import use

    use._own_folder.cache_clear()


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "cache")


# -- what a run finds and leaves ------------------------------------------------------------------


def test_the_second_run_begins_with_what_the_first_compiled(kept: Kept):
    first, there = kept.run("ab/one.so", "fxgraph/x/y")
    assert (first.state, there) == ("cold", set())
    assert first.note.startswith("saved 2 files")
    second, there = kept.run()
    assert (second.state, second.note) == ("warm", "")
    assert there == {"ab/one.so", "fxgraph/x/y"}
    assert second.key == first.key == kept.bundle.stem


def test_what_is_new_is_added(kept: Kept):
    kept.run("ab/one.so")
    assert kept.run("cd/two.so")[0].note.startswith("saved 2 files")
    assert kept.run()[1] == {"ab/one.so", "cd/two.so"}


def test_nothing_new_is_not_written_again(kept: Kept):
    kept.run("ab/one.so")
    before = kept.bundle.stat()
    assert kept.run()[0].note == ""
    assert kept.bundle.stat().st_ino == before.st_ino


def test_locks_and_profiles_of_sizes_stay_behind(kept: Kept):
    kept.run(
        "ab/one.so", "locks/l.lock", "cd/x.lock", "dynamo/code_state.pkl", "ab/.half", "tmp.1/x"
    )
    assert kept.run()[1] == {"ab/one.so"}


def test_another_process_that_saved_meanwhile_loses_nothing(kept: Kept, tmp_path: Path):
    other = Kept(tmp_path / "other")
    other.run("early.so")
    cache = CompileCache(kept.folder)
    cache.load()
    Path(os.environ[INDUCTOR], "late.so").write_bytes(b"x")
    shutil.copytree(other.folder, kept.folder)
    cache.save()
    cache.close()
    _forget()
    assert kept.run()[1] == {"early.so", "late.so"}


def test_variables_are_as_before_when_a_run_is_over(kept: Kept, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(TRITON, str(kept.folder / "triton-own"))
    kept.run("one.so")
    assert INDUCTOR not in os.environ
    assert os.environ[TRITON] == str(kept.folder / "triton-own")


def test_a_folder_of_the_machine_is_not_used(kept: Kept, monkeypatch: pytest.MonkeyPatch):
    """Inductor writes its default into the variable, where it is nobody's choice."""
    monkeypatch.setenv(INDUCTOR, caches.default_cache_folder())
    cache = CompileCache(kept.folder)
    cache.load()
    assert os.environ[INDUCTOR] != caches.default_cache_folder()
    cache.close()
    assert os.environ[INDUCTOR] == caches.default_cache_folder()


def test_a_folder_of_the_users_is_respected(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = tmp_path / "own"
    (own / "ab").mkdir(parents=True)
    (own / "ab" / "old.so").write_bytes(b"x")
    monkeypatch.setenv(INDUCTOR, str(own))
    use, there = kept.run("cd/new.so")
    assert there == {"ab/old.so"}
    assert f"in {own}, which {INDUCTOR} names" in use.note
    assert "can make a cold start warm" in use.note
    assert (own / "cd" / "new.so").exists()
    monkeypatch.delenv(INDUCTOR)
    assert kept.run()[1] == {"cd/new.so"}  # what lay there before is not ours to pass on


def test_tritons_index_follows_its_files(kept: Kept):
    """It holds absolute paths, and Triton compiles what it does not find there."""
    name = "triton/0/HASH/__grp__kernel.json"
    index = {"child_paths": {"kernel.cubin": "/elsewhere/triton/0/HASH/kernel.cubin"}}
    kept.run(name, "triton/0/HASH/kernel.cubin", content=json.dumps(index).encode())
    cache = CompileCache(kept.folder)
    cache.load()
    place = Path(os.environ[TRITON], "HASH")
    assert str(place).startswith(os.environ[INDUCTOR])
    (path,) = json.loads((place / "__grp__kernel.json").read_text())["child_paths"].values()
    assert path == str(place / "kernel.cubin")
    assert Path(path).exists()
    cache.close()


# -- bundles that must not be used ----------------------------------------------------------------


def _edit(path: Path, **change: Any) -> None:
    line, _, payload = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps(json.loads(line) | change).encode() + b"\n" + payload)


DAMAGE = {
    "empty": (lambda path: path.write_bytes(b""), "does not begin with a manifest"),
    "garbage": (lambda path: path.write_bytes(os.urandom(5000)), "does not begin with a manifest"),
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 9), "where its manifest"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "where its manifest says"),
    "changed": (
        lambda path: path.write_bytes(path.read_bytes()[:-9] + b"x" + path.read_bytes()[-8:]),
        "has another hash",
    ),
    "other hash": (lambda path: _edit(path, sha256="0" * 64), "has another hash"),
    "other schema": (lambda path: _edit(path, schema="vlm-ci/cache/99"), "its schema is"),
    "other key": (lambda path: _edit(path, key="f" * 24), "it was made for key ffff"),
    "untrusted": (lambda path: _edit(path, scope="untrusted"), "its scope is 'untrusted'"),
    "no size": (lambda path: _edit(path, size="big"), "its manifest is not valid"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_bundle_is_ignored_and_replaced(kept: Kept, damage: str):
    kept.run("ab/one.so")
    spoil, reason = DAMAGE[damage]
    spoil(kept.bundle)
    use, there = kept.run("cd/two.so")
    assert (use.state, there) == ("ignored", set())
    assert reason in use.note
    (warning,) = kept.warnings
    assert reason in warning
    assert str(kept.bundle) in warning
    assert kept.run()[1] == {"cd/two.so"}


@pytest.mark.parametrize("name", ["inductor/../../x", "/x", "other/x", "inductor", "inductor\\x"])
def test_no_file_leaves_the_caches(kept: Kept, tmp_path: Path, name: str):
    kept.run("one.so")
    (tmp_path / "evil").write_bytes(b"x")
    key = kept.bundle.stem
    bundles.write(
        kept.bundle,
        {name: tmp_path / "evil"},
        key=key,
        scope="trusted",
        parts=keys.parts("cpu"),
        made_by={},
    )
    use, there = kept.run()
    assert (use.state, there) == ("ignored", set())
    assert "belongs to no cache" in use.note


def test_a_save_that_fails_leaves_what_was_there(kept: Kept, monkeypatch: pytest.MonkeyPatch):
    kept.run("ab/one.so")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(bundles.os, "replace", full)
        patched.setattr(bundles, "extract", lambda archive, roots: [])
        use, _ = kept.run("cd/two.so")
    assert "not saved: No space left on device" in use.note
    assert kept.run()[1] == {"ab/one.so"}
    assert sorted(path.suffix for path in kept.bundle.parent.iterdir()) in (
        [".vlmcache"],
        [".lock", ".vlmcache"],
    )


def test_a_folder_that_cannot_be_written_to(tmp_path: Path):
    (tmp_path / "cache").write_text("a file")
    kept = Kept(tmp_path / "cache")
    use, _ = kept.run("one.so")
    assert "not saved: " in use.note


# -- the key --------------------------------------------------------------------------------------

PARTS = keys.parts("cpu")


@pytest.mark.parametrize("field", keys.Parts.__struct_fields__)
def test_each_part_changes_the_key(field: str):
    other = {"threads": 77, "environment": {"TRITON_X": "1"}}.get(field, "another")
    changed = msgspec.structs.replace(PARTS, **{field: other})
    assert keys.digest(changed) != keys.digest(PARTS)
    assert keys.digest(keys.parts("cpu")) == keys.digest(PARTS)


def test_the_parts_are_read(tmp_path: Path, versions: Any, monkeypatch: pytest.MonkeyPatch):
    lock = tmp_path / "constraints.txt"
    lock.write_text("torch==1")
    found = keys.parts("cpu", lock)
    assert found.torch == torch.__version__
    assert str(torch.version.git_version) in found.torch_build
    assert found.device == "cpu"
    lock.write_text("torch==2")
    assert keys.parts("cpu", lock).lock != found.lock != ""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert keys.parts("cpu").threads == 99
    with pytest.raises(UsageError, match="cannot read lock file"):
        keys.parts("cpu", tmp_path / "absent.txt")


def test_variables_of_the_compiler_are_parts_and_folders_are_not():
    given = {"TORCHINDUCTOR_CPP_WRAPPER": "1", "CXX": "clang++", "TRITON_DEBUG": "1"}
    places = {
        INDUCTOR: "a",
        TRITON: "b",
        "TORCHINDUCTOR_COMPILE_THREADS": "4",
        "TRITON_PTXAS_PATH": "c",
    }
    assert keys.parts("cpu", environment=given | places).environment == given


def test_the_processors_features_are_a_part(tmp_path: Path):
    cpuinfo = tmp_path / "cpuinfo"
    seen = []
    for flags in ("fpu avx2", "avx2 fpu", "fpu avx2 avx512f"):
        cpuinfo.write_text(f"processor : 0\ncpu MHz : 2000.{len(flags)}\nflags\t\t: {flags}\n")
        seen.append(keys._processor(cpuinfo))
    assert seen[0] == seen[1] != seen[2]


def test_the_command_prints_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lock = tmp_path / "lock.txt"
    lock.write_text("x")
    capsys.readouterr()
    seen = []
    for more in ((), ("--cache-lock", str(lock)), ("--parts",)):
        assert main(["cache", "key", *more]) == 0
        seen.append(capsys.readouterr().out.strip())
    assert seen[0] == keys.digest(keys.parts("cpu"))
    assert seen[1] == keys.digest(keys.parts("cpu", lock)) != seen[0]
    assert keys.digest(msgspec.json.decode(seen[2], type=keys.Parts)) == seen[0]
    assert main(["cache", "key", "--cache-lock", "absent"]) == 4
    assert "name a lock or constraints file" in capsys.readouterr().err
