"""Guard families of the process: grad mode and its relatives, modes, transforms, code itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_ci.watch.guards.family import GuardFamily

if TYPE_CHECKING:
    import re

# By the names that signatures give to the parts of the process state.
STATE_ADVICE = {
    "inference mode": "enter torch.inference_mode() around every call, in warm-up as in serving, "
    "and create the inputs inside it (or .clone() them outside)",
    "grad mode": "enter torch.no_grad() (or torch.inference_mode()) around every call, in warm-up "
    "as in serving, and restore grad mode where the code changes it",
    "autocast": "enter the same torch.autocast(...) around warm-up and around serving, or leave it "
    "out of both",
    "deterministic algorithms": "call torch.use_deterministic_algorithms(...) once, before "
    "warm-up, and restore it where the code changes it",
    "threads": "call torch.set_num_threads(...) once, before warm-up, and restore it where the "
    "code changes it",
    "matmul precision": "call torch.set_float32_matmul_precision(...) once, before warm-up, and "
    "restore it where the code changes it",
    "default dtype": "call torch.set_default_dtype(...) once, before warm-up, and restore it where "
    "the code changes it",
    "reduced precision": "set torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction "
    "and its bf16 twin once, before warm-up",
    "torch function": "leave DisableTorchFunction out of the code around compiled calls, or enter "
    "it in warm-up too",
}
# By what GLOBAL_STATE prints; the first start that fits.
_STATE_NAMES = (
    ("autocast", "autocast"),
    ("grad_mode", "grad mode"),
    ("deterministic", "deterministic algorithms"),
    ("num_threads", "threads"),
    ("default_dtype", "default dtype"),
    ("allow_tf32", "matmul precision"),
    ("allow_", "reduced precision"),
    ("torch_function", "torch function"),
)
# What the signature of a call holds too.
_RECORDED = (
    r"(?:autocast\(|grad_mode|deterministic_algorithms\s|num_threads|default_dtype|allow_tf32)\S*"
)


def _states(match: re.Match[str]) -> list[str]:
    found = [
        next((name for start, name in _STATE_NAMES if word.startswith(start)), word)
        for word in match["what"].split()
    ]
    return list(dict.fromkeys(found))


def _words(match: re.Match[str]) -> str:
    return f"the process state changed: {', '.join(_states(match))}"


def _advice(match: re.Match[str]) -> str:
    other = "serve in the state in which you warm up, or warm up in both"
    return "; ".join(dict.fromkeys(STATE_ADVICE.get(name, other) for name in _states(match)))


FAMILIES = (
    GuardFamily(
        name="process state",
        pattern=rf"^GLOBAL_STATE changed: (?P<what>{_RECORDED}(?:\s+{_RECORDED})*)\s*$",
        words=_words,
        advice=_advice,
        recorded=True,
    ),
    GuardFamily(
        name="process state",
        pattern=r"^GLOBAL_STATE changed: (?P<what>.+)",
        words=_words,
        advice=_advice,
    ),
    GuardFamily(
        name="default device or mode",
        pattern=r"^___check_torch_function_mode_stack|CURRENT_DEVICE ==",
        words="another default device or TorchFunctionMode is active than when this was compiled",
        advice="pass device= where it is needed in place of torch.set_default_device and "
        "`with torch.device(...)`, or enter the same modes in warm-up",
    ),
    GuardFamily(
        name="function transform",
        pattern=r"compare_functorch_state|forward_ad\._current_level",
        words="other torch.func transforms (vmap, grad, jvp) are active than when this was "
        "compiled",
        advice="call compiled code inside the same transforms in warm-up, or compile outside them",
    ),
    GuardFamily(
        name="saved tensor hooks",
        pattern=r"top_saved_tensors_hooks ids ==",
        words="other saved-tensor hooks are active than when this was compiled",
        advice="enter torch.no_grad() around every call, or register the hooks before warm-up",
    ),
    GuardFamily(
        name="backend",
        pattern=r"^BACKEND_MATCH failure",
        words="this code was compiled with another backend object",
        advice="compile it once, or hand one and the same backend object to every torch.compile",
    ),
    GuardFamily(
        name="freed object",
        pattern=r"^Cache line invalidated because (?P<name>.+) got deallocated",
        words="{name}, for which this was compiled, no longer exists",
        advice="build the model once and keep it: compiled code is thrown away with its module",
    ),
)
