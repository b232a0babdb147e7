"""The higher-precision reference: a model's own code, run with every float lifted to a wider type.

``model.double()`` alone is none: norms, rotary embeddings and masks cast to float32 by name, and so
each of them rounds. Here a torch function mode replaces those types wherever they are asked for.
Judges nothing.
"""

from __future__ import annotations

import copy
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from vlm_ci.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NARROW = (torch.float32, torch.float16, torch.bfloat16)
# Methods that name a type without an argument for it.
_CASTS = {torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16}


def reference_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype | None:
    """Return the type to lift to: float64, or float32 for narrower types on a GPU.

    None for float64, which has nothing wider.
    """
    if dtype == torch.float64:
        return None
    return torch.float64 if device.type == "cpu" or dtype == torch.float32 else torch.float32


class Lifting(TorchFunctionMode):
    """Runs torch's functions in ``dtype`` wherever they are given, or asked for, a narrower float.

    Raises:
        UsageError: a narrow tensor is written into. Its lifted copy would be written in its place.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._types: dict[torch.dtype, torch.dtype] = {
            narrow: dtype for narrow in NARROW if narrow.itemsize < dtype.itemsize
        }
        if dtype == torch.float64:
            self._types[torch.complex64] = torch.complex128

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function with everything in it lifted."""
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute: nothing is computed
            return func(*args, **(kwargs or {}))
        if func in _CASTS:
            return self.lift(args[0].to(self._dtype))
        for written in _written(name, args, kwargs or {}):
            if written.dtype in self._types:
                raise UsageError(
                    f"no higher-precision reference: {name} writes into a {written.dtype} tensor "
                    "of the model's, which cannot be lifted; use --reference none"
                )
        return self.lift(func(*self.lift(args), **self.lift(kwargs or {})))

    def lift(self, value: Any) -> Any:
        """Return a value with every narrower tensor and type in it lifted."""
        if isinstance(value, torch.Tensor):
            wider = self._types.get(value.dtype)
            return value if wider is None else value.to(wider)
        if isinstance(value, torch.dtype):
            return self._types.get(value, value)
        if type(value) in (tuple, list):
            return type(value)(map(self.lift, value))
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self.lift, value))
        if type(value) is dict:
            return {key: self.lift(one) for key, one in value.items()}
        return value


def _written(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the tensors that a function of this name writes into."""
    found: list[Any] = []
    if name in ("__setitem__", "__set__") or (name.endswith("_") and not name.endswith("__")):
        first = args[0] if args else next(iter(kwargs.values()), None)  # torch.nn.init names it
        found += first if isinstance(first, tuple | list) else [first]
    out = kwargs.get("out")
    found += out if isinstance(out, tuple | list) else [out]
    return [one for one in found if isinstance(one, torch.Tensor)]


class Reference:
    """An instance of the model of its own, answering in ``dtype``.

    ``shares_weights`` says that it holds no weights: each is lifted where it is used, one function
    call at a time, for models that do not fit into memory twice. The values are the same: a
    narrower float is lifted exactly.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        dtype: torch.dtype,
        device: torch.device,
        shares_weights: bool | None = None,
    ) -> None:
        """Copy ``model``; ``shares_weights`` None lets the free memory decide."""
        self.dtype = dtype
        self._device = device
        if shares_weights is None:
            shares_weights = not _fits(model, dtype, device)
        self.shares_weights = shares_weights
        memo = {id(p): p for p in model.parameters()} if shares_weights else {}
        self.model = copy.deepcopy(model, memo)
        if not shares_weights:
            self.model.to(dtype)
        for module in self.model.modules():  # buffers are its own, and may be written into
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    module._buffers[name] = buffer.to(dtype)

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{name}, weights lifted where they are used" if self.shares_weights else name

    def logits(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Return the logits [requests, padded length, vocabulary] in ``dtype``."""
        with self.lifting() as mode:  # inputs are lifted first: they may be written into
            logits: torch.Tensor = self.model(**mode.lift(dict(inputs)), use_cache=False).logits
        return logits.detach()

    @contextmanager
    def lifting(self) -> Iterator[Lifting]:
        """Lift whatever is computed in this thread; inputs are lifted where they are used."""
        default = torch.get_default_dtype()
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self._device.type == "cuda":
                stack.enter_context(_exact_products())
            stack.callback(torch.set_default_dtype, default)
            torch.set_default_dtype(self.dtype)
            yield stack.enter_context(Lifting(self.dtype))


@contextmanager
def _exact_products() -> Iterator[None]:
    """Compute float32 products in float32: no TF32, and attention by plain products.

    torch has two sets of switches for it, and reading one raises where the other was used. Each
    is put back by the one by which it was set.
    """
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    with ExitStack() as stack:
        if matmul.fp32_precision == "tf32":  # the newer one, which shows what holds
            try:
                legacy = torch.get_float32_matmul_precision()
            except RuntimeError:
                legacy = ""
            if legacy == "medium":  # which allow_tf32 cannot say
                stack.callback(torch.set_float32_matmul_precision, legacy)
                torch.set_float32_matmul_precision("highest")
            elif legacy:
                stack.callback(setattr, matmul, "allow_tf32", True)
                matmul.allow_tf32 = False
            else:
                stack.callback(setattr, matmul, "fp32_precision", "tf32")
                matmul.fp32_precision = "ieee"
        stack.callback(setattr, cudnn, "enabled", cudnn.enabled)
        cudnn.enabled = False  # convolutions as products then
        stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
        yield


def _fits(model: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a copy in ``dtype`` takes at most half of the memory that is free."""
    needed = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return needed <= free / 2
