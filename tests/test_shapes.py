"""The built-in data set: the same bits from a seed, and classes that differ in form but not in colour."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from vitreous.data.shapes import REACH, SHAPES, shapes
from vitreous.data.store import ImageStore
from vitreous.errors import VitreousError


@pytest.fixture(scope="module")
def store() -> ImageStore:
    return shapes(train=1500, test=500)


def test_it_is_a_whole_data_set(store: ImageStore) -> None:
    assert store.name == "shapes" and store.num_classes >= 8 and store.image_size == 32
    assert list(store.classes) == sorted(store.classes)
    for split, count in (("train", 1500), ("test", 500)):
        images, labels = store.splits[split].images, store.splits[split].labels
        assert images.shape == (count, 32, 32, 3) and images.dtype == np.uint8
        assert np.bincount(labels).tolist() == [count // store.num_classes] * store.num_classes


def test_it_is_the_same_from_the_same_seed_only(store: ImageStore) -> None:
    again, other = shapes(train=1500, test=500), shapes(seed=1, train=1500, test=500)
    assert again.fingerprint == store.fingerprint != other.fingerprint
    # A golden value, to notice a change of the images or a machine that rounds differently.
    assert store.fingerprint.startswith("2369d2a1df1e034a")


def test_no_image_is_in_both_splits(store: ImageStore) -> None:
    train, test = ({image.tobytes() for image in store.splits[split].images} for split in ("train", "test"))
    assert len(train) == 1500 and len(test) == 500 and not train & test


def test_a_larger_set_holds_the_smaller_one(store: ImageStore) -> None:
    small = shapes(train=200, test=20)
    larger = {image.tobytes() for image in store.splits["train"].images}
    assert all(image.tobytes() in larger for image in small.splits["train"].images)


def histograms(images: np.ndarray) -> np.ndarray:
    """Counts of 8×8×8 colours, [N, 512]."""
    level = (images >> 5).astype(np.int64)
    colour = (level[..., 0] * 64 + level[..., 1] * 8 + level[..., 2]).reshape(len(images), -1)
    return np.stack([np.bincount(row, minlength=512) for row in colour])


def test_colour_does_not_tell_the_class(store: ImageStore) -> None:
    train, test = store.splits["train"], store.splits["test"]
    for features in (histograms, lambda images: np.sort(histograms(images))[:, -40:]):  # and how many of any
        forest = RandomForestClassifier(40, random_state=0).fit(features(train.images), train.labels)
        assert forest.score(features(test.images), test.labels) < 0.2  # chance is 0.1


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_area_1_a_true_distance_and_stays_in_reach(name: str) -> None:
    step = 0.005
    axis = np.arange(-1.5, 1.5, step, dtype=np.float32) + np.float32(step / 2)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    distance = SHAPES[name](x, y)
    inside = distance < 0
    assert inside.sum() * step**2 == pytest.approx(1, abs=0.01)
    assert np.hypot(x, y)[inside].max() == pytest.approx(REACH[name], abs=0.02)
    # Just inside the outline the distance grows by as much as one moves (where it is smooth).
    slope = np.hypot(*np.gradient(distance, step))
    edge = (distance < 0) & (distance > -0.03)
    assert np.median(slope[edge]) == pytest.approx(1, abs=0.01)
    assert slope.max() < 1.5
    # A point far away is outside, by about its distance from the centre.
    corner = math.hypot(1.5, 1.5)
    assert distance[0, 0] == pytest.approx(corner, abs=REACH[name] + 0.01)


@pytest.mark.parametrize("size", [16, 50])
def test_other_sizes(size: int) -> None:
    store = shapes(image_size=size, train=20, test=10)
    assert store.splits["train"].images.shape == (20, size, size, 3) and store.image_size == size


def test_sizes_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(VitreousError, match="16 or more"):
        shapes(image_size=8)
    with pytest.raises(VitreousError, match="at least 10"):
        shapes(train=5)
