"""From green to trust: plant a bug of your own, and ask for red.

`mutate` changes the compiled twin before it is compiled; the eager twin, which shares its weights,
stays as it is. Keep such a test beside the green one: it fails on the day on which the check no
longer looks.
"""

import vlm_ci


def forget_the_mask(model):
    """One layer attends to padding too."""
    layer = model.model.language_model.layers[0]
    serve = layer.forward

    def forward(hidden_states, **inputs):
        return serve(hidden_states, **{**inputs, "attention_mask": None})

    layer.forward = forward


def test_a_forgotten_mask_is_found():
    target = vlm_ci.load_target("llava-tiny", recipe="own_recipe:mlps", mutate=forget_the_mask)
    try:
        result = vlm_ci.check(target, examples=20)
    finally:
        target.close()
    assert [failure.kind for failure in result.failures] == ["mismatch"]
    batch = result.failures[0].traffic.batches[-1]
    assert len(batch.requests) == 2  # the smallest batch with padding
