"""The options of a run, once for the command line, pytest and its ini file. Imports nothing.

The plugin reads this table in every pytest session of whoever has it installed, so that it has to
cost next to nothing.
"""

from __future__ import annotations

from typing import NamedTuple

PROFILES = {"local": 100, "ci": 300, "nightly": 3000}
REFERENCES = ("auto", "none")
CACHE_SCOPES = ("auto", "trusted", "untrusted")
DEFAULT_TARGET = "qwen3-vl-tiny"
DEFAULT_RECIPE = "decoder-layers"
DEFAULT_OUT = "vlm-ci-out"
DEFAULT_CORPUS = "fixtures/traffic"
DEFAULT_BASELINES = "fixtures/baselines"
DEFAULT_DATABASE = ".hypothesis/vlm-ci"


class Option(NamedTuple):
    """One option: ``--NAME`` of the command line, ``--vlm-NAME`` of pytest, ``vlm_NAME`` in its
    ini file, and a keyword of the ``vlm`` marker where it applies to a test by itself.

    ``file`` says that the value may be the path of a file or a folder.
    """

    name: str
    help: str
    kind: type = str
    metavar: str | None = None
    file: bool = False
    per_test: bool = True

    @property
    def field(self) -> str:
        """The name of its field in ``Settings``, and of its keyword in the marker."""
        return self.name.replace("-", "_")


OPTIONS = (
    Option(
        name="target",
        metavar="NAME",
        help="what to test: FAMILY-tiny, FAMILY:CHECKPOINT, package.module:MODEL or "
        "package.module:factory; several with commas between them "
        f"(default {DEFAULT_TARGET})",
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
        file=True,
        help="a plan file, or default, text-only or image-only (default default)",
    ),
    Option(
        name="envelope",
        metavar="FILE",
        file=True,
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
    Option(
        name="seed",
        kind=int,
        metavar="S",
        help="the seed of the traffic (default 0; under profile nightly GITHUB_RUN_ID, or the "
        "date in UTC)",
    ),
    Option(
        name="bug", metavar="NAME", help="plant this bug; it brings its target, recipe and warm-up"
    ),
    Option(name="repaired", kind=bool, help="with --bug: take its repaired twin"),
    Option(
        name="out",
        metavar="DIR",
        file=True,
        per_test=False,
        help=f"where result.json and failures/ go (default {DEFAULT_OUT})",
    ),
    Option(
        name="github",
        kind=bool,
        per_test=False,
        help="write the summary of the step of GitHub Actions, and annotations (default: where "
        "this is such a step)",
    ),
    Option(
        name="corpus",
        metavar="DIR",
        file=True,
        help="a folder of traffic files that every run tries first "
        f"(default {DEFAULT_CORPUS}, where it exists)",
    ),
    Option(
        name="database",
        metavar="DIR",
        file=True,
        help="Hypothesis's example database, where failing sessions stay for the next run: a "
        "folder, redis://HOST:PORT/N, or none "
        f"(default {DEFAULT_DATABASE} under profile local, else none)",
    ),
    Option(
        name="database-readonly",
        kind=bool,
        help="replay what the database holds, and leave it as it is",
    ),
    Option(
        name="evidence",
        metavar="DIR",
        file=True,
        per_test=False,
        help="results of an earlier attempt, at any depth: their failing sessions are replayed "
        "before anything else",
    ),
    Option(
        name="shard",
        metavar="I/N",
        per_test=False,
        help="run the I-th of N shares of the tests, and of their examples where there are fewer "
        "targets than shares",
    ),
    Option(
        name="durations",
        metavar="FILE",
        file=True,
        per_test=False,
        help="with --shard: how long each test takes, a JUnit file or pytest-split's JSON, the "
        "same one on every machine",
    ),
    Option(
        name="commit",
        metavar="SHA",
        per_test=False,
        help="the commit that results state (default GITHUB_SHA)",
    ),
    Option(
        name="baselines",
        metavar="DIR",
        file=True,
        help="a folder of what compiling came to when it was last looked at, with which a run is "
        f"compared, or none (default {DEFAULT_BASELINES}, where it exists)",
    ),
    Option(
        name="update-baselines",
        kind=bool,
        per_test=False,
        help="let a clean run become the baseline in place of being compared with it",
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
        name="policy",
        metavar="KIND=WHAT",
        help="what to do about a kind of finding: fail, warn, budget:N or off; several with "
        "commas between them (default: fail, and warn for graph-break, graph-skip and stall)",
    ),
    Option(
        name="reference",
        metavar="NAME",
        help="what logits are judged by: auto, the target's higher-precision reference beside "
        "eager, or none, a fixed tolerance, which is weaker (default auto)",
    ),
    Option(
        name="relations",
        metavar="NAMES",
        help="metamorphic relations that each batch is judged by as well, one at a time: all, "
        "none, or names with commas between them (default none)",
    ),
    Option(
        name="recompile-limit",
        kind=int,
        metavar="N",
        help="torch's recompile limit (default: torch's own)",
    ),
    Option(
        name="cache",
        metavar="DIR",
        file=True,
        per_test=False,
        help="a folder that keeps what Inductor and Triton compiled for the next run, or none "
        "(default none)",
    ),
    Option(
        name="cache-scope",
        metavar="NAME",
        per_test=False,
        help="with a cache: trusted runs read and save it, untrusted ones only read what trusted "
        "ones saved; auto asks the CI whose code runs (default auto)",
    ),
    Option(
        name="cache-lock",
        metavar="FILE",
        file=True,
        per_test=False,
        help="with a cache: a lock or constraints file; another content is another cache",
    ),
)
