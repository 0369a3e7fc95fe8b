"""Data sets from arrays in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sample_data import raw_split
from vitreous.data.arrays import from_arrays
from vitreous.errors import VitreousError


def test_from_arrays_accepts_numpy_torch_and_grey() -> None:
    images, labels, _ = raw_split([5, 4, 3])
    store = from_arrays(images, labels, classes=["x", "y", "z"], test=(images[:4], labels[:4]), name="mine")
    assert (store.name, store.classes, store.path, store.image_size) == ("mine", ("x", "y", "z"), None, 6)
    names = store.splits["train"].names
    for image, name in zip(store.splits["train"].images, names, strict=True):
        np.testing.assert_array_equal(image, images[int(name.removeprefix("array:"))])
    assert len(store.splits["test"]) == 4
    tensors = from_arrays(torch.from_numpy(images), torch.from_numpy(labels), classes=["x", "y", "z"])
    assert tensors.classes == store.classes
    np.testing.assert_array_equal(tensors.splits["train"].images, store.splits["train"].images)
    grey = from_arrays(images[..., 0], labels.tolist())
    assert grey.classes == ("0", "1", "2")
    assert (grey.splits["train"].images == grey.splits["train"].images[..., :1]).all()


def test_from_arrays_keeps_the_meaning_of_labels_past_ten() -> None:
    images, labels, _ = raw_split([1] * 12)
    store = from_arrays(images, labels)
    assert store.classes[10] == "10"
    assert store.splits["train"].labels.tolist() == list(range(12))


def test_wrong_arrays_are_refused_with_the_reason() -> None:
    images, labels, _ = raw_split([5, 4, 3])
    wrong: list[tuple[tuple[Any, ...], str]] = [
        ((images / 255.0, labels), "type float64; give uint8"),
        ((torch.from_numpy(images) / 255.0, labels), "type float32; give uint8"),
        ((images.transpose(0, 3, 1, 2), labels), r"channels last \(`images.transpose\(0, 2, 3, 1\)`\)"),
        ((images[:, :4], labels), r"\[12, 4, 6, 3\]; give square images"),
        ((images[:0], labels[:0]), r"\[0, 6, 6, 3\]"),
        (([images[0], images[1][:3]], labels[:2]), "as one array"),
        ((images, labels[:3]), r"labels have the shape \[3\]; give a list of 12 integers"),
        ((images, labels + 0.5), "labels have the type float64; give one integer per image"),
        ((images, labels - 1), "range from -1 to 1"),
        ((images, labels, ["a", "b"]), "range from 0 to 2; give positions from 0 to 1"),
        ((images, labels * 2), "no label is 1; number the classes from 0 without gaps"),
        (
            (images, labels * 10**9),
            "largest label is 2000000000, but no label is 1; number the classes from 0 without gaps",
        ),
        (
            (images, labels + 1),
            r"largest label is 3, but no label is 0; .* `open_data\(\(images, labels\), classes=",
        ),
        ((images, labels.astype(np.uint64) + np.uint64(2**63)), r"give positions from 0"),
        ((images, np.array(["a"] * 12)), "labels have the type <U1"),
        ((torch.from_numpy(images).bfloat16(), labels), r"cannot be read as one array"),
        ((images.astype(object), labels), "type object; give uint8"),
        ((images, labels, "abc"), r"class names are 'abc'; give a list"),
        ((images, labels, 3), r"class names are 3; give a list"),
        ((images, labels, ["a", "b", 3]), "class name 3 is not valid text"),
        ((images, labels, ["a", "b", "\udcff"]), "is not valid text"),
        ((images, labels, ["a", "b", ""]), "class name '' is not valid text"),
        ((images, labels, ["a", "b", "a"]), r"Two classes have the name 'a'"),
        ((images, labels, None, (images[:, :4, :4], labels)), "differ in size"),
    ]
    for arguments, text in wrong:
        with pytest.raises(VitreousError, match=text):
            from_arrays(*arguments)
