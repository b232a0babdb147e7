"""The text of a standalone repro. Writes text from what it is given; runs no model.

The script builds the model as ``targets.models.Model.build`` does, compiles what the recipe
compiles, warms up, and serves the failing session.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_ci.parity.comparison import TOLERANCES
from vlm_ci.repro.literals import WIDTH, wrapped
from vlm_ci.targets.contexts import AUTOCAST_DTYPE
from vlm_ci.targets.transformers_twin import CUDAGRAPH_MODES

if TYPE_CHECKING:
    from collections.abc import Sequence

REFUSED = ("recompile", "new-frame")
COMPARED = ("mismatch", "nonfinite")
UNREFUSED = (*COMPARED, "crash")  # they show whatever is compiled meanwhile
TORCH_LIMIT = 8  # torch's default for recompile_limit
ROUNDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Literal:
    """One batch as text (see ``literals.batch``), and what surrounds its forward."""

    text: str
    context: str
    kept: str = ""  # which tokens are judged, where no attention mask says so


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What all scripts for one failure have in common.

    ``model`` is a configuration as text, or the text of a checkpoint's name; ``compiled`` names the
    compiled modules; ``stage`` is where a crash happened, "warm-up", "eager" or "compiled";
    ``variant`` is what a mismatch is one of, "logits" or "shape", and what an eager fallback is
    told by: "none", "some calls", or the number of regions that warm-up executed; ``limited`` says
    that it shows only once the recompile limit is reached, which one round does.
    """

    kind: str
    cause: str
    versions: str
    model: str
    checkpoint: bool
    device: str
    dtype: str
    compiled: tuple[str, ...]
    backend: str
    dynamic: bool | None
    mode: str | None
    fullgraph: bool
    recompile_limit: int
    stage: str = "compiled"
    variant: str = ""
    limited: bool = False


def render(scene: Scene, warm_up: Sequence[Literal], session: Sequence[Literal]) -> list[str]:
    """Return the lines of a script that warms up with some batches and serves others."""
    contexts = {one.context for one in (*warm_up, *session)}
    lists = [
        *(["WARM_UP = [", *_batches(warm_up, contexts), "]"] if warm_up else []),
        *(["SESSION = [", *_batches(session, contexts), "]"] if session else []),
    ]
    return [
        *_docstring(scene),
        *_imports(scene, contexts),
        *wrapped(f"{'CHECKPOINT' if scene.checkpoint else 'CONFIG'} = {scene.model}"),
        *_make(scene, "lambda: " in "".join(lists)),
        *lists,
        "",
        *_forward(scene, contexts),
        "",
        *_model(scene),
        *_served(scene, warm_up, session),
    ]


def _docstring(scene: Scene) -> list[str]:
    cause = re.sub(r" (\[[\d, ]*\] )?on \w+(:\d+)?( \(inference\))?", "", scene.cause)
    title = f"{scene.kind}: {cause}".replace("\\", "/").replace('"', "'")
    about = f"{scene.versions}. Exit code 1 and the reason where it shows, else 0."
    return [
        '"""' + textwrap.shorten(title, WIDTH - 3, placeholder=" …"),
        "",
        *textwrap.wrap(about, WIDTH),
        '"""',
        "",
    ]


def _imports(scene: Scene, contexts: set[str]) -> list[str]:
    names = "AutoModelForImageTextToText"
    modules = ["sys"]
    if scene.kind in COMPARED:
        modules.append("copy")
    if scene.kind == "limit-hit":
        modules.append("logging")
    lines = [f"import {module}" for module in sorted(modules)]
    if "thread" in contexts:
        lines.append("from concurrent.futures import ThreadPoolExecutor")
    return [
        *lines,
        "",
        "import torch",
        f"from transformers import {names if scene.checkpoint else f'AutoConfig, {names}'}",
        "",
    ]


def _batches(batches: Sequence[Literal], contexts: set[str]) -> list[str]:
    lines = []
    for one in batches:
        text = one.text
        if len(contexts) > 1:
            text = text.replace("dict(", f'dict(context="{one.context}", ', 1)
        if one.kept:
            text = text[:-1] + f", kept={one.kept})"
        lines += wrapped(f"{text},", 4)
    return lines


def _make(scene: Scene, lambdas: bool) -> list[str]:
    """Write how inputs are made from literals, by the literal's type."""
    random = "torch.randn"
    if scene.dtype != "float32":
        random = f"lambda shape: torch.randn(shape, dtype=torch.{scene.dtype})"
    other = ", type(lambda: 0): lambda make: make()" if lambdas else ""
    return [
        "# A list holds values, a tuple is the shape of random numbers.",
        f"MAKE = {{list: torch.tensor, tuple: {random}{other}}}",
    ]


