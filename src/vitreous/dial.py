"""The dial: from a budget to the size of the network and the strength of its augmentation.

The training FLOPs that a budget amounts to choose the network; the epochs that this network then makes of it choose the
augmentation. Sizes and thresholds were found by trials on CIFAR-10's validation split (`docs/log.md`, "The dial's law"
and "Many passes"): at 5.5e14 the second and the third size are within half a point, and the threshold of the third is
extrapolated. On CIFAR-100 the second overtakes the first somewhat earlier.
What a person sets by hand stays as set. Setting any size field turns automatic sizing off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vitreous.model.variants import Architecture
from vitreous.recipe import Recipe

# From how many training FLOPs on, which network: all have half of their FLOPs and more in the encoder.
SIZES: tuple[tuple[float, dict[str, Any]], ...] = (
    (0.0, {"embed_dim": 96, "depth": 4, "num_heads": 3, "mlp_dim": 192, "stem_dims": (28, 96)}),
    (1e14, {"embed_dim": 128, "depth": 4, "num_heads": 2, "mlp_dim": 256, "stem_dims": (40, 128)}),
    (1e15, {"embed_dim": 192, "depth": 5, "num_heads": 3, "mlp_dim": 384, "stem_dims": (64, 192)}),
)

# From how many epochs on, which augmentation: hiding parts of an image hinders a network that sees it a few times only
# (2 points at 6 epochs), and up to 21 epochs a crop by 2 does well.
EPOCHS: tuple[tuple[float, dict[str, Any]], ...] = (
    (0.0, {"crop": 2}),
    (25.0, {"crop": 4, "cutout": 8}),
)


def apply_size(recipe: Recipe, train_flops: Callable[[Architecture], float]) -> tuple[Recipe, str]:
    """The recipe with the network that its budget calls for, and a sentence that says so ("" where none is chosen).

    Args:
        train_flops: what the budget amounts to with a network, in training FLOPs.
    """
    model = recipe.model
    sizes = [key for key in SIZES[0][1] if key != "stem_dims" or model.stem == "conv"]
    if not recipe.dial or {f"model.{key}" for key in ("variant", *sizes)} & set(recipe.pinned):
        return recipe, ""
    for start, size in SIZES:
        candidate = dataclasses.replace(recipe.model, **{key: size[key] for key in sizes})
        if train_flops(candidate) < start:
            break
        model = candidate
    values = ", ".join(f"{key} {getattr(model, key)}" for key in sizes)
    recipe = dataclasses.replace(recipe, model=model)
    return recipe, f"dial: {train_flops(model):.2g} training FLOPs → network: {values}"


def apply_augmentation(recipe: Recipe, epochs: float, image_size: int) -> tuple[Recipe, str]:
    """The recipe with the augmentation that so many epochs call for, and a sentence that says so ("" for none).

    The recipe that comes back holds its values itself: its dial is off.

    Args:
        image_size: in pixels, which crop and cutout are measured in.
    """
    if not recipe.dial:
        return recipe, ""
    augment: Mapping[str, Any] = {}
    for start, strength in EPOCHS:
        if epochs >= start:
            augment = strength
    free = {
        key: round(value * image_size / 32)
        for key, value in augment.items()
        if f"augment.{key}" not in recipe.pinned
    }
    recipe = dataclasses.replace(
        recipe, augment=dataclasses.replace(recipe.augment, **free), dial=False, pinned=()
    )
    values = ", ".join(f"{key} {value}" for key, value in free.items())
    return recipe, f"dial: {epochs:.1f} epochs → augmentation: {values}" if free else ""
