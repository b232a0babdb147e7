"""How many workers xdist starts for vlm tests, and which GPU and how many threads each has.

Works in the controller before a worker exists; starts no CUDA and imports no torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from vlm_ci.errors import UsageError
from vlm_ci.plugin import capacity, gpus
from vlm_ci.plugin.configuration import is_configured, session_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from execnet import XSpec

GIB = 2**30
# Measured for the tiny targets, as peak proportional set size of a whole run with its processes:
# 0.45 GiB, with backend eager as with Inductor, torch's CPU build. The rest is room for a CUDA
# build of torch, for the C++ compilers that Inductor starts on more cores, and for larger traffic.
WORKER_MEMORY = 3 * GIB // 2
THREADS = "OMP_NUM_THREADS"

# Run in a worker before anything else is: whether CUDA started before the worker had its GPU.
STARTED = """
import sys
cuda = getattr(sys.modules.get("torch"), "cuda", None)
channel.send(cuda is not None and cuda.is_initialized())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The workers of one session. ``gpus`` holds an entry for each worker, in words of
    CUDA_VISIBLE_DEVICES; it is empty where workers are not pinned. ``environment`` is what all
    workers have besides, ``note`` says in words what was decided and why.
    """

    gpus: tuple[str, ...] = ()
    shared: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def environment_of(self, worker: int) -> dict[str, str]:
        """Return the variables of the worker with this number, or of one that replaces it."""
        pinned = {gpus.VISIBLE: self.gpus[worker]} if self.gpus else {}
        return {**self.environment, **pinned}


WORKERS = pytest.StashKey[Workers]()
AUTO = pytest.StashKey[str]()


def automatic(config: pytest.Config, count: int) -> int:
    """Return how many workers ``-n auto`` means for a session that gives options of vlm_ci.

    One for each visible GPU; on the CPU ``count``, which is xdist's own number of cores, as far as
    CPU quotas and the memory that is free allow it.
    """
    device = session_of(config).settings.device
    if device.startswith("cuda"):
        return 1 if ":" in device else max(1, len(gpus.visible()))
    count = min(count, capacity.cores())
    words = f"a core each ({count})"
    free = capacity.free_memory()
    if free is not None:
        room = max(1, free // WORKER_MEMORY)
        memory = f"{free / GIB:.1f} GiB free, {WORKER_MEMORY / GIB:.1f} GiB each"
        words = f"{words}; memory for {room} ({memory})"
        count = min(count, room)
    config.stash[AUTO] = words
    return count


def is_ours(config: pytest.Config) -> bool:
    """Whether the number of workers is left to us: nobody else chooses it for ``-n auto``."""
    hooks = config.hook.pytest_xdist_auto_num_workers.get_hookimpls()
    others = [hook for hook in hooks if not _is_known(hook.function.__module__)]
    return (
        is_configured(config)
        and not others
        and not os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS")
        and not hasattr(config, "workerinput")
    )


def _is_known(module: str) -> bool:
    return module.startswith(("xdist.", "vlm_ci."))


def workers_of(config: pytest.Config) -> Workers:
    """Return how this session's workers are placed, found out when it is first needed."""
    if WORKERS not in config.stash:
        config.stash[WORKERS] = _place(config, _number(config))
    return config.stash[WORKERS]


def _number(config: pytest.Config) -> int:
    """Return how many processes this session is spread over; 0: xdist is not in use."""
    if config.getoption("dist", "no") == "no" or hasattr(config, "workerinput"):
        return 0
    texts = [text.split("*", 1) for text in config.getoption("tx", None) or ()]
    return sum(int(head[0]) if len(head) == 2 and head[0].isdecimal() else 1 for head in texts)


