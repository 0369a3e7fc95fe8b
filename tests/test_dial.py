"""The dial: what a budget calls for, and that a person's own settings stand."""

from __future__ import annotations

import dataclasses
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

Arrays = tuple[np.ndarray, np.ndarray]


def turned(
    overrides: Mapping[str, Any] = MappingProxyType({}),
    flops: float = 6e13,
    pictures: int = 50_000,
    size: int = 32,
) -> Any:
    recipe = recipes.load("default", overrides)
    return dial.turn(recipe, pictures, size, lambda a: flops, lambda a: 1e9 * a.embed_dim)


def test_more_flops_never_call_for_a_smaller_network() -> None:
    found = []
    for start, sizes in dial.SIZES:
        recipe, _ = turned(flops=max(start, 1.0))
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
        found.append(count_flops(model))
    assert found == sorted(set(found))
    assert [start for start, _ in dial.SIZES] == sorted(start for start, _ in dial.SIZES)
    assert dial.SIZES[0][0] == 0


def test_more_passes_call_for_more_augmentation() -> None:
    few, said = turned(flops=3e13)
    many, _ = turned(flops=3e13, pictures=1000)
    assert few.augment.cutout < many.augment.cutout and few.augment.crop <= many.augment.crop
    passes = 3e13 / (1e9 * few.model.embed_dim) * 256 / 50_000
    assert f"{passes:.1f} passes" in said[1]
    assert turned(flops=3e13, pictures=1000, size=64)[0].augment.cutout == 2 * many.augment.cutout


def test_what_a_person_sets_stays() -> None:
    recipe, said = turned({"depth": 3, "crop": 5}, flops=1e18, pictures=100)
    plain = recipes.load("default")
    assert recipe.model == Architecture(**{**vars(plain.model), "depth": 3})
    assert recipe.augment.crop == 5 and recipe.augment.cutout > 0
    assert "crop" not in " ".join(said)
    assert not recipe.dial and turned()[0].tables() == recipes.parse(turned()[0].tables()).tables()


def test_what_stands_in_a_recipe_of_ones_own_stays(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        'dial = true\n[model]\nvariant = "compact"\ndepth = 6\n[augment]\ncrop = 3\n[budget]\nminutes = 1\n'
    )
    recipe, _ = dial.turn(recipes.load(str(own)), 100, 32, lambda a: 1e18, lambda a: 1e9)
    assert (recipe.model.depth, recipe.augment.crop) == (6, 3)
    assert recipe.augment.cutout > 0  # which it does not name


def test_another_stem_still_gets_its_size() -> None:
    recipe, _ = turned({"stem": "linear", "stem_dims": ()}, flops=1e18)
    assert recipe.model == dataclasses.replace(turned(flops=1e18)[0].model, stem="linear", stem_dims=())


def test_a_recipe_without_a_dial_is_left_alone() -> None:
    recipe = recipes.load("notebook-cifar10")
    assert dial.turn(recipe, 10, 32, lambda a: 1e20, lambda a: 1.0) == (recipe, [])


@pytest.mark.parametrize("budget", [{"flops": 1e9}, {"steps": 2}, {"epochs": 1}, {"minutes": 0.02}])
def test_every_unit_turns_it(
    budget: dict[str, float], arrays: Arrays, tmp_path: Path, monkeypatch: Any
) -> None:
    small = {"embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_dim": 32, "stem_dims": (8, 16)}
    monkeypatch.setattr(dial, "SIZES", ((0.0, small), (1e12, {**small, "embed_dim": 64})))
    run = vitreous.train(arrays, out=tmp_path / "run", device="cpu", precision="32", **budget)  # type: ignore[arg-type]
    assert run.model.architecture.embed_dim == 32
    log = (run.path / "log.txt").read_text()
    assert "training FLOPs call for embed_dim 32" in log and "passes call for crop" in log
    assert not run.recipe.dial
