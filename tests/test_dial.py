"""The dial: the network and augmentation for a budget, and that a person's own settings stay."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

import vitreous
from vitreous import api, dial, plan
from vitreous import recipe as recipes
from vitreous.data.augment import Augment
from vitreous.errors import VitreousError
from vitreous.model.summary import count_flops
from vitreous.model.variants import Architecture
from vitreous.model.vit import VisionTransformer
from vitreous.recipe import Recipe
from vitreous.training import budget
from vitreous.training.checkpoint import CheckpointKeeper
from vitreous.training.classifier import Classifier
from vitreous.training.cost import RunCost, encoder_flops_share

Arrays = tuple[np.ndarray, np.ndarray]


def applied(
    overrides: Mapping[str, Any] = MappingProxyType({}),
    flops: float = 6e13,
    epochs: float = 10,
    size: int = 32,
) -> tuple[Recipe, list[str]]:
    recipe, size_reason = dial.apply_size(recipes.load("default", overrides), lambda architecture: flops)
    steps = round(100 * epochs)
    strengths = dial.strengths_at(recipe, steps, 100, size, dial.strength_keys(recipe))
    reasons = [size_reason, dial.describe_strengths(epochs, strengths)]
    return dial.apply_strengths(recipe, strengths), reasons


def default_for(
    side: int, flops: float, overrides: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Recipe, VisionTransformer]:
    """The default recipe as it is trained on images of `side` pixels, and its network."""
    store = SimpleNamespace(image_size=side, classes=list("abcdefghij"))
    splits = SimpleNamespace(train=range(5000))
    data = SimpleNamespace(store=store, splits=splits, class_counts=[500] * 10)
    fitted = plan.fit_to_data(recipes.load("default", overrides), data, lambda line, detail=False: None)  # type: ignore[arg-type]
    recipe, _ = dial.apply_size(fitted, lambda architecture: flops)
    with torch.device("meta"):
        return recipe, VisionTransformer(recipe.model, side, 10)


@pytest.mark.parametrize(
    ("side", "overrides", "expected"),  # patch_size, stem_stride, layers, tokens
    [
        (16, {}, (2, 1, 4, 49)),
        (32, {}, (4, 1, 4, 49)),
        (55, {}, (4, 1, 4, 169)),
        (56, {}, (8, 2, 4, 36)),
        (64, {}, (8, 2, 4, 49)),
        (128, {}, (16, 2, 8, 49)),
        (224, {}, (32, 2, 12, 36)),
        (16, {"stem_stride": 2}, (4, 2, 4, 9)),
        (64, {"stem_stride": 1}, (8, 1, 8, 49)),
        (64, {"patch_size": 8}, (8, 1, 8, 49)),
        (32, {"stem_stride": 2}, (4, 2, 4, 49)),
    ],
)
def test_large_images_get_larger_patches_first_by_the_stride_of_the_whitening(
    side: int, overrides: dict[str, Any], expected: tuple[int, ...]
) -> None:
    recipe, model = default_for(side, 1.0, overrides)
    a = recipe.model
    assert (a.patch_size, a.stem_stride, a.depth, model.num_tokens) == expected


@pytest.mark.parametrize("side", [28, 32, 56, 64, 96, 111, 112, 128, 160, 192, 223])
@pytest.mark.parametrize("flops", [max(flops, 1.0) for flops, _ in dial.SIZES])
def test_the_encoder_keeps_half_of_the_parameters_and_of_the_flops(flops: float, side: int) -> None:
    recipe, model = default_for(side, flops)
    assert encoder_flops_share(model, recipe.schedule) >= 0.5
    in_blocks = sum(p.numel() for block in model.blocks for p in block.parameters())
    assert in_blocks >= sum(p.numel() for p in model.parameters()) / 2


@pytest.mark.parametrize("side", [28, 32, 64, 96])
def test_more_flops_choose_a_larger_network(side: int) -> None:
    sizes = []
    for threshold, size in dial.SIZES:
        _, model = default_for(side, max(threshold, 1.0))
        assert model.architecture.embed_dim == size["embed_dim"]
        sizes.append(count_flops(model))
    assert sizes == sorted(set(sizes))
    assert [start for start, _ in dial.SIZES] == sorted(start for start, _ in dial.SIZES)
    assert dial.SIZES[0][0] == 0


def test_more_epochs_choose_more_augmentation() -> None:
    few, reasons = applied(flops=6.48e13, epochs=10.2)
    many, _ = applied(epochs=60)
    assert few.augment.cutout < many.augment.cutout and few.augment.crop <= many.augment.crop
    assert reasons == [
        "6.5e13 FLOPs → 96 wide, 4 layers",
        dial.describe_strengths(10.2, dial.strengths_at(few, 1020, 100, 32, dial.STRENGTHS)),
    ]
    assert applied(epochs=60, size=64)[0].augment.cutout == 2 * many.augment.cutout


def test_strengths_in_words() -> None:
    strengths = {
        "optimizer.weight_decay": 0.3,
        "augment.crop": 2,
        "augment.cutout": 0,
        "augment.mixup": 0.1234,
    }
    assert dial.describe_strengths(10.24, strengths) == (
        "10.2 epochs → augmentation: crop 2, mixup 0.123; weight_decay 0.3"
    )
    assert dial.describe_strengths(1, {"augment.cutout": 0, "augment.mixup": 0.0}) == (
        "1.0 epochs → augmentation: cutout 0, mixup 0"
    )
    assert dial.describe_strengths(1, {"augment.cutout": 0, "optimizer.weight_decay": 1.0}) == (
        "1.0 epochs → weight_decay 1"
    )
    assert dial.describe_strengths(1, {}) == ""


def test_data_show_names_the_augmentation_that_it_draws(
    tmp_path: Path, arrays: Arrays, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*(f"{key}={value}" for key, value in tiny["overrides"].items()), "crop=3"]
    api.show(arrays, overrides=overrides, epochs=1, out=tmp_path / "a.png")
    assert capsys.readouterr().out.splitlines()[-1] == (
        "augmentation: crop 3, flip alternating, as in a training of 1 epoch"
    )


def test_a_line_is_straight_in_the_doublings_of_epochs() -> None:
    line = dial.Line((8, 32), (0.25, 0.75))
    assert [line.at(epochs) for epochs in (0, 1, 8, 16, 32, 1e6)] == [0.25, 0.25, 0.25, 0.5, 0.75, 0.75]


@pytest.mark.parametrize("side", [28, 32, 64, 96])
@pytest.mark.parametrize("key", dial.STRENGTHS)
def test_no_strength_has_a_cliff(key: str, side: int) -> None:
    """One percent more epochs never change a strength by more than a pixel or 0.02."""
    recipe = recipes.load("default")
    lengths = [round(1000 * 1.01**i) for i in range(-200, 1000)]  # steps, 1,000 to an epoch
    values = [dial.strengths_at(recipe, steps, 1000, side, [key])[key] for steps in lengths]
    changes = [abs(after - before) for before, after in pairwise(values)]
    assert max(changes) <= (1 if dial.STRENGTHS[key].unit == "side" else 0.02)
    assert max(changes) > 0


def test_every_strength_is_a_value_that_its_key_may_have_and_that_training_follows() -> None:
    followed = ("augment.", "training.label_smoothing", "optimizer.weight_decay")
    for key in dial.STRENGTHS:
        assert key.startswith(followed)
    for epochs, side in ((0.1, 16), (1e6, 28), (20, 512)):
        applied(epochs=epochs, size=side)  # refuses what a person may not set either


def test_large_images_get_the_largest_strengths_that_are_allowed() -> None:
    augment = applied(epochs=60, size=1024)[0].augment
    assert (augment.crop, augment.cutout) == (64, 256)  # the law says 128 and 256
    assert applied(epochs=60, size=4096)[0].augment.cutout == 512


def test_a_small_learning_rate_gets_the_largest_weight_decay_that_is_allowed() -> None:
    assert applied({"learning_rate": 1e-4}, epochs=0.1)[0].optimizer.weight_decay == 10


@pytest.mark.parametrize("pinned", [{"cutmix": 1.0}, {"mixup": 0.6}, {"cutmix": 0.9}])
def test_a_chosen_mixing_leaves_room_for_the_one_that_a_person_set(pinned: dict[str, float]) -> None:
    """Mixup and cutmix are probabilities of an image, so they are at most 1 together."""
    ((key, value),) = pinned.items()
    other = {"cutmix": "mixup", "mixup": "cutmix"}[key]
    law = getattr(applied(epochs=50)[0].augment, other)
    augment = applied(pinned, epochs=50)[0].augment
    assert value + law > 1  # the law alone is refused
    assert getattr(augment, key) == value
    assert getattr(augment, other) == pytest.approx(1 - value)
    assert augment.mixup + augment.cutmix <= 1
    Augment(mixup=augment.mixup, cutmix=augment.cutmix, fill=(0, 0, 0), seed=0)  # raises above 1


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"muon_learning_rate": 5e-4},
        {"learning_rate": 0.05, "muon_learning_rate": 0.02},
        {"learning_rate": 1e-3},
    ],
)
def test_no_weight_loses_more_than_the_law_says(own: dict[str, float]) -> None:
    """Muon's weights and AdamW's have the same decay, each times its own learning rate."""
    optimizer = applied(own, epochs=40)[0].optimizer
    rates = (optimizer.muon_learning_rate, optimizer.learning_rate)
    steps = 40 * 100  # at half of the peak on average
    losses = [optimizer.weight_decay * rate * steps / 2 for rate in rates]
    assert max(losses) == pytest.approx(dial.STRENGTHS["optimizer.weight_decay"].at(40), rel=1e-3)


def test_adamw_keeps_the_weight_decay_of_its_recipe() -> None:
    for decay in ({}, {"weight_decay": 0.05}):
        recipe, reasons = applied({"optimizer.name": "adamw", **decay}, epochs=100)
        assert recipe.optimizer.weight_decay == decay.get("weight_decay", 0)
        assert "weight_decay" not in reasons[1] and recipe.augment.mixup > 0


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
    recipe = dial.apply_strengths(sized, dial.strengths_at(sized, 6000, 100, 32, dial.strength_keys(sized)))
    assert (recipe.model.depth, recipe.augment.crop) == (6, 3)
    assert recipe.augment.cutout > 0  # which it does not name


def test_another_stem_still_gets_its_size() -> None:
    recipe, _ = applied({"stem": "linear", "stem_dims": ()}, flops=1e18)
    assert recipe.model == dataclasses.replace(applied(flops=1e18)[0].model, stem="linear", stem_dims=())


def test_a_recipe_without_a_dial_is_left_alone() -> None:
    recipe = recipes.load("notebook-cifar10")
    assert dial.apply_size(recipe, lambda architecture: 1e20) == (recipe, "")
    assert dial.strength_keys(recipe) == ()


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
    assert re.search(r"dial: \S+ epochs → augmentation: crop 1\b", log)  # 2 of 32 pixels
    assert not run.recipe.dial


@pytest.fixture
def law(monkeypatch: pytest.MonkeyPatch) -> None:
    """A law with a key of each kind that may follow the epochs, steep where the tests' runs are."""
    ends = (2, 40)
    lines = {
        "augment.crop": dial.Line(ends, (0, 0.25), "side"),
        "augment.mixup": dial.Line(ends, (0.0, 0.9)),
        "optimizer.weight_decay": dial.Line(ends, (0.0, 5.0)),
        "training.label_smoothing": dial.Line(ends, (0.0, 0.5)),
    }
    monkeypatch.setattr(dial, "STRENGTHS", lines)


