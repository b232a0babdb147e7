"""The settings of a run: layers of options, from defaults to the command line. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_ci import policies, sharding
from vlm_ci.errors import UsageError, unknown_name
from vlm_ci.options import (
    CACHE_SCOPES,
    DEFAULT_BASELINES,
    DEFAULT_CORPUS,
    DEFAULT_DATABASE,
    DEFAULT_OUT,
    DEFAULT_RECIPE,
    DEFAULT_TARGET,
    OPTIONS,
    PROFILES,
    REFERENCES,
    Option,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from vlm_ci.sharding import Shard

DYNAMIC = {"true": True, "false": False, "auto": None}
FOLDERS = ("out", "corpus", "database", "evidence", "baselines", "cache")
REDIS = ("redis://", "rediss://")
MINIMUM = {"examples": 1, "seed": 0, "recompile_limit": 1}


def as_option(option: Option) -> str:
    """Name an option as the command line does."""
    return f"--{option.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one source gave, by field; None is "not given".

    ``wording`` names an option as this source does, for messages. Relative paths are taken from
    ``folder``; None leaves them to the current one.
    """

    values: Mapping[str, Any]
    wording: Callable[[Option], str] = as_option
    folder: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of a run, checked as far as this is possible without a model.

    Build it with ``from_layers``; a bug's own target, recipe, warm-up and compile options stand
    where nobody gave any. ``database`` is a folder or the URL of a Redis server.
    """

    target: str = DEFAULT_TARGET
    recipe: str = DEFAULT_RECIPE
    backend: str = "eager"
    device: str = "cpu"
    dtype: str = "float32"
    warmup: str = "default"
    envelope: Path | None = None
    profile: str = "local"
    examples: int = PROFILES["local"]
    seed: int = 0
    bug: str | None = None
    repaired: bool = False
    out: Path = Path(DEFAULT_OUT)
    github: bool | None = None  # None: where this is a step of GitHub Actions
    corpus: Path = Path(DEFAULT_CORPUS)
    database: Path | str | None = None
    database_readonly: bool = False
    evidence: Path | None = None
    shard: Shard | None = None
    durations: Path | None = None
    commit: str = ""
    baselines: Path | None = Path(DEFAULT_BASELINES)
    update_baselines: bool = False
    dynamic: bool | None = True
    mode: str | None = None
    fullgraph: bool = False
    policy: Mapping[str, str] = field(default_factory=dict)
    reference: str = "auto"
    relations: str = "none"
    recompile_limit: int | None = None
    cache: Path | None = None
    cache_scope: str = "auto"
    cache_lock: Path | None = None

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Settings:
        """Build settings from one source alone; None means "not given"."""
        return cls.from_layers([Layer(values=given)])

    @classmethod
    def from_layers(cls, layers: Iterable[Layer]) -> Settings:
        """Build settings from sources, the strongest last.

        A profile or a bug stands for the options that it brings: those give way to what its own
        source or a stronger one says, and win over what a weaker one says.

        Raises:
            UsageError: a value has the wrong type or is out of range, or options contradict.
        """
        values: dict[str, Any] = {}
        source: dict[str, Layer] = {}  # of each option, the strongest that gave it
        for layer in layers:
            given = _checked(layer)
            source |= dict.fromkeys(given, layer)
            brought = _brought(given)
            # Each kind by itself: what a stronger source leaves out, a weaker one may say.
            policy = {**values.get("policy", {}), **brought.get("policy", {})}
            values |= brought
            if policy:
                values["policy"] = policy
        if values.get("repaired") and values.get("bug") is None:
            wording = source["repaired"].wording
            raise UsageError(
                f"{wording(_option('repaired'))} needs {wording(_option('bug'))}: it takes that "
                "bug's repaired twin"
            )
        _check_baselines(values, source)
        if values.get("profile", "local") == "local" and os.environ.get("CI", "").lower() in (
            "",
            "0",
            "false",
        ):
            values.setdefault("database", Path(DEFAULT_DATABASE))
        if values.get("profile") == "nightly":
            values.setdefault("seed", seed_of_tonight())
        values.setdefault("commit", os.environ.get("GITHUB_SHA", ""))
        return cls(**values)

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of all targets; ``target`` may hold several with commas between them."""
        return tuple(self.target.split(","))

    def for_target(self, name: str) -> Settings:
        """Return the same settings for one of the targets."""
        return replace(self, target=name)


def seed_of_tonight() -> int:
    """Return a seed that is the same on all machines of a run, and another one every night."""
    run = os.environ.get("GITHUB_RUN_ID", "")
    if run.isascii() and run.isdecimal():
        return int(run)
    from datetime import UTC, datetime

    return int(datetime.now(UTC).strftime("%Y%m%d"))


def attempt() -> int:
    """Return which attempt of its CI job this is, 0 where the CI does not say."""
    number = os.environ.get("GITHUB_RUN_ATTEMPT", "")
    return int(number) if number.isascii() and number.isdecimal() else 0


