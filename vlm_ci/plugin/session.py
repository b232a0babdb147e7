"""What the plugin knows in one pytest session: settings, the live target, results."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from vlm_ci.errors import UsageError
from vlm_ci.plugin import configuration, rerunning
from vlm_ci.plugin.carrier import CARRIER
from vlm_ci.plugin.splitting import PART

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vlm_ci.reruns import Recordings
    from vlm_ci.result import Result
    from vlm_ci.settings import Layer, Settings
    from vlm_ci.targets.protocol import Target
    from vlm_ci.warmed import WarmSlot

TARGET = pytest.StashKey[int]()  # a number for the target of a test, the same in every worker
ITEM_RESULTS = pytest.StashKey[list[tuple["Result", str]]]()
REFUSED = pytest.StashKey[bool]()


class VlmSession:
    """State of the plugin in one process. ``results`` holds a result and its folder for each run;
    ``refused`` says that a test met bad input."""

    def __init__(self, config: pytest.Config) -> None:
        """Read the command line and the ini file.

        Raises:
            UsageError: a value is wrong.
        """
        self.config = config
        self.results: list[tuple[Result, str]] = []
        self.refused = False
        self.problems: list[str] = []
        self._page = ""  # where the page of all runs lies
        self.deaths: dict[str, str] = {}  # workers that ended where no test is to blame
        self.shares: list[str] = []  # in words: of how many tests this shard runs how many
        self.recordings: Recordings | None = None
        self._only: str | None = None  # the node id of the only check of the session
        self._folder = Path.cwd()
        self._started = config.stash.get(configuration.STARTED, 0.0)
        self._busy = False
        self._runs: Counter[str] = Counter()
        self._target: Target | None = None
        self._key: tuple[Any, ...] = ()
        self._slot: WarmSlot | None = None
        self._arguments = configuration.given_arguments(config)
        self._ini = configuration.given_ini(config)
        if self.configured:
            self._settings([])  # a wrong value ends the session before anything is collected

    @property
    def in_worker(self) -> bool:
        """Whether this process is a worker of xdist."""
        return hasattr(self.config, "workerinput")

    @property
    def configured(self) -> bool:
        """Whether the command line or the ini file says anything of vlm_ci."""
        return bool(self._arguments or self._ini)

    # -- settings ----------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """What command line and ini file say, for every test that says nothing itself."""
        return self._settings([])

    def _settings(self, markers: Sequence[Layer]) -> Settings:
        from vlm_ci.settings import Layer, Settings

        name = configuration.ini_name(self.config)
        ini = Layer(
            values=self._ini,
            wording=lambda option: f"{configuration.as_ini(option)} in {name}",
            folder=configuration.ini_folder(self.config),
        )
        arguments = Layer(values=self._arguments, wording=configuration.as_argument)
        return Settings.from_layers([ini, *markers, arguments])

    def settings_of(self, item: pytest.Item, target: str | None = None) -> Settings:
        """Return the settings of one test: command line over marker over ini file.

        ``target`` chooses one of several.

        Raises:
            UsageError: something is wrong in its markers.
        """
        try:
            settings = self._settings(configuration.layers_of_markers(item))
        except UsageError as error:
            raise UsageError(f"{item.nodeid}: {error}") from None
        return settings.for_target(target) if target is not None else settings

    def targets_of(self, item: pytest.Item) -> tuple[str, ...]:
        """Return the names of the targets that a test runs against."""
        try:
            return self.settings_of(item).targets
        except UsageError:
            return ()  # the markers are checked once everything is collected

    def told(self) -> dict[str, list[str]]:
        """Return what the controller has to hear from a worker, as plain data."""
        return {"problems": self.problems, "shares": self.shares}

    def hear(self, told: dict[str, list[str]]) -> None:
        """Take what a worker told; all of them choose the same share."""
        self.problems += told["problems"]
        self.shares = self.shares or told["shares"]

    def order(self, tests: Sequence[pytest.Item]) -> list[pytest.Item]:
        """Check each test's settings; return the tests with those of one target side by side,
        and of these those of one warm-up plan.

        Raises:
            UsageError: something is wrong in a marker.
        """
        from vlm_ci.building import target_key

        groups: dict[tuple[Any, ...], dict[str, list[pytest.Item]]] = {}
        for item in tests:
            key: tuple[object, ...] = ()
            plan = ""
            try:
                settings = self.settings_of(item, target_of(item))
                key, plan = target_key(settings), settings.warmup
            except UsageError:
                # A worker that stops here looks like one that crashed: let the test say it.
                if not self.in_worker:
                    raise
            groups.setdefault(key, {}).setdefault(plan, []).append(item)
            item.stash[TARGET] = list(groups).index(key)
        checks = [item for item in tests if "vlm_check" in getattr(item, "fixturenames", ())]
        self._only = checks[0].nodeid if len(checks) == 1 else None
        return [item for plans in groups.values() for plan in plans.values() for item in plan]

    # -- the live target ---------------------------------------------------------------------

    def lease(self, settings: Settings) -> Target:
        """Return the target of these settings: the one that is alive if it is that one.

        Raises:
            UsageError: it cannot be built.
        """
        from vlm_ci.plugin.workers import check_gpu

        check_gpu(self.config, settings.device)  # before anything might start CUDA

        from vlm_ci import building
        from vlm_ci.targets import loading

        if len(settings.targets) > 1:
            raise UsageError(
                f"{settings.target!r} names several targets where only one can be taken: name them "
                "on the command line, in the ini file or in a marker of the test itself"
            )
        key = building.target_key(settings)
        if self._target is None or self._key != key:
            self.close()
            self._target, self._key = building.build_target(settings), key
            loading.release_idle = self._release
        self._busy = True
        return self._target

    def end_of_test(self) -> None:
        """The test that used the live target is over; whoever loads another may close it."""
        self._busy = False

    def _release(self) -> None:
        if not self._busy:
            self.close()

    def owns(self, target: Target) -> bool:
        """Whether the plugin built this target, by its name."""
        return target is self._target

    def close(self) -> None:
        """Close the live target, if there is one."""
        target, self._target = self._target, None
        if target is not None:
            try:
                target.close()
            except Exception as error:
                text = str(error).strip().split("\n")[0]
                self.problems.append(
                    f"closing target {target.name} raised {type(error).__name__}: {text}"
                )

    # -- a run -------------------------------------------------------------------------------

    def check(self, item: pytest.Item, settings: Settings, target: Target) -> Result:
        """Run a check for a test, and keep its result.

        Raises:
            UsageError: bad input.
        """
        from vlm_ci import runner, warmed

        carrier: Any = self.config.pluginmanager.get_plugin(CARRIER)
        out = self._out(item, settings)
        if self._slot is None:
            self._slot = warmed.WarmSlot()

        def keep(result: Result) -> None:
            item.stash.setdefault(ITEM_RESULTS, []).append((result, str(out)))
            self._keep(result, str(out))

        return runner.run(
            replace(settings, out=out, baselines=self._baselines(settings)),
            target,
            carrier.progress if carrier else None,
            test=item.nodeid,
            name=settings.target if self.owns(target) else None,
            own=not self.owns(target),
            slot=self._slot,
            recordings=self.recordings,
            part=item.stash.get(PART, None),
            keep=keep,
        )

    def _baselines(self, settings: Settings) -> Path | None:
        """Return the folder of baselines, from where the session began."""
        given = settings.baselines
        return given if given is None or Path.cwd() == self._folder else self._folder / given

    def _out(self, item: pytest.Item, settings: Settings) -> Path:
        """Return a folder of its own for each test, and for each further run of a test.

        The only test of a session has the folder that the options name.
        """
        base = self._base(settings)
        out = base if item.nodeid == self._only else base / _slug(item.nodeid)
        self._runs[item.nodeid] += 1
        repeated = self._runs[item.nodeid]
        return out if repeated == 1 else out / f"run-{repeated}"

    def _base(self, settings: Settings) -> Path:
        # A test may have changed the current folder; results go where the session began.
        return settings.out if Path.cwd() == self._folder else self._folder / settings.out

    def _keep(self, result: Result, out: str) -> None:
        self.results.append((result, out))
        carrier: Any = self.config.pluginmanager.get_plugin(CARRIER)
        if carrier:
            carrier.results.append(result)

    def refuse(self, item: pytest.Item, error: UsageError) -> NoReturn:
        """Fail a test for bad input: one message, and exit code 4 in the end."""
        self.refused = item.stash[REFUSED] = True
        raise pytest.fail.Exception(str(error), pytrace=False) from None

    # -- workers -----------------------------------------------------------------------------

    def attach(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Hand what a test has left to its report, as plain data."""
        rerunning.note(item, report, [one for one, _ in item.stash.get(ITEM_RESULTS, [])])
        if not self.in_worker:
            return
        results = item.stash.get(ITEM_RESULTS, [])
        if results:
            import msgspec

            carried = [(msgspec.json.encode(result).decode(), out) for result, out in results]
            report.__dict__["vlm_ci_results"] = carried  # xdist carries what is plain data
            item.stash[ITEM_RESULTS] = []
        if item.stash.get(REFUSED, False):
            report.__dict__["vlm_ci_refused"] = True

    def receive(self, report: Any) -> None:
        """Take what a worker's report carries."""
        self.refused |= getattr(report, "vlm_ci_refused", False)
        carried = getattr(report, "vlm_ci_results", ())
        if carried:
            import msgspec

            from vlm_ci.result import Result

            for content, out in carried:
                self._keep(msgspec.json.decode(content, type=Result), out)

    def salvage(self, report: Any) -> list[str]:
        """Keep what a worker left on disk that died in a test; return its failures' texts."""
        from vlm_ci import artifacts
        from vlm_ci.plugin import provenance
        from vlm_ci.report.properties import properties

        texts = []
        for base in (self.settings.out / _slug(report.nodeid), self.settings.out):
            for out in (base, *sorted(base.glob("run-*"))):
                result = artifacts.salvage(out, report.nodeid, since=self._started)
                if result is not None:
                    self._keep(result, str(out))
                    pairs = provenance.of_result(result) + properties(result, str(out))
                    provenance.state_of_test(self.config, report, pairs)
                    texts += [artifacts.text_of(out, failure) for failure in result.failures]
        return texts

    def write_page(self) -> None:
        """Write one page of all runs; a worker leaves that to the controller."""
        if self.results and not self.in_worker:
            from vlm_ci.report import pages

            folders = [Path(out) for _, out in self.results]
            self._page = pages.keep(folders, self._base(self._settings([])))

    # -- reporting ---------------------------------------------------------------------------

    def header(self) -> str:
        """Return the header: what is tested with what, and what cannot be watched in it."""
        from vlm_ci.environment import version_of

        settings = self._settings([])
        blind = _blind(settings)
        return (
            f"vlm-ci: torch {version_of('torch')}, transformers {version_of('transformers')}, "
            f"device {settings.device}, target {settings.target}, recipe {settings.recipe}, "
            f"backend {settings.backend}, profile {settings.profile} "
            f"({settings.examples} examples)"
            + (f", seed {settings.seed}" if settings.seed else "")
            + (f", shard {settings.shard}" if settings.shard else "")
            + (f"\nvlm-ci: not watched: {', '.join(blind)}" if blind else "")
        )

    def tell_github(self, say: Callable[[str], object]) -> None:
        """Give the step of GitHub Actions that this session runs in its summary and annotations."""
        if self.results and not self.in_worker:  # workers end with a summary too, which nobody sees
            from vlm_ci.report import actions

            actions.tell(self.results, self._settings([]).github, say=say)

    def summary(self) -> list[str]:
        """Return the lines of the summary section: one block for each run."""
        deaths = [f"worker {name} ended outside a test: {why}" for name, why in self.deaths.items()]
        problems = [*self.problems, *deaths]
        if not (self.results or problems or self.shares):
            return []
        from vlm_ci.plugin.workers import workers_of
        from vlm_ci.report.actions import for_log
        from vlm_ci.report.terminal import line, summary

        lines = [line("shard", text) for text in dict.fromkeys(self.shares)]
        for result, out in self.results:
            if lines:
                lines.append("")
            lines += summary(result, out)
        workers = workers_of(self.config)
        if workers.shared:
            lines.append(line("workers", workers.note))
        if self._page:
            lines += [*[""][: len(self.results) > 1], line("report", self._page)]
        lines += [line("problem", text) for text in problems]
        return [for_log(text) for text in lines]


def target_of(item: pytest.Item) -> str | None:
    """Return which of several targets a test has, None where there is but one."""
    callspec = getattr(item, "callspec", None)
    name: str | None = callspec.params.get("vlm_settings") if callspec is not None else None
    return name


def _blind(settings: Settings) -> list[str]:
    """Name what no observer can see with these settings; loads no torch to find out."""
    blind = []
    if not settings.device.startswith("cuda"):
        blind += ["CUDA graphs", "Triton"]
    elif find_spec("triton") is None:
        blind.append("Triton (not installed)")
    else:
        blind.append("Triton kernels of Inductor's own")
    stall = settings.policy.get("stall")
    if stall == "off" or (stall is None and not settings.device.startswith("cuda")):
        blind.append("stalls")
    return blind


def _slug(nodeid: str) -> str:
    from zlib import crc32

    head, _, parameters = nodeid.partition("[")
    name = re.sub(r"[^\w.-]+", "-", nodeid).strip("-")
    plain = re.fullmatch(r"[\w./:-]*", head) and re.fullmatch(r"[\w.-]*\]?", parameters)
    if plain and len(name) <= 120:
        return name
    return f"{name[:110]}-{crc32(nodeid.encode()):08x}"  # other ids may look the same
