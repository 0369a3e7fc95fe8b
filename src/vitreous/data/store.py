"""The one form that a data set takes at run time, whatever it came from.

Letters: N images, H image_size (height and width), 3 channels red, green, blue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitreous.data.identity import ChannelStatistics, Fingerprint, canonical_order, chunks
from vitreous.preprocess import Preprocess

SPLIT_NAMES = ("train", "val", "test")

# What an importer hands over for one split: images uint8 [N, H, H, 3], labels int [N], names [N].
RawSplit = tuple[np.ndarray, np.ndarray, Sequence[str]]


@dataclass(frozen=True)
class Split:
    """Images with their labels: `images` uint8 [N, H, H, 3], `labels` int64 [N], `names` [N].

    A name identifies an image in its source: "train/cat/001.png", "train:17", "array:3". Images with the same text
    in `groups` [N] stay on one side of every cut. None means that each is on its own.
    """

    images: np.ndarray
    labels: np.ndarray
    names: Sequence[str]
    groups: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: np.ndarray) -> Split:
        """The images at `index` int64 [M], copied into memory."""
        groups = None if self.groups is None else [self.groups[i] for i in index]
        return Split(
            self.images[index], np.asarray(self.labels[index]), [self.names[i] for i in index], groups
        )


@dataclass(frozen=True)
class ImageStore:
    """A data set in canonical order.

    Attributes:
        name: what the data set is called.
        classes: class names; a label is a position in them.
        splits: always has "train", and has "val" and "test" if the source does.
        mean, std: channel statistics of the source's training split before validation is cut from it, in units of
            0 to 1. `std` is at least 1/255, one step of a pixel value, because images are divided by it even if a
            channel is constant.
        fingerprint: SHA-256 of classes, labels and pixels, whatever the source.
        source: where the images came from, for a person to read.
        preprocess: the settings by which its images were converted, and by which others are to be converted.
        notes: sentences about what was guessed or passed over when the images were read.
        path: the folder of the packed arrays, or None for a data set in memory.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str
    source: str
    preprocess: Preprocess
    notes: tuple[str, ...] = ()
    path: Path | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """Height and width of every image, in pixels."""
        return int(self.splits["train"].images.shape[1])


def in_memory(
    *,
    name: str,
    classes: Sequence[str],
    splits: Mapping[str, RawSplit],
    source: str,
    groups: Mapping[str, Sequence[str]] | None = None,
    preprocess: Preprocess | None = None,
    notes: Sequence[str] = (),
) -> ImageStore:
    """Puts decoded images into canonical order, in memory; the arguments are those of `packed.pack`."""
    raw_splits = validated(splits, classes)
    fingerprint = Fingerprint(classes, {split: images.shape for split, (images, _, _) in raw_splits.items()})
    statistics = ChannelStatistics()
    ordered = {}
    for split, (images, labels, names) in raw_splits.items():
        order = canonical_order(images, labels, names)
        ordered[split] = Split(images, labels, names, None if groups is None else groups[split]).subset(order)
        fingerprint.add(ordered[split].labels)
        for chunk in chunks(ordered[split].images):
            fingerprint.add(chunk)
            if split == "train":
                statistics.add(chunk)
    return ImageStore(
        name=name,
        classes=tuple(classes),
        splits=ordered,
        mean=statistics.mean(),
        std=statistics.std(),
        fingerprint=fingerprint.hexdigest(),
        source=source,
        preprocess=preprocess or Preprocess(int(raw_splits["train"][0].shape[1])),
        notes=tuple(notes),
    )


def validated(splits: Mapping[str, RawSplit], classes: Sequence[str]) -> dict[str, RawSplit]:
    """The splits in the order of `SPLIT_NAMES`, with labels as little-endian int64.

    Raises:
        ValueError: an importer handed over splits, shapes, types or labels that do not fit together.
    """
    if "train" not in splits or not set(splits) <= set(SPLIT_NAMES):
        raise ValueError(f"splits must be train and optionally val and test, not {sorted(splits)}")
    size = splits["train"][0].shape[1]
    ordered = {}
    for split in SPLIT_NAMES:
        if split not in splits:
            continue
        images, labels, names = splits[split]
        labels = np.asarray(labels).astype("<i8")
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"{split}: images are {images.dtype} {images.shape}, not uint8 [N, {size}, {size}, 3]"
            )
        if not len(images) == len(labels) == len(names) or len(images) == 0:
            raise ValueError(f"{split}: {len(images)} images, {len(labels)} labels, {len(names)} names")
        if labels.min() < 0 or labels.max() >= len(classes):
            raise ValueError(
                f"{split}: labels range from {labels.min()} to {labels.max()}, "
                f"but there are {len(classes)} classes"
            )
        ordered[split] = (images, labels, names)
    return ordered
