"""Where Inductor keeps what it compiled, and whether it does: private switches of torch."""

from __future__ import annotations

from pathlib import Path

import torch


def caches_off() -> str:
    """Name the switch by which Inductor's caches are off, "" where they are on."""
    from torch._inductor import config

    if torch.compiler.config.force_disable_caches:
        return "force_disable_caches (TORCHINDUCTOR_FORCE_DISABLE_CACHES)"
    if not getattr(config, "fx_graph_cache", True):
        return "fx_graph_cache (TORCHINDUCTOR_FX_GRAPH_CACHE)"
    return ""


def default_cache_folder() -> str:
    """Return where Inductor keeps what it compiles where nobody says otherwise; "" if unknown.

    Inductor writes it into TORCHINDUCTOR_CACHE_DIR at its first use, as if somebody had said it.
    """
    try:
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir
    except ImportError:
        return ""
    return str(Path(default_cache_dir()).absolute())
