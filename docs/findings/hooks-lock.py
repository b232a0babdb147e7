"""LLaVA under fullgraph dies at its first image: hooks are installed under a lock."""
# ruff: noqa: C408, T201

import sys


def main() -> int:
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    small = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4)
    config = LlavaConfig(
        text_config=dict(small, model_type="llama", vocab_size=64, pad_token_id=0),
        vision_config=dict(small, model_type="clip_vision_model", image_size=16, patch_size=4),
        image_token_id=60, image_seq_length=16, vision_feature_layer=-1,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[60] * 16 + [3]])
    pixels = torch.randn(1, 3, 16, 16)

    def serve() -> str:
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", dynamic=True, fullgraph=True)
        try:
            with torch.inference_mode():
                compiled(input_ids=ids, pixel_values=pixels, use_cache=False)
        except torch._dynamo.exc.Unsupported as error:
            if "lock" not in str(error):
                raise
            return "Unsupported, context manager of a lock"
        return "works"

    cold = serve()
    with torch.inference_mode():
        model(input_ids=ids, pixel_values=pixels, use_cache=False)
    print(f"fullgraph, cold: {cold}; after an eager call: {serve()}")
    return int(cold != "works")


if __name__ == "__main__":
    try:
        code = main()
    except Exception as error:  # another version's API or config: that is no answer
        print(f"cannot tell: {type(error).__name__}:", str(error).partition("\n")[0])
        code = 2
    sys.exit(code)
