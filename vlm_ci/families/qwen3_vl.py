"""Qwen3-VL: deepstack features, interleaved mrope, images and videos of any grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm_ci.families import qwen_vl
from vlm_ci.families.base import VIDEO, Config, Encoded, Parts

if TYPE_CHECKING:
    import torch

    from vlm_ci.families.encoding import Row
    from vlm_ci.traffic.envelope import Envelope, Geometry
    from vlm_ci.traffic.spec import Batch

# Each group of frames is preceded by its timestamp, which the processor writes as text.
TIMESTAMP_TOKENS = 2


class Qwen3VL:
    """The family of ``Qwen3VLForConditionalGeneration``."""

    name = "qwen3-vl"
    model_type = "qwen3_vl"

    def geometry(self, config: Config) -> Geometry:
        """See ``qwen_vl.geometry``; each group of frames has delimiters and a timestamp."""
        return qwen_vl.geometry(config, frame_overhead=2 + TIMESTAMP_TOKENS)

    def envelope(self, config: Config) -> Envelope:
        """See ``qwen_vl.envelope``."""
        return qwen_vl.envelope(self.geometry(config))

    def encode(
        self, config: Config, batch: Batch, *, device: torch.device, dtype: torch.dtype
    ) -> Encoded:
        """Build ids, mask, token types, patches and grids (``qwen_vl.encode``)."""

        def lay_out(row: Row, groups: int, tokens: int) -> None:
            for _ in range(groups):
                row.text(TIMESTAMP_TOKENS, qwen_vl.ordinary(config))
                qwen_vl.delimited(row, config, tokens, VIDEO)

        return qwen_vl.encode(
            config, batch, self.geometry(config), lay_out, device=device, dtype=dtype
        )

    def parts(self, model: Any) -> Parts:
        """See ``qwen_vl.parts``."""
        return qwen_vl.parts(model)


FAMILY = Qwen3VL()
