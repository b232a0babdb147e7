"""What the Qwen-VL families share: patches and grids of any size, delimiters, named parts.

No family by itself; loads torch only inside the function that makes tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vlm_ci.families.base import IMAGE, VIDEO, Config, Encoded, Parts
from vlm_ci.traffic.envelope import Envelope, Geometry
from vlm_ci.traffic.spec import Batch, Text, Video

if TYPE_CHECKING:
    import torch

    from vlm_ci.families.encoding import Row

LayOut = Callable[["Row", int, int], None]
"""Appends one video to a row: the row, its groups of frames, the visual tokens of each group."""


def geometry(config: Config, *, frame_overhead: int = 0, video_overhead: int = 0) -> Geometry:
    """A merged token covers ``patch_size * spatial_merge_size`` pixels along each side."""
    vision = config["vision_config"]
    return Geometry(
        token_side=vision["patch_size"] * vision["spatial_merge_size"],
        frames_per_group=vision["temporal_patch_size"],
        image_overhead=2,
        frame_overhead=frame_overhead,
        video_overhead=video_overhead,
    )


def envelope(geometry: Geometry) -> Envelope:
    """Images up to 6 × 6 merged tokens and videos up to 3 × 3 of them, 6 frames long."""
    side = geometry.token_side or 1
    return Envelope(
        image_side=(side, 6 * side),
        video_side=(side, 3 * side),
        side_multiple=side,
        frames=(1, 6),
        geometry=geometry,
    )


def ordinary(config: Config) -> int:
    """Return the smallest special token id; ordinary text stays below it."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    smallest: int = min(config[name] for name in names)
    return smallest


def delimited(row: Row, config: Config, tokens: int, kind: int) -> None:
    """Append ``tokens`` placeholders of a kind, IMAGE or VIDEO, between their delimiters."""
    row.special(config["vision_start_token_id"])
    row.placeholders(config["image_token_id" if kind == IMAGE else "video_token_id"], tokens, kind)
    row.special(config["vision_end_token_id"])


def encode(
    config: Config,
    batch: Batch,
    geometry: Geometry,
    lay_out_video: LayOut,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Encoded:
    """Build ids, mask, token types, patches and grids.

    Patches are [patches, C·T·P·P], those of all images one after another, as the processor
    flattens them; a grid is [items, 3]: groups of frames, rows and columns, in patches.
    """
    import torch

    from vlm_ci.families import encoding

    vision = config["vision_config"]
    merge = vision["spatial_merge_size"]
    width = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    patches: dict[int, list[torch.Tensor]] = {IMAGE: [], VIDEO: []}
    grids: dict[int, list[list[int]]] = {IMAGE: [], VIDEO: []}
    rows = encoding.start_rows(batch)
    for row in rows:
        for item in row.items():
            if isinstance(item, Text):
                row.text(item.tokens, ordinary(config))
                continue
            high, wide = geometry.grid(item)
            kind, groups = IMAGE, 1
            if isinstance(item, Video):
                kind, groups = VIDEO, geometry.frame_groups(item)
                lay_out_video(row, groups, high * wide)
            else:
                delimited(row, config, high * wide, IMAGE)
            grids[kind].append([groups, high * merge, wide * merge])
            patches[kind].append(row.pixels(groups * high * wide * merge**2, width))

    packed = encoding.pack(rows, batch, pad_id=0)
    inputs = {
        "input_ids": packed.input_ids,
        "attention_mask": packed.attention_mask,
        "mm_token_type_ids": packed.token_kinds.clamp(min=0).long(),
    }
    pixel_inputs = {}
    for kind, name, pixels, grid in (
        (IMAGE, "image", "pixel_values", "image_grid_thw"),
        (VIDEO, "video", "pixel_values_videos", "video_grid_thw"),
    ):
        if patches[kind]:
            inputs[pixels] = torch.cat(patches[kind]).to(dtype)
            inputs[grid] = torch.tensor(grids[kind])
            pixel_inputs[name] = pixels
    return Encoded(
        inputs={name: value.to(device) for name, value in inputs.items()},
        token_kinds=packed.token_kinds,
        pixel_inputs=pixel_inputs,
    )


def parts(model: Any) -> Parts:
    """Name the language model, its decoder layers and the blocks of the vision tower."""
    inner = model.model
    return Parts(
        whole=model,
        language_model=inner.language_model,
        decoder_layers=tuple(inner.language_model.layers),
        vision_blocks=tuple(inner.visual.blocks),
    )
