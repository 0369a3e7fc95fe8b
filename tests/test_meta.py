"""Runs the training path with all tensors on `meta`: finds tensors on the wrong device without a GPU.

A tensor on `meta` has a shape and a dtype but no values, so these tests also fail where code depends on values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitreous import recipe as recipes
from vitreous.data.augment import Augment
from vitreous.data.module import ImageData
from vitreous.data.trivial import OPERATIONS
from vitreous.model.vit import VisionTransformer
from vitreous.training.classifier import Classifier, make_optimizer, set_learning_rates
from vitreous.training.schedule import Timeline

B, SIDE, CLASSES = 6, 16, 12
META = torch.device("meta")


class OnMeta(TorchDispatchMode):
    """Fails at an operator that reads or creates a tensor on another device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default:  # the number depends on values: assume all elements
            return torch.empty(args[0].numel(), args[0].ndim, dtype=torch.int64, device=META)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, out)):
            if isinstance(tensor, Tensor) and tensor.device != META:
                raise AssertionError(f"{func} uses a tensor {list(tensor.shape)} on {tensor.device}")
        return out


def test_the_mode_finds_tensors_on_the_cpu() -> None:
    on_meta = torch.empty(3, device=META)
    with OnMeta():
        on_meta + 1
        torch.ones(3, device=on_meta.device)
        for wrong in (lambda: torch.ones(3), lambda: torch.arange(3), lambda: torch.tensor([1.0, 2.0])):
            with pytest.raises(AssertionError, match="cpu"):
                wrong()
    on_cpu = torch.ones(())
    with OnMeta(), pytest.raises(AssertionError, match="cpu"):
        on_meta * on_cpu


MODES = pytest.mark.parametrize("mode", [nullcontext, OnMeta])
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "crop": {"crop": 2},
    "flip": {"flip": "random"},
    "alternating": {"flip": "alternating"},
    "cutout": {"cutout": 4},
    "resized_crop": {"resized_crop": (0.2, 1.0)},
    "trivial": {"trivial": True},
    "mixing": {"mixup": 0.3, "cutmix": 0.3},
    "all": {
        "crop": 2, "flip": "alternating", "cutout": 4, "resized_crop": (0.2, 1.0), "trivial": True,
        "mixup": 0.3, "cutmix": 0.3,
    },
}  # fmt: skip


def test_every_augmentation_is_tested() -> None:
    """Each key of a recipe's [augment] is a field of `Augment` with the same name, and part of the case "all"."""
    keys = {field.name for field in dataclasses.fields(recipes.AugmentSection)}
    assert keys == {field.name for field in dataclasses.fields(Augment)} - {"fill", "seed"}
    assert keys == AUGMENTATIONS["all"].keys()


def on_meta(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(META) if isinstance(value, Tensor) else value for name, value in batch.items()}


@pytest.fixture
def data() -> ImageData:
    images = np.random.default_rng(0).integers(0, 256, (120, SIDE, SIDE, 3), dtype=np.uint8)
    module = ImageData((images, np.arange(120) % CLASSES), batch_size=B, say=lambda line: None)
    module.setup()
    module.trainer = SimpleNamespace(training=True, world_size=1)  # type: ignore[assignment]
    return module


