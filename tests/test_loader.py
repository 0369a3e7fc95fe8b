"""The order of batches: a function of (seed, epoch), resumed exactly, by hand and by Lightning."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from vitreous.data.loader import BatchLoader, epoch_order
from vitreous.data.store import Split
from vitreous.errors import VitreousError


def make_split(count: int, size: int = 4) -> Split:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return Split(images, np.arange(count, dtype=np.int64) % 3, [f"array:{i}" for i in range(count)])


def indices(loader: BatchLoader) -> list[list[int]]:
    return [batch["index"].tolist() for batch in loader]


def test_a_batch_holds_the_images_that_its_index_names(tmp_path: Path) -> None:
    split = make_split(10)
    np.save(tmp_path / "images.npy", split.images)
    mapped = Split(np.load(tmp_path / "images.npy", mmap_mode="r"), split.labels, split.names)
    seen = 0
    for batch in BatchLoader(mapped, 4, seed=3, shuffle=True):
        assert batch["image"].dtype == torch.uint8 and batch["label"].dtype == torch.int64
        assert batch["image"].is_contiguous() and batch["epoch"] == 0
        for image, label, i in zip(batch["image"], batch["label"], batch["index"].tolist(), strict=True):
            assert np.array_equal(image.numpy(), split.images[i]) and label == split.labels[i]
            seen += 1
        batch["image"].zero_()  # a batch is a copy: this must neither fail nor reach the file
    assert seen == 10
    assert np.array_equal(np.load(tmp_path / "images.npy"), split.images)


def test_the_partner_of_each_image_is_the_one_before_it() -> None:
    for batch in BatchLoader(make_split(10), 4, seed=3, shuffle=True):
        order, partner = batch["index"].tolist(), batch["partner"]
        assert partner.dtype == torch.int64
        assert [order[p] for p in partner] == [order[-1], *order[:-1]]
    assert len(order) == 2  # the partial batch, too


def test_every_epoch_is_another_permutation_of_everything() -> None:
    loader = BatchLoader(make_split(50), 8, seed=1, shuffle=True)
    epochs = [list(itertools.chain(*indices(loader))) for _ in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert loader.epoch == 4
    # Depends on the seed and the epoch only, and not on the batch size or on what was drawn before.
    again = BatchLoader(make_split(50), 7, seed=1, shuffle=True)
    again.set_epoch(2)
    assert list(itertools.chain(*indices(again))) == epochs[2]
    assert list(itertools.chain(*indices(BatchLoader(make_split(50), 8, seed=2, shuffle=True)))) != epochs[0]


def test_the_order_is_fair_and_fixed() -> None:
    # Over 4000 epochs each of the 8 images is expected first 500 times.
    first = np.bincount([epoch_order(8, seed=5, epoch=e)[0] for e in range(4000)], minlength=8)
    assert ((first - 500) ** 2 / 500).sum() < 24.3  # chi-square, 7 degrees of freedom, p = 0.001
    # A golden value: an old run must keep its order.
    assert epoch_order(8, seed=42, epoch=1).tolist() == [4, 5, 3, 0, 2, 7, 1, 6]
    assert epoch_order(8, seed=np.int64(42), epoch=1).tolist() == [4, 5, 3, 0, 2, 7, 1, 6]  # type: ignore[arg-type]
    assert epoch_order(5, seed=-1, epoch=0).tolist() == epoch_order(5, seed=2**64 - 1, epoch=0).tolist()


def test_without_shuffle_the_order_is_the_splits_own() -> None:
    loader = BatchLoader(make_split(5), 2)
    assert indices(loader) == indices(loader) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("count", "drop_last", "sizes"),
    [(8, False, [4, 4]), (9, False, [4, 4, 1]), (9, True, [4, 4]), (8, True, [4, 4]), (3, True, [3])],
)
def test_batch_sizes(count: int, drop_last: bool, sizes: list[int]) -> None:
    loader = BatchLoader(make_split(count), 4, shuffle=True, drop_last=drop_last)
    assert [len(batch["index"]) for batch in loader] == sizes
    assert len(loader) == len(sizes)


def test_wrong_arguments_are_refused() -> None:
    empty = Split(np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, np.int64), [])
    with pytest.raises(VitreousError, match="no images"):
        BatchLoader(empty, 4)
    for size in (0, -1, 2.5, float("inf")):
        with pytest.raises(VitreousError, match=f"batch size is {size}; it must be a whole number"):
            BatchLoader(make_split(4), size)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        epoch_order(5, seed=1.5, epoch=0)  # type: ignore[arg-type]
    with pytest.raises(VitreousError, match="after 3 batches"):
        BatchLoader(make_split(4), 2).load_state_dict({"epoch": 0, "batch": 3})


@pytest.mark.parametrize("stop", range(10))
def test_a_loaded_state_continues_exactly_there(stop: int) -> None:
    def take(loader: BatchLoader, count: int) -> list[tuple[int, list[int]]]:
        # Like Lightning, never ask an iterator for more than `len` batches.
        taken: list[tuple[int, list[int]]] = []
        while len(taken) < count:
            left = len(loader) - loader.state_dict()["batch"]
            batches = itertools.islice(iter(loader), min(left, count - len(taken)))
            taken += [(batch["epoch"], batch["index"].tolist()) for batch in batches]
        return taken

    whole = take(BatchLoader(make_split(10), 3, seed=7, shuffle=True), 12)  # three epochs of four
    assert [epoch for epoch, _ in whole] == [0] * 4 + [1] * 4 + [2] * 4
    before = BatchLoader(make_split(10), 3, seed=7, shuffle=True)
    head = take(before, stop)
    assert before.state_dict() == {"epoch": stop // 4, "batch": stop % 4}
    after = BatchLoader(make_split(10), 3, seed=7, shuffle=True)
    after.load_state_dict(before.state_dict())
    assert len(after) == 4
    assert head + take(after, 12 - stop) == whole


def test_an_iteration_that_is_left_early_does_not_count() -> None:
    loader = BatchLoader(make_split(10), 3, shuffle=True)
    iter(loader)  # never asked for a batch
    peeked = next(iter(loader))["index"].tolist()
    assert loader.state_dict() == {"epoch": 0, "batch": 1}
    epoch = indices(loader)
    assert epoch[0] == peeked and len(epoch) == 4
    assert loader.state_dict() == {"epoch": 1, "batch": 0}


class Recorder(pl.LightningModule):
    """Records its training batches, and saves a checkpoint at a given step and hook."""

    def __init__(self, save: Path | None = None, step: int = 0, hook: str = "") -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[int]]] = []
        self.save, self.step, self.hook = save, step, hook

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        self.seen.append((batch["epoch"], batch["index"].tolist()))
        return self.weight * 1.0

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        assert batch["index"][0] == 2 * batch_idx  # validation is always read from the beginning

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def maybe_save(self, hook: str) -> None:
        if self.save is not None and hook == self.hook and self.global_step == self.step:
            self.trainer.save_checkpoint(self.save)
            self.save = None
            raise KeyboardInterrupt

    def on_train_batch_end(self, *args: object) -> None:
        self.maybe_save("on_train_batch_end")

    def on_validation_end(self) -> None:
        self.maybe_save("on_validation_end")

    def on_train_epoch_end(self) -> None:
        self.maybe_save("on_train_epoch_end")


def fit(module: Recorder, path: Path, checkpoint: Path | None = None, **limits: Any) -> None:
    """Three epochs of four batches unless limited otherwise."""
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
        **{"max_epochs": 3, **limits},
    )
    train = BatchLoader(make_split(10), 3, seed=7, shuffle=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trainer.fit(
                module, train, BatchLoader(make_split(10), 2), ckpt_path=checkpoint, weights_only=True
            )
        except SystemExit:  # what Lightning makes of the interrupt
            assert module.save is None


@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_steps": 12, "max_epochs": -1}])
@pytest.mark.parametrize(
    ("step", "hook"),
    [
        (2, "on_train_batch_end"),
        (4, "on_train_batch_end"),  # after the last batch of the first epoch
        (4, "on_validation_end"),
        (4, "on_train_epoch_end"),
        (7, "on_train_batch_end"),
        (8, "on_train_batch_end"),
        (8, "on_train_epoch_end"),
    ],
)
def test_a_lightning_run_that_was_interrupted_sees_the_same_batches(
    tmp_path: Path, step: int, hook: str, limits: dict[str, Any]
) -> None:
    whole = Recorder()
    fit(whole, tmp_path, **limits)
    assert [epoch for epoch, _ in whole.seen] == [0] * 4 + [1] * 4 + [2] * 4

    first = Recorder(tmp_path / "saved.ckpt", step, hook)
    fit(first, tmp_path, **limits)
    assert len(first.seen) == step
    second = Recorder()
    fit(second, tmp_path, tmp_path / "saved.ckpt", **limits)
    assert first.seen + second.seen == whole.seen


def test_lightnings_limit_on_batches_still_moves_through_the_epochs(tmp_path: Path) -> None:
    module = Recorder()
    fit(module, tmp_path, limit_train_batches=2)
    assert [epoch for epoch, _ in module.seen] == [0, 0, 1, 1, 2, 2]
    whole = Recorder()
    fit(whole, tmp_path)
    assert module.seen == [whole.seen[i] for i in (0, 1, 4, 5, 8, 9)]


def test_a_lightning_run_that_ended_inside_an_epoch_can_be_extended(tmp_path: Path) -> None:
    whole = Recorder()
    fit(whole, tmp_path, max_epochs=-1, max_steps=12)
    first = Recorder(tmp_path / "saved.ckpt", 6, "on_train_epoch_end")
    fit(first, tmp_path, max_epochs=-1, max_steps=6)
    second = Recorder()
    fit(second, tmp_path, tmp_path / "saved.ckpt", max_epochs=-1, max_steps=12)
    assert first.seen + second.seen == whole.seen
