"""Qwen3-VL's vision block compiles another graph for each number of images."""
# ruff: noqa: T201

import sys


def main() -> int:
    import torch
    from transformers.models.qwen3_vl import Qwen3VLVisionConfig, modeling_qwen3_vl

    config = Qwen3VLVisionConfig(
        depth=1, hidden_size=32, intermediate_size=32, num_heads=2, patch_size=4,
        spatial_merge_size=2, temporal_patch_size=2, out_hidden_size=32,
        num_position_embeddings=16, deepstack_visual_indexes=[],
    )  # fmt: skip
    model = modeling_qwen3_vl.Qwen3VLVisionModel(config).eval()
    if config._attn_implementation != "sdpa":
        raise RuntimeError(f"attention is {config._attn_implementation}, not sdpa")

    def serve(images: int) -> None:
        pixels = torch.randn(24 * images, 3 * 2 * 4 * 4)
        with torch.inference_mode():
            model(pixels, grid_thw=torch.tensor([[1, 4, 6]] * images))

    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    model.blocks[0].compile(backend=backend, dynamic=True)
    added = []
    for images in range(1, 7):
        before = len(graphs)
        serve(images)
        added.append(len(graphs) - before)
    torch._dynamo.reset()
    model.blocks[0].compile(backend="eager", dynamic=True, fullgraph=True)
    try:
        serve(2)
        full = "works"
    except Exception as error:
        full = f"{type(error).__name__}, {'data-dependent' in str(error) and 'data-dependent size'}"
    print(f"graphs added by 1, 2, … 6 images: {added}; fullgraph with 2: {full}")
    return int(all(added[3:]) or full != "works")


if __name__ == "__main__":
    try:
        code = main()
    except Exception as error:  # another version's API or config: that is no answer
        print(f"cannot tell: {type(error).__name__}:", str(error).partition("\n")[0])
        code = 2
    sys.exit(code)
