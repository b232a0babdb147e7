"""How small a fault the comparison still sees: relative perturbations of one token, one head, one
layer and one image's features, in a clean compiled model.

The compiled twin is perturbed by a relative size ε at one place, at batch after batch, without
compiling anything again; counted is in how many batches the rule of ``vlm_ci.parity.oracle`` sees
it. ε = 0 must never be seen. Prints a table, and draws the curves where --svg names a file (needs
matplotlib). Exits with 1 where a clean batch fails.

    python suites/bench/sensitivity.py --dtype bfloat16 --backend inductor
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vlm_ci.families.base import TEXT
from vlm_ci.parity.oracle import decide, measure
from vlm_ci.synthesis.examples import examples
from vlm_ci.targets.loading import load_target
from vlm_ci.targets.transformers_twin import TransformersTwin
from vlm_ci.traffic.envelope import Geometry
from vlm_ci.traffic.spec import Batch, Image
from vlm_ci.warmup import find_plan

SIZES = [10.0 ** (exponent / 2) for exponent in range(-16, 1)]  # 1e-8 to 1
LAYER = 1


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="qwen3-vl-tiny")
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--svg", type=Path)
    return parser.parse_args()


def own_weights(model: Any) -> None:
    """Give the compiled twin its own copies of the weights that are perturbed later."""
    layer = model.model.language_model.layers[LAYER]
    for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
        linear.weight = torch.nn.Parameter(linear.weight.detach().clone(), requires_grad=False)


def noise(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return standard-normal noise of the shape of a tensor, in float32."""
    return torch.randn(like.shape, generator=generator).to(like.device)


@contextmanager
def perturbed_weight(weight: torch.Tensor, part: Any, size: float, seed: int) -> Iterator[None]:
    """Multiply part of a weight by 1 + size · noise, element by element."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        before = weight.clone()
        changed = before.float().clone()
        changed[part] *= 1 + size * noise(changed[part], generator)
        weight.copy_(changed.to(weight.dtype))
        try:
            yield
        finally:
            weight.copy_(before)


@contextmanager
def perturbed_output(
    module: Any, rows: tuple[slice, ...], size: float, seed: int
) -> Iterator[None]:
    """Add noise of ``size`` times their RMS to some rows of what a module's first call returns."""
    generator = torch.Generator().manual_seed(seed)

    def change(value: torch.Tensor) -> torch.Tensor:
        changed = value.float().clone()
        rms = changed[rows].square().mean(dim=-1, keepdim=True).sqrt()
        changed[rows] += size * rms * noise(changed[rows], generator)
        return changed.to(value.dtype)

    calls = 0

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:  # images come first, videos in a call of their own
            return output
        if isinstance(output, torch.Tensor):
            return change(output)
        output.pooler_output = change(output.pooler_output)
        return output

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def faults(model: Any, geometry: Geometry) -> dict[str, Callable[[float, int, Batch, Any], Any]]:
    """Return what is perturbed, each a context of (size, seed, batch, places of tokens)."""
    layer = model.model.language_model.layers[LAYER]
    attention = layer.self_attn
    head = slice(0, attention.head_dim)

    def token(size: float, seed: int, batch: Batch, places: Any) -> Any:
        request, index = places[seed % len(places)]
        rows = (slice(request, request + 1), slice(index, index + 1))
        return perturbed_output(model.get_input_embeddings(), rows, size, seed)

    def image(size: float, seed: int, batch: Batch, places: Any) -> Any:
        first = next(item for item in batch.items() if isinstance(item, Image))
        rows = (slice(0, geometry.visual_tokens(first)),)
        return perturbed_output(model.model.visual, rows, size, seed)

    return {
        "one token": token,
        "one head": lambda size, seed, *_: perturbed_weight(
            attention.o_proj.weight, (slice(None), head), size, seed
        ),
        "one layer": lambda size, seed, *_: perturbed_weight(
            layer.mlp.down_proj.weight, (slice(None),), size, seed
        ),
        "one image": image,
    }


def load(given: argparse.Namespace) -> TransformersTwin:
    """Return the warmed target."""
    target: Any = load_target(
        given.target,
        recipe="decoder-layers",
        backend=given.backend,
        device=given.device,
        dtype=given.dtype,
        mutate=own_weights,
    )
    for batch in find_plan(None, target.envelope).batches:
        target.warm_up(batch)
    return target


def main() -> int:
    """Measure each fault at each size, and print the shares of batches that show it."""
    given = options()
    target = load(given)
    with_image = (
        batch
        for one in examples(target.envelope, given.seed)
        for batch in one.batches
        if "image" in batch.modalities
    )
    batches = [batch for _, batch in zip(range(given.batches), with_image, strict=False)]
    answers = [(target.run_eager(batch), target.run_reference(batch)) for batch in batches]
    places = [(eager.token_kinds == TEXT).nonzero().tolist() for eager, _ in answers]

    def seen(index: int, batch: Batch) -> bool:
        eager, reference = answers[index]
        compiled = target.run_compiled(batch)
        return not decide(measure(compiled, eager, reference), compiled, eager).passes

    alarms = sum(seen(index, batch) for index, batch in enumerate(batches))
    shares: dict[str, list[float]] = {}
    for name, fault in faults(target.twins()[1], target.envelope.geometry).items():
        shares[name] = []
        for size in SIZES:
            found = 0
            for index, batch in enumerate(batches):
                with fault(size, index, batch, places[index]):
                    found += seen(index, batch)
            shares[name].append(found / len(batches))
    hardware = torch.cuda.get_device_name() if given.device.startswith("cuda") else "CPU"
    title = f"{given.target}, {given.backend}, {given.dtype}, {hardware}, torch {torch.__version__}"
    print(f"{title}; {len(batches)} batches; {alarms} false alarms at ε = 0")
    print(f"{'ε':>10}" + "".join(f"{name:>12}" for name in shares))
    for row, size in enumerate(SIZES):
        print(f"{size:>10.1e}" + "".join(f"{share[row]:>12.0%}" for share in shares.values()))
    for least in (0.5, 0.95):
        found_at = (
            next((f"{s:.1e}" for s, x in zip(SIZES, share, strict=True) if x >= least), "never")
            for share in shares.values()
        )
        print(f"{f'ε for {least:.0%}':>10}" + "".join(f"{one:>12}" for one in found_at))
    if given.svg:
        draw(given.svg, title, shares)
    target.close()
    return int(alarms > 0)


def draw(path: Path, title: str, shares: dict[str, list[float]]) -> None:
    """Draw the curves."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for (name, share), style in zip(shares.items(), ("o-", "s--", "^-.", "d:"), strict=True):
        axes.semilogx(SIZES, share, style, label=name, markersize=4)
    axes.set(xlabel="relative perturbation ε", ylabel="share of batches that show it", title=title)
    axes.title.set_fontsize(8)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