@pytest.fixture
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A made-up clock on which a step takes 50 ms, as forecast, and four times as long from step 20 on."""
    now = [1000.0]
    step = Classifier.training_step

    def slow_step(self: Classifier, batch: Any, index: int) -> torch.Tensor:
        now[0] += 0.05 if self.global_step < 20 else 0.2
        return step(self, batch, index)

    def forecast(cost: RunCost, *_: Any, **__: Any) -> RunCost:
        parts = ((until, dataclasses.replace(part, seconds=0.05)) for until, part in cost.parts)
        return RunCost(tuple(parts))

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Classifier, "training_step", slow_step)
    monkeypatch.setattr(plan, "measure_seconds", forecast)
    monkeypatch.setattr(budget, "REPORT_SECONDS", 0.0)
    return now


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What each training step was really given: epochs forecast, crop, mixup, weight decay, smoothing."""
    seen = []
    start = Classifier.on_train_batch_start

    def watched(self: Any, batch: Any, index: int) -> None:
        start(self, batch, index)
        augment = cast("Any", self.trainer).datamodule.augment
        decays = {group["weight_decay"] for group in cast("Any", self.optimizers()).param_groups}
        smoothing = self.recipe.training.label_smoothing
        assert self.timeline is not None
        seen.append((self.timeline.total / 15, augment.crop, augment.mixup, *decays, smoothing))

    monkeypatch.setattr(Classifier, "on_train_batch_start", watched)
    return seen


