"""Data sets from numpy arrays and torch tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vitreous.data.store import ImageStore, RawSplit, in_memory
from vitreous.errors import VitreousError


def from_arrays(
    images: Any,
    labels: Any,
    classes: Sequence[str] | None = None,
    test: tuple[Any, Any] | None = None,
    name: str = "arrays",
) -> ImageStore:
    """Makes a data set of numpy arrays or torch tensors.

    Args:
        images: uint8 [N, H, H, 3], or [N, H, H] for grey images.
        labels: integers [N] from 0 to the number of classes - 1.
        classes: class names; a label is a position in them. Without names, each class is called by its number.
        test: (images, labels) of a test split. Without it, a run cuts its test split from `images`.
        name: what the data set is called.

    Raises:
        VitreousError: a shape, a type, a label or a class name is not as described.
    """
    if classes is not None:
        classes = _class_names(classes)
    splits = {"train": _raw_split(images, labels, "training")}
    if test is not None:
        splits["test"] = _raw_split(*test, "test")
        if splits["test"][0].shape[1:] != splits["train"][0].shape[1:]:
            raise VitreousError(
                "The test images differ in size from the training images; resize one of them."
            )
    present = np.unique(np.concatenate([labels for _, labels, _ in splits.values()]))
    if classes is None:
        classes = [str(label) for label in range(len(present))]
        gap = np.flatnonzero(present != np.arange(len(present)))
        if present[0] >= 0 and len(gap):
            raise VitreousError(
                f"The largest label is {present[-1]}, but no label is {gap[0]}; number the classes from 0 without "
                "gaps, or name them all: `open_data((images, labels), classes=[…])` gives a data set to train on."
            )
    if present[0] < 0 or present[-1] >= len(classes):
        raise VitreousError(
            f"Labels range from {present[0]} to {present[-1]}; give positions from 0 to {len(classes) - 1}."
        )
    return in_memory(name=name, classes=list(classes), splits=splits, source="arrays")


def from_pair(pair: Sequence[Any], classes: Sequence[str] | None = None) -> ImageStore:
    """Makes a data set of (images, labels), or of ((images, labels), (test images, test labels))."""
    tuples = all(isinstance(part, tuple) and len(part) == 2 for part in pair)
    if tuples and all(isinstance(part[0], list) or getattr(part[0], "ndim", 0) >= 3 for part in pair):
        (images, labels), test = pair
        return from_arrays(images, labels, classes, test)
    images, labels = pair
    return from_arrays(images, labels, classes)


def _as_numpy(array: Any, what: str) -> np.ndarray:
    try:
        if hasattr(array, "detach"):  # a torch tensor, without importing torch
            array = array.detach().cpu().numpy()
        return np.asarray(array)
    except (ValueError, TypeError, RuntimeError) as error:  # unequal shapes, or a type that numpy lacks
        raise VitreousError(
            f"The {what} cannot be read as one array ({error}); give a numpy array, or a list of equal shapes."
        ) from error


def _raw_split(images: Any, labels: Any, what: str) -> RawSplit:
    images = _as_numpy(images, f"{what} images")
    labels = _as_numpy(labels, f"{what} labels")
    if images.dtype != np.uint8:
        raise VitreousError(
            f"The {what} images have the type {images.dtype}; give uint8 from 0 to 255 "
            "(for floats from 0 to 1: `(images * 255).round()` as uint8)."
        )
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)  # grey: [N, H, W] -> [N, H, W, 3]
    if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] != images.shape[2] or 0 in images.shape:
        channels_first = images.ndim == 4 and images.shape[1] == 3
        hint = ", channels last (`images.transpose(0, 2, 3, 1)`)" if channels_first else ""
        raise VitreousError(
            f"The {what} images have the shape {list(images.shape)}; "
            f"give square images as [N, H, H, 3]{hint}, or grey ones as [N, H, H]."
        )
    if labels.dtype.kind not in "iu":
        raise VitreousError(f"The {what} labels have the type {labels.dtype}; give one integer per image.")
    if labels.shape != (len(images),):
        raise VitreousError(
            f"The {what} labels have the shape {list(labels.shape)}; "
            f"give a list of {len(images):,} integers, one per image."
        )
    return images, labels.astype(np.int64), [f"array:{i}" for i in range(len(images))]


def _class_names(classes: Sequence[str]) -> list[str]:
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise VitreousError(f"The class names are {classes!r}; give a list of names.")
    names = list(classes)
    for name in names:
        # A lone surrogate comes from a file name in another encoding. It cannot be written to any file.
        if not isinstance(name, str) or not name or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise VitreousError(f"The class name {name!r} is not valid text; give each class a name.")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise VitreousError(f"Two classes have the name {repeated[0]!r}; give each class its own name.")
    return [str(name) for name in names]
