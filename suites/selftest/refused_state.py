"""The state of the process: modes, defaults, transforms and hooks that warm-up did not have."""

from __future__ import annotations

import torch
from refused import Dispatch, Mode, call, case, hooks, plus, setting, state, tangent, total

T = torch.ones
THREADS = torch.get_num_threads()


STATE = (
    state("grad mode", torch.no_grad, "grad mode", "enter torch.no_grad()"),
    state(
        "autocast",
        lambda: torch.autocast("cpu", torch.bfloat16),
        "the process state changed: autocast",
        "same torch.autocast(...)",
    ),
    state(
        "deterministic",
        lambda: setting(torch.use_deterministic_algorithms, True, False),
        "deterministic algorithms",
        "use_deterministic_algorithms(...) once",
    ),
    state(
        "threads",
        lambda: setting(torch.set_num_threads, THREADS + 1, THREADS),
        "threads",
        "set_num_threads(...) once",
    ),
    state(
        "default dtype",
        lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
        "default dtype",
        "set_default_dtype(...) once",
    ),
    state(
        "matmul precision",
        lambda: setting(torch.set_float32_matmul_precision, "medium", "highest"),
        "matmul precision",
        "set_float32_matmul_precision(...) once",
    ),
    state(
        "torch function",
        torch._C.DisableTorchFunctionSubclass,
        "torch function",
        "DisableTorchFunction",
    ),
    state("mode", Mode, "TorchFunctionMode is active", "enter the same modes in warm-up"),
    state(
        "default device",
        lambda: torch.device("meta"),
        "another default device",
        "pass device= where it is needed",
    ),
    case(
        "transform",
        tangent,
        (call(T(3)),),
        call(T(3)),
        "other torch.func transforms (vmap, grad, jvp) are active",
        "inside the same transforms in warm-up",
        within=lambda: torch._functorch.eager_transforms.jvp_increment_nesting(),
    ),
    case(
        "saved-tensor hooks",
        total,
        (call(T(3, requires_grad=True)),),
        call(T(3, requires_grad=True)),
        "other saved-tensor hooks are active",
        "register the hooks before warm-up",
        backend="aot_eager",
        within=hooks,
    ),
    case(
        "dispatch mode",
        plus,
        (call(T(3)),),
        call(T(3)),
        "x has other dispatch keys than when this was compiled: with Python",
        "call compiled code in the same modes",
        within=Dispatch,
        line="return x + 1",
    ),
)
