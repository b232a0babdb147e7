"""Qwen3-VL: deepstack features, interleaved mrope, images and videos of any grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm_ci.families.base import IMAGE, VIDEO, Config, Encoded, Parts
from vlm_ci.traffic.envelope import Envelope, Geometry
from vlm_ci.traffic.spec import Batch, Image, Text, Video

if TYPE_CHECKING:
    import torch

    from vlm_ci.families.encoding import Row

# Each group of frames is preceded by its timestamp, which the processor writes as text.
TIMESTAMP_TOKENS = 2


class Qwen3VL:
    """The family of ``Qwen3VLForConditionalGeneration``."""

    name = "qwen3-vl"
    model_type = "qwen3_vl"

    def geometry(self, config: Config) -> Geometry:
        """A merged token covers ``patch_size * spatial_merge_size`` pixels along each side."""
        vision = config["vision_config"]
        return Geometry(
            token_side=vision["patch_size"] * vision["spatial_merge_size"],
            frames_per_group=vision["temporal_patch_size"],
            image_overhead=2,
            frame_overhead=2 + TIMESTAMP_TOKENS,
        )

    def envelope(self, config: Config) -> Envelope:
        """Images up to 6 × 6 merged tokens and videos up to 3 × 3 of them, 6 frames long."""
        geometry = self.geometry(config)
        side = geometry.token_side or 1
        return Envelope(
            image_side=(side, 6 * side),
            video_side=(side, 3 * side),
            side_multiple=side,
            frames=(1, 6),
            geometry=geometry,
        )

    def encode(
        self, config: Config, batch: Batch, *, device: torch.device, dtype: torch.dtype
    ) -> Encoded:
        """Build ids, mask, token types, patches and grids; patches are [patches, C·T·P·P]."""
        import torch

        from vlm_ci.families import encoding

        vision = config["vision_config"]
        merge = vision["spatial_merge_size"]
        patch = vision["patch_size"]
        width = vision["in_channels"] * vision["temporal_patch_size"] * patch**2
        ordinary = min(
            config[name]
            for name in (
                "image_token_id",
                "video_token_id",
                "vision_start_token_id",
                "vision_end_token_id",
            )
        )
        geometry = self.geometry(config)
        patches: dict[str, list[torch.Tensor]] = {"image": [], "video": []}
        grids: dict[str, list[list[int]]] = {"image": [], "video": []}

        def frame(row: Row, token_id: int, count: int, kind: int) -> None:
            row.special(config["vision_start_token_id"])
            row.placeholders(token_id, count, kind)
            row.special(config["vision_end_token_id"])

        rows = encoding.start_rows(batch)
        for row, request in zip(rows, batch.requests, strict=True):
            for item in request.items:
                if isinstance(item, Text):
                    row.text(item.tokens, ordinary)
                    continue
                high, wide = geometry.grid(item)
                groups = geometry.frame_groups(item) if isinstance(item, Video) else 1
                if isinstance(item, Image):
                    frame(row, config["image_token_id"], high * wide, IMAGE)
                else:
                    for _ in range(groups):
                        row.text(TIMESTAMP_TOKENS, ordinary)
                        frame(row, config["video_token_id"], high * wide, VIDEO)
                kind = "image" if isinstance(item, Image) else "video"
                grids[kind].append([groups, high * merge, wide * merge])
                patches[kind].append(row.pixels(groups * high * wide * merge**2, width))

        packed = encoding.pack(rows, batch, pad_id=0)
        inputs = {
            "input_ids": packed.input_ids,
            "attention_mask": packed.attention_mask,
            "mm_token_type_ids": packed.token_kinds.clamp(min=0).long(),
        }
        pixel_inputs = {}
        for kind, pixels, grid in (
            ("image", "pixel_values", "image_grid_thw"),
            ("video", "pixel_values_videos", "video_grid_thw"),
        ):
            if patches[kind]:
                inputs[pixels] = torch.cat(patches[kind]).to(dtype)
                inputs[grid] = torch.tensor(grids[kind])
                pixel_inputs[kind] = pixels
        return Encoded(
            inputs={name: value.to(device) for name, value in inputs.items()},
            token_kinds=packed.token_kinds,
            pixel_inputs=pixel_inputs,
        )

    def parts(self, model: Any) -> Parts:
        """Name the language model, its decoder layers and the blocks of the vision tower."""
        inner = model.model
        return Parts(
            whole=model,
            language_model=inner.language_model,
            decoder_layers=tuple(inner.language_model.layers),
            vision_blocks=tuple(inner.visual.blocks),
        )


FAMILY = Qwen3VL()
