"""The dial: the network and augmentation for a budget, and that a person's own settings stay."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import vitreous
from vitreous import dial
from vitreous import recipe as recipes
from vitreous.model.summary import count_flops
from vitreous.model.variants import Architecture
from vitreous.model.vit import VisionTransformer
from vitreous.recipe import Recipe

Arrays = tuple[np.ndarray, np.ndarray]


def applied(
    overrides: Mapping[str, Any] = MappingProxyType({}),
    flops: float = 6e13,
    epochs: float = 10,
    size: int = 32,
) -> tuple[Recipe, list[str]]:
    recipe, size_reason = dial.apply_size(recipes.load("default", overrides), lambda architecture: flops)
    recipe, augmentation_reason = dial.apply_augmentation(recipe, epochs, size)
    return recipe, [size_reason, augmentation_reason]


def test_more_flops_never_choose_a_smaller_network() -> None:
    sizes_in_flops = []
    for start, sizes in dial.SIZES:
        recipe, _ = applied(flops=max(start, 1.0))
        assert {key: getattr(recipe.model, key) for key in sizes} == sizes
        model = VisionTransformer(recipe.model, 32, 10)
        one, two = (
            count_flops(VisionTransformer(Architecture(**{**vars(recipe.model), "depth": depth}), 32, 10))
            for depth in (1, 2)
        )
        in_blocks = sum(p.numel() for p in model.blocks.parameters())
        assert (two - one) * recipe.model.depth > count_flops(model) / 2, (
            "half of the FLOPs are the encoder's"
        )
        assert in_blocks > sum(p.numel() for p in model.parameters()) / 2
        sizes_in_flops.append(count_flops(model))
    assert sizes_in_flops == sorted(set(sizes_in_flops))
    assert [start for start, _ in dial.SIZES] == sorted(start for start, _ in dial.SIZES)
    assert dial.SIZES[0][0] == 0


def test_more_epochs_choose_more_augmentation() -> None:
    few, reasons = applied(flops=6.48e13, epochs=10.2)
    many, _ = applied(epochs=60)
    assert few.augment.cutout < many.augment.cutout and few.augment.crop <= many.augment.crop
    assert reasons == ["6.5e13 FLOPs → 96 wide, 4 layers", "10.2 epochs → augmentation: crop 2"]
    assert applied(epochs=60, size=64)[0].augment.cutout == 2 * many.augment.cutout


def test_what_a_person_sets_stays() -> None:
    recipe, reasons = applied({"depth": 3, "crop": 5}, flops=1e18, epochs=60)
    plain = recipes.load("default")
    assert recipe.model == Architecture(**{**vars(plain.model), "depth": 3})
    assert recipe.augment.crop == 5 and recipe.augment.cutout > 0
    assert reasons[0] == "" and "crop" not in reasons[1]
    assert not recipe.dial and applied()[0].tables() == recipes.parse(applied()[0].tables()).tables()


def test_the_values_of_an_own_recipe_stay(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        'dial = true\n[model]\nvariant = "compact"\ndepth = 6\n[augment]\ncrop = 3\n[budget]\nminutes = 1\n'
    )
    sized, reason = dial.apply_size(recipes.load(str(own)), lambda architecture: 1e18)
    assert reason == ""
    recipe, _ = dial.apply_augmentation(sized, 60, 32)
    assert (recipe.model.depth, recipe.augment.crop) == (6, 3)
    assert recipe.augment.cutout > 0  # which it does not name


def test_another_stem_still_gets_its_size() -> None:
    recipe, _ = applied({"stem": "linear", "stem_dims": ()}, flops=1e18)
    assert recipe.model == dataclasses.replace(applied(flops=1e18)[0].model, stem="linear", stem_dims=())


def test_a_recipe_without_a_dial_is_left_alone() -> None:
    recipe = recipes.load("notebook-cifar10")
    assert dial.apply_size(recipe, lambda architecture: 1e20) == (recipe, "")
    assert dial.apply_augmentation(recipe, 1e3, 32) == (recipe, "")


SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_dim": 32, "stem_dims": (8, 16)}


@pytest.mark.parametrize("budget", [{"flops": 1e9}, {"steps": 2}, {"epochs": 1}, {"minutes": 0.02}])
def test_the_dial_works_for_every_unit(
    budget: dict[str, Any], arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "SIZES", ((0.0, SMALL), (1e12, {**SMALL, "embed_dim": 64})))
    run = vitreous.train(arrays, out=tmp_path / "run", device="cpu", precision="32", **budget)
    assert run.model.architecture.embed_dim == 32
    log = (run.path / "log.txt").read_text()
    assert re.search(r"dial: \S+ FLOPs → 32 wide, 1 layer\n", log)
    assert re.search(r"dial: \S+ epochs → augmentation: crop 1\n", log)  # 2 of 32 pixels
    assert not run.recipe.dial


@pytest.mark.parametrize("size", [SMALL, {**SMALL, "embed_dim": 64}])
def test_the_epochs_announced_are_those_trained(
    size: dict[str, Any], arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Muon's products and the phases count in both; so does the batch that an epoch leaves out."""
    monkeypatch.setattr(dial, "SIZES", ((0.0, size),))
    run = vitreous.train(arrays, flops=1e10, out=tmp_path / "run", device="cpu", precision="32")
    announced = re.search(r"dial: ([\d.]+) epochs", (run.path / "log.txt").read_text())
    assert announced and float(announced[1]) == pytest.approx(run.summary["epochs"], abs=0.051)
    assert run.summary["train_flops"] == pytest.approx(1e10, rel=0.05)
