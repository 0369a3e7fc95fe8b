"""What exports to timm and to transformers share: which networks those libraries have, and how they read files."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vitreous.bundle import Bundle
from vitreous.errors import VitreousError
from vitreous.export import Picture
from vitreous.export.awkward import NOT_SQUARE, PLAIN
from vitreous.model.variants import VARIANTS, Architecture
from vitreous.wording import series

# What neither library has: values of fields of `Architecture`, each with its name for a sentence.
INEXPRESSIBLE: dict[str, Mapping[Any, str]] = {
    "stem": {"conv": "a convolutional stem"},
    "pool": {"attention": "attention pooling"},
    "embed_activation": {"relu": "an activation between patches and positions"},
}


def check(bundle: Bundle, library: str, inexpressible: Callable[[Architecture], Sequence[str]]) -> None:
    """Raises `VitreousError` if `library` cannot hold the network or its way of reading images.

    Args:
        inexpressible: the parts of an architecture that this library does not have, beyond those that neither has.
    """

    def reasons(a: Architecture, size: int) -> list[str]:
        found = [
            names[getattr(a, field)] for field, names in INEXPRESSIBLE.items() if getattr(a, field) in names
        ]
        if a.head_hidden:
            found.append("a hidden layer in the head")
        if size % a.patch_size:
            found.append(f"patches of {a.patch_size} pixels that do not divide {size}")
        return [*found, *inexpressible(a)]

    size = bundle.preprocess.size
    if found := reasons(bundle.model.architecture, size):
        can = [name for name, known in VARIANTS.items() if not reasons(known.architecture, known.image_size)]
        raise VitreousError(
            f"{library} has no network with {series(found)}; export to onnx or html, or train one of the variants "
            f"{series(can, 'or')}, as in: vitreous train DATA variant={can[0]}"
        )
    if bundle.preprocess.fit == "pad":
        raise VitreousError(
            f"The model's images get bars beside them (fit pad), which {library} does not add; export to onnx or html, "
            "or train with --fit stretch."
        )


def folded(bundle: Bundle) -> dict[str, Tensor]:
    """The weights, with the temperature in the head's, so that a plain softmax is calibrated."""
    state = {name: tensor.detach().clone() for name, tensor in bundle.model.state_dict().items()}
    for name in ("head.weight", "head.bias"):
        state[name] = state[name] / bundle.temperature
    return {name: tensor.contiguous() for name, tensor in state.items()}


def reading_bound(bundle: Bundle, kind: str) -> float:
    """Plain files must be read equally. Other kinds are only reported, since these libraries read them differently.

    For `fit` crop, they crop after resizing, so only square images are equal.
    """
    split, _, nature = kind.partition(" split")
    own = split in ("test", "validation") and split != kind
    plain = nature in ("", ", not square") if own else kind in PLAIN
    square = nature == "" if own else kind not in NOT_SQUARE
    return 0.0 if plain and (square or bundle.preprocess.fit == "stretch") else math.inf


def read_each(
    pictures: Sequence[Picture], size: int, read: Callable[[Image.Image], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Normalised inputs float32 [N, 3, S, S] by `read`, and whether each file could be read, bool [N]."""
    inputs, known = np.zeros((len(pictures), 3, size, size), np.float32), np.zeros(len(pictures), bool)
    for i, picture in enumerate(pictures):
        with (
            suppress(OSError, ValueError, SyntaxError),
            warnings.catch_warnings(),
        ):  # Pillow's, for damaged files
            warnings.simplefilter("ignore")
            inputs[i] = read(Image.open(BytesIO(picture.content)))
            known[i] = True
    return inputs, known


def to_pixels(inputs: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised inputs float [N, 3, S, S] as the uint8 [N, S, S, 3] that they were made from."""
    values = inputs.transpose(0, 2, 3, 1) * np.array(std, np.float32) + np.array(mean, np.float32)
    return np.rint(values * 255).clip(0, 255).astype(np.uint8)
