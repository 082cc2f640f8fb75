"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and weights: ``PSI_ENGINE_ASSETS``, or ``../shared`` beside the project."""
    folder = Path(os.environ.get("PSI_ENGINE_ASSETS", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real images and weights not found at {folder}; set PSI_ENGINE_ASSETS")
    return folder
