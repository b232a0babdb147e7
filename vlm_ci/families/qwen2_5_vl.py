"""Qwen2.5-VL: windowed attention in the vision tower, mrope in seconds, videos in one run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlm_ci.families import qwen_vl
from vlm_ci.families.base import VIDEO, Config, Encoded, Parts

if TYPE_CHECKING:
    import torch

    from vlm_ci.families.encoding import Row
    from vlm_ci.traffic.envelope import Envelope, Geometry
    from vlm_ci.traffic.spec import Batch


class Qwen25VL:
    """The family of ``Qwen2_5_VLForConditionalGeneration``."""

    name = "qwen2.5-vl"
    model_type = "qwen2_5_vl"

    def geometry(self, config: Config) -> Geometry:
        """See ``qwen_vl.geometry``; a video has delimiters once."""
        return qwen_vl.geometry(config, video_overhead=2)

    def envelope(self, config: Config) -> Envelope:
        """See ``qwen_vl.envelope``."""
        return qwen_vl.envelope(self.geometry(config))

    def encode(
        self, config: Config, batch: Batch, *, device: torch.device, dtype: torch.dtype
    ) -> Encoded:
        """Build what ``qwen_vl.encode`` builds, and ``second_per_grid_ts`` [videos], in seconds.

        That is the time which one group of frames covers; the processor computes it as
        ``temporal_patch_size`` / frames per second. Here it is 1 or 2: transformers 5.17 rounds
        it down to a whole number before it computes positions, later versions do not.
        """
        import torch

        seconds: list[float] = []

        def lay_out(row: Row, groups: int, tokens: int) -> None:
            qwen_vl.delimited(row, config, groups * tokens, VIDEO)
            seconds.append(float(torch.randint(1, 3, (), generator=row.generator)))

        encoded = qwen_vl.encode(
            config, batch, self.geometry(config), lay_out, device=device, dtype=dtype
        )
        if not seconds:
            return encoded
        spacing = torch.tensor(seconds).to(device)
        return replace(encoded, inputs={**encoded.inputs, "second_per_grid_ts": spacing})

    def parts(self, model: Any) -> Parts:
        """See ``qwen_vl.parts``."""
        return qwen_vl.parts(model)


FAMILY = Qwen25VL()
