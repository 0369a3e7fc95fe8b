"""The target `html`: one file that predicts in a browser, without a network and without an installation."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from vitreous.bundle import Bundle
from vitreous.errors import VitreousError

LARGEST_HALF = 60000.0  # weights beyond this do not fit half precision


def weights_of(bundle: Bundle) -> tuple[list[dict[str, Any]], bytes]:
    """The network's weights as the page reads them.

    Returns:
        For each tensor its name, shape, whether it is in half precision, and where it begins; and the bytes of all.
        Vectors are small and stay in single precision.
    """
    tensors, content = [], bytearray()
    for name, tensor in bundle.model.state_dict().items():
        values = tensor.detach().cpu().numpy()
        if not np.isfinite(values).all():
            raise VitreousError(
                f"The network's {name} holds values that are not numbers, as after a diverged training; train again."
            )
        half = values.squeeze().ndim > 1 and float(np.abs(values).max()) < LARGEST_HALF
        tensors.append({"name": name, "shape": list(values.shape), "half": half, "at": len(content)})
        content += values.astype("<f2" if half else "<f4").tobytes()
        content += bytes(-len(content) % 4)
    return tensors, bytes(content)


def model_of(bundle: Bundle, tensors: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page's network needs to know beside its weights."""
    return {
        "architecture": dataclasses.asdict(bundle.model.architecture),
        "imageSize": bundle.model.image_size,
        "classes": list(bundle.classes),
        "mean": bundle.mean,
        "std": bundle.std,
        "temperature": bundle.temperature,
        "tensors": tensors,
    }
