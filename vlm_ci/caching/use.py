"""The compile cache of one run: what it begins with, and what it leaves for the next one.

Inductor and Triton are given a folder of this process's own, filled from the bundle, so that
nothing that another run left on the machine comes in. A folder that the user chose is respected.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from vlm_ci import environment
from vlm_ci.caching import bundles, keys, scopes
from vlm_ci.caching.bundles import BadBundle
from vlm_ci.result import CacheUse
from vlm_ci.watch import caches, internals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INDUCTOR, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
PATIENCE = 60.0  # seconds that a save waits for another process's
_OF_GITHUB = ("GITHUB_REPOSITORY", "GITHUB_REF", "GITHUB_SHA", "GITHUB_RUN_ID")
# Locks, and Dynamo's profile of sizes: with it a warm start would trace otherwise than a cold one.
_LEFT_OUT = ("locks", "dynamo")
_HITS, _MISSES = ("fxgraph_cache_hit",), ("fxgraph_cache_miss", "fxgraph_cache_bypass")


def bundle_path(folder: Path, key: str) -> Path:
    """Return where the bundle of a key lies: runs that are not trusted save none."""
    return folder / scopes.TRUSTED / f"{key}.vlmcache"


@cache
def _own_folder(bundle: Path) -> tempfile.TemporaryDirectory[str]:
    """Return this process's folder for a bundle; it goes when the process ends, not before:
    compiled code may load more of it."""
    return tempfile.TemporaryDirectory(prefix="vlm-ci-cache-", ignore_cleanup_errors=True)


class CompileCache:
    """``use`` is its record, valid at any moment; ``warn`` hears of a bundle that is not used.

    ``load`` points Inductor and Triton to the cache, ``close`` takes that back.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "cpu",
        backend: str = "inductor",
        scope: str = "auto",
        lock: Path | None = None,
        warn: Callable[[str], object] = lambda text: None,
    ) -> None:
        """Name the bundle; reads nothing of it yet.

        Raises:
            UsageError: the lock file cannot be read.
        """
        self._parts = keys.parts(device, lock)
        self._path = bundle_path(folder, keys.digest(self._parts)).absolute()
        self._scope = scopes.find(scope)
        self._device, self._backend, self._warn = device, backend, warn
        self._roots: dict[str, Path] = {}  # empty while the cache serves nothing
        self._variables: dict[str, str | None] = {}  # as they were
        self._before: set[str] = set()  # files of the folder that are not this run's
        self._members: set[str] = set()  # files of the bundle
        self.use = CacheUse(folder=str(folder), key=keys.digest(self._parts), state="cold")

    def load(self) -> float:
        """Take what the bundle holds, once; returns how many seconds that took."""
        if self._roots or self.use.state != "cold":
            return 0.0
        started = time.perf_counter()
        if off := self._off():
            self.use.state = "ignored"
            self._say(off)
            return 0.0
        self._take_over()
        self._before = set(self._files())
        try:
            with self._opened() as (_, archive):
                self._members = set(bundles.extract(archive, self._roots))
            self.use.state = "warm"
        except FileNotFoundError:
            pass
        except (BadBundle, OSError) as error:
            self.use.state = "ignored"
            self._say(f"the bundle was not used: {error}")
            self._warn(f"compile cache {self._path} was not used: {error}; the run began cold")
        return time.perf_counter() - started

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the graphs that come from the caches, and those that are compiled."""
        before = _counted()
        try:
            yield
        finally:
            if self._backend == "inductor":
                hits, misses = (now - then for now, then in zip(_counted(), before, strict=True))
                self.use.hits = (self.use.hits or 0) + hits
                self.use.misses = (self.use.misses or 0) + misses

    def save(self) -> None:
        """Add what this run compiled to the bundle, unless nothing is new or it is not trusted.

        What cannot be written is no failure of the run: the record says so.
        """
        if not self._roots:
            return
        files = self._files()
        new = {name: path for name, path in files.items() if name not in self._before}
        if not new.keys() - self._members:
            return
        if self._scope.name != scopes.TRUSTED:
            self._say(f"not saved, for this run is not trusted: {self._scope.why}")
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock"), timeout=PATIENCE):
                manifest = self._write(new)
        except (OSError, Timeout) as error:
            self._say(f"not saved: {getattr(error, 'strerror', None) or error}")
            return
        self._members |= new.keys()
        self._say(f"saved {manifest.files} files, {manifest.size / 2**20:.1f} MiB")

    def _write(self, new: dict[str, Path]) -> bundles.Manifest:
        """Write the bundle anew, with what another process has saved meanwhile."""
        try:
            there: Any = self._opened()
            with there as (_, archive):
                return self._written(new, archive)
        except (FileNotFoundError, BadBundle):
            return self._written(new, None)

    def _written(self, new: dict[str, Path], keep: Any) -> bundles.Manifest:
        made_by = {"vlm_ci": environment.version_of("vlm-ci"), "host": platform.node()}
        made_by |= {name: os.environ[name] for name in _OF_GITHUB if name in os.environ}
        return bundles.write(
            self._path,
            new,
            key=self.use.key,
            scope=scopes.TRUSTED,
            parts=self._parts,
            made_by=made_by,
            keep=keep,
        )

    def close(self) -> None:
        """Give Inductor and Triton the folders back that they had."""
        for name, value in self._variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._variables, self._roots = {}, {}

    # -- parts -------------------------------------------------------------------------------

    def _off(self) -> str:
        if self._backend != "inductor":
            named = f"backend {self._backend}" if self._backend else "a target of your own"
            return f"{named} does not use it"
        off = caches.caches_off()
        return f"Inductor's caches are off: {off}" if off else ""

    def _opened(self) -> Any:
        return bundles.opened(self._path, key=self.use.key, scope=scopes.TRUSTED)

    def _say(self, text: str) -> None:
        self.use.note = "; ".join(filter(None, (self.use.note, text)))

    def _take_over(self) -> None:
        default = caches.default_cache_folder()
        self._variables = {name: os.environ.get(name) for name in (INDUCTOR, TRITON)}
        chosen = self._variables[INDUCTOR] or ""
        if not chosen or os.path.abspath(chosen) == default:
            inductor = Path(_own_folder(self._path).name)
        else:
            inductor = Path(chosen).absolute()
            held = "" if _is_empty(inductor) else ", and what it held can make a cold start warm"
            self._say(f"in {inductor}, which {INDUCTOR} names{held}")
        triton = self._variables[TRITON] or ""
        if not triton or (default and Path(triton).absolute().is_relative_to(default)):
            index = 0 if self._device == "cpu" else (_device_index(self._device))
            triton = str(inductor / "triton" / str(index))  # where Inductor itself puts it
        self._roots = {"inductor": inductor, "triton": Path(triton).absolute()}
        os.environ[INDUCTOR] = str(self._roots["inductor"])
        os.environ[TRITON] = str(self._roots["triton"])

    def _files(self) -> dict[str, Path]:
        """Return the files of the caches by their names in a bundle."""
        found = {}
        for root, folder in self._roots.items():
            for path in folder.rglob("*"):
                inside = path.relative_to(folder)
                elsewhere = root == "inductor" and path.is_relative_to(self._roots["triton"])
                if elsewhere or _is_passing(inside) or not path.is_file():
                    continue
                found[f"{root}/{inside.as_posix()}"] = path
        return found


def _is_passing(inside: Path) -> bool:
    """Whether a file is a lock, half written, or not to be carried over."""
    return (
        inside.parts[0] in _LEFT_OUT
        or inside.suffix in (".lock", ".tmp")
        or any(part.startswith((".", "tmp.")) for part in inside.parts)
    )


def _is_empty(folder: Path) -> bool:
    return not folder.is_dir() or not any(folder.iterdir())


def _device_index(device: str) -> int:
    _, _, index = device.partition(":")
    return int(index) if index else 0


def _counted() -> tuple[int, int]:
    found = internals.counters("inductor")
    hits, misses = (sum(found.get(name, 0) for name in names) for names in (_HITS, _MISSES))
    return hits, misses
