"""The dial: the budget chooses the size of the network and the strength of its augmentation.

The training FLOPs of a budget choose the network. The epochs that this network can train within the budget then choose
the augmentation.

The sizes were compared on CIFAR-10's validation split (docs/log.md, "The dial's law", "5.5e14 FLOPs on validation").
The second and the third size are within half a point of each other at 5.5e14 FLOPs. The third size starts at 1e15, an
extrapolation. On CIFAR-100 the second size overtakes the first at a somewhat smaller budget.

A value that a person has set stays. Setting any size field turns automatic sizing off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vitreous.model.variants import Architecture
from vitreous.recipe import Recipe
from vitreous.wording import count, scientific

# Smallest number of training FLOPs for each network. The encoder has at least half of the FLOPs of each.
SIZES: tuple[tuple[float, dict[str, Any]], ...] = (
    (0.0, {"embed_dim": 96, "depth": 4, "num_heads": 3, "mlp_dim": 192, "stem_dims": (28, 96)}),
    (1e14, {"embed_dim": 128, "depth": 4, "num_heads": 2, "mlp_dim": 256, "stem_dims": (40, 128)}),
    (1e15, {"embed_dim": 192, "depth": 5, "num_heads": 3, "mlp_dim": 384, "stem_dims": (64, 192)}),
)

# Smallest number of epochs for each augmentation, in pixels of an image 32 pixels wide. At 6 epochs, crop 4 with cutout
# 8 instead of crop 2 cost 1.6 points of validation accuracy (one seed each, `cifar10-make-train-6583d17` and
# `cifar10-make-train-5de89af` in benchmarks/records.jsonl). The threshold itself comes from trials without a record,
# which docs/log.md describes.
EPOCHS: tuple[tuple[float, dict[str, Any]], ...] = (
    (0.0, {"crop": 2}),
    (25.0, {"crop": 4, "cutout": 8}),
)


def apply_size(recipe: Recipe, train_flops: Callable[[Architecture], float]) -> tuple[Recipe, str]:
    """Chooses the network's size by the budget's training FLOPs.

    Args:
        train_flops: the training FLOPs of the budget with a given network.

    Returns:
        The recipe with the chosen network, and the reason, as in "6.5e13 FLOPs → 96 wide, 4 layers". The reason is ""
        where the size was left as it is.
    """
    model = recipe.model
    size_keys = [key for key in SIZES[0][1] if key != "stem_dims" or model.stem == "conv"]
    if not recipe.dial or {f"model.{key}" for key in ("variant", *size_keys)} & set(recipe.pinned):
        return recipe, ""
    for threshold, size in SIZES:
        candidate = dataclasses.replace(recipe.model, **{key: size[key] for key in size_keys})
        if train_flops(candidate) < threshold:
            break
        model = candidate
    reason = f"{scientific(train_flops(model))} FLOPs → {describe_size(model)}"
    return dataclasses.replace(recipe, model=model), reason


def apply_augmentation(recipe: Recipe, epochs: float, image_size: int) -> tuple[Recipe, str]:
    """Chooses crop and cutout by the number of epochs, and turns the dial off: the recipe then holds its values.

    Args:
        image_size: in pixels; crop and cutout grow with it.

    Returns:
        The recipe with the chosen augmentation, and the reason, as in "10.2 epochs → augmentation: crop 2". The reason
        is "" where the augmentation was left as it is.
    """
    if not recipe.dial:
        return recipe, ""
    augment: Mapping[str, Any] = {}
    for threshold, strength in EPOCHS:
        if epochs >= threshold:
            augment = strength
    chosen = {
        key: round(value * image_size / 32)
        for key, value in augment.items()
        if f"augment.{key}" not in recipe.pinned
    }
    recipe = dataclasses.replace(
        recipe, augment=dataclasses.replace(recipe.augment, **chosen), dial=False, pinned=()
    )
    values = ", ".join(f"{key} {value}" for key, value in chosen.items())
    return recipe, f"{epochs:.1f} epochs → augmentation: {values}" if chosen else ""


def describe_size(model: Architecture) -> str:
    """Width and depth of a network: "96 wide, 4 layers"."""
    return f"{model.embed_dim} wide, {count(model.depth, 'layer')}"
