"""The same check as a test of your own suite: pytest --vlm-target=engine_in_process:factory."""


def test_engine(vlm_check):
    vlm_check()
