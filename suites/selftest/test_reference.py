"""The higher-precision reference: nothing in it is narrower, and it leaves no trace."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import processes
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from vlm_ci.errors import UsageError
from vlm_ci.targets.loading import load_target
from vlm_ci.targets.reference import Lifting, Reference, _exact_products, reference_dtype
from vlm_ci.targets.transformers_twin import checksum
from vlm_ci.traffic.spec import Batch, Image, Text, Video, batch

TINY = ("qwen3-vl-tiny", "qwen2.5-vl-tiny", "llava-tiny")
CPU = torch.device("cpu")
VIDEOS = batch([Text(3), Image(16, 24), Video(3, 8, 8)], [Text(9)], seed=1)
IMAGES = batch([Text(3), Image(16, 16)], [Text(9)], seed=1)


def uncompiled(parts: Any, compile_module: Any) -> None:
    """A recipe that compiles nothing."""


@contextmanager
def loaded(name: str, **given: Any) -> Iterator[Any]:
    target = load_target(name, recipe=f"{__name__}:uncompiled", **given)
    try:
        yield target
    finally:
        target.close()


def traffic(target: Any) -> Batch:
    part = VIDEOS if "video" in target.envelope.modalities else IMAGES
    assert target.envelope.violation(part) is None
    return part


def inputs_of(target: Any, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Encode the traffic; pixels in ``dtype``, which is how the reference takes them in."""
    encoded = target._source.encode(traffic(target), device=CPU, dtype=target._dtype)
    return {
        name: value.to(dtype) if dtype and value.is_floating_point() else value
        for name, value in encoded.inputs.items()
    }


