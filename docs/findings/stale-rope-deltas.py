"""Qwen3-VL decodes a text at wrong positions when an image was served before it."""
# ruff: noqa: C408, T201

import sys


def main() -> int:
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    text = dict(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, head_dim=8, rope_parameters=rope,
                pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3)  # fmt: skip
    vision = dict(depth=1, hidden_size=32, intermediate_size=32, num_heads=2, patch_size=4,
                  spatial_merge_size=2, temporal_patch_size=2, out_hidden_size=32,
                  num_position_embeddings=16, deepstack_visual_indexes=[0])  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=60, video_token_id=61,
        vision_start_token_id=62, vision_end_token_id=63,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config).eval()
    ids = torch.arange(3, 12)[None]

    def difference() -> float:
        """The last token's logits by a decode step, against those of one whole prefill."""
        whole = model(input_ids=ids, use_cache=False).logits[:, -1]
        cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        step = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1]
        return ((step - whole).abs().max() / whole.abs().max()).item()

    def serve_image() -> None:
        image = torch.tensor([[3] + [60] * 24 + [4]])
        grid = torch.tensor([[1, 8, 12]])
        model(input_ids=image, mm_token_type_ids=(image == 60).long(), use_cache=False,
              pixel_values=torch.randn(96, 96), image_grid_thw=grid)  # fmt: skip

    with torch.inference_mode():
        before = difference()
        serve_image()
        after = difference()
    print(f"decode against prefill: {before:.1e} before an image, {after:.1e} after")
    return 2 if before > 1e-4 else int(after > 1e-3)


if __name__ == "__main__":
    try:
        code = main()
    except Exception as error:  # another version's API or config: that is no answer
        print(f"cannot tell: {type(error).__name__}:", str(error).partition("\n")[0])
        code = 2
    sys.exit(code)