def same_weights(one: vitreous.Run, other: vitreous.Run) -> bool:
    files = [(run.path / "bundle" / "model.safetensors").read_bytes() for run in (one, other)]
    return files[0] == files[1]


@pytest.mark.usefixtures("law", "slow_machine")
def test_strengths_follow_the_epochs_that_are_really_made(
    arrays: Arrays, tiny: dict[str, Any], used: list[tuple[Any, ...]], tmp_path: Path, capsys: Any
) -> None:
    tiny["overrides"].update(cutout=3)
    run = vitreous.train(arrays, minutes=0.5, out=tmp_path / "run", **tiny)
    made, planned = run.summary["epochs"], run.summary["planned_epochs"]
    assert made < 0.4 * planned
    for epochs, *values in used:
        law = dial.strengths_at(run.recipe, round(15 * epochs), 15, 16, dial.STRENGTHS)
        assert values == list(law.values())
    assert used[0][1:] > used[-1][1:]
    assert used[-1][0] == pytest.approx(made, rel=0.05)

    # The run folder holds the values that the run ended with, and those of each fit.
    final = run.recipe
    assert final.augment.cutout == 3
    assert used[-1][1:] == (
        final.augment.crop,
        final.augment.mixup,
        final.optimizer.weight_decay,
        final.training.label_smoothing,
    )
    fits, record = run.resolved["timeline"]["fits"], run.resolved["dial"]
    assert len(fits) == len(record["augment.mixup"]) > 1 and "augment.cutout" not in record
    sentence = f"The machine was slower than forecast: {made:.1f} epochs instead of {planned:.1f}."
    assert sentence in capsys.readouterr().out
    assert sentence in (run.path / "report.html").read_text()

    # A repeat uses the record, and nothing else.
    steps = list(used)
    used.clear()
    dial.STRENGTHS.clear()
    again = vitreous.repeat(run.path, arrays, out=tmp_path / "again")
    assert used == steps
    assert same_weights(run, again) and again.resolved["exact"]
    assert "than forecast" not in capsys.readouterr().out  # it made no forecast
    assert "than forecast" not in (again.path / "report.html").read_text()
    assert again.resolved["dial"] == record and again.recipe == run.recipe

    # A training with the run's own recipe has the values that the run ended with.
    used.clear()
    del tiny["overrides"]
    vitreous.train(arrays, str(run.path / "recipe.toml"), steps=2, out=tmp_path / "own", **tiny)
    assert [values[1:] for values in used] == 2 * [steps[-1][1:]]