class Spy(TorchDispatchMode):
    """Notes the operators that take or give tensors of each floating-point type."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[torch.dtype, set[str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        for one in tree_flatten((args, kwargs, given))[0]:
            if isinstance(one, torch.Tensor) and (one.is_floating_point() or one.is_complex()):
                self.seen.setdefault(one.dtype, set()).add(str(func))
        return given


WIDE = {torch.float64, torch.complex128}


# -- it computes in the wider type, and in no other ---------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_no_tensor_is_narrower_than_float64(name: str):
    with loaded(name) as target:
        reference = target.reference()
        assert not reference.shares_weights
        assert str(reference) == "float64"
        inputs = inputs_of(target, torch.float64)
        with Spy() as spy:
            logits = reference.logits(inputs)
        assert set(spy.seen) <= WIDE, spy.seen
        assert logits.dtype == torch.float64

        with torch.inference_mode(), Spy() as spy:  # which is why .double() alone would not do
            copy.deepcopy(target._eager).double()(**inputs, use_cache=False)
        assert torch.float32 in spy.seen

        eager, answer = target.run_eager(traffic(target)), target.run_reference(traffic(target))
        assert torch.equal(answer.logits, logits)  # pixels are lifted exactly
        assert torch.equal(answer.token_kinds, eager.token_kinds)
        error = (eager.logits - logits).square().mean().sqrt() / logits.square().mean().sqrt()
        assert 1e-9 < error < 1e-5


@pytest.mark.parametrize("name", TINY)
def test_weights_that_are_lifted_where_they_are_used_give_the_same_to_the_bit(name: str):
    with loaded(name) as target:
        own = target.reference().logits(inputs_of(target))
        shared = Reference(target._eager, dtype=torch.float64, device=CPU, shares_weights=True)
        assert str(shared) == "float64, weights lifted where they are used"
        theirs = {id(weight) for weight in target._eager.parameters()}
        assert all(id(weight) in theirs for weight in shared.model.parameters())
        inputs = inputs_of(target, torch.float64)
        with Spy() as spy:
            assert torch.equal(shared.logits(inputs), own)
        narrow = set().union(*(seen for dtype, seen in spy.seen.items() if dtype not in WIDE))
        assert narrow <= {"aten.to.dtype", "aten._to_copy.default"}  # and each weight is read
        assert narrow


@pytest.mark.parametrize(("wider", "allowed"), [(torch.float64, WIDE), (torch.float32, None)])
def test_a_bfloat16_model_is_lifted_to_either_type(wider: torch.dtype, allowed: Any):
    """float64 is the CPU's; float32, with complex64 beside it, is a GPU's."""
    allowed = allowed or {torch.float32, torch.complex64}
    with loaded("qwen3-vl-tiny", dtype="bfloat16") as target:
        assert target.run_reference(traffic(target)).logits.dtype == torch.float64
        reference = Reference(target._eager, dtype=wider, device=CPU)
        inputs = inputs_of(target, wider)
        with Spy() as spy:
            logits = reference.logits(inputs)
        assert set(spy.seen) <= allowed, spy.seen
        eager = target.run_eager(traffic(target)).logits
        assert eager.dtype == torch.bfloat16
        error = (eager - logits).square().mean().sqrt() / logits.square().mean().sqrt()
        assert 1e-4 < error < 0.1


def test_there_is_none_for_float64():
    with loaded("llava-tiny", dtype="float64") as target:
        assert target.reference() is None
        with pytest.raises(UsageError, match="float64 has no wider type: use --reference none"):
            target.run_reference(traffic(target))


@pytest.mark.parametrize(
    ("dtype", "device", "wider"),
    [
        (torch.float64, "cpu", None),
        (torch.float32, "cpu", torch.float64),
        (torch.bfloat16, "cpu", torch.float64),
        (torch.float64, "cuda", None),
        (torch.float32, "cuda", torch.float64),
        (torch.bfloat16, "cuda", torch.float32),
        (torch.float16, "cuda", torch.float32),
    ],
)
def test_the_type_it_lifts_to(dtype: torch.dtype, device: str, wider: torch.dtype | None):
    assert reference_dtype(dtype, torch.device(device)) == wider


def test_the_free_memory_decides_whether_it_has_weights_of_its_own(monkeypatch):
    model = torch.nn.Linear(1024, 1024)
    needed = sum(weight.numel() for weight in model.parameters()) * 8
    for free, shares in ((2 * needed, False), (2 * needed - 1, True)):
        monkeypatch.setattr(
            os, "sysconf", lambda name, free=free: free if name == "SC_AVPHYS_PAGES" else 1
        )
        reference = Reference(model, dtype=torch.float64, device=CPU)
        assert reference.shares_weights == shares
        assert (reference.model.weight is model.weight) == shares


# -- whatever the code asks for by name ---------------------------------------------------------

THIRDS = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 3
NARROW = torch.ones(3)
F32 = torch.float32
# Each is x / 3, for x = (1, 2, 1), rounded on the way.
CASTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "float": lambda x: (x / 3).float(),
    "half": lambda x: (x / 3).half(),
    "bfloat16": lambda x: (x / 3).bfloat16(),
    "float of integers": lambda x: x.long().float() / 3,
    "to a type": lambda x: (x / 3).to(F32),
    "to a type by keyword": lambda x: (x / 3).to(dtype=torch.bfloat16),
    "to a device and a type": lambda x: (x / 3).to("cpu", F32),
    "to another tensor": lambda x: (x / 3).to(NARROW),
    "to the type of another": lambda x: (x / 3).to(NARROW.dtype),
    "type": lambda x: (x / 3).type(F32),
    "type_as": lambda x: (x / 3).type_as(NARROW),
    "a weight of another type": lambda x: x / 3 * NARROW,
    "full, with a type": lambda x: x * torch.full((3,), 1 / 3, dtype=F32),
    "full, without": lambda x: x * torch.full((3,), 1 / 3),
    "tensor, with a type": lambda x: x * torch.tensor(1 / 3, dtype=F32),
    "tensor, without": lambda x: x * torch.tensor([1 / 3]),
    "arange, with a type": lambda x: torch.arange(1, 3, dtype=F32)[x.long() - 1] / 3,
    "linspace": lambda x: torch.linspace(1 / 3, 2 / 3, 2)[x.long() - 1],
    "new_tensor": lambda x: x.new_tensor([1 / 3], dtype=F32) * x,
    "zeros_like, with a type": lambda x: torch.zeros_like(x, dtype=F32).add(x / 3),
    "empty, written into": lambda x: torch.empty(3).copy_(x / 3),
    "the default type": lambda x: (x / 3).to(torch.get_default_dtype()),
    "softmax": lambda x: torch.softmax(torch.stack([x, 3 - x]).log(), dim=0, dtype=F32)[0],
    "functional softmax": lambda x: torch.nn.functional.softmax(
        torch.stack([x, 3 - x]).log(), dim=0, dtype=F32
    )[0],
    "sum, with a type": lambda x: (x / 3)[None].sum(dim=0, dtype=F32),
    "a list of tensors": lambda x: torch.cat([x[:1] / 3, x[1:].float() / 3]),
    "several results": lambda x: torch.topk((x / 3)[:, None], 1).values[:, 0].float(),
    "linear": lambda x: torch.nn.functional.linear(x[:, None], NARROW[:1, None] / 3)[:, 0],
    "complex": lambda x: torch.polar(x / 3, x * 0).to(torch.complex64).real,
    "result_type": lambda x: (x / 3).to(torch.result_type(NARROW, NARROW)),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_what_the_code_asks_for_is_lifted(cast: Callable[[torch.Tensor], torch.Tensor]):
    reference = Reference(torch.nn.Identity(), dtype=torch.float64, device=CPU)
    x = torch.tensor([1.0, 2.0, 1.0])
    with reference.lifting():
        got = cast(x)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, THIRDS, rtol=4e-16, atol=0)
    rounded = cast(x)
    assert rounded.dtype != torch.float64
    assert not torch.allclose(rounded.double(), THIRDS, rtol=1e-9, atol=0)


# -- what is written into -----------------------------------------------------------------------


def set_data(x: torch.Tensor) -> None:
    x.data = torch.zeros(3)


def add_in_place(x: torch.Tensor) -> None:
    x += 1


def set_item(x: torch.Tensor) -> None:
    x[0] = 1


WRITES: dict[str, Callable[[torch.Tensor], object]] = {
    "a method": lambda x: x.mul_(2),
    "an operator": add_in_place,
    "an item": set_item,
    "index_put_": lambda x: torch.index_put_(x, (torch.tensor([0]),), torch.tensor(3.0)),
    "out": lambda x: torch.add(x, 1, out=x),
    "out, as a tuple": lambda x: torch.sort(NARROW, out=(x, torch.zeros(3, dtype=torch.long))),
    "init": torch.nn.init.normal_,
    "foreach": lambda x: torch._foreach_add_([x], 1),
    "data": set_data,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writing_into_a_narrow_tensor_is_refused(write: Callable[[torch.Tensor], object]):
    narrow = torch.ones(3)
    with (
        Lifting(torch.float64),
        pytest.raises(UsageError, match=r"writes into a torch\.float32 tensor .* --reference none"),
    ):
        write(narrow)
    assert torch.equal(narrow, torch.ones(3))
    with Lifting(torch.float64):
        write(torch.ones(3))  # one that is wide by now


class Writing(torch.nn.Module):
    """Writes into its input and its buffer, through a view too, and answers with both."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.1, 0.2]))
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, pixels: torch.Tensor, use_cache: bool) -> Any:
        pixels.view(-1)[:1].add_(1)
        self.kept[:1].add_(pixels.sum() / 3)
        self.count += 1
        self.logits = self.kept * self.weight
        return self