def _place(config: pytest.Config, number: int) -> Workers:
    if not number or not is_configured(config):
        return Workers()
    device = session_of(config).settings.device
    environment = {}
    if number > 1 and THREADS not in os.environ:
        # Each would start a thread for each core, and they would be in each other's way.
        environment[THREADS] = str(max(1, capacity.cores() // number))
    many = f"{number} worker{'s' if number > 1 else ''}"
    if not device.startswith("cuda"):
        why = config.stash.get(AUTO, "")
        return Workers(environment=environment, note=f"{many}: {why}" if why else "")
    if ":" in device:
        shared = number > 1
        note = f"{many}{' share' if shared else ' on'} {device}, which the options name"
        return Workers(environment=environment, shared=shared, note=note)
    visible = gpus.visible()
    if not visible:
        given = os.environ.get(gpus.VISIBLE)
        why = f" ({gpus.VISIBLE} is {given!r})" if given is not None else ""
        return Workers(environment=environment, note=f"{many}: no GPU is visible{why}")
    pinned = tuple(visible[index % len(visible)] for index in range(number))
    shared = number > len(visible)
    count = len(visible)
    those = f"{count} visible GPU{'s' if count > 1 else ''}"
    each = ", ".join(f"gw{index} on {gpu}" for index, gpu in enumerate(pinned))
    verb = " share " if shared else ", one for each of " if number == count else " for "
    return Workers(
        gpus=pinned, shared=shared, environment=environment, note=f"{many}{verb}{those}: {each}"
    )


def prepare(config: pytest.Config, specs: Sequence[XSpec]) -> None:
    """Write each worker's variables into what it is started from, so that they hold from its first
    moment, and hold again for a worker that replaces it.

    Workers on other machines are left alone, and so is one whose GPU the user names with ``--tx``.
    """
    workers = workers_of(config)
    for index, spec in enumerate(specs):
        if spec.popen and not (workers.gpus and gpus.VISIBLE in spec.env):
            spec.env.update(workers.environment_of(index))


def introduce(config: pytest.Config, node: Any) -> None:
    """Tell a worker which GPU it has.

    Raises:
        pytest.UsageError: CUDA was started in it already, so that it may hold another one.
    """
    spec = node.gateway.spec
    node.workerinput["vlm_ci_visible"] = os.environ.get(gpus.VISIBLE)
    if not (workers_of(config).gpus and spec.popen):
        return
    entry = spec.env[gpus.VISIBLE]
    channel = node.gateway.remote_exec(STARTED)
    if channel.receive():
        raise pytest.UsageError(
            f"worker {node.gateway.id} had started CUDA before it was given GPU {entry}: start no "
            "CUDA when Python starts, as a sitecustomize module or a .pth file may do"
        )
    node.workerinput["vlm_ci_gpu"] = entry


def check_gpu(config: pytest.Config, device: str) -> None:
    """Refuse a target on a GPU that would not be this worker's own.

    Raises:
        UsageError: the worker was given another GPU, or none, or something took it away again.
    """
    given: Mapping[str, Any] = getattr(config, "workerinput", {})
    if not device.startswith("cuda") or not given:
        return
    name, entry = given["workerid"], given.get("vlm_ci_gpu")
    found = os.environ.get(gpus.VISIBLE)
    if entry is None:
        _check_unpinned(name, device, given)
    elif found != entry:
        raise UsageError(
            f"worker {name} was given GPU {entry}, and then something set {gpus.VISIBLE} to "
            f"{found!r}: leave it alone in conftest.py; each worker has its GPU as cuda:0"
        )
    elif device not in ("cuda", "cuda:0"):
        raise UsageError(
            f"worker {name} has one GPU, {entry}, as cuda:0: write cuda in place of {device!r}, "
            f"and choose among GPUs with {gpus.VISIBLE}"
        )


def _check_unpinned(name: str, device: str, given: Mapping[str, Any]) -> None:
    """A marker asks for a GPU of which the command line and the ini file know nothing."""
    alone = given.get("workercount") == 1
    if alone or given.get("vlm_ci_visible") != os.environ.get(gpus.VISIBLE) or ":" in device:
        return  # the only worker, or one whose GPU somebody else has chosen
    count = len(gpus.visible())
    if count > 1:
        raise UsageError(
            f"worker {name} has no GPU of its own: a marker alone says {device!r}, which is read "
            f"too late to spread workers over {count} GPUs; write vlm_device = cuda into the ini "
            "file or give --vlm-device=cuda"
        )
