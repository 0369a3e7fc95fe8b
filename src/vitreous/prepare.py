"""What stands before training: the data as the recipe wants them, a network that fits them, a batch to try."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitreous import dial
from vitreous import machine as machines
from vitreous.data.augment import Augment, normalize, resized, to_float
from vitreous.data.module import ImageData
from vitreous.data.sources import NAMES
from vitreous.errors import VitreousError, unknown
from vitreous.machine import Machine
from vitreous.model.variants import VARIANTS, Architecture
from vitreous.model.vit import ATTENTION_PATHS, VisionTransformer, count_flops
from vitreous.native.build import load_kernels
from vitreous.native.ops import fits, supports
from vitreous.recipe import Recipe
from vitreous.run import Run, Say
from vitreous.training.cost import RunCost, forward_loss, step_cost
from vitreous.training.schedule import phases

WHITENING_PICTURES = 5000
ARRAYS = "arrays"  # in place of data that only the caller has
# Which splits a run's figures at the end are of. "val" leaves test unread, for choosing a recipe; "test" trains
# on the validation pictures too, once it is chosen.
JUDGES = {"both": ("val", "test"), "val": ("val",), "test": ("test",)}


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for beside the recipe; kept in the run, so that `resume` needs nothing else."""

    data: Any
    seed: int = 42
    device: str = "auto"
    precision: str = "auto"
    logger: str = "csv"
    data_dir: Path | str | None = None
    image_size: int | None = None
    skip_bad: bool = False
    judge: str = "both"

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise VitreousError(
                f"The seed is {self.seed!r}; it must be a whole number from 0 to {2**32 - 1}."
            )
        if self.judge not in JUDGES:
            raise unknown("judge", str(self.judge), JUDGES)

    @property
    def judges(self) -> tuple[str, ...]:
        """The splits that the figures at the end are of."""
        return JUDGES[self.judge]

    @classmethod
    def of(cls, run: Run) -> Request:
        """The request that a run was begun with."""
        try:
            return cls(**run.resolved["request"])
        except (KeyError, TypeError):
            raise changed_recipe(run.path) from None

    def record(self) -> dict[str, Any]:
        """The request for `recipe.toml`: paths absolute, so that it holds wherever it is read again."""
        data = self.data
        if not isinstance(data, str | Path):
            data = ARRAYS
        elif data not in NAMES:
            data = str(Path(data).resolve())
        data_dir = str(Path(self.data_dir).resolve()) if self.data_dir else None
        return {**vars(self), "data": data, "data_dir": data_dir}


def changed_recipe(path: Path) -> VitreousError:
    """The error for a run folder whose recipe is no longer what the run was begun with."""
    return VitreousError(f"{path / 'recipe.toml'} was changed since the run began; restore it or train anew.")


def open_module(recipe: Recipe, asked: Request, say: Say) -> ImageData:
    """The data, opened and split as the recipe says."""
    data = ImageData(
        asked.data,
        augment=Augment(**augment_options(recipe), seed=asked.seed),
        batch_size=recipe.training.batch_size,
        drop_last=recipe.training.drop_last,
        val_fraction=recipe.data.val_fraction,
        split_seed=recipe.data.split_seed,
        seed=asked.seed,
        data_dir=asked.data_dir,
        train_on_val="val" not in asked.judges,
        image_size=asked.image_size,
        skip_bad=asked.skip_bad,
        say=say,
    )
    data.setup()
    for note in data.splits.notes:
        say(note)
    return data


def fit_to_data(recipe: Recipe, data: ImageData, say: Say) -> Recipe:
    """The recipe with what pictures of another size, or few of them, ask for; each change is said."""
    size = data.store.image_size
    table = VARIANTS[recipe.variant].architecture
    if recipe.model.stem == "conv" and "model.patch_size" not in recipe.pinned:
        patch = max(2, table.patch_size * 2 ** round(math.log2(size / VARIANTS[recipe.variant].image_size)))
        if patch != recipe.model.patch_size:
            say(f"patch_size: {patch}, for about as many tokens from {size}-pixel pictures")
            recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, patch_size=patch))
    most = max(8, 2 ** int(math.log2(max(len(data.splits.train) / 8, 1))))
    if recipe.training.batch_size > most and "training.batch_size" not in recipe.pinned:
        say(f"batch_size: {most}, so that {len(data.splits.train):,} pictures make at least 8 steps an epoch")
        recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, batch_size=most))
    data.batch_size = recipe.training.batch_size
    return recipe


