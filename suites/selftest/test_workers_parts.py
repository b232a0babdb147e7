"""Workers of xdist: which GPUs there are, how much room, who runs what. In this process."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlm_ci import UsageError
from vlm_ci.plugin import capacity, gpus, workers
from vlm_ci.plugin.scheduling import TargetScheduling

UUID = "GPU-8f1b5bd5-1fe2-4a0a-9a3c-3d1a2f2c9d11"
MIG = "MIG-c7a9fe2c-5a4b-5c33-8fd4-0f3a9c1a8f02"


@pytest.mark.parametrize(
    ("given", "entries"),
    [
        ("2,3", ("2", "3")),
        (" 2 , 3 ", ("2", "3")),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("1,-1,2", ("1",)),
        ("0,0", ()),
        (f"{UUID},{MIG}", (UUID, MIG)),
        (f"MIG-{UUID}/1/0", (f"MIG-{UUID}/1/0",)),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(given: str, entries: tuple[str, ...]):
    assert gpus.visible({gpus.VISIBLE: given}) == entries


PLAIN = f"""\
GPU 0: NVIDIA H200 (UUID: {UUID})
GPU 1: NVIDIA H200 (UUID: GPU-2)
"""
DIVIDED = f"""\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)
  MIG 3g.40gb     Device  0: (UUID: {MIG})
  MIG 3g.40gb     Device  1: (UUID: MIG-2)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)
"""


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put an nvidia-smi in front of all others."""
    tool = folder / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)


@pytest.mark.parametrize(
    ("listing", "entries"),
    [(PLAIN, ("0", "1")), (DIVIDED, (MIG, "MIG-2", "GPU-2")), ("No devices found.", ())],
    ids=["plain", "divided", "none"],
)
def test_nvidia_smi_is_asked_where_the_variable_is_unset(tmp_path, monkeypatch, listing, entries):
    pretend(tmp_path, monkeypatch, f"[ $1 = -L ] && cat <<'END'\n{listing}\nEND")
    assert gpus.visible({}) == entries


