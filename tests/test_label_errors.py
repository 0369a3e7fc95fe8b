"""Probable label errors, against planted ones and against the paper's definition written out."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from vitreous.calibration import probabilities_of
from vitreous.label_errors import find_suspects, suspects_csv


def made_up(strength: float, seed: int, images: int = 900, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities of a classifier that knows them more or less."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += strength
    return labels, probabilities_of(logits)


def by_definition(labels: np.ndarray, probabilities: np.ndarray) -> list[int]:
    """Off-diagonal counts of the confident joint, image by image, without predictions that equal the label."""
    classes = probabilities.shape[1]
    thresholds = {}
    for j in range(classes):
        own = [p[j] for p, label in zip(probabilities, labels, strict=True) if label == j]
        if own:
            thresholds[j] = sum(own) / len(own)
    found = []
    for i, (p, label) in enumerate(zip(probabilities, labels, strict=True)):
        reached = [j for j in thresholds if p[j] >= thresholds[j]]
        if (
            reached
            and max(reached, key=lambda j: p[j]) != label
            and max(range(classes), key=lambda j: p[j]) != label
        ):
            found.append(i)
    return sorted(found, key=lambda i: probabilities[i][labels[i]])


@pytest.mark.parametrize("strength", [0.5, 2.0, 4.0])
def test_suspects_are_those_of_the_paper(strength: float) -> None:
    labels, probabilities = made_up(strength, seed=1)
    labels[:40] = (labels[:40] + 1) % 6
    probabilities[probabilities[:, 5] > 0.5] = np.full(6, 1 / 6)  # ties
    labels[labels == 5] = 4  # a class without images has no threshold
    found = find_suspects(labels, probabilities)
    assert found.positions.tolist() == by_definition(labels, probabilities)
    assert len(found.positions) > 10
    rows = np.arange(len(found.positions))
    assert np.array_equal(found.probability, probabilities[found.positions].max(axis=1))
    assert np.array_equal(
        found.label_probability, probabilities[found.positions][rows, labels[found.positions]]
    )
    assert np.all(np.diff(found.label_probability) >= 0)


def test_flipped_labels_of_a_good_network_are_the_suspects() -> None:
    labels, probabilities = made_up(12.0, seed=2)
    flipped = np.random.default_rng(3).choice(900, 25, replace=False)
    given = labels.copy()
    given[flipped] = (given[flipped] + 2) % 6
    found = find_suspects(given, probabilities)
    assert set(found.positions.tolist()) <= set(flipped.tolist())
    assert len(found.positions) >= 23
    assert np.array_equal(found.predicted, labels[found.positions])
    assert not len(find_suspects(labels, probabilities).positions)


def test_a_diverged_network_suspects_nothing() -> None:
    labels, probabilities = made_up(3.0, seed=4)
    probabilities[5] = np.nan
    assert not len(find_suspects(labels, probabilities).positions)
    assert not len(find_suspects(labels[:0], probabilities[:0]).positions)


def test_the_csv_is_read_back_and_holds_no_formula() -> None:
    labels, probabilities = np.array([0, 1, 1, 0]), np.array([[0.1, 0.9], [0.2, 0.8], [0.1, 0.9], [0.9, 0.1]])
    found = find_suspects(labels, probabilities)
    assert found.positions.tolist() == [0]
    classes = ("=1+1", 'a, "b"\nc')
    names = np.array(["@SUM(A1)", "x", "y", "z"])
    rows = list(
        csv.reader(io.StringIO(suspects_csv(classes, {"val": names}, {"val": labels}, {"val": found})))
    )
    assert rows[0] == ["split", "name", "label", "predicted", "probability", "label_probability"]
    assert rows[1:] == [["val", "'@SUM(A1)", "'=1+1", 'a, "b"\nc', "0.9000", "0.1"]]