def test_a_run_without_a_record_of_the_dial_is_repeated(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Earlier versions wrote none; their augmentation was the same in the whole run."""
    run = vitreous.train(arrays, steps=3, out=tmp_path / "run", **tiny)
    tables = run.tables
    assert tables["resolved"].pop("dial").keys() == dial.STRENGTHS.keys()
    (run.path / "recipe.toml").write_text(recipes.dump(tables))
    again = vitreous.repeat(run.path, arrays, out=tmp_path / "again")
    assert same_weights(run, again) and again.recipe == run.recipe and again.resolved["dial"] == {}


def test_a_damaged_record_of_the_dial_is_refused(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path
) -> None:
    run = vitreous.train(arrays, steps=3, out=tmp_path / "run", **tiny)
    text = (run.path / "recipe.toml").read_text()
    for value, message in (
        ("[2, 2]", "dial.augment.crop must be a list of 1 value"),
        ("[-2]", "augment.crop"),
    ):
        damaged = re.sub(r'^"augment.crop" = .*$', f'"augment.crop" = {value}', text, flags=re.MULTILINE)
        assert damaged != text
        (run.path / "recipe.toml").write_text(damaged)
        with pytest.raises(VitreousError, match=re.escape(message)):
            vitreous.repeat(run.path, arrays, out=tmp_path / "again")


@pytest.mark.usefixtures("law", "slow_machine")
def test_a_run_resumed_in_the_middle_keeps_the_strengths_of_its_last_fit(
    arrays: Arrays,
    tiny: dict[str, Any],
    used: list[tuple[Any, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kill(self: CheckpointKeeper, trainer: pl.Trainer, *args: Any) -> None:
        self.save(trainer)
        if trainer.global_step == 60:
            raise MemoryError("killed")

    with monkeypatch.context() as patch, pytest.raises(MemoryError, match="killed"):
        patch.setattr(CheckpointKeeper, "on_train_batch_end", kill)
        vitreous.train(arrays, minutes=0.5, out=tmp_path / "run", **tiny)
    assert used[0][1:] > used[-1][1:]
    run = vitreous.resume(tmp_path / "run", arrays)
    steps = list(used)
    assert steps[60:] and set(steps[60:]) == {steps[59]}
    used.clear()
    again = vitreous.repeat(run.path, arrays, out=tmp_path / "again")
    assert used == steps and same_weights(run, again)


@pytest.mark.usefixtures("law")
@pytest.mark.parametrize("budget", [{"epochs": 6}, {"minutes": 0.5}])
def test_a_run_resumed_without_a_checkpoint_has_its_recorded_strengths(
    budget: dict[str, Any],
    arrays: Arrays,
    tiny: dict[str, Any],
    used: list[tuple[Any, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Another version of vitreous may have another law."""
    if "minutes" in budget:
        request.getfixturevalue("slow_machine")

    def kill(self: CheckpointKeeper, trainer: pl.Trainer, *args: Any) -> None:
        raise MemoryError("killed")

    with monkeypatch.context() as patch, pytest.raises(MemoryError, match="killed"):
        patch.setattr(CheckpointKeeper, "on_train_batch_end", kill)
        vitreous.train(arrays, out=tmp_path / "run", **budget, **tiny)
    (first,) = used
    used.clear()
    assert first[2] > 0  # mixup
    other = {key: line._replace(strength=(0, line.strength[1] / 2)) for key, line in dial.STRENGTHS.items()}
    monkeypatch.setattr(dial, "STRENGTHS", other)
    run = vitreous.resume(tmp_path / "run", arrays)
    assert used[0] == first
    values = [record[0] for record in run.resolved["dial"].values()]
    assert values == list(first[1:])
    if "minutes" in budget:  # after a fit of another length, the law
        assert used[-1] != first and len(run.resolved["timeline"]["fits"]) > 1
    else:
        assert set(used) == {first}


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
