"""Video-LLaVA and LLaVA-NeXT cannot be compiled with fullgraph: a decorator binds a signature."""
# ruff: noqa: C408, T201

import sys


def main() -> int:
    import torch
    from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration

    small = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4)
    config = VideoLlavaConfig(
        text_config=dict(small, model_type="llama", vocab_size=64, pad_token_id=0),
        vision_config=dict(small, model_type="clip_vision_model", image_size=16, patch_size=4),
        image_token_id=60, video_token_id=61, image_token_index=60, video_token_index=61,
        image_seq_length=16, vision_feature_layer=-1,
    )  # fmt: skip
    model = VideoLlavaForConditionalGeneration(config).eval()
    inputs = {
        "input_ids": torch.tensor([[60] * 16 + [3]]),
        "pixel_values_images": torch.randn(1, 3, 16, 16),
        "use_cache": False,
    }
    torch._dynamo.reset()
    with torch.inference_mode():
        eager = model(**inputs).logits  # also installs the hooks: see hooks-lock.md
        compiled = torch.compile(model, backend="eager", dynamic=True, fullgraph=True)
        try:
            difference = (compiled(**inputs).logits - eager).abs().max()
        except torch._dynamo.exc.Unsupported as error:
            if "mapping proxy" not in str(error) or "signature.bind" not in str(error):
                raise
            print("fullgraph: Unsupported, mapping proxy, at signature.bind")
            return 1
    print(f"fullgraph: works, {difference:.1g} from eager")
    return 0


if __name__ == "__main__":
    try:
        code = main()
    except Exception as error:  # another version's API or config: that is no answer
        print(f"cannot tell: {type(error).__name__}:", str(error).partition("\n")[0])
        code = 2
    sys.exit(code)
