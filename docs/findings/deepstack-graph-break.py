"""One image cuts Qwen3-VL's compiled language model into pieces, for text too from then on."""
# ruff: noqa: T201

import sys


def main() -> int:
    import torch
    from transformers.models.qwen3_vl import Qwen3VLTextConfig, modeling_qwen3_vl

    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    config = Qwen3VLTextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, rope_parameters=rope,
    )  # fmt: skip
    model = modeling_qwen3_vl.Qwen3VLTextModel(config).eval()
    executed = []

    def backend(graph, _):
        def run(*args):
            executed.append(graph)
            return graph(*args)

        return run

    def regions(tokens: int, visual: int) -> int:
        """Serve one row of which `visual` tokens are an image's; return the regions executed."""
        inputs = {
            "inputs_embeds": torch.randn(1, tokens, 32),
            "position_ids": torch.arange(tokens).expand(3, 1, -1).contiguous(),
        }
        if visual:
            mask = torch.arange(tokens)[None] < visual
            inputs |= {
                "visual_pos_masks": mask,
                "deepstack_visual_embeds": [torch.randn(visual, 32)],
            }
        executed.clear()
        with torch.inference_mode():
            model(**inputs, use_cache=False)
        return len(executed)

    torch._dynamo.reset()
    model.compile(backend=backend, dynamic=True)
    image, text = regions(9, 4), regions(11, 0)
    print(f"regions executed: {image} with an image, {text} for the text after it")
    return int(image != 1 or text != 1)


if __name__ == "__main__":
    try:
        code = main()
    except Exception as error:  # another version's API or config: that is no answer
        print(f"cannot tell: {type(error).__name__}:", str(error).partition("\n")[0])
        code = 2
    sys.exit(code)
