"""For the suites of this repository: the plugin, GPU tests, Hypothesis."""

import pytest


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Load the plugin where autoload is off or the project is not installed, unless -p no: is."""
    names = ("vlm_ci", "vlm_ci.plugin")
    if not any(pluginmanager.has_plugin(name) or pluginmanager.is_blocked(name) for name in names):
        pluginmanager.import_plugin("vlm_ci.plugin")


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