@pytest.mark.parametrize("shares", [False, True])
def test_inputs_and_buffers_may_be_written_into(shares: bool):
    model, pixels = Writing(), torch.ones(2)
    reference = Reference(model, dtype=torch.float64, device=CPU, shares_weights=shares)
    expected = torch.tensor([1.0, 0.0], dtype=torch.float64) * model.weight.detach().double()
    torch.testing.assert_close(reference.logits({"pixels": pixels}), expected, rtol=1e-15, atol=0)
    assert torch.equal(pixels, torch.ones(2))
    assert torch.equal(model.kept, torch.zeros(2))
    assert int(model.count) == 0
    assert int(reference.model.count) == 1


# -- no trace -----------------------------------------------------------------------------------


def state_of(model: Any) -> tuple[Any, ...]:
    return (
        checksum(model),
        {name: value.dtype for name, value in model.state_dict().items()},
        torch.get_default_dtype(),
        torch.is_inference_mode_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.enabled,
        torch.ones(1, dtype=F32).dtype,
    )


@pytest.mark.parametrize("shares", [False, True])
def test_eager_and_the_process_stay_as_they_were(shares: bool):
    with loaded("llava-tiny") as target:
        before, answer = state_of(target._eager), target.run_eager(traffic(target)).logits
        reference = Reference(target._eager, dtype=torch.float64, device=CPU, shares_weights=shares)
        reference.logits(inputs_of(target))
        assert state_of(target._eager) == before

        def fail(*args: Any) -> None:
            assert torch.get_default_dtype() == torch.float64
            raise ZeroDivisionError

        hook = reference.model.get_output_embeddings().register_forward_hook(fail)
        with pytest.raises(ZeroDivisionError):
            reference.logits(inputs_of(target))
        hook.remove()
        assert state_of(target._eager) == before
        assert torch.equal(target.run_eager(traffic(target)).logits, answer)


def _of(read: Callable[[], object]) -> object:
    try:
        return read()
    except RuntimeError:  # the other set of switches was used
        return "unreadable"


def precisions() -> dict[str, object]:
    """Return what either set of torch's switches says."""
    backends: Any = torch.backends
    return {
        "precision": _of(torch.get_float32_matmul_precision),
        "allow_tf32": _of(lambda: backends.cuda.matmul.allow_tf32),
        "matmul": backends.cuda.matmul.fp32_precision,
        "everything": backends.fp32_precision,
        "on the CPU": backends.mkldnn.matmul.fp32_precision,
        "cudnn": _of(lambda: backends.cudnn.allow_tf32),
        "convolutions": backends.cudnn.conv.fp32_precision,
        "enabled": backends.cudnn.enabled,
    }


def set_allow_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True


def set_matmul() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def set_convolutions() -> None:
    torch.backends.cudnn.conv.fp32_precision = "ieee"


SWITCHES = {
    "none": int,
    "high": partial(torch.set_float32_matmul_precision, "high"),
    "medium": partial(torch.set_float32_matmul_precision, "medium"),
    "allow_tf32": set_allow_tf32,
    "matmul": set_matmul,
    "convolutions": set_convolutions,
}


def _products(set_switch: Callable[[], object], fails: bool, answers: Any) -> None:
    set_switch()
    before, inside = precisions(), {}
    try:
        with _exact_products():
            inside = precisions()
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    answers.put((before, inside, precisions()))


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", SWITCHES)
def test_products_are_exact_whichever_switch_was_set(name: str, fails: bool):
    answers = processes.context().Queue()  # of a process: some switches cannot be put back
    process = processes.context().Process(target=_products, args=(SWITCHES[name], fails, answers))
    process.start()
    before, inside, after = answers.get(timeout=60)
    process.join()
    assert inside["matmul"] != "tf32"
    assert inside["allow_tf32"] is False
    assert inside["enabled"] is False
    assert after == before
    assert (before["matmul"] == "tf32") == (name not in ("none", "convolutions"))
