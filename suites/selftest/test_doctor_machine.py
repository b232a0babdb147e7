"""``vlm-ci doctor``: limits, the machine, the compiler, the plugin and variables."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest
from doctor_checks import by_name

from vlm_ci.doctor import compiler, launch, limits, machine, observers, packages, surroundings
from vlm_ci.doctor.limits import Limits, Memory
from vlm_ci.doctor.machine import GIB, MIB, Need
from vlm_ci.doctor.outcomes import Gpu, Outcome, Torch

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
