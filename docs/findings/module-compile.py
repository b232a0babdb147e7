"""torch.nn.Sequential(…).compile() compiles nothing, and says nothing. A fault of torch."""
# ruff: noqa: T201

import sys


def main() -> int:
    import torch

    def graphs(module: "torch.nn.Module", *, in_place: bool) -> int:
        seen = []

        def backend(graph, _):
            seen.append(graph)
            return graph

        torch._dynamo.reset()
        if in_place:
            module.compile(backend=backend)
        else:
            module = torch.compile(module, backend=backend)
        with torch.inference_mode():
            module(torch.randn(1, 3, 8))
        return len(seen)

    modules = [
        torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU()),
        torch.nn.Linear(8, 8),
        torch.nn.LayerNorm(8),
        torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).eval(),
    ]
    names = [type(module).__name__ for module in modules]
    by_function = [graphs(module, in_place=False) for module in modules]
    in_place = [graphs(module, in_place=True) for module in modules]
    print(f"graphs of {names}: {by_function} by torch.compile, {in_place} by .compile()")
    if not all(by_function):
        return 2
    return int(not all(in_place))


if __name__ == "__main__":
    try:
        code = main()
    except Exception as error:  # another version's API or config: that is no answer
        print(f"cannot tell: {type(error).__name__}:", str(error).partition("\n")[0])
        code = 2
    sys.exit(code)
