"""``vlm-ci doctor``: every status of every check, probes that miss something, dead processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest

from vlm_ci import doctor, environment
from vlm_ci.doctor import compiler, launch, limits, machine, observers, packages, surroundings
from vlm_ci.doctor.limits import Limits, Memory
from vlm_ci.doctor.machine import GIB, MIB, Need
from vlm_ci.doctor.outcomes import Gpu, Outcome, Torch
from vlm_ci.doctor.probes import OBSERVERS, Trial, attempt, main
from vlm_ci.doctor.records import Check, Report, render, summary

Shown = dict[str, Check]


def by_name(checks) -> Shown:
    return {check.name: check for check in checks}


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that packages are installed in other versions; None: not installed."""

    def pretend(**given: str | None) -> None:
        named = {name.replace("_", "-"): version for name, version in given.items()}
        real = environment.version_of
        monkeypatch.setattr(
            environment,
            "version_of",
            lambda name: (named[name] or "not installed") if name in named else real(name),
        )

    return pretend


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset everything that doctor shows."""
    for name in os.environ:
        if name in surroundings.MEANING or name.startswith(tuple(surroundings.PREFIXES)):
            monkeypatch.delenv(name)


# -- the report --------------------------------------------------------------------------------


def check(status: str = "ok", name: str = "a", group: str = "One", **more: str) -> Check:
    return Check(**{"group": group, "name": name, "status": status, "found": "there", **more})


@pytest.mark.parametrize(
    ("statuses", "ok", "line"),
    [
        ("ok absent", True, "ready"),
        ("ok warning", True, "ready: 1 warning"),
        ("warning warning", True, "ready: 2 warnings"),
        ("ok broken", False, "not ready: 1 thing is broken (see above)"),
        ("broken broken", False, "not ready: 2 things are broken (see above)"),
        ("broken warning", False, "not ready: 1 thing is broken (see above), 1 warning"),
    ],
)
def test_only_what_is_broken_makes_a_machine_not_ready(statuses: str, ok: bool, line: str):
    report = Report.of(check(status) for status in statuses.split())
    assert report.ok is ok
    assert summary(report) == line
    assert render(report).splitlines()[-1] == line


def test_the_text_is_aligned_under_headings():
    report = Report.of(
        [
            check(name="short"),
            check("warning", name="a longer name", advice="do `this and that`"),
            check("broken", group="Two", found="word " * 30),
        ]
    )
    assert render(report) == (
        "One\n"
        "  ok       short          there\n"
        "  warning  a longer name  there\n"
        "                          to do: do `this and that`\n"
        "\n"
        "Two\n"
        f"  broken   a              {('word ' * 15).strip()}\n"
        f"                          {('word ' * 15).strip()}\n"
        "\n"
        "not ready: 1 thing is broken (see above), 1 warning\n"
    )


def test_a_command_is_never_broken_over_lines():
    command = f"`{'python -m pip install ' * 5}x`"
    assert command in render(Report.of([check(advice=f"{'words ' * 12}{command}")]))


def test_json_decodes_back_to_the_report():
    report = Report.of([check(), check("broken", advice="mend it")])
    text = msgspec.json.encode(report)
    assert msgspec.json.decode(text, type=Report) == report
    assert json.loads(text)["schema"] == "vlm-ci/doctor/1"
    assert json.loads(text)["ok"] is False


# -- packages ----------------------------------------------------------------------------------


def test_minimum_versions_are_those_of_the_project(repository: Path):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    asked = dict(re.match(r"([\w-]+)>=(.+)", line).groups() for line in project["dependencies"])
    ranges = {name: packages.constraint(name).removeprefix(f"{name}>=") for name in asked}
    assert ranges == asked
    assert project["requires-python"] == f">={'.'.join(map(str, packages.OLDEST_PYTHON))}"


def test_the_packages_that_the_tests_run_with_are_ok():
    shown = by_name(packages.checks())
    assert shown.keys() == {"python", "vlm-ci", *environment.TESTED, *packages.MINIMUM}
    assert {shown[name].status for name in packages.MINIMUM} == {"ok"}
    assert "tested with 2.11 to 2.13" in shown["torch"].found
    assert sys.executable in shown["python"].found


@pytest.mark.parametrize("version", ["2.10.1", "2.14.0.dev20270101+cu130", "3.0", "unreadable"])
def test_a_version_outside_the_tested_range_is_a_warning_with_the_constraint(versions, version):
    versions(torch=version)
    torch = by_name(packages.checks())["torch"]
    assert torch.status == "warning"
    assert f"{version} is outside what vlm_ci was tested with (2.11 to 2.13)" in torch.found
    assert torch.advice == f"`{sys.executable} -m pip install 'torch>=2.11,<2.14'`"


@pytest.mark.parametrize("version", ["2.11.0", "2.12.1+cu128", "2.13.9"])
def test_versions_within_the_range_are_ok(versions, version):
    versions(torch=version)
    assert by_name(packages.checks())["torch"].status == "ok"


@pytest.mark.parametrize(
    ("package", "wanted"),
    [
        ("torch", "torch>=2.11,<2.14"),
        ("transformers", "transformers>=5.17,<5.24"),
        *((name, f"{name}>={minimum}") for name, minimum in packages.MINIMUM.items()),
    ],
)
def test_a_missing_package_is_broken_with_the_command_to_install_it(versions, package, wanted):
    versions(**{package.replace("-", "_"): None})
    found = by_name(packages.checks())[package]
    assert (found.status, found.found) == ("broken", "not installed; every run needs it")
    assert found.advice == f"`{sys.executable} -m pip install '{wanted}'`"


def test_a_package_older_than_asked_for_is_a_warning(versions):
    versions(hypothesis="6.129.4")
    found = by_name(packages.checks())["hypothesis"]
    assert found.status == "warning"
    assert found.found == "6.129.4 is older than 6.130, which vlm_ci asks for"
    assert "'hypothesis>=6.130'" in found.advice


def test_an_old_python_is_broken():
    found = packages._python((3, 10))
    assert found.status == "broken"
    assert "needs 3.11 or newer" in found.found


def test_running_from_the_sources_is_a_warning(versions):
    versions(vlm_ci=None)
    assert by_name(packages.checks())["vlm-ci"].status == "warning"


def test_optional_packages(versions):
    versions(torch="2.13.0+cpu", torchvision=None, triton=None)
    shown = by_name(packages.optional(gpu=False))
    assert {name: found.status for name, found in shown.items()} == {
        "torchvision": "absent",
        "triton": "absent",
    }
    assert "pip install torchvision torch==2.13.0`" in shown["torchvision"].advice
    assert by_name(packages.optional(gpu=True))["triton"].status == "warning"
    versions(torchvision="0.28.0", triton="3.6.0")
    assert {found.status for found in packages.optional(gpu=True)} == {"ok"}


def test_a_package_that_does_not_load_is_broken(versions):
    versions(transformers="5.20.0")
    installed = by_name(packages.checks())["transformers"]
    fails = Outcome(probe="transformers", state="fails", found="ImportError: tokenizers is old")
    found = observers.loading(installed, fails)
    assert found.status == "broken"
    assert found.found == ("5.20.0 is installed and does not load: ImportError: tokenizers is old")
    assert "pip install --force-reinstall transformers==5.20.0`" in found.advice
    works = Outcome(probe="transformers", state="works")
    assert observers.loading(installed, works) == installed


# -- limits ------------------------------------------------------------------------------------


def write(root: Path, **files: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text)


def test_control_groups_of_version_2(tmp_path: Path):
    write(tmp_path, membership="0::/outer/inner\n")
    write(tmp_path / "outer", cpu__max="150000 100000\n", memory__max="max\n")
    write(
        tmp_path / "outer/inner",
        cpu__max="max 100000\n",
        memory__max=f"{GIB}\n",
        memory__current=f"{GIB - 100 * MIB}\n",
        memory__stat=f"anon 5\ninactive_file {30 * MIB}\n",
    )
    found = limits.control_groups(tmp_path / "membership", tmp_path)
    assert found == Limits(cpus=1.5, memory=GIB, available=130 * MIB)


def test_the_root_of_the_mount_counts_where_the_place_is_the_host_s(tmp_path: Path):
    write(tmp_path, membership="0::/docker/123\n", cpu__max="50000 100000", memory__max=f"{GIB}")
    found = limits.control_groups(tmp_path / "membership", tmp_path)
    assert found == Limits(cpus=0.5, memory=GIB, available=GIB)


def test_control_groups_of_version_1(tmp_path: Path):
    write(tmp_path, membership="4:memory:/docker/1\n3:cpu,cpuacct:/\n1:name=systemd:/\n")
    write(tmp_path / "cpu,cpuacct", **{"cpu__cfs_quota_us": "400000", "cpu__cfs_period_us": "1000"})
    write(tmp_path / "memory", memory__limit_in_bytes="9223372036854771712")
    assert limits.control_groups(tmp_path / "membership", tmp_path).memory is None
    write(
        tmp_path / "memory/docker/1",
        memory__limit_in_bytes=f"{4 * GIB}",
        memory__usage_in_bytes=f"{GIB}",
    )
    found = limits.control_groups(tmp_path / "membership", tmp_path)
    assert found == Limits(cpus=400.0, memory=4 * GIB, available=3 * GIB)
    write(tmp_path / "cpu,cpuacct", **{"cpu__cfs_quota_us": "-1"})
    assert limits.control_groups(tmp_path / "membership", tmp_path).cpus is None


def test_no_control_groups_is_no_limit(tmp_path: Path):
    assert limits.control_groups(tmp_path / "absent", tmp_path) == Limits()
    write(tmp_path, membership="nonsense\n")
    assert limits.control_groups(tmp_path / "membership", tmp_path) == Limits()


def test_memory_of_the_machine(tmp_path: Path):
    write(tmp_path, meminfo="MemTotal: 2048 kB\nMemAvailable: 1024 kB\nHugePages_Total: 0\n")
    assert limits.memory(tmp_path / "meminfo") == Memory(total=2 * MIB, available=MIB)
    elsewhere = limits.memory(tmp_path / "absent")
    assert elsewhere.total
    assert elsewhere.available is None


# -- the machine -------------------------------------------------------------------------------

CPU_BUILD = Torch(version="2.13.0+cpu", cuda=None, threads=1)
CUDA_BUILD = Torch(version="2.13.0", cuda="13.0", threads=1, error="no CUDA-capable device")
GPU = Gpu(index=0, name="NVIDIA H100", capability="9.0", memory=80 * GIB, free=79 * GIB)


def limit(monkeypatch: pytest.MonkeyPatch, **group) -> None:
    monkeypatch.setattr(limits, "control_groups", lambda: Limits(**group))


def test_more_threads_than_cores_is_a_warning(monkeypatch):
    monkeypatch.setattr(limits, "cores", lambda: 64)
    limit(monkeypatch, cpus=1.5)
    found = machine.cpu(msgspec.structs.replace(CPU_BUILD, threads=64))
    assert found.status == "warning"
    assert "64 of them for this process, and time for 1.5 of them" in found.found
    assert "torch uses 64 threads" in found.found
    assert found.advice == "`export OMP_NUM_THREADS=2`"
    assert machine.cpu(msgspec.structs.replace(CPU_BUILD, threads=2)).status == "ok"
    assert machine.cpu(None).status == "ok"


@pytest.mark.parametrize(
    ("available", "left", "status", "words"),
    [
        (8 * GIB, None, "ok", "8.0 GiB available"),
        (8 * GIB, GIB, "warning", "enough for a tiny model alone"),
        (GIB // 4, None, "broken", "a run of a tiny model takes 0.5 GiB"),
        (8 * GIB, 0, "broken", "0 MiB available"),
        (None, None, "ok", "not known"),
    ],
)
def test_memory_is_judged_by_what_is_available(monkeypatch, available, left, status, words):
    container = {} if left is None else {"memory": 4 * GIB, "available": left}
    limit(monkeypatch, **container)
    monkeypatch.setattr(limits, "memory", lambda: Memory(total=16 * GIB, available=available))
    found = machine.memory()
    assert found.status == status
    assert words in found.found
    assert ("of which the container may use 4.0 GiB" in found.found) is bool(container)
    assert bool(found.advice) is (status != "ok")


@pytest.mark.parametrize(
    ("torch", "driver", "visible", "status", "words"),
    [
        (CPU_BUILD, False, None, "absent", "no NVIDIA driver"),
        (CPU_BUILD, True, None, "warning", "torch 2.13.0+cpu is a CPU build"),
        (CUDA_BUILD, True, None, "warning", "sees no GPU: no CUDA-capable device"),
        (CUDA_BUILD, False, None, "absent", "no NVIDIA driver"),
        (CUDA_BUILD, True, "", "absent", "hidden by CUDA_VISIBLE_DEVICES=''"),
        (CUDA_BUILD, True, "-1", "absent", "hidden by CUDA_VISIBLE_DEVICES='-1'"),
    ],
)
def test_no_gpu_has_a_reason(monkeypatch, torch, driver, visible, status, words):
    monkeypatch.setattr(machine, "has_nvidia_driver", lambda: driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (found,) = machine.gpus(torch)
    assert (found.name, found.status) == ("GPU", status)
    assert words in found.found
    assert found.advice or status == "absent"


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({}, "ok", "NVIDIA H100, 80.0 GiB, compute capability 9.0, of CUDA_VISIBLE_DEVICES=3"),
        ({"free": GIB}, "warning", "1.0 GiB free: enough for a tiny model alone"),
        ({"free": MIB}, "broken", "1 MiB free"),
        ({"error": "no kernel image"}, "broken", "it does not compute (no kernel image)"),
    ],
)
def test_each_gpu_is_judged(monkeypatch, change, status, words):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    gpu = msgspec.structs.replace(GPU, **change)
    (found,) = machine.gpus(msgspec.structs.replace(CUDA_BUILD, gpus=(gpu,)))
    assert (found.name, found.status) == ("GPU 0", status)
    assert words in found.found
    assert bool(found.advice) is (status != "ok")


def test_without_torch_nothing_is_said_of_gpus():
    assert machine.gpus(None) == []


def test_a_driver_is_found_by_its_program(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    before = machine.has_nvidia_driver()
    assert before is Path("/dev/nvidia0").exists()
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert machine.has_nvidia_driver()


@pytest.mark.parametrize(
    ("need", "status", "words"),
    [
        (Need(0, 0), "ok", "free, writable"),
        (Need(1 << 62, 0), "warning", "would be better"),
        (Need(1 << 62, 1 << 61), "broken", "; it takes"),
    ],
)
def test_a_folder_is_judged_by_its_disk_and_not_made(tmp_path: Path, need, status, words):
    found = machine.folder("results folder", tmp_path / "new/out", need, "name another")
    assert found.status == status
    assert words in found.found
    assert ("name another" in found.advice) is (status != "ok")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_broken(tmp_path: Path):
    (tmp_path / "file").write_text("")
    on_a_file = machine.folder("results folder", tmp_path / "file/out", Need(0, 0), "another")
    assert on_a_file.status == "broken"
    assert on_a_file.found.endswith("file is a file")
    refused = machine.folder("results folder", Path("/proc/out"), Need(0, 0), "another")
    assert refused.status == "broken"
    assert "/proc/out cannot be written to: " in refused.found
    assert refused.advice == "another"


def test_the_compile_cache_is_where_torch_has_it(monkeypatch, tmp_path: Path):
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert str(machine.compile_cache()) == default_cache_dir()
    monkeypatch.setattr(machine.getpass, "getuser", lambda: {}["no entry"])
    assert machine.compile_cache().name == f"torchinductor_uid_{os.getuid()}"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    assert machine.compile_cache() == tmp_path / "cache"
    assert machine.cache().status in ("ok", "warning")


def test_no_folder_for_temporary_files_breaks_the_cache_and_the_probes(monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    found = machine.cache()
    assert (found.status, found.found) == ("broken", "No usable temporary directory found")
    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    said = launch.probe(["torch"])["torch"]
    assert said.state == "fails"
    assert "has nowhere to write to: No usable temporary directory found" in said.found


# -- the compiler ------------------------------------------------------------------------------


def pretend_compiler(monkeypatch, folder: Path, script: str, name: str = "pretend-c++") -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_compiler_that_compiles_is_ok(monkeypatch):
    monkeypatch.setenv("CXX", "g++")
    found = compiler.check(thorough=False)
    assert found.status == "ok", found.found
    assert "compiling with Inductor was not tried" in found.found
    assert "not tried" not in compiler.check(thorough=True).found


def test_no_compiler_is_absent_and_a_wrong_cxx_broken(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = compiler.check(thorough=False)
    assert found.status == "absent"
    assert "install a C++ compiler" in found.advice
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = compiler.check(thorough=False)
    assert found.status == "broken"
    assert "no-such-compiler is not on the PATH" in found.found
    assert "CXX" in found.advice


def test_a_compiler_that_fails_is_broken_with_its_first_error(monkeypatch, tmp_path: Path):
    pretend_compiler(
        monkeypatch, tmp_path, "echo note >&2; echo '<stdin>:1: error: no Python.h' >&2; exit 1"
    )
    found = compiler.check(thorough=False)
    assert found.status == "broken"
    assert found.found.endswith("<stdin>:1: error: no Python.h")
    assert "python3-dev" in found.advice
    pretend_compiler(monkeypatch, tmp_path, "exit 7")
    assert compiler.check(thorough=False).found.endswith("exit code 7")
    monkeypatch.setattr(compiler, "_TIMEOUT", 0.2)
    pretend_compiler(monkeypatch, tmp_path, "exec sleep 20")
    assert compiler.check(thorough=False).found.endswith("it did not end within 0.2 s")


def test_compiles_with_inductor_are_shown_where_they_were_tried(versions):
    versions(torch="2.13.0")
    assert observers.inductor({}) == []
    shown = by_name(
        observers.inductor(
            {
                "Inductor on the CPU": Outcome(
                    probe="Inductor on the CPU", state="fails", found="CppCompileError: no omp.h"
                ),
                "Inductor on the GPU": Outcome(
                    probe="Inductor on the GPU", state="absent", found="torch sees no GPU"
                ),
            }
        )
    )
    assert shown["Inductor on the CPU"].status == "broken"
    assert "C++ compiler" in shown["Inductor on the CPU"].advice
    assert shown["Inductor on the GPU"].status == "absent"


# -- plugin and variables ----------------------------------------------------------------------


def test_the_plugin_of_this_environment_loads(monkeypatch):
    monkeypatch.delenv(surroundings.AUTOLOAD, raising=False)
    shown = by_name(surroundings.plugin())
    assert shown["autoload"].status == "ok"
    if packages.installed("vlm-ci"):
        assert shown["plugin"].status == "ok"
        assert "vlm_ci.plugin loads" in shown["plugin"].found


def test_a_plugin_that_is_missing_or_does_not_load(monkeypatch):
    from importlib.metadata import EntryPoint

    monkeypatch.setattr(surroundings, "entry_points", lambda **_: ())
    missing = by_name(surroundings.plugin())["plugin"]
    assert missing.status == "warning"
    assert "-p vlm_ci.plugin" in missing.advice
    wrong = EntryPoint("vlm_ci", "vlm_ci.no_such_plugin", "pytest11")
    monkeypatch.setattr(surroundings, "entry_points", lambda **_: (wrong,))
    broken = by_name(surroundings.plugin())["plugin"]
    assert broken.status == "broken"
    assert "ModuleNotFoundError: No module named 'vlm_ci.no_such_plugin'" in broken.found


def test_autoload_switched_off_is_a_warning(monkeypatch):
    monkeypatch.setenv(surroundings.AUTOLOAD, "1")
    found = by_name(surroundings.plugin())["autoload"]
    assert found.status == "warning"
    assert "-p vlm_ci.plugin" in found.advice


@pytest.mark.usefixtures("no_variables")
def test_variables_are_shown_with_what_they_do(monkeypatch):
    (none,) = surroundings.variables()
    assert (none.status, none.found) == ("ok", "none that changes results is set")
    given = {
        "OMP_NUM_THREADS": "3",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TORCH_LOGS": "+dynamo," * 30,
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_TOKEN", "a secret")
    shown = by_name(surroundings.variables())
    assert shown.keys() == given.keys()
    assert {found.status for found in shown.values()} == {"ok"}
    assert shown["OMP_NUM_THREADS"].found == "3: how many threads torch uses on the CPU"
    assert shown["TORCHINDUCTOR_FORCE_DISABLE_CACHES"].found == "1: an option of Inductor"
    assert shown["CUDA_VISIBLE_DEVICES"].found == "empty: which GPUs this process sees"
    assert len(shown["TORCH_LOGS"].found) < 120


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize("name", surroundings.DISABLING)
def test_compiling_switched_off_is_broken(monkeypatch, name: str):
    monkeypatch.setenv(name, "1")
    (found,) = surroundings.variables()
    assert found.status == "broken"
    assert "nothing is compiled" in found.found
    assert found.advice == f"`unset {name}`"
    assert surroundings.disabling() == name
    monkeypatch.setenv(name, "0")
    assert surroundings.variables()[0].status == "ok"
    assert surroundings.disabling() is None


@pytest.mark.usefixtures("no_variables")
def test_suppressed_errors_are_a_warning(monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_SUPPRESS_ERRORS", "1")
    (found,) = surroundings.variables()
    assert found.status == "warning"
    assert "eagerly" in found.found


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

ON_THE_CPU = [name for name in OBSERVERS if name != "CUDA graph captures"]


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
    ],
)
def test_a_probe_goes_red_when_what_it_probes_is_lost(monkeypatch, hook, broken):
    from vlm_ci.watch import internals
    from vlm_ci.watch.watcher import Watcher

    if hook == "region":
        monkeypatch.setattr(Watcher, "region_executed", lambda self: None)
    elif hook == "graph":
        monkeypatch.setattr(Trial, "_count_graph", lambda self: setattr(self, "graphs", 2))
    elif hook == "signature":
        monkeypatch.setattr(Watcher, "keep_warm", lambda self: self.warm.update(probe=[]))
    else:
        monkeypatch.setattr(internals, hook, lambda *args: nullcontext())
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
        outcomes = [attempt(name) for name in ON_THE_CPU]
    assert {(outcome.state, outcome.found) for outcome in outcomes} == {
        ("fails", "torch.compile compiled nothing")
    }


def test_captures_are_absent_without_a_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("CUDA graph captures", "Inductor on the GPU", "Triton autotuning"):
        assert attempt(name).state == "absent"
    assert "not observed" in attempt("CUDA graph captures").found


@pytest.mark.gpu
def test_captures_are_seen_on_a_gpu_and_missed_without_the_hook(monkeypatch):
    from vlm_ci.watch import watcher

    assert attempt("CUDA graph captures").state == "works"
    monkeypatch.setattr(watcher, "_reporting_captures", lambda report: nullcontext())
    outcome = attempt("CUDA graph captures")
    assert outcome.state == "fails"
    assert outcome.found == "one graph was captured, and 0 recorded"


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


def test_triton_is_never_said_to_be_observed():
    triton = by_name(observers.checks(outcomes()))[observers.TRITON]
    assert triton.status == "absent"
    assert "not observed" in triton.found
    assert "null for strict.triton_compiles" in triton.found
    for state, words in (
        ("absent", "(nothing was seen)"),
        ("works", "are not observed, their autotuning is (nothing was seen)"),
    ):
        tried = Outcome(probe="Triton autotuning", state=state, found="nothing was seen")
        triton = by_name(observers.checks(outcomes(tried=tried)))[observers.TRITON]
        assert triton.status == "absent"
        assert words in triton.found
    tried = Outcome(probe="Triton autotuning", state="fails", found="no compiler")
    triton = by_name(observers.checks(outcomes(tried=tried)))[observers.TRITON]
    assert (triton.status, triton.found) == ("broken", "no compiler")


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


# -- all of it ---------------------------------------------------------------------------------

WHOLE = """
import sys
from pathlib import Path
from vlm_ci import doctor
from vlm_ci.traffic.files import pretty
heavy = ("torch", "transformers", "hypothesis", "numpy")
assert not [name for name in heavy if name in sys.modules], "the import is not light"
report = doctor.report(Path(sys.argv[1]))
assert "torch" not in sys.modules, "the report loaded torch into this process"
sys.stdout.buffer.write(pretty(report))
"""


@pytest.mark.usefixtures("no_variables")
def test_this_machine_is_ready_and_nothing_is_left_behind(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", WHOLE, str(tmp_path / "out")],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    report = msgspec.json.decode(done.stdout, type=Report)
    broken = [found for found in report.checks if found.status == "broken"]
    assert report.ok, broken
    groups = list(dict.fromkeys(found.group for found in report.checks))
    assert groups == [
        "Packages",
        "Machine",
        "Inductor",
        "Observers",
        "pytest",
        "Environment variables",
    ]
    shown = by_name(report.checks)
    assert {shown[name].status for name in ON_THE_CPU} == {"ok"}
    assert shown["CUDA graph captures"].status in ("ok", "absent")
    assert shown.keys() >= {"CPU", "memory", "results folder", "compile cache", "C++ compiler"}
    assert "torch uses" in shown["CPU"].found
    assert any(name.startswith("GPU") for name in shown)
    assert list(tmp_path.iterdir()) == []
    assert all(found.advice for found in report.checks if found.status in ("warning", "broken"))


def test_a_hook_that_broke_is_found_in_the_probing_process(monkeypatch, tmp_path: Path):
    breaking = (
        "import contextlib; from vlm_ci.watch import internals; "
        "internals.reporting_limits = lambda report: contextlib.nullcontext(); "
    )
    monkeypatch.setattr(launch, "PROBING", (sys.executable, "-c", breaking + launch._MAIN))
    monkeypatch.setattr(doctor, "LOADS", {})  # the observers are what matters here
    report = doctor.report(tmp_path)
    assert not report.ok
    observed = {found.name: found for found in report.checks if found.group == "Observers"}
    broken = {name for name, found in observed.items() if found.status == "broken"}
    assert broken == {"recompile limit"}
    found = observed["recompile limit"]
    assert found.found == "the limit was reached once, and recorded 0 times"
    assert found.advice


def test_a_report_without_torch_names_what_is_missing(monkeypatch, versions, tmp_path: Path):
    versions(torch=None)
    monkeypatch.setattr(launch, "PROBING", (sys.executable, "-c", "import os; os.abort()"))
    report = doctor.report(tmp_path)
    assert not report.ok
    shown = by_name(report.checks)
    assert shown["torch"].status == "broken"
    assert {shown[name].status for name in OBSERVERS} == {"broken"}
    assert "was ended by SIGABRT" in shown["compilations"].found
    assert "torch uses" not in shown["CPU"].found
    assert summary(report).startswith("not ready: ")


def test_an_error_of_our_own_costs_a_section_and_not_the_report(monkeypatch, tmp_path: Path):
    def fail() -> None:
        raise ZeroDivisionError("no\nsecond line")

    monkeypatch.setattr(launch, "PROBING", (sys.executable, "-c", "raise SystemExit(1)"))
    monkeypatch.setattr(machine, "memory", fail)
    report = doctor.report(tmp_path)
    (found,) = [found for found in report.checks if found.group == "Machine"]
    assert (found.name, found.status) == ("doctor", "warning")
    assert found.found == "this could not be looked at: ZeroDivisionError: no"
    assert "pytest" in {found.group for found in report.checks}


def test_thorough_asks_for_inductor_with_an_empty_cache(monkeypatch, tmp_path: Path):
    asked = []

    def pretend(names, **options):
        asked.append((tuple(names), options.get("fresh_cache", False)))
        return {name: Outcome(probe=name, state="works", found="seen") for name in names}

    monkeypatch.setattr(launch, "probe", pretend)
    shown = by_name(doctor.report(tmp_path, thorough=True).checks)
    assert [fresh for _names, fresh in asked] == [False, True]
    assert shown["Inductor on the CPU"].status == "ok"
    assert "not tried" not in shown["C++ compiler"].found
    asked.clear()
    assert "Inductor on the CPU" not in by_name(doctor.report(tmp_path).checks)
    assert len(asked) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_inductor_compiles_on_the_cpu(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    outcome = attempt("Inductor on the CPU")
    assert outcome.state == "works", outcome.found
    assert any(tmp_path.rglob("*.so")), "nothing was compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "other"))
    from torch._inductor import config

    with config.patch({"cpp.cxx": (None, str(tmp_path / "no-such-compiler"))}):
        outcome = attempt("Inductor on the CPU")
    assert outcome.state == "fails"
    assert "InvalidCxxCompiler" in outcome.found
