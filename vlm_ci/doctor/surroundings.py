"""The pytest plugin, and variables that change what a run does. Imports no torch."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from vlm_ci.doctor.packages import install
from vlm_ci.doctor.records import Check, first_line

if TYPE_CHECKING:
    from vlm_ci.doctor.records import Status

PLUGIN_GROUP = "pytest"
GROUP = "Environment variables"
AUTOLOAD = "PYTEST_DISABLE_PLUGIN_AUTOLOAD"
# With either, torch.compile compiles nothing; torch compares with "1" and with nothing else.
DISABLING = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")
SUPPRESSING = "TORCHDYNAMO_SUPPRESS_ERRORS"
# What each does, for those who did not set it themselves. Tokens are never shown.
MEANING = {
    "CUDA_VISIBLE_DEVICES": "which GPUs this process sees",
    "CUDA_LAUNCH_BLOCKING": "GPU kernels run one by one; slower",
    "CUBLAS_WORKSPACE_CONFIG": "changes how matrix products are computed on a GPU",
    "NVIDIA_TF32_OVERRIDE": "changes the precision of matrix products on a GPU",
    "PYTORCH_ALLOC_CONF": "changes how memory of a GPU is kept",
    "PYTORCH_CUDA_ALLOC_CONF": "changes how memory of a GPU is kept",
    "OMP_NUM_THREADS": "how many threads torch uses on the CPU",
    "MKL_NUM_THREADS": "how many threads matrix products use on the CPU",
    "HF_HUB_OFFLINE": "whether transformers may ask a hub for checkpoints",
    "TRANSFORMERS_OFFLINE": "whether transformers may ask a hub for checkpoints",
    "HF_HOME": "where checkpoints are kept",
    "TORCH_LOGS": "what torch logs",
    "TORCH_TRACE": "where torch writes its trace; slower",
    "CXX": "the C++ compiler that Inductor takes",
    "PYTEST_ADDOPTS": "more options for pytest; vlm-ci run leaves them out",
}
PREFIXES = {
    "TORCHDYNAMO_": "an option of Dynamo",
    "TORCH_COMPILE": "an option of torch.compile",
    "TORCHINDUCTOR_": "an option of Inductor",
    "TRITON_": "an option of Triton",
}
_LONGEST = 80


def plugin() -> list[Check]:
    """Check that pytest finds the plugin, can load it, and does so by itself."""
    return [_entry_point(), _autoload()]


def variables() -> list[Check]:
    """Show the variables that change results, and judge those that spoil them."""
    found = [_variable(name, value) for name, value in sorted(os.environ.items())]
    shown = [check for check in found if check is not None]
    return shown or [
        Check(group=GROUP, name="none", status="ok", found="none that changes results is set")
    ]


def disabling() -> str | None:
    """Name the variable that turns compiling off, if one is set."""
    return next((name for name in DISABLING if os.environ.get(name) == "1"), None)


def _entry_point() -> Check:
    name = "plugin"
    found = next(iter(entry_points(group="pytest11", name="vlm_ci")), None)
    if found is None:
        return _plugin(
            name,
            "warning",
            "not installed as a plugin: only vlm-ci run loads it by itself",
            f"{install('-e', '.')} in the checkout, or pass `-p vlm_ci.plugin` to pytest",
        )
    try:
        found.load()
    except Exception as error:
        return _plugin(
            name,
            "broken",
            f"pytest cannot load {found.value}: {first_line(error)}",
            "install vlm_ci again; until then pytest fails in every project of this environment",
        )
    return _plugin(name, "ok", f"installed, and {found.value} loads")


def _autoload() -> Check:
    if os.environ.get(AUTOLOAD):
        return _plugin(
            "autoload",
            "warning",
            f"{AUTOLOAD} is set: pytest loads no plugin by itself; vlm-ci run does it nonetheless",
            "pass `-p vlm_ci.plugin` to pytest for tests of your own",
        )
    return _plugin("autoload", "ok", "pytest loads the plugin by itself")


def _variable(name: str, value: str) -> Check | None:
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
    if name not in MEANING and prefix is None:
        return None
    meaning = MEANING.get(name) or PREFIXES[prefix or ""]
    shown = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
    shown = shown or "empty"
    status: Status = "ok"
    advice = ""
    if name in DISABLING and value == "1":
        status, advice = "broken", f"`unset {name}`"
        meaning = "nothing is compiled, so that a run proves nothing"
    elif name == SUPPRESSING and value:
        status, advice = "warning", f"`unset {name}`"
        meaning = "what fails to compile runs eagerly without an error"
    return Check(group=GROUP, name=name, status=status, found=f"{shown}: {meaning}", advice=advice)


def _plugin(name: str, status: Status, found: str, advice: str = "") -> Check:
    return Check(group=PLUGIN_GROUP, name=name, status=status, found=found, advice=advice)
