"""A data set as a LightningDataModule. Batches stay uint8 until they are on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from vitreous.data.augment import Augment
from vitreous.data.loader import BatchLoader
from vitreous.data.normalize import normalize, to_float
from vitreous.data.sources import open_data
from vitreous.data.splits import Splits, resolve_splits
from vitreous.data.store import ImageStore
from vitreous.errors import VitreousError
from vitreous.preprocess import EVAL_BATCH


class ImageData(pl.LightningDataModule):
    """Training, validation and test batches of any source, for `vitreous.train` and for other Trainers.

    A batch on the device is `{"image": float [B, 3, H, W] normalised, "label": int64 [B], "index": int64
    [B], "partner": int64 [B], "epoch": int}`. Training images are augmented there. If the augmentation mixes each
    image with its partner, the batch also has `"other"`, int64 [B], the partner's label, and `"share"`, float [B]
    from 0 to 1, the weight of the image's own label.

    Args:
        source: a data set by name, a folder or zip, arrays, a Dataset of torch or Hugging Face, or an `ImageStore`; see
            `vitreous.open_data`.
        augment: applied to training batches; none by default.
        batch_size: images in a training batch; evaluation takes 500 at a time.
        drop_last: leave out the partial last batch of a training epoch.
        val_fraction, split_seed: how validation is cut if the source has none, see `resolve_splits`.
        seed: seed of the order of the training images.
        train_on_val: train on the validation images too, so that only test can judge the model.
        recorded_split: the `split.json` of an earlier run on the same data, to cut the same images as it did.
        data_dir, say, reading: see `vitreous.data.sources.open_data`; `reading` are its other arguments.

    Raises:
        VitreousError: (in `setup`) the source cannot be read, or the Trainer has several processes.
    """

    def __init__(
        self,
        source: Any = "cifar10",
        *,
        augment: Augment | None = None,
        batch_size: int = 256,
        drop_last: bool = False,
        val_fraction: float = 0.1,
        split_seed: int = 42,
        seed: int = 42,
        train_on_val: bool = False,
        recorded_split: Mapping[str, Any] | None = None,
        data_dir: Path | str | None = None,
        say: Callable[[str], None] = print,
        **reading: Any,
    ) -> None:
        super().__init__()
        self.source, self.augment, self.batch_size, self.drop_last = source, augment, batch_size, drop_last
        self.val_fraction, self.split_seed, self.seed = val_fraction, split_seed, seed
        self.train_on_val, self.recorded_split = train_on_val, recorded_split
        self.open = partial(  # unlike a lambda, it can be sent to other processes
            open_data,
            source,
            Path(data_dir) if data_dir else None,
            say=say,
            **reading,
        )
        self._store: ImageStore | None = None

    def prepare_data(self) -> None:
        """Fetches and packs the data, if that has not been done yet."""
        if self._store is None:
            self._store = self.open()

    def setup(self, stage: str | None = None) -> None:
        """Opens the data and cuts the splits, the same ones at every call."""
        if self.trainer is not None and self.trainer.world_size > 1:
            # Every process would train on all images and count that as one epoch.
            raise VitreousError(
                f"ImageData supports one process, but this Trainer has {self.trainer.world_size}; "
                "give the Trainer devices=1 and num_nodes=1."
            )
        self.prepare_data()
        if not hasattr(self, "splits"):
            splits = resolve_splits(
                self.store, self.val_fraction, self.split_seed, recorded=self.recorded_split
            )
            self.splits: Splits = splits.with_val_trained_on() if self.train_on_val else splits
            if self.augment is not None:
                self.augment = replace(self.augment, fill=self.store.mean)

    @property
    def store(self) -> ImageStore:
        """The data set, available after `setup`."""
        assert self._store is not None, "call setup() first"
        return self._store

    def train_dataloader(self) -> BatchLoader:
        return BatchLoader(
            self.splits.train, self.batch_size, seed=self.seed, shuffle=True, drop_last=self.drop_last
        )

    def val_dataloader(self) -> BatchLoader:
        return BatchLoader(self.splits.val, EVAL_BATCH)

    def test_dataloader(self) -> BatchLoader:
        return BatchLoader(self.splits.test, EVAL_BATCH)

    def predict_dataloader(self) -> BatchLoader:
        """The test split, for Lightning's `Trainer.predict`."""
        return self.test_dataloader()

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Pins a batch for a GPU: otherwise its copy would wait until the GPU has finished all earlier work."""
        if self.trainer is None or self.trainer.strategy.root_device.type != "cuda":
            return batch
        return {key: x.pin_memory() if isinstance(x, Tensor) else x for key, x in batch.items()}

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Augments (in training only) and normalises a batch on its device."""
        training = self.trainer is not None and self.trainer.training
        image: Tensor = batch["image"]
        if training and self.augment is not None:
            image = self.augment(image, batch["index"], batch["epoch"])
            if self.augment.mixes:
                partner = batch["partner"]
                image, share = self.augment.mix(image, image[partner], batch["index"], batch["epoch"])
                batch = {**batch, "other": batch["label"][partner], "share": share}
        else:
            image = to_float(image)
        return {**batch, "image": normalize(image, self.store.mean, self.store.std)}
