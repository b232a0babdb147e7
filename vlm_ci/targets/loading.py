"""Targets by name, one alive at a time."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from vlm_ci.errors import UsageError
from vlm_ci.families.base import check_envelope
from vlm_ci.importing import import_object
from vlm_ci.targets import models
from vlm_ci.targets.answers import MEMBERS, call_implemented, check_members, raised_at
from vlm_ci.targets.protocol import DTYPES
from vlm_ci.targets.trial import try_encoding

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from vlm_ci.targets.protocol import Target
    from vlm_ci.targets.transformers_twin import Mutate
    from vlm_ci.traffic.envelope import Envelope

_live: weakref.ref[Any] | None = None
# Set by who keeps a target alive between uses: called before another one is refused.
release_idle: Callable[[], None] | None = None


def is_factory(name: str) -> bool:
    """Whether ``name`` is ``package.module:factory``: a target that brings everything itself.

    ``package.module:MODEL`` is none, because options apply to a model. Imports the module.

    Raises:
        UsageError: the module cannot be imported, or has no such attribute.
    """
    from vlm_ci import families

    head, colon, _ = name.partition(":")
    if not colon or head in families.names():
        return False
    return not isinstance(import_object("target", name), models.Model)


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
    in_both: bool = False,
) -> Target:
    """Build a target: eager and compiled twins, the observers registered, nothing compiled yet.

    ``name`` is a tiny model (``qwen3-vl-tiny``), ``FAMILY:CHECKPOINT`` (a folder or a hub id),
    ``package.module:MODEL``, a ``vlm_ci.Model`` of the user's, or ``package.module:factory``, whose
    factory is called without arguments and returns an object with the Target protocol; the other
    arguments do not apply to it. ``mutate(model)`` changes the compiled twin before it is compiled,
    and the eager one too if ``in_both``.

    Dynamo's cache belongs to code objects, so that a second target of the same class would run on
    what the first one compiled. Therefore one target is alive at a time: close it first.

    Raises:
        UsageError: bad input, or another target is still alive.
    """
    if release_idle is not None:
        release_idle()
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
        chosen = envelope or source.envelope()
        check_envelope(source.family, source.config, chosen)
        torch_device, torch_dtype = resolve_device(device), resolve_dtype(dtype)
        try_encoding(source, chosen, device=torch_device, dtype=torch_dtype)
        from vlm_ci.targets.transformers_twin import TransformersTwin

        target = TransformersTwin(
            source,
            recipe=recipe,
            options=options,
            device=torch_device,
            dtype=torch_dtype,
            envelope=chosen,
            mutate=mutate,
            in_both=in_both,
        )
    _take_charge(target)
    return target


def _forget(_: object) -> None:
    global _live
    _live = None


def _take_charge(target: Any) -> None:
    """Remember the target until its ``close`` is called; ``close`` and ``reset`` are checked."""
    global _live
    close, reset = target.close, target.reset

    def close_and_forget() -> None:
        call_implemented(target, "close", close)
        _forget(None)

    def checked_reset() -> None:
        call_implemented(target, "reset", reset)

    try:
        target.close, target.reset = close_and_forget, checked_reset
        _live = weakref.ref(target, _forget)
    except (AttributeError, TypeError) as error:
        raise UsageError(
            f"target {target.name!r} is a {type(target).__name__} that takes no further "
            f"attributes ({error}): vlm_ci replaces its close and reset; leave out __slots__ and "
            "frozen=True"
        ) from None


def _from_factory(name: str) -> Target:
    factory = import_object("target", name)
    if not callable(factory):
        raise UsageError(
            f"target {name!r} is a {type(factory).__name__}: it must be a vlm_ci.Model, or a "
            "function that returns a target"
        )
    try:
        target: Any = factory()
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"target {name!r} raised {raised_at(error)}") from error
    missing = [member for member in MEMBERS if not hasattr(target, member)]
    if missing:
        raise UsageError(
            f"target {name!r} returned something of type {type(target).__name__} without "
            f"{', '.join(missing)}: see vlm_ci.targets.protocol.Target"
        )
    check_members(target)
    loaded: Target = target
    return loaded
