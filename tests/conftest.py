"""Small data that every test can train on."""

from __future__ import annotations

import os
from typing import Any

# Set before torch is imported: tests run side by side, and their threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

TINY = {"embed_dim": 32, "num_heads": 2, "mlp_dim": 32, "depth": 1, "stem_dims": [16, 16], "batch_size": 16}


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """300 images of 3 classes that differ in brightness: images uint8 [300, 16, 16, 3], labels [300]."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 100)
    images = generator.integers(0, 100, (300, 16, 16, 3)) + 70 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Arguments of `vitreous.train` for a run of a second or two."""
    return {"device": "cpu", "precision": "32", "overrides": dict(TINY)}
