"""Shared by the tests of vlm_ci itself. Each file loads its targets and closes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the tests use no hub
if os.environ.get("PYTEST_XDIST_WORKER"):
    # One worker for each core: threads of its own would only get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("vlm_ci_selftest", deadline=None, derandomize=True, database=None)
settings.load_profile("vlm_ci_selftest")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def repository() -> Path:
    """The root of the checkout."""
    return ROOT
