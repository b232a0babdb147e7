"""The options of a run, once for the command line and the pytest plugin. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_ci.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping

PROFILES = {"local": 100, "ci": 300, "nightly": 3000}
DYNAMIC = {"true": True, "false": False, "auto": None}
DEFAULT_TARGET = "qwen3-vl-tiny"
DEFAULT_RECIPE = "decoder-layers"
DEFAULT_OUT = "vlm-ci-out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: ``--NAME`` of the command line and ``--vlm-NAME`` of pytest."""

    name: str
    help: str
    kind: type = str
    metavar: str | None = None

    @property
    def field(self) -> str:
        """The name of its field in ``Settings``."""
        return self.name.replace("-", "_")


OPTIONS = (
    Option(
        name="target",
        metavar="NAME",
        help="what to test: FAMILY-tiny, FAMILY:CHECKPOINT or "
        f"package.module:factory (default {DEFAULT_TARGET})",
    ),
    Option(
        name="recipe",
        metavar="NAME",
        help="what is compiled: decoder-layers, language-model, "
        f"vision, whole or package.module:function (default {DEFAULT_RECIPE})",
    ),
    Option(name="backend", metavar="NAME", help="eager, aot_eager or inductor (default eager)"),
    Option(name="device", metavar="NAME", help="cpu, cuda or cuda:N (default cpu)"),
    Option(
        name="dtype", metavar="NAME", help="float32, bfloat16, float16 or float64 (default float32)"
    ),
    Option(
        name="warmup",
        metavar="PLAN",
        help="a plan file, or default, text-only or image-only (default default)",
    ),
    Option(
        name="envelope",
        metavar="FILE",
        help="a JSON file of what traffic is accepted (default: the target's own)",
    ),
    Option(
        name="profile",
        metavar="NAME",
        help="how much to try: "
        + ", ".join(f"{name} {count}" for name, count in PROFILES.items())
        + " examples (default local)",
    ),
    Option(
        name="examples",
        kind=int,
        metavar="N",
        help="how many sessions to try, in place of the profile's",
    ),
    Option(name="seed", kind=int, metavar="S", help="the seed of the traffic (default 0)"),
    Option(
        name="bug", metavar="NAME", help="plant this bug; it brings its target, recipe and warm-up"
    ),
    Option(name="repaired", kind=bool, help="with --bug: take its repaired twin"),
    Option(
        name="out",
        metavar="DIR",
        help=f"where result.json and failures/ go (default {DEFAULT_OUT})",
    ),
    Option(
        name="dynamic",
        metavar="WHEN",
        help="torch.compile's dynamic: true, false or auto (default true)",
    ),
    Option(
        name="mode",
        metavar="NAME",
        help="torch.compile's mode, for the inductor backend (default: none)",
    ),
    Option(name="fullgraph", kind=bool, help="compile with fullgraph=True"),
    Option(
        name="recompile-limit",
        kind=int,
        metavar="N",
        help="torch's recompile limit (default: torch's own)",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of a run, checked as far as this is possible without a model.

    Build it with ``from_mapping``; a bug's own target, recipe, warm-up and compile options stand
    where the user gave none.
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
    dynamic: bool | None = True
    mode: str | None = None
    fullgraph: bool = False
    recompile_limit: int | None = None

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Settings:
        """Build settings from what the user gave; None means "not given".

        Raises:
            UsageError: a value is out of range, or two options contradict each other.
        """
        values = {
            option.field: given[option.field]
            for option in OPTIONS
            if given.get(option.field) is not None and given[option.field] is not False
        }
        if values.get("repaired") and "bug" not in values:
            raise UsageError("--repaired needs --bug NAME: it takes that bug's repaired twin")
        if "bug" in values:
            values = {**_of_bug(values["bug"]), **values}
        profile = values.setdefault("profile", "local")
        if profile not in PROFILES:
            raise unknown_name("profile", profile, PROFILES)
        values.setdefault("examples", PROFILES[profile])
        for name, minimum in (("examples", 1), ("seed", 0), ("recompile_limit", 1)):
            if name in values and values[name] < minimum:
                raise UsageError(
                    f"--{name.replace('_', '-')} must be at least {minimum}, not {values[name]}"
                )
        if isinstance(values.get("dynamic"), str):
            if values["dynamic"] not in DYNAMIC:
                raise unknown_name("value for --dynamic", values["dynamic"], DYNAMIC)
            values["dynamic"] = DYNAMIC[values["dynamic"]]
        for name in ("out", "envelope"):
            if name in values:
                values[name] = Path(values[name])
        out = values.get("out")
        if out is not None and out.exists() and not out.is_dir():
            raise UsageError(f"--out {out} is a file: name a folder")
        return cls(**values)


def _of_bug(name: str) -> dict[str, Any]:
    from vlm_ci import bugs

    bug = bugs.find(name)
    return {
        "target": bug.target,
        "recipe": bug.recipe,
        "warmup": bug.warmup,
        **({"device": "cuda"} if bug.gpu else {}),
        **bug.options,
    }
