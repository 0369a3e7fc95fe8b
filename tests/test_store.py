"""What identifies a data set: canonical order, statistics and fingerprint, whatever the order of the source."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sample_data import CLASSES, raw_split, shuffled, toy_store
from vitreous.data.normalize import normalize, to_float
from vitreous.data.store import RawSplit, in_memory


@pytest.fixture
def splits() -> dict[str, RawSplit]:
    return {"train": raw_split([9, 4, 7]), "test": raw_split([3, 2, 1], seed=1)}


def test_order_is_by_class_and_each_image_keeps_label_and_name(splits: dict[str, RawSplit]) -> None:
    images, labels, names = splits["train"]
    train = toy_store(**splits).splits["train"]
    assert train.labels.tolist() == sorted(labels.tolist())
    assert train.labels.dtype == np.int64

    def by_name(*arrays: Any) -> dict[str, tuple[bytes, int]]:
        return {name: (image.tobytes(), label) for image, label, name in zip(*arrays, strict=True)}

    assert by_name(train.images, train.labels, train.names) == by_name(images, labels, names)


def test_the_order_of_the_source_does_not_matter(splits: dict[str, RawSplit]) -> None:
    images, labels, _ = splits["train"]
    images[1], labels[1] = images[0], labels[0]  # equal images: their names decide
    stores = [toy_store(**{split: shuffled(raw, seed) for split, raw in splits.items()}) for seed in (1, 2)]
    for split in splits:
        one, other = (store.splits[split] for store in stores)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert one.names == other.names
    assert stores[0].fingerprint == stores[1].fingerprint
    assert (stores[0].mean, stores[0].std) == (stores[1].mean, stores[1].std)


def test_fingerprint_depends_on_pixels_labels_classes_and_splits_and_on_nothing_else(
    splits: dict[str, RawSplit],
) -> None:
    def fingerprint(classes: tuple[str, ...] = CLASSES, **changed: RawSplit) -> str:
        return in_memory(name="n", classes=classes, splits=splits | changed, source="s").fingerprint

    images, labels, names = splits["test"]
    pixel, label = images.copy(), labels.copy()
    pixel[0, 0, 0, 0] ^= 1
    label[0] = (label[0] + 1) % 3
    different = [
        fingerprint(),
        fingerprint(test=(pixel, labels, names)),
        fingerprint(test=(images, label, names)),
        fingerprint(("ant", "bee", "dog")),
        fingerprint(val=splits["test"]),
    ]
    assert len(set(different)) == len(different)
    assert fingerprint(test=(images, labels, ["other"] * len(labels))) == different[0]
    renamed = in_memory(name="other", classes=CLASSES, splits=splits, source="elsewhere")
    assert renamed.fingerprint == different[0]


def test_mean_and_std_are_those_of_the_training_split_in_units_of_one(splits: dict[str, RawSplit]) -> None:
    store = toy_store(**splits)
    pixels = splits["train"][0].reshape(-1, 3) / 255.0
    np.testing.assert_allclose(store.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(store.std, pixels.std(axis=0), rtol=1e-12)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (17, 128, 254)])
def test_a_constant_channel_can_be_normalised(colour: tuple[int, ...]) -> None:
    images, labels, names = raw_split([9, 4, 7])
    images[..., 0] = colour[0]
    uniform = np.zeros_like(images) + np.array(colour, np.uint8)
    for train in (images, uniform):
        store = toy_store(train=(train, labels, names))
        x = normalize(to_float(torch.from_numpy(store.splits["train"].images)), store.mean, store.std)
        assert x.isfinite().all() and x[:, 0].abs().max() < 1e-4
        other = normalize(to_float(torch.from_numpy(255 - train)), store.mean, store.std)
        assert other.abs().max() <= 256  # images outside the training range stay in bounds


def test_an_importers_mistakes_are_value_errors(splits: dict[str, RawSplit]) -> None:
    images, labels, names = splits["train"]
    mistakes: list[dict[str, RawSplit]] = [
        {"test": splits["test"]},
        {"train": splits["train"], "extra": splits["test"]},
        {"train": (images.astype(np.float32), labels, names)},
        {"train": (images[:, :5], labels, names)},
        {"train": (images, labels[1:], names)},
        {"train": (images, labels + 1, names)},
        {"train": (images[:0], labels[:0], [])},
    ]
    for wrong in mistakes:
        with pytest.raises(ValueError):
            toy_store(**wrong)
