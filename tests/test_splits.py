"""The splits of a run: taken from the source, or cut from its training split by class and seed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest

from sample_data import raw_split, shuffled, toy_store
from vitreous.data.arrays import from_arrays
from vitreous.data.splits import resolve_splits
from vitreous.errors import VitreousError
from vitreous.recipe import DataSection


def test_three_splits_are_used_unchanged() -> None:
    store = toy_store(train=raw_split([9, 4, 7]), val=raw_split([2, 2, 2], 1), test=raw_split([1, 2, 3], 2))
    splits = resolve_splits(store)
    for split, part in store.splits.items():
        assert getattr(splits, split) is part
    assert splits.notes == ()
    assert splits.record() == {
        "seed": 42,
        "val_fraction": 0.1,
        "cut_from_train": {},
        "cut_positions": {},
        "fingerprint": store.fingerprint,
    }


def test_validation_is_cut_by_class_from_unequal_classes() -> None:
    store = toy_store(train=raw_split([200, 35, 7]), test=raw_split([4, 4, 4], 1))
    splits = resolve_splits(store, 0.1, seed=3)
    assert Counter(splits.val.labels.tolist()) == {0: 20, 1: 4, 2: 1}
    assert Counter(splits.train.labels.tolist()) == {0: 180, 1: 31, 2: 6}
    assert splits.test is store.splits["test"]
    assert not set(splits.train.names) & set(splits.val.names)
    source = store.splits["train"]
    for part in (splits.train, splits.val):
        places = [source.names.index(name) for name in part.names]
        assert places == sorted(places)  # still in canonical order
        np.testing.assert_array_equal(part.images, source.images[places])
        np.testing.assert_array_equal(part.labels, source.labels[places])
    assert splits.notes == (
        "toy has no validation split: 25 of 242 training images were cut for it (by class, seed 3).",
    )
    record = json.loads(json.dumps(splits.record()))
    assert record == {
        "seed": 3,
        "val_fraction": 0.1,
        "cut_from_train": {"val": list(splits.val.names)},
        "cut_positions": {"val": [source.names.index(name) for name in splits.val.names]},
        "fingerprint": store.fingerprint,
    }


def test_train_only_gives_test_and_validation() -> None:
    splits = resolve_splits(toy_store(train=raw_split([50, 20, 30])), 0.2)
    counts = [Counter(part.labels.tolist()) for part in (splits.train, splits.val, splits.test)]
    assert counts == [{0: 30, 1: 12, 2: 18}, {0: 10, 1: 4, 2: 6}, {0: 10, 1: 4, 2: 6}]
    assert len({*splits.train.names, *splits.val.names, *splits.test.names}) == 100
    assert len(splits.notes) == 2
    assert set(splits.record()["cut_from_train"]) == {"val", "test"}


def test_train_and_val_makes_val_the_test_split() -> None:
    store = toy_store(train=raw_split([50, 20, 30]), val=raw_split([2, 3, 4], 1))
    splits = resolve_splits(store)
    assert splits.test is store.splits["val"]
    assert len(splits.val) == 10
    assert splits.notes[0].startswith(
        "toy has only train and val: its val (9 images) serves as the test split"
    )
    assert len(splits.notes) == 2


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.49])
def test_no_class_of_train_is_left_empty(fraction: float) -> None:
    splits = resolve_splits(toy_store(train=raw_split([1, 2, 3])), fraction)
    assert set(splits.train.labels.tolist()) == {0, 1, 2}
    assert len(splits.train) + len(splits.val) + len(splits.test) == 6
    assert len(splits.test) >= 2
    assert len(splits.val) >= 1


def test_a_class_without_training_images_stays_out_of_the_cut() -> None:
    splits = resolve_splits(toy_store(train=raw_split([10, 0, 10]), test=raw_split([1, 1, 1])))
    assert Counter(splits.val.labels.tolist()) == {0: 1, 2: 1}


def test_the_cut_depends_on_the_seed_alone() -> None:
    raw = raw_split([50, 50, 50])
    one, same, other = (
        resolve_splits(toy_store(train=shuffled(raw, order)), seed=seed)
        for order, seed in [(0, 1), (1, 1), (0, 2)]
    )
    assert one.val.names == same.val.names
    assert one.val.names != other.val.names
    assert resolve_splits(toy_store(train=raw), seed=-1).val.names
    numpy_seed = np.int64(1)
    assert resolve_splits(toy_store(train=raw), seed=numpy_seed).val.names == one.val.names  # type: ignore[arg-type]


def test_each_class_draws_its_own_numbers() -> None:
    store = toy_store(train=raw_split([50, 50, 50]))
    names = list(store.splits["train"].names)
    cut = [names.index(name) for name in resolve_splits(store, seed=1).val.names]
    by_class = {
        tuple(position - 50 * label for position in cut if position // 50 == label) for label in range(3)
    }
    assert len(by_class) == 3


def test_the_cut_stays_the_same_in_later_versions() -> None:
    """Golden positions: the split of an old run must be found again."""
    labels = np.array([0] * 20 + [1])  # the second class has one image, so nothing of it is cut
    images = np.repeat(np.arange(21, dtype=np.uint8), 3).reshape(21, 1, 1, 3)
    store = from_arrays(images, labels)
    splits = resolve_splits(store, 0.25, seed=42)
    names = list(store.splits["train"].names)
    assert [names.index(name) for name in splits.test.names] == [1, 6, 7, 11, 12]
    assert [names.index(name) for name in splits.val.names] == [3, 4, 5, 10, 15]


def test_images_of_one_class_are_refused() -> None:
    images, _, names = raw_split([9, 4, 7])
    ones = np.ones(20, np.int64)
    for store in (
        from_arrays(images, ones - 1),
        toy_store(train=(images, ones, names), test=raw_split([3, 2, 1])),
    ):
        with pytest.raises(
            VitreousError, match=r"belong to the class '(0|bee)'; training needs at least two classes"
        ):
            resolve_splits(store)


def test_too_few_images_to_cut_from_are_refused() -> None:
    with pytest.raises(VitreousError, match="too few images to cut a test split"):
        resolve_splits(toy_store(train=raw_split([1, 1, 1])))
    with pytest.raises(VitreousError, match="too few images to cut a validation split"):
        resolve_splits(toy_store(train=raw_split([2, 2, 1])))


def test_the_range_of_val_fraction_is_that_of_a_recipe() -> None:
    train_only, tested = (
        toy_store(train=raw_split([9, 9, 9])),
        toy_store(train=raw_split([9, 9, 9]), test=raw_split([3, 3, 3])),
    )
    for fraction in (0, 0.51, -0.1, 1.5, float("nan"), "0.1", None, True):
        with pytest.raises(VitreousError, match=r"give more than 0 and at most 0\.5"):
            resolve_splits(tested, fraction)  # type: ignore[arg-type]
    (setting,) = (field for field in fields(DataSection) if field.name == "val_fraction")
    low, high = setting.metadata["low"], setting.metadata["high"]
    assert (low, high) == (0.001, 0.5)
    assert len(resolve_splits(tested, low).val) == 3
    assert len(resolve_splits(tested, high).val) == 15  # 5 of each 9
    with pytest.raises(VitreousError, match=r"val_fraction 0.5 .* leaves none to train on"):
        resolve_splits(train_only, high)
    with pytest.raises(VitreousError, match="seed of the split is 'x'"):
        resolve_splits(tested, seed="x")  # type: ignore[arg-type]
