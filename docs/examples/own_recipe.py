"""Way 1: what is compiled, in a function of your own.

    vlm-ci run --target llava-tiny --recipe own_recipe:mlps

A recipe gets the named parts of the model (vlm_ci.Parts: whole, language_model, decoder_layers,
vision_blocks) and compile_module, which compiles one module in place under the options of the run
(--backend, --dynamic, --mode, --fullgraph) and has its calls watched. Compile any submodule that
your deployment compiles; a recipe does not call torch.compile itself, or nothing is watched.
"""

import vlm_ci


def mlps(parts: vlm_ci.Parts, compile_module) -> None:
    """Compile the MLP of each decoder layer; attention stays eager, as with a kernel of its own."""
    for layer in parts.decoder_layers:
        compile_module(layer.mlp)