def _forward(scene: Scene, contexts: set[str]) -> list[str]:
    """Write the forward, which makes its inputs in the context of the batch."""
    move = "" if scene.device == "cpu" else f'.to("{scene.device}")'
    make = [
        "torch.manual_seed(0)",
        f"inputs = {{name: MAKE[type(given)](given){move} for name, given in batch.items()}}",
    ]
    detach = ".detach()" if "grad" in contexts else ""
    call = [f"return model(**inputs, use_cache=False).logits{detach}"]
    if scene.mode in CUDAGRAPH_MODES:
        call.insert(0, "torch.compiler.cudagraph_mark_step_begin()")
    inference = "with torch.inference_mode():"
    cast = f'torch.autocast("{scene.device.split(":")[0]}", dtype={AUTOCAST_DTYPE})'
    blocks = {
        "inference_mode": [inference, *_indented([*make, *call])],
        "no_grad": ["with torch.no_grad():", *_indented([*make, *call])],
        "grad": ["with torch.enable_grad():", *_indented([*make, *call])],
        "autocast": [f"{inference[:-1]}, {cast}:", *_indented([*make, *call])],
        "outside_inputs": [*make, inference, *_indented(call)],
        "thread": [
            "def run():",
            *_indented([inference, *_indented([*make, *call])]),
            "with ThreadPoolExecutor(1) as pool:",
            "    return pool.submit(run).result()",
        ],
    }
    if len(contexts) == 1:
        return ["def forward(model, **batch):", *_indented(blocks[next(iter(contexts))])]
    lines = ["def forward(model, context, **batch):"]
    for context in sorted(contexts):
        lines += _indented([f'if context == "{context}":', *_indented(blocks[context])])
    return lines


def _model(scene: Scene) -> list[str]:
    cpu = scene.device == "cpu"
    source = "pretrained(CHECKPOINT" if scene.checkpoint else "config(config"
    build = f"model = AutoModelForImageTextToText.from_{source}, dtype=torch.{scene.dtype})"
    lines = [build if not cpu else f"{build}.eval()"]
    if not scene.checkpoint:
        if not cpu:
            lines = [f'with torch.device("{scene.device}"):', f"    {build}"]
        lines = ["config = AutoConfig.for_model(**CONFIG)", "torch.manual_seed(0)", *lines]
    if not cpu:
        lines.append(f'model = model.to("{scene.device}").eval()')
    if scene.recompile_limit != TORCH_LIMIT:
        lines.append(f"torch._dynamo.config.recompile_limit = {scene.recompile_limit}")
    if scene.kind == "eager-fallback":
        lines += _counting(scene)
    if scene.kind in COMPARED:
        lines += [
            "weights = {id(weight): weight for weight in model.parameters()}",
            "eager = copy.deepcopy(model, weights)  # shares them",
        ]
    if scene.kind == "crash" and scene.stage == "eager":
        return lines
    options = [f'backend="{scene.backend}"' if scene.kind != "eager-fallback" else "backend=count"]
    if scene.dynamic is not None:
        options.append(f"dynamic={scene.dynamic}")
    if scene.fullgraph:
        options.append("fullgraph=True")
    graphs = False
    if scene.mode is not None and scene.kind != "eager-fallback":
        options.append(f'mode="{scene.mode}"')
        graphs = scene.mode in CUDAGRAPH_MODES
    wrap = _CLONING if graphs else _CALLS if scene.variant == "some calls" else []
    lines += _compiling(scene.compiled, ", ".join(options), wrap)
    return lines


_CLONING = [  # the next replay of a CUDA graph overwrites what the last one returned
    "    def cloned(*args, call=part._compiled_call_impl, **kwargs):",
    "        tree, tensor = torch.utils._pytree, torch.Tensor",
    "        return tree.tree_map_only(tensor, torch.clone, call(*args, **kwargs))",
    "    part._compiled_call_impl = cloned",
]
_CALLS = [
    "    def counted(*args, call=part._compiled_call_impl, **kwargs):",
    "        before = len(executed)",
    "        result = call(*args, **kwargs)",
    "        calls.append(len(executed) - before)",
    "        return result",
    "    part._compiled_call_impl = counted",
]


