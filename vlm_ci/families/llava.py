"""LLaVA: images of one fixed size, each a fixed number of tokens; no video."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm_ci.families.base import IMAGE, Config, Encoded, Parts
from vlm_ci.traffic.envelope import Envelope, Geometry
from vlm_ci.traffic.spec import Batch, Text

if TYPE_CHECKING:
    import torch


class Llava:
    """The family of ``LlavaForConditionalGeneration`` with a CLIP or SigLIP tower."""

    name = "llava"
    model_type = "llava"

    def geometry(self, config: Config) -> Geometry:
        """Each image costs (image_size / patch_size)² tokens, one more where CLS is kept."""
        vision = config["vision_config"]
        tokens = (vision["image_size"] // vision["patch_size"]) ** 2
        keeps_cls = config.get("vision_feature_select_strategy", "default") == "full"
        has_cls = vision.get("model_type", "clip_vision_model") == "clip_vision_model"
        return Geometry(token_side=None, tokens_per_image=tokens + (keeps_cls and has_cls))

    def envelope(self, config: Config) -> Envelope:
        """Text and images of the one size that the vision tower takes."""
        side = config["vision_config"]["image_size"]
        return Envelope(
            modalities=("text", "image"),
            image_side=(side, side),
            video_side=(side, side),
            side_multiple=side,
            geometry=self.geometry(config),
        )

    def encode(
        self, config: Config, batch: Batch, *, device: torch.device, dtype: torch.dtype
    ) -> Encoded:
        """Build ids, mask and pixels [images, channels, image_size, image_size]."""
        import torch

        from vlm_ci.families import encoding

        vision = config["vision_config"]
        token_id = config["image_token_id"]
        tokens = self.geometry(config).tokens_per_image
        images = []
        rows = encoding.start_rows(batch)
        for row in rows:
            for item in row.items():
                if isinstance(item, Text):
                    row.text(item.tokens, token_id)
                    continue
                row.placeholders(token_id, tokens, IMAGE)
                side = vision["image_size"]
                images.append(row.pixels(vision.get("num_channels", 3), side, side))
        packed = encoding.pack(rows, batch, pad_id=0)
        inputs = {"input_ids": packed.input_ids, "attention_mask": packed.attention_mask}
        if images:
            inputs["pixel_values"] = torch.stack(images).to(dtype)
        return Encoded(
            inputs={name: value.to(device) for name, value in inputs.items()},
            token_kinds=packed.token_kinds,
            pixel_inputs={"image": "pixel_values"} if images else {},
        )

    def parts(self, model: Any) -> Parts:
        """Name the language model, its decoder layers and the blocks of the vision tower."""
        inner = model.model
        return Parts(
            whole=model,
            language_model=inner.language_model,
            decoder_layers=tuple(inner.language_model.layers),
            vision_blocks=tuple(_tower_layers(inner.vision_tower)),
        )


def _tower_layers(tower: Any) -> Any:
    # transformers 5 dropped the inner ``vision_model`` of CLIP towers in some releases.
    return getattr(tower, "vision_model", tower).encoder.layers


FAMILY = Llava()