@pytest.mark.parametrize("options", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_augmentation(data: ImageData, options: dict[str, Any]) -> None:
    data.augment = Augment(**options, fill=data.store.mean)
    cpu_batch = next(iter(data.train_dataloader()))
    expected = data.on_after_batch_transfer(cpu_batch, 0)
    meta_batch = on_meta(cpu_batch)
    with OnMeta():
        batch = data.on_after_batch_transfer(meta_batch, 0)
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert batch[name].device == META
            assert (batch[name].shape, batch[name].dtype) == (value.shape, value.dtype), name


@pytest.mark.parametrize("options", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_augmentation_depends_on_no_values(data: ImageData, options: dict[str, Any]) -> None:
    if options.get("trivial"):
        pytest.skip("which images share an operation of TrivialAugment depends on their random numbers")
    data.augment = Augment(**options, fill=data.store.mean)
    data.on_after_batch_transfer(on_meta(next(iter(data.train_dataloader()))), 0)


@MODES
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_operations_of_trivial_augment(operation: Callable[..., Tensor], mode: Any) -> None:
    image = torch.empty(B, SIDE, SIDE, 3, dtype=torch.uint8, device=META)
    number = torch.empty(B, device=META)
    colour = torch.empty(3, dtype=torch.uint8, device=META)
    with mode():
        out = operation(image, number, number, colour)
    assert (out.shape, out.dtype, out.device) == (image.shape, torch.uint8, META)


NETWORKS: dict[str, dict[str, Any]] = {
    "default": {},
    "noise": {"dropout": 0.1, "drop_path": 0.1},
    "cls": {"pool": "cls"},
    "mean": {"pool": "mean"},
    "sine": {"pos_embed": "sine"},
    "qk_norm": {"qk_norm": True},
    "notebook": {},
}


@MODES
@pytest.mark.parametrize("attention", ["explicit", "fused"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_of_training(
    data: ImageData, tiny: dict[str, Any], mode: Any, attention: str, optimizer: str, network: str
) -> None:
    """Two steps, on small images and at full size, with noise and mixed images, for both optimizers."""
    overrides = {
        **tiny["overrides"], "depth": 2, "optimizer.name": optimizer, "label_smoothing": 0.1,
        "schedule.small_sides": [0.5], "schedule.small_until": [0.5],
        **NETWORKS[network],
    }  # fmt: skip
    if network == "notebook":  # a linear stem, a hidden layer in the head
        del overrides["stem_dims"]
    recipe = recipes.load("notebook-cifar10" if network == "notebook" else "default", overrides)
    data.augment = Augment(mixup=0.3, cutmix=0.3)
    batch = on_meta(next(iter(data.train_dataloader())))
    model = VisionTransformer(recipe.model, SIDE, CLASSES)
    model.set_attention(attention)
    timeline = Timeline([(0, 2)])
    classifier = Classifier(model, recipe, timeline=timeline).to(META).train()
    stepper = make_optimizer(classifier.model, recipe.optimizer, bf16=optimizer == "muon")
    classifier.log = lambda *args, **options: None  # type: ignore[method-assign]
    sides = []
    classifier.forward = lambda images: sides.append(images.shape[-1]) or model(images)  # type: ignore[method-assign, func-returns-value]
    for step in range(2):
        with pytest.MonkeyPatch.context() as patch, mode():
            patch.setattr(Classifier, "global_step", step)
            set_learning_rates(stepper, recipe, timeline, step)
            loss = classifier.training_step(data.on_after_batch_transfer(batch, 0), step)
            loss.backward()
        # On meta, torch's AdamW is not fused and keeps its step count on the CPU.
        with mode() if optimizer == "muon" else nullcontext():
            stepper.step()
            stepper.zero_grad()
        assert (loss.shape, loss.device) == ((), META)
    assert sides == [SIDE // 2, SIDE]
    for state in stepper.state.values():
        assert {value.device for name, value in state.items() if name != "step"} == {META}


@MODES
def test_a_step_on_a_plain_pair_of_images_and_labels(tiny: dict[str, Any], mode: Any) -> None:
    recipe = recipes.load("default", {**tiny["overrides"], "dropout": 0.1, "drop_path": 0.1})
    classifier = Classifier(
        VisionTransformer(recipe.model, SIDE, CLASSES), recipe, timeline=Timeline([(0, 1)])
    )
    classifier.to(META).log = lambda *args, **options: None  # type: ignore[method-assign]
    pair = (torch.empty(B, 3, SIDE, SIDE, device=META), torch.empty(B, dtype=torch.int64, device=META))
    with mode():
        classifier.train().training_step(pair, 0).backward()


@MODES
def test_validation(data: ImageData, tiny: dict[str, Any], mode: Any) -> None:
    recipe = recipes.load("default", tiny["overrides"])
    classifier = Classifier(VisionTransformer(recipe.model, SIDE, CLASSES), recipe).to(META).eval()
    data.trainer = SimpleNamespace(training=False, world_size=1)  # type: ignore[assignment]
    batch = on_meta(next(iter(data.val_dataloader())))
    with mode(), torch.no_grad():
        classifier.validation_step(data.on_after_batch_transfer(batch, 0), 0)
        classifier.on_validation_epoch_start()