def _compiling(names: tuple[str, ...], options: str, wrap: list[str]) -> list[str]:
    """Compile the modules of these names, a list of them in a loop; ``wrap`` wraps their calls."""
    if names[0].endswith(".*"):
        loop = f"for part in {_path(names[0][:-2])}:"
    elif not wrap and len(names) == 1:
        return [f"{_path(names[0])}.compile({options})"]
    else:
        loop = f"for part in [{', '.join(_path(name) for name in names)}]:"
    return [*wrapped(loop), f"    part.compile({options})", *wrap]


def _path(name: str) -> str:
    """Write the path of a submodule as Python does: ``model.model.layers[3]``."""
    return "model" + re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", f".{name}" if name else "")


def _counting(scene: Scene) -> list[str]:
    return [
        "executed, calls = [], []" if scene.variant == "some calls" else "executed = []",
        "def count(graph, inputs):",
        f'    compiled = torch._dynamo.lookup_backend("{scene.backend}")(graph, inputs)',
        "    return lambda *args: (executed.append(1), compiled(*args))[1]",
    ]


def _served(scene: Scene, warm_up: Sequence[Literal], session: Sequence[Literal]) -> list[str]:
    repeated = "WARM_UP" if scene.limited else f"{ROUNDS} * WARM_UP"
    rounds = [f"for batch in {repeated}:", "    forward(model, **batch)"] if warm_up else []
    if scene.kind == "limit-hit":
        return [
            "heard = []",
            'log = logging.getLogger("torch._dynamo.convert_frame")',
            "log.addFilter(lambda record: heard.append(record.getMessage()) or True)",
            *rounds,
            '    hits = [text for text in heard if "hit config.recompile_limit" in text]',
            "    if hits:",
            "        print(hits[0])",
            "        sys.exit(1)",
            'print("the recompile limit was not reached")',
        ]
    refuse = ['torch.compiler.set_stance("fail_on_recompile")']
    if scene.kind in REFUSED:
        return [
            *rounds,
            *refuse,
            *_trying(["forward(model, **batch)"], "RuntimeError", "print(error)"),
            'print("nothing was compiled again")',
        ]
    if scene.kind == "crash":
        told = 'print(f"{type(error).__name__}: {error}")'
        return [
            *rounds,
            *_trying(["forward(model, **batch)"], "Exception", told),
            'print("nothing was raised")',
        ]
    if scene.kind == "eager-fallback":
        least = scene.variant if scene.variant.isdecimal() else "1"
        counted = "executed"
        told = f"{{len(executed)}} compiled regions executed of {least}"
        shows = f"len(executed) < {least}"
        if scene.variant == "some calls":
            counted = "calls"
            told = "{calls.count(0)} of {len(calls)} calls executed no region"
            shows = "0 in calls"
        return [
            *rounds,
            *refuse,
            "for batch in SESSION:",
            f"    {counted}.clear()",
            "    forward(model, **batch)",
            f'print(f"{told}")',
            f"sys.exit(1 if {shows} else 0)",
        ]
    return [*rounds, *_comparing(scene, any(one.kept for one in session))]


def _trying(body: list[str], error: str, told: str) -> list[str]:
    return [
        "try:",
        "    for batch in SESSION:",
        *_indented(_indented(body)),
        f"except {error} as error:",
        f"    {told}",
        "    sys.exit(1)",
    ]


def _comparing(scene: Scene, kept: bool) -> list[str]:
    mask = 'batch.pop("kept")' if kept else 'batch["attention_mask"]'
    head = [
        "for batch in SESSION:",
        f"    kept = torch.tensor({mask}).bool()",
        "    got, want = (forward(one, **batch).cpu().double() for one in (model, eager))",
    ]
    if scene.kind == "nonfinite":
        return [
            *head,
            '    for name, logits in (("eager", want), ("compiled", got)):',
            "        if not logits[kept].isfinite().all():",
            '            print(f"the {name} logits hold NaN or Inf")',
            "            sys.exit(1)",
            'print("all logits are finite")',
        ]
    if scene.variant == "shape":
        return [
            *head,
            '    print(f"compiled logits {list(got.shape)}, eager ones {list(want.shape)}")',
            "    if got.shape != want.shape:",
            "        sys.exit(1)",
        ]
    tolerance = TOLERANCES[scene.dtype]
    return [
        *head,
        "    scale = want.square().mean(-1, keepdim=True).sqrt()",
        f"    allowed = {tolerance.atol} * scale + {tolerance.rtol} * want.abs()",
        "    error = (got - want).abs()[kept]",
        "    ratio = (error / allowed[kept].clamp(min=1e-30)).max()",
        '    print(f"worst difference {error.max():.3g}, {ratio:.3g} times what is allowed")',
        "    if ratio > 1:",
        "        sys.exit(1)",
    ]


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" if line else line for line in lines]