def test_without_an_answer_torch_is_asked_in_a_process_of_its_own(tmp_path, monkeypatch):
    pretend(tmp_path, monkeypatch, "exit 9")
    (tmp_path / "torch.py").write_text(
        "class cuda:\n    @staticmethod\n    def device_count(): return 3\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert gpus.visible({}) == ("0", "1", "2")


def machine(folder: Path, files: dict[str, str]) -> Path:
    """Write what a machine says of itself below a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


MEMINFO = "MemTotal:  16777216 kB\nMemAvailable:  8388608 kB\n"
GIB = 2**30


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({}, 8.0),
        (  # a limit around the one that has none; cached files do not count
            {
                "proc/self/cgroup": "0::/ci/job\n",
                "sys/fs/cgroup/ci/job/memory.max": "max\n",
                "sys/fs/cgroup/ci/job/memory.current": f"{GIB}\n",
                "sys/fs/cgroup/ci/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/ci/memory.current": f"{2 * GIB}\n",
                "sys/fs/cgroup/ci/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            },
            3.0,
        ),
        (  # cgroup v1, seen from a container: the path is the host's
            {
                "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            },
            1.0,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            },
            8.0,
        ),
    ],
    ids=["bare", "v2", "v1", "v1-unlimited"],
)
def test_free_memory_knows_the_limits_of_containers(tmp_path: Path, files, gib: float):
    root = machine(tmp_path, {"proc/meminfo": MEMINFO, **files})
    assert capacity.free_memory(root) == gib * GIB


def test_free_memory_is_unknown_where_nothing_says_it(tmp_path: Path):
    assert capacity.free_memory(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "350000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "1:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
    ids=["bare", "v2-none", "v2", "v2-half", "v1", "v1-none"],
)
def test_cores_know_the_quotas_of_containers(tmp_path: Path, monkeypatch, files, count: int):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert capacity.cores(machine(tmp_path, files)) == count


# -- which GPU a target may use in a worker -----------------------------------------------------


def worker(**given: object) -> SimpleNamespace:
    """Return the configuration of worker gw1 of two."""
    return SimpleNamespace(workerinput={"workerid": "gw1", "workercount": 2, **given})


REFUSED = {
    "another": ("0", "3", "cuda", "worker gw1 was given GPU 3, and then something set"),
    "gone": (None, "3", "cuda", "CUDA_VISIBLE_DEVICES to None: leave it alone in conftest.py"),
    "number": ("3", "3", "cuda:1", "write cuda in place of 'cuda:1'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_target_on_a_gpu_that_is_not_the_worker_s_is_refused(monkeypatch, case: str):
    found, pinned, device, message = REFUSED[case]
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    if found is not None:
        monkeypatch.setenv(gpus.VISIBLE, found)
    with pytest.raises(UsageError) as refused:
        workers.check_gpu(worker(vlm_ci_gpu=pinned), device)
    assert message in str(refused.value)


def test_a_target_on_the_worker_s_own_gpu_passes(monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "3")
    for device in ("cuda", "cuda:0", "cpu"):
        workers.check_gpu(worker(vlm_ci_gpu="3"), device)
    monkeypatch.setenv(gpus.VISIBLE, "0,1")
    workers.check_gpu(SimpleNamespace(), "cuda:1")  # no worker


def test_a_gpu_that_a_marker_alone_names_is_refused_where_it_would_be_shared(monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "0,1")
    alone = worker(vlm_ci_visible="0,1")
    with pytest.raises(UsageError, match=r"a marker alone says 'cuda'.* 2 GPUs; write"):
        workers.check_gpu(alone, "cuda")
    workers.check_gpu(worker(vlm_ci_visible="0,1", workercount=1), "cuda")
    workers.check_gpu(worker(vlm_ci_visible=None), "cuda")  # the user's own pin
    monkeypatch.setenv(gpus.VISIBLE, "0")
    workers.check_gpu(worker(vlm_ci_visible="0"), "cuda")


# -- who runs what ------------------------------------------------------------------------------


class Node:
    """A worker that keeps what it is told."""

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.told: list[int] = []
        self.shutting_down = False

    def send_runtest_some(self, indices: list[int]) -> None:
        self.told += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def scheduler(collection: list[str], targets: dict[str, int], count: int):
    """Return a scheduler that has handed out the first tests, and its workers."""
    options = {"maxschedchunk": None, "tx": ["popen"] * count}
    config = SimpleNamespace(getoption=options.__getitem__, getvalue=options.__getitem__)
    made = TargetScheduling(config, None, targets)
    nodes = [Node(f"gw{index}") for index in range(count)]
    for node in nodes:
        made.add_node(node)
        made.add_node_collection(node, collection)
    made.schedule()
    return made, nodes


def work_off(made: TargetScheduling, nodes: list[Node], collection: list[str]) -> dict[str, str]:
    """Let workers take turns until nothing is left; return who ran what."""
    ran: dict[str, str] = {}
    while made.has_pending:
        before = len(ran)
        for node in nodes:
            held = made.node2pending.get(node, [])
            if len(held) >= 2 or (held and node.shutting_down):
                ran[collection[held[0]]] = node.gateway.id
                made.mark_test_complete(node, held[0])
        assert len(ran) > before, "nobody can go on"
    return ran


TESTS = ["p0", "a0", "b0", "p1", "a1", "c0", "b1", "a2", *(f"p{index}" for index in range(2, 12))]
TARGETS = {name: "abc".index(name[0]) for name in TESTS if name[0] != "p"}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_tests_of_a_target_have_one_worker_and_all_tests_run(count: int):
    made, nodes = scheduler(TESTS, TARGETS, count)
    ran = work_off(made, nodes, TESTS)
    assert sorted(ran) == sorted(TESTS)
    owners = [{ran[name] for name in TARGETS if name[0] == target} for target in "abc"]
    assert [len(owner) for owner in owners] == [1, 1, 1]
    assert len(set.union(*owners)) == min(count, 3)
    assert {ran[name] for name in TESTS if name[0] == "p"} == {f"gw{i}" for i in range(count)}
    assert all(node.shutting_down for node in nodes)


def test_targets_with_many_tests_come_first_and_plain_tests_do_not_wait_behind_them():
    made, (first, second) = scheduler(TESTS, TARGETS, 2)
    assert [TESTS[index] for index in first.told] == ["a0", "a1", "a2"]
    assert [TESTS[index] for index in second.told] == ["b0", "b1"]
    made.mark_test_complete(second, TESTS.index("b0"))
    assert [TESTS[index] for index in second.told] == ["b0", "b1", "c0"]
    made.mark_test_complete(second, TESTS.index("b1"))
    assert [TESTS[index] for index in second.told] == ["b0", "b1", "c0", "p0"]  # one, to go on


def test_without_targets_it_is_xdist_s_own_distribution():
    plain = [f"p{index}" for index in range(40)]
    made, nodes = scheduler(plain, {}, 2)
    assert [len(node.told) for node in nodes] == [5, 5]
    assert sorted(work_off(made, nodes, plain)) == sorted(plain)


def test_a_crashed_test_is_not_run_again_and_the_rest_of_its_target_stays_together():
    made, (first, second) = scheduler(TESTS, TARGETS, 2)
    made.mark_test_complete(first, TESTS.index("a0"))
    assert made.remove_node(first) == "a1"
    replacement = Node("gw2")
    made.add_node(replacement)
    made.add_node_collection(replacement, TESTS)
    made.schedule()
    assert TESTS[replacement.told[0]] == "a2"
    ran = work_off(made, [second, replacement], TESTS)
    assert sorted([*ran, "a0", "a1"]) == sorted(TESTS)


def test_a_crashed_test_that_a_plugin_wants_again_comes_before_the_rest_of_its_target():
    made, (first, second) = scheduler(TESTS, TARGETS, 2)
    assert made.remove_node(first) == "a0"
    made.mark_test_pending("a0")
    replacement = Node("gw2")
    made.add_node(replacement)
    made.add_node_collection(replacement, TESTS)
    made.schedule()
    assert [TESTS[index] for index in replacement.told] == ["a0", "a1", "a2"]
    assert sorted(work_off(made, [second, replacement], TESTS)) == sorted(TESTS)
