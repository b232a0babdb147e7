"""transformers' check for the compiler breaks LLaVA's graph at each image."""
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
    executed = []

    def backend(graph, _):
        def run(*args):
            executed.append(graph)
            return graph(*args)

        return run

    def regions(ids: list[int], pixels: "torch.Tensor | None") -> int:
        executed.clear()
        with torch.inference_mode():
            model(input_ids=torch.tensor([ids]), pixel_values=pixels, use_cache=False)
        return len(executed)

    image = [60] * 16 + [3, 4], torch.randn(1, 3, 16, 16)
    regions(*image)  # eagerly: installs the hooks, see hooks-lock.md
    torch._dynamo.reset()
    model.compile(backend=backend, dynamic=True)
    text, with_image = regions([3, 4, 5], None), regions(*image)
    print(f"regions executed: {text} for text, {with_image} with an image")
    return 2 if text != 1 else int(with_image != 1)


if __name__ == "__main__":
    try:
        code = main()
    except Exception as error:  # another version's API or config: that is no answer
        print(f"cannot tell: {type(error).__name__}:", str(error).partition("\n")[0])
        code = 2
    sys.exit(code)
