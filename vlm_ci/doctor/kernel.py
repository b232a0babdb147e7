"""A kernel for Triton, which reads its source from a file. Imports triton: only a probe that needs
it may import this."""

from __future__ import annotations

import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]


def double(source, result, count, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write twice the first ``count`` values of ``source`` to ``result``, ``block`` at a time."""
    places = tl.program_id(0) * block + tl.arange(0, block)
    inside = places < count
    tl.store(result + places, 2 * tl.load(source + places, mask=inside), mask=inside)