def _brought(given: dict[str, Any]) -> dict[str, Any]:
    """Add what a profile and a bug bring, beneath what the same source says itself."""
    brought: dict[str, Any] = {}
    if "profile" in given:
        brought["examples"] = PROFILES[given["profile"]]
    if "bug" in given:
        from vlm_ci import bugs

        bug = bugs.find(given["bug"])
        brought |= {"target": bug.target, "recipe": bug.recipe, "warmup": bug.warmup}
        brought |= {"baselines": None}  # which are those of the healthy model
        brought |= {"device": "cuda"} if bug.gpu else {}
        brought |= {"relations": bug.relation} if bug.relation and bug.in_both else {}
        brought |= bug.options
    return brought | given


def _check_baselines(values: dict[str, Any], source: Mapping[str, Layer]) -> None:
    folder = values.get("baselines", Path(DEFAULT_BASELINES))
    if values.get("update_baselines"):
        name = source["update_baselines"].wording(_option("update_baselines"))
        if values.get("bug") is not None:
            raise UsageError(f"{name} with a planted bug would make it the baseline: drop one")
        if folder is None:
            raise UsageError(f"{name} needs a folder to write to, and the baselines are none")
    elif "baselines" in source and folder is not None and not folder.is_dir():
        wording = source["baselines"].wording
        raise UsageError(
            f"{wording(_option('baselines'))} {folder} is not there: name a folder of baselines, "
            f"or let {wording(_option('update_baselines'))} make it"
        )


def _option(field: str) -> Option:
    return next(option for option in OPTIONS if option.field == field)


def _checked(layer: Layer) -> dict[str, Any]:
    """Convert what a source gave, or say what is wrong in that source's words."""
    values: dict[str, Any] = {}
    for option in OPTIONS:
        value = layer.values.get(option.field)
        if value is None:
            continue
        name = layer.wording(option)
        if isinstance(value, Path) and option.file:
            value = str(value)
        if option.field == "dynamic" and isinstance(value, bool):
            value = str(value).lower()
        if isinstance(value, bool) != (option.kind is bool) or not isinstance(value, option.kind):
            words = {str: "a string", int: "a whole number", bool: "true or false"}
            raise UsageError(f"{name} must be {words[option.kind]}, not {value!r}")
        if value == "":
            raise UsageError(f"{name} is empty: leave it out for its default")
        if isinstance(value, int) and value < MINIMUM.get(option.field, value):
            raise UsageError(f"{name} must be at least {MINIMUM[option.field]}, not {value}")
        values[option.field] = _value(option, name, value, layer.folder)
    return values


def _value(option: Option, name: str, value: Any, folder: Path | None) -> Any:
    field = option.field
    if field == "profile" and value not in PROFILES:
        raise unknown_name("profile", value, PROFILES)
    if field == "target" and not all(part.strip() for part in value.split(",")):
        raise UsageError(f"{name} {value!r} holds an empty name")
    if field == "target":
        return ",".join(dict.fromkeys(part.strip() for part in value.split(",")))
    if field == "dynamic":
        if value not in DYNAMIC:
            raise unknown_name(f"value for {name}", value, DYNAMIC)
        return DYNAMIC[value]
    if field == "policy":
        return policies.parse(value, name)
    if field == "reference" and value not in REFERENCES:
        raise unknown_name(f"value for {name}", value, REFERENCES)
    if field == "cache_scope" and value not in CACHE_SCOPES:
        raise unknown_name(f"value for {name}", value, CACHE_SCOPES)
    if field == "shard":
        return sharding.parse(value, name)
    if field in ("database", "baselines", "cache") and value == "none":
        return None
    if field == "database" and "://" in value:
        if not value.startswith(REDIS):  # it may hold a password: the message leaves it out
            scheme = value.partition("://")[0]
            raise UsageError(
                f"{name} takes a folder, none or redis://HOST:PORT/N, not a URL with {scheme}://"
            )
        return value
    if field == "warmup":
        path = _placed(value, folder)
        return str(path) if value.endswith(".json") or path.is_file() else value
    if not option.file:
        return value
    path = _placed(value, folder)
    if field in FOLDERS and path.exists() and not path.is_dir():
        raise UsageError(f"{name} {value} is a file: name a folder")
    if field == "evidence" and not path.is_dir():
        raise UsageError(f"{name} {value} is not there: name a folder of results; it may be empty")
    if field == "corpus" and not path.is_dir():
        raise UsageError(f"{name} {value} is not there: name a folder of traffic files")
    if field == "cache_lock" and not path.is_file():
        raise UsageError(f"{name} {value} is not there: name a lock or constraints file")
    return path


def _placed(value: str, folder: Path | None) -> Path:
    return Path(value) if folder is None else folder / value
