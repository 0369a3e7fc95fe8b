"""The training, validation and test split of a run, cut from what a data set has."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitreous.data.store import ImageStore, Split
from vitreous.errors import VitreousError
from vitreous.wording import count


@dataclass(frozen=True)
class Splits:
    """The splits of a run: `train` to train on, `val` to choose on, `test` to be judged on.

    `notes` say in sentences what was cut from what. `cut` names those of "val" and "test" that were cut from the
    source's training split.
    """

    train: Split
    val: Split
    test: Split
    notes: tuple[str, ...]
    seed: int
    val_fraction: float
    cut: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """The content of a run's `split.json`: seed, fraction, and the names of the images that were cut."""
        names = {split: list(getattr(self, split).names) for split in self.cut}
        return {"seed": self.seed, "val_fraction": self.val_fraction, "cut_from_train": names}

    def with_val_trained_on(self) -> Splits:
        """The same splits with the validation images added to `train`. They can no longer judge the model."""
        images, labels = (
            np.concatenate([getattr(self.train, part), getattr(self.val, part)])
            for part in ("images", "labels")
        )
        train = Split(images, labels, [*self.train.names, *self.val.names])
        return replace(self, train=train)


def resolve_splits(store: ImageStore, val_fraction: float = 0.1, seed: int = 42) -> Splits:
    """The training, validation and test split of a run.

    A split that the source lacks is cut from its training split. The cut takes `val_fraction` of each class c: the
    images with the smallest numbers in the Philox stream of key (seed, c). It takes at least one image of a class
    and leaves at least one in train, so a class of one image is only trained on. The images that are cut and those
    that remain are copied into memory. If a source has only train and val, its val serves as the test split.

    Args:
        store: the data set.
        val_fraction: above 0 and at most 0.5; below 0.5 if both val and test are cut.
        seed: any int.

    Raises:
        VitreousError: the fraction is out of range, there are too few images to cut from, or the training images
            belong to fewer than two classes.
    """
    if not isinstance(val_fraction, int | float | np.floating) or not 0 < val_fraction <= 0.5:
        raise VitreousError(
            f"val_fraction is {val_fraction!r}; give more than 0 and at most 0.5, such as 0.1."
        )
    if not isinstance(seed, int | np.integer):
        raise VitreousError(f"The seed of the split is {seed!r}; give a whole number.")
    present = np.unique(store.splits["train"].labels)
    if len(present) < 2:
        raise VitreousError(
            f"All training images of {store.name} belong to the class {store.classes[present[0]]!r}; "
            "training needs at least two classes."
        )
    splits = dict(store.splits)
    notes = []
    if "val" in splits and "test" not in splits:
        splits["test"] = splits.pop("val")
        notes.append(
            f"{store.name} has only train and val: its val ({count(len(splits['test']), 'image')}) serves as the "
            "test split, read once at the end."
        )
    cut = tuple(split for split in ("test", "val") if split not in splits)
    if len(cut) * val_fraction >= 1:
        raise VitreousError(
            f"{store.name} has neither a validation nor a test split, and cutting val_fraction {val_fraction:g} of "
            "its training images for each leaves none to train on; give less, such as 0.1."
        )
    if cut:
        train = store.splits["train"]
        splits |= _cut_from(store, cut, val_fraction, int(seed))
        for split in cut:
            if len(splits[split]) == 0:
                raise VitreousError(
                    f"{store.name} has too few images to cut a {split} split; "
                    "give at least three images of one class."
                )
            notes.append(
                f"{store.name} has no {'test' if split == 'test' else 'validation'} split: "
                f"{len(splits[split]):,} of {len(train):,} training images were cut for it (by class, seed {seed})."
            )
    return Splits(splits["train"], splits["val"], splits["test"], tuple(notes), seed, val_fraction, cut)


def _cut_from(store: ImageStore, cut: tuple[str, ...], fraction: float, seed: int) -> dict[str, Split]:
    """The splits named in `cut` and what remains of train, each in canonical order."""
    train = store.splits["train"]
    labels = np.asarray(train.labels)
    positions: dict[str, list[np.ndarray]] = {split: [] for split in ("train", *cut)}
    for label in range(store.num_classes):
        members = np.flatnonzero(labels == label)
        # Raw bits rather than a Generator's shuffle, which may change between versions of numpy.
        stream = np.random.Philox(key=np.array([seed % 2**64, label], dtype=np.uint64))
        members = members[np.argsort(stream.random_raw(len(members)), kind="stable")]
        cut_size = max(1, math.floor(len(members) * fraction + 0.5))
        for split in cut:
            taken = min(cut_size, max(0, len(members) - 1))
            positions[split].append(members[:taken])
            members = members[taken:]
        positions["train"].append(members)
    return {split: train.subset(np.sort(np.concatenate(parts))) for split, parts in positions.items()}
