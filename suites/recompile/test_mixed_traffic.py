"""Mixed text, image and video traffic through a compiled model: the main job."""


def test_mixed_traffic(vlm_check):
    """After warm-up nothing compiles, compiled code runs, and logits match eager's."""
    result = vlm_check()
    assert result.strict.batches
    assert result.strict.compiles == 0
    assert result.parity.tokens_compared
