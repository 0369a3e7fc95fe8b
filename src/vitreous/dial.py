"""The dial: from a budget to the size of the network and the strength of its regularisation.

One number turns it, the training FLOPs that the budget amounts to. The sizes and where one takes over from another
were found by trials on CIFAR-10's validation split (`docs/log.md`, "The dial's law" and "Many passes"): at 5.5e14 the
second and the third are within half a point, and from where the third does best is extrapolated. On CIFAR-100 the
second overtakes the first somewhat earlier.
What a person sets by hand stays as set; of what makes the size, one value is enough to leave all of it alone.
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

# From how many passes over the pictures on, which augmentation: a network that sees a picture a few times only is
# hindered by hiding parts of it (2 points at 6 passes), and up to 21 passes a crop by 2 does well.
PASSES: tuple[tuple[float, dict[str, Any]], ...] = (
    (0.0, {"crop": 2}),
    (25.0, {"crop": 4, "cutout": 8}),
)


def turn(
    recipe: Recipe,
    pictures: int,
    image_size: int,
    flops: Callable[[Architecture], float],
    step: Callable[[Architecture], float],
) -> tuple[Recipe, list[str]]:
    """The recipe with what its budget calls for, and a sentence for each value that was derived.

    Args:
        pictures: in the training split.
        image_size: their side in pixels, which augmentation is measured in.
        flops: what the budget amounts to with a network, in training FLOPs.
        step: FLOPs of a step with a network, on average over the run.
    """
    if not recipe.dial:
        return recipe, []
    said = []
    model = recipe.model
    sizes = [key for key in SIZES[0][1] if key != "stem_dims" or model.stem == "conv"]
    if not {f"model.{key}" for key in ("variant", *sizes)} & set(recipe.pinned):
        for start, size in SIZES:
            candidate = dataclasses.replace(model, **{key: size[key] for key in sizes})
            if flops(candidate) >= start:
                model = candidate
        values = ", ".join(f"{key} {getattr(model, key)}" for key in sizes)
        said.append(f"dial: {flops(model):.2g} training FLOPs call for {values}")
    passes = flops(model) / step(model) * recipe.training.batch_size / pictures
    augment: Mapping[str, Any] = {}
    for start, strength in PASSES:
        if passes >= start:
            augment = strength
    scaled = {
        key: round(value * image_size / 32) if key in ("crop", "cutout") else value
        for key, value in augment.items()
    }
    free = {key: value for key, value in scaled.items() if f"augment.{key}" not in recipe.pinned}
    if free:
        said.append(f"dial: {passes:.1f} passes call for {', '.join(f'{k} {v}' for k, v in free.items())}")
    recipe = dataclasses.replace(
        recipe, model=model, augment=dataclasses.replace(recipe.augment, **free), dial=False, pinned=()
    )
    return recipe, said
