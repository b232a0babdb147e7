"""``vlm-ci doctor``: probes that miss something, and processes that die while they probe."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest
from doctor_checks import ON_A_GPU, ON_THE_CPU, by_name

from vlm_ci.doctor import gpu_probes, launch, observers
from vlm_ci.doctor.outcomes import Outcome
from vlm_ci.doctor.probes import OBSERVERS, THOROUGH, attempt, main
from vlm_ci.doctor.trial import Trial
from vlm_ci.watch import cudagraphs, triton

# -- the probing process -----------------------------------------------------------------------

SAYS = (
    "import os, sys, json\n"
    "out = open(sys.argv[1], 'a')\n"
    "def say(probe, state):\n"
    "    print(json.dumps(dict(probe=probe, state=state)), file=out, flush=True)\n"
    "say('a', 'started'); say('a', 'works'); say('b', 'started')\n"
)


def probe(script: str, **options) -> dict[str, Outcome]:
    return launch.probe(["a", "b", "c"], command=(sys.executable, "-c", script), **options)


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("os.abort()", "was ended by SIGABRT"),
        ("sys.exit(3)", "ended with exit code 3: no message"),
        ("raise ValueError('no')", "ended with exit code 1: ValueError: no"),
        ("sys.exit(0)", "ended early"),
        ('out.write(\'{"probe": "b\'); sys.exit(0)', "ended early"),
    ],
)
def test_a_process_that_dies_tells_in_which_probe(end: str, how: str):
    said = probe(SAYS + end)
    assert said["a"].state == "works"
    assert (said["b"].state, said["b"].found) == ("fails", f"the process that tries it {how}")
    assert said["c"].state == "fails"
    assert said["c"].found == f"not tried: the process that tries it {how} in b"


def test_a_process_that_hangs_is_ended_with_its_children(tmp_path: Path):
    mark = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(mark)!r}).touch()"
    script = SAYS + (
        "import subprocess, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "time.sleep(60)\n"
    )
    said = probe(script, timeout=2)
    assert said["b"].found == "the process that tries it did not end within 2 s"
    time.sleep(3)
    assert not mark.exists()


def test_a_process_that_cannot_be_started():
    said = launch.probe(["a"], command=("/no/such/program",))
    assert said["a"].state == "fails"
    assert "could not be started: No such file or directory" in said["a"].found


# -- the probes --------------------------------------------------------------------------------


def test_every_observer_works_and_leaves_nothing_behind():
    from vlm_ci.watch import internals

    internals.reset()  # drops what earlier tests of this process had registered

    before = (
        internals.recompile_limit(),
        internals.eval_frame._callback_from_stance,
        list(internals.callback_handler.start_callbacks),
    )
    for _twice in range(2):
        for name in ON_THE_CPU:
            outcome = attempt(name)
            assert outcome.state == "works", f"{name}: {outcome.found}"
            assert outcome.found
    after = (
        internals.recompile_limit(),
        internals.eval_frame._callback_from_stance,
        list(internals.callback_handler.start_callbacks),
    )
    assert after == before


@pytest.mark.parametrize(
    ("hook", "broken"),
    [
        ("reporting_refusals", {"refused calls", "swallowed refusals"}),
        ("reporting_compiles", {"compilations"}),
        ("reporting_limits", {"recompile limit"}),
        ("strict", {"refused calls", "swallowed refusals"}),
        ("region", {"compiled regions"}),
        ("graph", {"compiled regions"}),
        ("signature", {"refused calls"}),
        ("outcomes", {"recompile reasons", "skipped frames"}),
        ("reasons", {"recompile reasons", "skipped frames"}),
        ("breaks", {"graph breaks"}),
        ("lines", {"graph breaks"}),
        ("profiler", {"stalls"}),
    ],
)
def test_a_probe_goes_red_when_what_it_probes_is_lost(monkeypatch, hook, broken):
    import torch

    from vlm_ci.watch import internals, logs
    from vlm_ci.watch.watcher import Watcher

    if hook == "region":
        monkeypatch.setattr(Watcher, "regions", 0)
    elif hook == "graph":
        monkeypatch.setattr(Trial, "_count_graph", lambda self: setattr(self, "graphs", 2))
    elif hook == "signature":
        monkeypatch.setattr(Watcher, "keep_warm", lambda self: self.warm.update(probe=[]))
    elif hook == "outcomes":
        monkeypatch.setattr(internals.CompileOutcomes, "new", lambda self: [])
    elif hook == "reasons":
        real = internals.CompileOutcomes.new
        monkeypatch.setattr(
            internals.CompileOutcomes,
            "new",
            lambda self: [dataclasses.replace(one, reason="") for one in real(self)],
        )
    elif hook == "breaks":
        monkeypatch.setattr(internals.GraphBreaks, "new", lambda self: [])
    elif hook == "lines":
        monkeypatch.setattr(internals, "_innermost", lambda stack: "")
    elif hook == "profiler":
        monkeypatch.setattr(torch.profiler.profile, "key_averages", lambda self: [])
    else:
        home = logs if hook == "reporting_limits" else internals
        monkeypatch.setattr(home, hook, lambda *args: nullcontext())
    outcomes = {name: attempt(name) for name in ON_THE_CPU}
    assert {name for name, outcome in outcomes.items() if outcome.state == "fails"} == broken
    for name in broken:
        assert outcomes[name].found


def test_a_probe_is_written_down_before_it_is_tried(tmp_path: Path):
    main(str(tmp_path / "said"), ["compilations", "no such probe"])
    said = [msgspec.json.decode(line, type=Outcome) for line in (tmp_path / "said").open("rb")]
    assert [(outcome.probe, outcome.state) for outcome in said] == [
        ("compilations", "started"),
        ("compilations", "works"),
        ("no such probe", "started"),
        ("no such probe", "fails"),
    ]


def test_a_torch_that_lacks_a_hook_or_compiles_nothing_is_told(monkeypatch):
    import torch

    from vlm_ci.watch import internals

    def lacking(report: object) -> None:
        raise internals.UnsupportedTorch("torch 9.9 has no _stance\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(internals, "reporting_refusals", lacking)
        outcome = attempt("refused calls")
    assert outcome.state == "fails"
    assert outcome.found == "UnsupportedTorch: torch 9.9 has no _stance"
    with torch._dynamo.config.patch(disable=True):
        said = {name: attempt(name) for name in ON_THE_CPU}
    assert said.pop("stalls").state == "works"  # it compiles nothing
    assert {(outcome.state, outcome.found) for outcome in said.values()} == {
        ("fails", "torch.compile compiled nothing")
    }


@pytest.mark.parametrize(
    "lost",
    [
        "torch._dynamo.utils.graph_break_reasons",
        pytest.param("torch._dynamo.callback.CallbackTrigger", marks=pytest.mark.nightly),
    ],
)
def test_a_private_part_that_is_gone_breaks_every_observer_that_needs_it(
    monkeypatch, tmp_path: Path, lost: str
):
    module, name = lost.rsplit(".", 1)
    losing = f"import importlib; vars(importlib.import_module({module!r})).pop({name!r}); "
    monkeypatch.setattr(launch, "PROBING", (sys.executable, "-c", losing + launch._MAIN))
    shown = by_name(observers.checks(launch.probe(list(OBSERVERS))))
    assert {name for name in ON_THE_CPU if shown[name].status == "broken"} == {*ON_THE_CPU} - {
        "stalls"
    }
    assert {name in found.found for found in shown.values() if found.status == "broken"} == {True}
    assert shown["graph breaks"].advice


GPU_ALONE = (*ON_A_GPU, "CUDA graph recordings", "Inductor's autotuning", "Inductor on the GPU")


def test_what_a_gpu_alone_has_is_absent_without_one(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in GPU_ALONE:
        assert attempt(name).state == "absent"
    assert "not observed" in attempt("CUDA graph captures").found
    assert "not observed" in attempt("Triton kernels").found
    assert attempt("stalls").found.endswith(
        "without a GPU stalls are watched only where --policy names stall"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_probes, "find_spec", lambda name: None)
    for name in ("Triton kernels", "Triton autotuning", "CUDA graph recordings"):
        assert (attempt(name).state, "triton is not installed" in attempt(name).found) == (
            "absent",
            True,
        )
    assert "--policy" not in attempt("stalls").found


@pytest.mark.gpu
@pytest.mark.parametrize("name", GPU_ALONE)
def test_what_a_gpu_alone_has_is_seen_there(monkeypatch, tmp_path: Path, name: str):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for _ in range(1 if name == "Inductor's autotuning" else 2):  # whose choices the cache keeps
        outcome = attempt(name)
        assert outcome.state == "works", outcome.found


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("observer", "names"),
    [
        (cudagraphs.CudagraphObserver, ("CUDA graph captures", "CUDA graph recordings")),
        (triton.TritonObserver, ("Triton kernels", "Triton autotuning", "Inductor's autotuning")),
    ],
)
def test_what_a_gpu_alone_has_is_missed_without_its_observer(
    monkeypatch, tmp_path: Path, observer: type, names: tuple[str, ...]
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(observer, "start", lambda self, record: None)
    for name in names:
        assert attempt(name).state == "fails", name


@pytest.mark.gpu
def test_a_gpu_is_described():
    torch = attempt("torch").torch
    assert torch is not None
    assert torch.gpus
    for gpu in torch.gpus:
        assert not gpu.error
        assert 0 < gpu.free <= gpu.memory


def test_torch_describes_itself():
    import torch

    said = attempt("torch").torch
    assert said is not None
    assert said.version == torch.__version__
    assert said.threads == torch.get_num_threads()
    assert bool(said.gpus) is torch.cuda.is_available()


def outcomes(**changed: Outcome) -> dict[str, Outcome]:
    works = {name: Outcome(probe=name, state="works", found="seen") for name in OBSERVERS}
    return works | {outcome.probe: outcome for outcome in changed.values()}


def test_observers_that_take_long_are_tried_or_named():
    shown = by_name(observers.checks(outcomes()))
    assert shown.keys() == {*OBSERVERS, observers.REST}
    assert shown[observers.REST].status == "absent"
    assert shown[observers.REST].found == (
        "not tried (only --thorough does): lazy compilations, compile caches, "
        "CUDA graph recordings, Inductor's autotuning"
    )
    tried = {name: Outcome(probe=name, state="works", found="seen") for name in THOROUGH}
    shown = by_name(observers.checks(outcomes(**tried)))
    assert shown.keys() == {*OBSERVERS, *THOROUGH}
    assert {found.status for found in shown.values()} == {"ok"}


@pytest.mark.usefixtures("no_variables")
def test_the_advice_for_a_broken_observer_names_the_plainest_cause(monkeypatch, versions):
    fails = Outcome(probe="recompile limit", state="fails", found="not recorded")

    def advice() -> str:
        shown = by_name(observers.checks(outcomes(fails=fails)))
        assert {name for name, found in shown.items() if found.status == "broken"} == {
            "recompile limit"
        }
        return shown["recompile limit"].advice

    versions(torch="2.12.0")
    assert "report it" in advice()
    monkeypatch.setenv("TORCH_LOGS", "-dynamo")
    assert advice().startswith("`unset TORCH_LOGS`")
    versions(torch="2.15.0")
    assert "'torch>=2.11,<2.14'" in advice()
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert advice().startswith("`unset TORCHDYNAMO_DISABLE`")
    versions(torch=None)
    assert "pip install 'torch>=2.11,<2.14'" in advice()


# -- what takes long -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lazy_compilation_is_seen_and_missed_without_its_callback(monkeypatch):
    outcome = attempt("lazy compilations")
    assert outcome.state == "works", outcome.found
    from vlm_ci.watch import internals

    monkeypatch.setattr(internals, "reporting_compiles", lambda report: nullcontext())
    outcome = attempt("lazy compilations")
    assert outcome.state == "fails"
    assert outcome.found == "one backward pass was compiled, and 0 were recorded"


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_compile_caches_are_seen_and_missed_without_their_counters(monkeypatch, tmp_path: Path):
    from vlm_ci.watch import inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "one"))
    outcome = attempt("compile caches")
    assert outcome.state == "works", outcome.found
    monkeypatch.setattr(inductor, "COUNTERS", [row for row in inductor.COUNTERS if "hit" in row[2]])
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "two"))
    outcome = attempt("compile caches")
    assert outcome.state == "fails"
    assert outcome.found == "compiled afresh, and 0 hits, 0 misses recorded"
