"""Who may save the compile cache, and what a run says where it cannot use one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from toy import ToyTarget

from vlm_ci import runner
from vlm_ci.caching import scopes
from vlm_ci.caching.use import INDUCTOR, TRITON, CompileCache, bundle_path
from vlm_ci.report.terminal import summary
from vlm_ci.settings import Settings
from vlm_ci.watch import caches


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of any CI, and with no folder chosen."""
    for name in ("CI", "GITHUB_ACTIONS", INDUCTOR, TRITON):
        monkeypatch.delenv(name, raising=False)


def compile_one(folder: Path, name: str, scope: str) -> tuple[str, str, bool]:
    """Return state and note of a run, and whether the file was there at its beginning."""
    cache = CompileCache(folder, scope=scope)
    cache.load()
    file = Path(os.environ[INDUCTOR], name)
    there = file.exists()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"compiled")
    cache.save()
    cache.close()
    from vlm_ci.caching import use

    use._own_folder.cache_clear()
    return cache.use.state, cache.use.note, there


def _nothing_taken_over() -> None:
    """Inductor itself may have written its default into the variable."""
    assert os.environ.get(INDUCTOR, "") in ("", caches.default_cache_folder())


def test_an_untrusted_run_saves_nothing(tmp_path: Path):
    state, note, _ = compile_one(tmp_path, "a/one.so", "untrusted")
    assert state == "cold"
    assert "not saved, for this run is not trusted: the options say so" in note
    assert list(tmp_path.rglob("*")) == []


def test_an_untrusted_run_reads_what_a_trusted_one_saved_and_leaves_it(tmp_path: Path):
    compile_one(tmp_path, "a/one.so", "trusted")
    (bundle,) = tmp_path.rglob("*.vlmcache")
    assert bundle.parent == tmp_path / "trusted"
    before = bundle.read_bytes()
    assert compile_one(tmp_path, "a/one.so", "untrusted") == ("warm", "", True)
    assert "not trusted" in compile_one(tmp_path, "b/two.so", "untrusted")[1]
    assert bundle.read_bytes() == before
    assert compile_one(tmp_path, "b/two.so", "trusted")[2] is False


GITHUB = {"GITHUB_ACTIONS": "true", "CI": "true", "GITHUB_REPOSITORY": "own/model"}


def pull(tmp_path: Path, event: str, head: object) -> dict[str, str]:
    path = tmp_path / "event.json"
    path.write_text(json.dumps({"pull_request": {"head": {"repo": head}}}))
    return GITHUB | {"GITHUB_EVENT_NAME": event, "GITHUB_EVENT_PATH": str(path)}


@pytest.mark.parametrize(
    ("event", "head", "scope"),
    [
        ("pull_request", {"full_name": "own/model"}, "trusted"),
        ("pull_request", {"full_name": "Own/Model"}, "trusted"),
        ("pull_request", {"full_name": "someone/model"}, "untrusted"),
        ("pull_request_target", {"full_name": "someone/model"}, "untrusted"),
        ("pull_request_review", {"full_name": "someone/model"}, "untrusted"),
        ("pull_request", None, "untrusted"),
        ("issue_comment", {"full_name": "own/model"}, "untrusted"),
        ("workflow_run", {"full_name": "own/model"}, "untrusted"),
        ("push", None, "trusted"),
        ("schedule", None, "trusted"),
        ("merge_group", None, "trusted"),
        ("workflow_dispatch", None, "trusted"),
    ],
)
def test_github_says_whose_code_runs(tmp_path: Path, event: str, head: object, scope: str):
    assert scopes.find("auto", pull(tmp_path, event, head)).name == scope


def test_what_cannot_be_told_is_untrusted(tmp_path: Path):
    assert scopes.find("auto", GITHUB | {"GITHUB_EVENT_NAME": "pull_request"}).name == "untrusted"
    own = pull(tmp_path, "pull_request", {"full_name": "own/model"})
    assert scopes.find("auto", own | {"GITHUB_ACTOR": "dependabot[bot]"}).name == "untrusted"
    (tmp_path / "event.json").write_text("[")
    assert scopes.find("auto", own).name == "untrusted"
    found = scopes.find("auto", {"CI": "true"})
    assert found.name == "untrusted"
    assert "--cache-scope trusted" in found.why
    assert scopes.find("auto", {}).name == "trusted"
    assert scopes.find("trusted", {"CI": "true"}).name == "trusted"


# -- in a run -------------------------------------------------------------------------------------


def test_a_run_that_uses_none_says_so(tmp_path: Path):
    settings = Settings.from_mapping(
        {"cache": str(tmp_path / "cache"), "out": str(tmp_path / "out"), "examples": 1}
    )
    target = ToyTarget()
    try:
        result = runner.run(settings, target, own=True)
    finally:
        target.close()
    assert result.cache is not None
    assert (result.cache.state, result.cache.hits) == ("ignored", None)
    (shown,) = (line for line in summary(result) if line.startswith("cache "))
    assert shown.endswith("; a target of your own does not use it")
    assert not (tmp_path / "cache").exists()
    _nothing_taken_over()


@pytest.mark.parametrize(
    ("owner", "option", "value", "named"),
    [
        ("torch.compiler.config", "force_disable_caches", True, "FORCE_DISABLE_CACHES"),
        ("torch._inductor.config", "fx_graph_cache", False, "TORCHINDUCTOR_FX_GRAPH_CACHE"),
    ],
)
def test_caches_that_are_off_are_said(
    tmp_path: Path, owner: str, option: str, value: bool, named: str
):
    import importlib

    config: Any = importlib.import_module(owner)
    with config.patch(**{option: value}):
        assert named in caches.caches_off()
        cache = CompileCache(tmp_path)
        cache.load()
    assert cache.use.state == "ignored"
    assert named in cache.use.note
    _nothing_taken_over()
    assert caches.caches_off() == ""


def test_the_bundle_lies_with_those_of_trusted_runs(tmp_path: Path):
    assert bundle_path(tmp_path, "abc") == tmp_path / "trusted" / "abc.vlmcache"
