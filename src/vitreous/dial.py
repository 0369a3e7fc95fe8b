"""The dial: the budget chooses the size of the network and the strength of its augmentation.

The training FLOPs of a budget choose the network. The epochs that this network can train within the budget choose the
strengths. They follow the epochs: if a run of minutes turns out shorter or longer than forecast, they are chosen again.

A value that a person has set stays. Setting any size field turns automatic sizing off.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from vitreous.model.variants import Architecture
from vitreous.recipe import Recipe, with_values
from vitreous.recipe import keys as recipe_keys
from vitreous.wording import count, scientific

# Smallest number of training FLOPs for each network. Neighbours reach the same accuracy where one takes over from the
# other, so a forecast that just misses a threshold costs nothing (docs/log.md, "The dial's law", "5.5e14 FLOPs on
# validation"). At 5.5e14 the second and the third are about equal on CIFAR-100 ("Long budgets with mixing"). At 1e15
# they were not compared.
SIZES: tuple[tuple[float, dict[str, Any]], ...] = (
    (0.0, {"embed_dim": 96, "depth": 4, "num_heads": 3, "mlp_dim": 192, "stem_dims": (26, 96)}),
    (1e14, {"embed_dim": 128, "depth": 4, "num_heads": 2, "mlp_dim": 256, "stem_dims": (38, 128)}),
    (1e15, {"embed_dim": 192, "depth": 5, "num_heads": 3, "mlp_dim": 384, "stem_dims": (64, 192)}),
)
# More layers for each stage of the convolutional stem beyond two, so that the encoder keeps half of the FLOPs: each
# further stage works on four times as many pixels as the next. That is enough up to 223 pixels; from 224 on, the two
# smaller sizes have less.
STAGE_LAYERS = 4


class Line(NamedTuple):
    """A strength by the number of epochs: a straight line in log2(epochs), and constant outside of `epochs`.

    Attributes:
        epochs: few and many.
        strength: at few and at many epochs.
        unit: what the strength is a multiple of: "1"; "side", the image's side in pixels; or "run", for a weight decay,
            which is given as the sum of what it takes from a weight over all steps, as a multiple of the weight.
    """

    epochs: tuple[float, float]
    strength: tuple[float, float]
    unit: str = "1"

    def at(self, epochs: float) -> float:
        """The strength for `epochs`, in its unit."""
        few, many = map(math.log2, self.epochs)
        position = (math.log2(max(epochs, 1e-9)) - few) / (many - few)
        weak, strong = self.strength
        return weak + (strong - weak) * min(max(position, 0.0), 1.0)


# Each key of the recipe that follows the number of epochs. docs/log.md tells how each was measured: "Weight decay for
# Muon", "Mixing by the number of epochs". At 6 epochs, crop 4 with cutout 8 instead of crop 2 cost 1.6 points of
# validation accuracy (one seed each, `cifar10-make-train-6583d17` and `cifar10-make-train-5de89af` in
# benchmarks/records.jsonl).
STRENGTHS: dict[str, Line] = {
    "augment.crop": Line((12, 40), (2 / 32, 4 / 32), "side"),
    "augment.cutout": Line((12, 40), (0, 8 / 32), "side"),
    "augment.mixup": Line((12, 60), (0, 0.3)),
    "augment.cutmix": Line((12, 60), (0, 0.5)),
    "optimizer.weight_decay": Line((8, 150), (3, 18), "run"),
}
# Largest part of a weight that its decay takes in one step. More was not measured, and short runs would need it.
LARGEST_DECAY = 0.02


def apply_size(recipe: Recipe, train_flops: Callable[[Architecture], float]) -> tuple[Recipe, str]:
    """Chooses the network's size by the budget's training FLOPs.

    Args:
        train_flops: the training FLOPs of the budget with a given network.

    Returns:
        The recipe with the chosen network, and the reason, as in "6.5e13 FLOPs → 96 wide, 4 layers". The reason is ""
        where the size was left as it is.
    """
    model = recipe.model
    keys = size_keys(recipe)
    if not keys:
        return recipe, ""
    for threshold, size in SIZES:
        candidate = dataclasses.replace(model, **{key: size[key] for key in keys})
        candidate = dataclasses.replace(
            candidate, depth=size["depth"] + STAGE_LAYERS * max(model.stem_stages - 2, 0)
        )
        if train_flops(candidate) < threshold:
            break
        model = candidate
    reason = f"{scientific(train_flops(model))} FLOPs → {describe_size(model)}"
    return dataclasses.replace(recipe, model=model), reason


def size_keys(recipe: Recipe) -> tuple[str, ...]:
    """The keys of [model] that the dial chooses for a recipe; none if a person has set one of them."""
    keys = [key for key in SIZES[0][1] if key != "stem_dims" or recipe.model.stem == "conv"]
    pinned = {f"model.{key}" for key in ("variant", *keys)} & set(recipe.pinned)
    return tuple(keys) if recipe.dial and not pinned else ()


def strength_keys(recipe: Recipe) -> tuple[str, ...]:
    """The keys that the epochs choose for a recipe: all of the law but those that a person has set.

    Weight decay was measured with Muon, so AdamW keeps that of its recipe.
    """
    left = {*recipe.pinned, *(() if recipe.optimizer.name == "muon" else ("optimizer.weight_decay",))}
    return tuple(key for key in STRENGTHS if key not in left) if recipe.dial else ()


def strengths_at(
    recipe: Recipe, steps: int, steps_per_epoch: int, side: int, keys: Iterable[str]
) -> dict[str, float]:
    """The values of `keys`, as far as the law has them, for a run of `steps` on images of `side` pixels."""
    # Muon's weights and AdamW's have the same decay, and neither may lose more than the law says.
    rate, known = max(recipe.optimizer.muon_learning_rate, recipe.optimizer.learning_rate), recipe_keys()
    values: dict[str, float] = {}
    for key in keys:
        if key not in STRENGTHS:
            continue
        strength, unit = STRENGTHS[key].at(steps / steps_per_epoch), STRENGTHS[key].unit
        if unit == "side":
            value: float = round(strength * side)
        elif unit == "run":  # the learning rate, which decay is multiplied by, is half of its peak on average
            a_step = min(strength / max(steps / 2, 1), LARGEST_DECAY)
            value = round(a_step / rate, 4) if rate else 0.0
        else:
            value = round(strength, 4)
        # Large images or a small learning rate would need more than a recipe may have.
        section, _, name = key.partition(".")
        values[key] = min(max(value, known[section][name]["low"]), known[section][name]["high"])
    for key, other in itertools.permutations(("augment.mixup", "augment.cutmix")):
        if key in values and other not in values:  # the recipe's own value of the other leaves this much
            values[key] = min(values[key], 1 - getattr(recipe.augment, other.removeprefix("augment.")))
    return values


def apply_strengths(recipe: Recipe, strengths: Mapping[str, float]) -> Recipe:
    """The recipe with the chosen strengths, and the dial off: it then holds its values."""
    return dataclasses.replace(with_values(recipe, strengths), dial=False, pinned=())


def describe_size(model: Architecture) -> str:
    """Width and depth of a network: "96 wide, 4 layers"."""
    return f"{model.embed_dim} wide, {count(model.depth, 'layer')}"


def describe_strengths(epochs: float, strengths: Mapping[str, float]) -> str:
    """The strengths that a number of epochs chose: "20.1 epochs → augmentation: crop 3, cutout 3"; "" for no strengths.

    Zeros are left out, unless all are: a person may have set other strengths, so "none" could be wrong.
    """
    shown = {key: value for key, value in strengths.items() if value} or strengths
    values = {key: f"{key.partition('.')[2]} {value:.3g}" for key, value in shown.items()}
    augments = [text for key, text in values.items() if key.startswith("augment.")]
    others = [text for key, text in values.items() if not key.startswith("augment.")]
    parts = [f"augmentation: {', '.join(augments)}"] if augments else []
    return f"{epochs:.1f} epochs → {'; '.join([*parts, *others])}" if strengths else ""
