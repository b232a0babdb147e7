"""Decorated forwards of all models share one code object, and so one recompile limit."""
# ruff: noqa: T201

import sys


def main() -> int:
    import torch
    from transformers import AutoConfig, AutoModel

    # Two graphs are allowed for each function; each function here needs one. At the default
    # limit of 8 the same happens to the ninth model.
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 2
    executed = {}

    def served(name: str) -> None:
        config = AutoConfig.for_model(
            name, vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
        )  # fmt: skip
        model = AutoModel.from_config(config).eval()
        executed[name] = 0

        def backend(graph, _):
            def run(*args):
                executed[name] += 1
                return graph(*args)

            return run

        model.compile(backend=backend, dynamic=True)
        with torch.inference_mode():
            model(input_ids=torch.arange(3, 8)[None], use_cache=False)

    for name in ("llama", "mistral", "qwen2"):
        served(name)
    print(f"compiled regions executed, recompile_limit 2: {executed}")
    if executed["llama"] != 1:
        return 2
    return int(executed["qwen2"] == 0)


if __name__ == "__main__":
    try:
        code = main()
    except Exception as error:  # another version's API or config: that is no answer
        print(f"cannot tell: {type(error).__name__}:", str(error).partition("\n")[0])
        code = 2
    sys.exit(code)
