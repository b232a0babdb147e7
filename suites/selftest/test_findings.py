"""docs/findings: each script shows its fault where it was measured, and says 0 once mended."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

FINDINGS = Path(__file__).resolve().parents[2] / "docs/findings"
SCRIPTS = {path.stem: path for path in sorted(FINDINGS.glob("*.py"))}
MEASURED = version("transformers").startswith("5.23.") and version("torch").startswith("2.13.")

# By day one fault of each package; each of the others takes 15 to 60 s on a busy machine.
BY_DAY = {"module-compile"}

# What each page proposes, as a module that is imported before the script runs.
MENDS = {
    "vision-split": """
import torch
from transformers.models.qwen3_vl import modeling_qwen3_vl as m

def forward(self, x, cu_seqlens, position_embeddings=None, **kwargs):
    length = x.shape[0]
    q, k, v = self.qkv(x).reshape(length, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
    q, k = m.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    places = torch.arange(length, device=x.device, dtype=cu_seqlens.dtype)
    image = torch.searchsorted(cu_seqlens, places, right=True)
    mask = (image[:, None] == image[None, :])[None, None]
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
    attend = torch.nn.functional.scaled_dot_product_attention
    out = attend(q, k, v, attn_mask=mask, scale=self.scaling)
    return self.proj(out.transpose(1, 2).reshape(length, -1))

m.Qwen3VLVisionAttention.forward = forward
""",
    "deepstack-graph-break": """
import torch
from transformers.models.qwen3_vl import modeling_qwen3_vl as m

def add(self, states, mask, embeds):
    mask = mask.to(states.device)[..., None]
    return states + torch.zeros_like(states).masked_scatter(mask, embeds.to(states))

m.Qwen3VLTextModel._deepstack_process = add
""",
    "deepstack-optional": """
import torch
from transformers.models.qwen3_vl import modeling_qwen3_vl as m

def call(self, *args, **kwargs):
    mask, embeds = kwargs["visual_pos_masks"], kwargs["deepstack_visual_embeds"]
    dense = [torch.zeros_like(kwargs["inputs_embeds"])]
    if embeds is not None:
        dense = [dense[0].masked_scatter(mask[..., None], one) for one in embeds]
    kwargs |= {"visual_pos_masks": None, "deepstack_visual_embeds": dense}
    return torch.nn.Module.__call__(self, *args, **kwargs)

m.Qwen3VLTextModel.__call__ = call
m.Qwen3VLTextModel._deepstack_process = lambda self, states, mask, embeds: states + embeds
""",
    "position-ids-optional": """
import torch
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as m

compute = m.Qwen2_5_VLModel.compute_3d_position_ids

def always(self, *args, **kwargs):
    found = compute(self, *args, **kwargs)
    if found is None:
        rows, length = kwargs["inputs_embeds"].shape[:2]
        found = torch.arange(length).expand(3, rows, -1).contiguous()
    return found

m.Qwen2_5_VLModel.compute_3d_position_ids = always
""",
    "shared-wrapper-limit": """
import functools
import transformers.utils.generic as generic
import transformers.utils.output_capturing as output_capturing

def wraps(func):
    def own_code(wrapper):
        name = f"{wrapper.__name__} of {func.__qualname__}"
        wrapper.__code__ = wrapper.__code__.replace(co_name=name)
        return functools.wraps(func)(wrapper)
    return own_code

generic.wraps = output_capturing.wraps = wraps
""",
    "hooks-lock": """
import transformers.modeling_utils as modeling_utils
import transformers.utils.output_capturing as o

install, post_init = o.install_all_output_capturing_hooks, modeling_utils.PreTrainedModel.post_init

def once(model, prefix=None):
    if not getattr(model, "_output_capturing_hooks_installed", False):
        install(model, prefix)

def post_init_with_hooks(self):
    post_init(self)
    once(self)

o.install_all_output_capturing_hooks = once
modeling_utils.PreTrainedModel.post_init = post_init_with_hooks
""",
    "signature-bind": """
import functools
import inspect
import transformers.utils.output_capturing as o

def select_hidden_states(name):
    def decorate(func):
        names = list(inspect.signature(func).parameters)
        default = inspect.signature(func).parameters[name].default
        place = names.index(name) - 1
        @functools.wraps(func)
        def wrapper(self, *args, **kwargs):
            if not kwargs.get("output_hidden_states"):
                given = args[place] if len(args) > place else kwargs.get(name, default)
                kwargs["output_hidden_states"] = given
            return func(self, *args, **kwargs)
        return wrapper
    return decorate

o.select_hidden_states = select_hidden_states
""",
    "check-graph-break": """
import torch
import transformers.models.llava.modeling_llava as m

def check(cond, msg, error_type=ValueError):
    torch._assert_async(cond.all())

m.torch_compilable_check = check
""",
    "module-compile": """
import torch
from torch._dynamo.external_utils import wrap_inline

def compile(self, *args, **kwargs):
    self._compiled_call_impl = torch.compile(wrap_inline(self._call_impl), *args, **kwargs)

torch.nn.Module.compile = compile
""",
    "stale-rope-deltas": """
from transformers.models.qwen3_vl import modeling_qwen3_vl as m

compute = m.Qwen3VLModel.compute_3d_position_ids

def forget(self, *args, **kwargs):
    cache = kwargs["past_key_values"]
    if kwargs["input_ids"] is not None and (cache is None or cache.get_seq_length() == 0):
        self.rope_deltas = None
    return compute(self, *args, **kwargs)

m.Qwen3VLModel.compute_3d_position_ids = forget
""",
}


def run(name: str, folder: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh process, after a module of ours where there is one.

    A module of its own, since Dynamo looks a function's globals up in the module that it names.
    """
    arguments = [str(SCRIPTS[name])]
    if before:
        (folder / "before_the_script.py").write_text(before)
        lines = (
            f"import runpy, sys; sys.path.insert(0, {str(folder)!r})",
            "import before_the_script",
            f"runpy.run_path({str(SCRIPTS[name])!r}, run_name='__main__')",
        )
        arguments = ["-c", "\n".join(lines)]
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def tiers(names: set[str]) -> list[object]:
    """Parameters for each script; those not in names are for the night."""
    return [
        pytest.param(name, marks=() if name in names else (pytest.mark.nightly,))
        for name in SCRIPTS
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", tiers(BY_DAY))
def test_the_fault_shows_where_it_was_measured(name: str, tmp_path: Path):
    done = run(name, tmp_path)
    expected = {1} if MEASURED else {0, 1, 2}
    assert done.returncode in expected, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert 1 <= len(done.stdout.splitlines()) <= 2
    assert done.stdout.startswith("cannot tell: ") == (done.returncode == 2)


@pytest.mark.slow
@pytest.mark.skipif(not MEASURED, reason="the mends are written for transformers 5.23, torch 2.13")
@pytest.mark.parametrize("name", tiers(set()))
def test_the_mend_turns_it_to_0(name: str, tmp_path: Path):
    done = run(name, tmp_path, MENDS[name])
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_cannot_be_measured_is_2(tmp_path: Path):
    done = run("module-compile", tmp_path, "import sys\nsys.modules['torch'] = None")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout.startswith("cannot tell: ModuleNotFoundError")


def test_each_finding_is_a_script_a_page_and_a_row():
    pages = {path.stem for path in FINDINGS.glob("*.md")} - {"README"}
    assert pages == set(SCRIPTS) == set(MENDS)
    assert len(pages) >= 5
    rows = re.findall(
        r"^\| \[([\w-]+)\]\(([\w-]+)\.md\) ", (FINDINGS / "README.md").read_text(), re.M
    )
    assert sorted(rows) == [(name, name) for name in sorted(pages)]


@pytest.mark.parametrize("name", list(SCRIPTS))
def test_scripts_are_short_and_stand_alone(name: str):
    lines = SCRIPTS[name].read_text().splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 100
    imported = re.findall(r"^\s*(?:from|import) (\w+)", "\n".join(lines), re.M)
    assert set(imported) <= {"torch", "transformers", *sys.stdlib_module_names}


@pytest.mark.parametrize("name", list(SCRIPTS))
def test_pages_name_traffic_line_and_mend(name: str):
    text = (FINDINGS / f"{name}.md").read_text()
    for heading in (
        "What a user sees",
        "Smallest traffic",
        "How vlm_ci finds it",
        "Upstream",
        "Why",
    ):
        assert f"\n## {heading}\n" in text
    for heading in ("What would mend it", "Meanwhile", "Measured with"):
        assert f"\n## {heading}\n" in text
    assert "batch(" in text
    assert re.search(r"`(transformers|torch)/[\w/]+\.py:\d+`, `[\w.]+`", text)


@pytest.mark.skipif(not MEASURED, reason="the lines are those of transformers 5.23, torch 2.13")
@pytest.mark.parametrize("name", list(SCRIPTS))
def test_the_upstream_lines_lie_in_the_functions(name: str):
    from importlib.util import find_spec

    text = (FINDINGS / f"{name}.md").read_text()
    for path, line, function in re.findall(
        r"`((?:transformers|torch)/[\w/]+\.py):(\d+)`, `([\w.]+)`", text
    ):
        package, _, inside = path.partition("/")
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        source = (Path(spec.origin).parent / inside).read_text().splitlines()
        defined = [row for row in source[: int(line)] if re.match(r"\s*def ", row)]
        assert re.search(rf"def {function.rpartition('.')[2]}\b", defined[-1]), (
            path,
            line,
            function,
        )
