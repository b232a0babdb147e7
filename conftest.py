"""For the suites of this repository: the plugin, GPU tests, Hypothesis."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Load the plugin where autoload is off, or where the project is not installed."""
    manager = config.pluginmanager
    if not manager.has_plugin("vlm_ci") and not manager.has_plugin("vlm_ci.plugin"):
        raise pytest.UsageError(
            "the vlm_ci plugin is not loaded: install the project (make install), or pass -p "
            "vlm_ci.plugin"
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU where there is none, and say so."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        reason = f"needs an NVIDIA GPU; torch {torch.__version__} sees none on this machine"
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason=reason))
