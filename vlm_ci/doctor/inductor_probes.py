"""Compiles with Inductor and AOTAutograd, and tries what is watched of them: all of it takes long.

Importing it loads no torch.
"""

from __future__ import annotations

from typing import Any

from vlm_ci.doctor.outcomes import NotHere, expect
from vlm_ci.doctor.trial import need_gpu, ones, trial


def inductor_on(device: str) -> str:
    """Compile something with Inductor, run it, and compare it with eager."""
    import torch

    def probed(x: Any) -> Any:
        return torch.softmax(x * 2, dim=-1).sum(dim=0)

    if device != "cpu":
        need_gpu("torch sees no GPU")
    with trial(device) as t:
        given = torch.arange(64.0 * 300, device=device).reshape(64, 300).sin()
        answer = t.compile(probed, backend="inductor")(given)
        expect(t.watcher.regions == 1, f"{t.watcher.regions} compiled regions executed, not 1")
        error = float((answer - probed(given)).abs().max())
        expect(error < 1e-4, f"differs from eager by {error:.3g}")
    return "compiled, ran, and agreed with eager"


def compile_caches() -> str:
    """A graph that is compiled counts as a miss, and one taken from a cache as a hit.

    The caches have to be empty: ``launch`` gives the process a folder of its own.
    """
    import torch

    if torch.compiler.config.force_disable_caches:
        raise NotHere("the caches are switched off (TORCHINDUCTOR_FORCE_DISABLE_CACHES)")

    def probed(x: Any) -> Any:
        return x * 2 + 1

    found = []
    for _ in range(2):
        with trial() as t:
            t.compile(probed, backend="inductor")(ones(8))
            found.append((len(t.events("cache-hit")), len(t.events("cache-miss"))))
    (hits, misses), (hits_then, misses_then) = found
    expect(misses > 0 and not hits, f"compiled afresh, and {hits} hits, {misses} misses recorded")
    expect(
        hits_then > 0 and not misses_then,
        f"taken from the cache, and {hits_then} hits, {misses_then} misses recorded",
    )
    return (
        "what Inductor compiles is recorded as a miss of its caches, what it finds there as a hit"
    )


def lazy_compilations() -> str:
    """A backward pass that is compiled at its first use is recorded, and not its second use."""

    def probed(x: Any) -> Any:
        return x.sin()

    with trial() as t:
        compiled = t.compile(probed, backend="aot_eager")
        given = ones(2).requires_grad_()
        for _ in range(2):
            answer = compiled(given).sum()
            before = given.grad is None
            seen = len(t.events("lazy-compile"))
            expect(not (before and seen), "recorded one before there was one")
            answer.backward()
            seen = len(t.events("lazy-compile"))
            expect(seen == 1, f"one backward pass was compiled, and {seen} were recorded")
    return "a part that is compiled at its first use, such as a backward pass, is recorded"
