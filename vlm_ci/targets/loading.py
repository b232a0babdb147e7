"""Targets by name, one alive at a time."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from vlm_ci.errors import UsageError
from vlm_ci.families.base import check_envelope
from vlm_ci.importing import import_object
from vlm_ci.targets import models

if TYPE_CHECKING:
    import torch

    from vlm_ci.targets.protocol import Target
    from vlm_ci.targets.transformers_twin import Mutate
    from vlm_ci.traffic.envelope import Envelope

DTYPES = ("float32", "bfloat16", "float16", "float64")

_live: weakref.ref[Any] | None = None


def is_factory(name: str) -> bool:
    """Whether a target's name has the form ``package.module:factory``."""
    from vlm_ci import families

    head, colon, _ = name.partition(":")
    return bool(colon) and head not in families.names()


def resolve_device(name: str) -> torch.device:
    """Return the device of that name.

    Raises:
        UsageError: there is no such device here.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}: write cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported: write cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or (device.index or 0) >= count:
            raise UsageError(
                f"device {name!r} is not there: torch {torch.__version__} sees {count} CUDA "
                "device(s) on this machine; use --device cpu"
            )
    return device


def resolve_dtype(name: str) -> torch.dtype:
    """Return the floating-point type of that name."""
    import torch

    from vlm_ci.errors import unknown_name

    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_target(
    name: str,
    *,
    recipe: str = "decoder-layers",
    backend: str = "eager",
    dynamic: bool | None = True,
    mode: str | None = None,
    fullgraph: bool = False,
    recompile_limit: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    envelope: Envelope | None = None,
    mutate: Mutate | None = None,
) -> Target:
    """Build a target: eager and compiled twins, the observers registered, nothing compiled yet.

    ``name`` is a tiny model (``qwen3-vl-tiny``), ``FAMILY:CHECKPOINT`` (a folder or a hub id), or
    ``package.module:factory``, whose factory is called without arguments and returns an object
    with the Target protocol; the other arguments do not apply to it. ``mutate(model)`` changes
    the compiled twin before it is compiled.

    Dynamo's cache belongs to code objects, so that a second target of the same class would run on
    what the first one compiled. Therefore one target is alive at a time: close it first.

    Raises:
        UsageError: bad input, or another target is still alive.
    """
    global _live
    alive = _live() if _live is not None else None
    if alive is not None:
        raise UsageError(
            f"target {alive.name} is still alive, and compiled code is shared by all targets of a "
            "process: call its close() before loading another"
        )
    if is_factory(name):
        target: Target = _from_factory(name)
    else:
        from vlm_ci.targets.backends import CompileOptions

        source = models.find(name)
        options = CompileOptions(
            backend=backend,
            dynamic=dynamic,
            mode=mode,
            fullgraph=fullgraph,
            recompile_limit=recompile_limit,
        )
        chosen = envelope or source.family.envelope(source.config)
        check_envelope(source.family, source.config, chosen)
        torch_device, torch_dtype = resolve_device(device), resolve_dtype(dtype)
        from vlm_ci.targets.transformers_twin import TransformersTwin

        target = TransformersTwin(
            source,
            recipe=recipe,
            options=options,
            device=torch_device,
            dtype=torch_dtype,
            envelope=chosen,
            mutate=mutate,
        )
    _live = weakref.ref(target, _forget)
    _wrap_close(target)
    return target


def _forget(_: object) -> None:
    global _live
    _live = None


def _wrap_close(target: Any) -> None:
    close = target.close

    def close_and_forget() -> None:
        close()
        _forget(None)

    target.close = close_and_forget


def _from_factory(name: str) -> Target:
    from vlm_ci.targets.protocol import Target

    factory = import_object("target", name)
    if not callable(factory):
        raise UsageError(f"target {name!r} is not a function that returns a target")
    try:
        target = factory()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"target {name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(target, Target):
        members = (
            "name",
            "envelope",
            "capabilities",
            "run_eager",
            "run_compiled",
            "warm_up",
            "stats",
            "reset",
            "close",
        )
        missing = [member for member in members if not hasattr(target, member)]
        raise UsageError(
            f"target {name!r} returned something of type {type(target).__name__} without "
            f"{', '.join(missing)}: see vlm_ci.targets.protocol.Target"
        )
    return target