def fit_to_budget(recipe: Recipe, data: ImageData, cost: RunCost, say: Say) -> Recipe:
    """The recipe with what its budget calls for, where it has a dial; each derived value is said.

    `cost` is that of the recipe's network as it stands: it tells how far this machine gets in a minute.
    """
    if not recipe.dial:
        return recipe
    store, budget = data.store, recipe.budget

    def step(architecture: Architecture) -> float:
        """FLOPs of a step: three forward passes, on average over the phases."""
        model, total, began = VisionTransformer(architecture, store.image_size, store.num_classes), 0.0, 0.0
        for phase in phases(recipe.schedule, store.image_size):
            total += (phase.until - began) * count_flops(model, phase.side)
            began = phase.until
        return 3 * total * recipe.training.batch_size

    flops, seconds = cost.mean()

    def amount(architecture: Architecture) -> float:
        """Training FLOPs that the budget amounts to."""
        if budget.unit == "minutes":
            return 60 * budget.amount * flops / seconds
        if budget.unit == "flops":
            return budget.amount
        per = len(data.train_dataloader()) if budget.unit == "epochs" else 1
        return budget.amount * per * step(architecture)

    with torch.device("meta"):
        recipe, said = dial.turn(recipe, len(data.splits.train), store.image_size, amount, step)
    for line in said:
        say(line)
    assert data.augment is not None
    data.augment = dataclasses.replace(data.augment, **augment_options(recipe))
    return recipe


def augment_options(recipe: Recipe) -> dict[str, Any]:
    """The recipe's augmentation as arguments of `Augment`."""
    options = dataclasses.asdict(recipe.augment)
    return {**options, "resized_crop": options["resized_crop"] or None}


def build_model(recipe: Recipe, data: ImageData, seed: int) -> VisionTransformer:
    """A fresh network, sized and whitened by the data; its weights are a function of the seed."""
    store, train = data.store, data.splits.train
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = VisionTransformer(recipe.model, store.image_size, store.num_classes)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        raise VitreousError(
            "The network does not fit into memory; choose a smaller embed_dim or depth."
        ) from None
    some = train.images[:: max(1, len(train) // WHITENING_PICTURES)]
    model.init_from_data(
        normalize(to_float(torch.as_tensor(np.ascontiguousarray(some))), store.mean, store.std)
    )
    return model


def sample_batch(data: ImageData, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The first training batch, on the device: pictures float [B, 3, H, W] augmented and normalised, labels [B]."""
    batch = next(iter(data.train_dataloader()))
    assert data.augment is not None
    images = data.augment(batch["image"].to(device), batch["index"].to(device), batch["epoch"])
    return normalize(images, data.store.mean, data.store.std), batch["label"].to(device)


def choose_attention(
    machine: Machine, model: VisionTransformer, batch: tuple[torch.Tensor, torch.Tensor]
) -> Machine:
    """The machine with the attention path that is fastest on it, by forward and backward of this network."""
    twin = copy.deepcopy(model).to(machine.device)
    bf16 = machine.precision == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    native = machine.device == "cpu" and supports(model.architecture, dtype)
    if machine.device == "cpu" and not native:
        why = load_kernels(dtype) if fits(model.architecture) else "they do not know this network"
        machine = machine.decided(f"our own kernels: none, {why}")

    def step(path: str) -> None:
        twin.set_attention(path)
        forward_loss(twin, batch[0][:32], batch[1][:32], bf16=bf16).backward()

    with torch.random.fork_rng(devices=[]):
        return machines.choose_attention(machine, step, ATTENTION_PATHS if native else ATTENTION_PATHS[:2])


def run_cost(
    recipe: Recipe, model: VisionTransformer, batch: tuple[torch.Tensor, torch.Tensor], machine: Machine
) -> RunCost:
    """What the steps of each phase cost, measured on one batch as `sample_batch` gives it."""
    images, labels = batch
    bf16 = machine.precision == "bf16"
    return RunCost(
        tuple(
            (phase.until, step_cost(model, recipe.optimizer, resized(images, phase.side), labels, bf16=bf16))
            for phase in phases(recipe.schedule, model.image_size)
        )
    )


def count_parameters(model: VisionTransformer) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
