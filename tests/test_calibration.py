"""Reliability bins against scikit-learn, and the error by chance against simulated labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.calibration import calibration_curve

from vitreous.calibration import calibration_error, error_by_chance, probabilities_of, reliability
from vitreous.metrics import SplitMetrics


def outputs(seed: int, images: int = 2000, strength: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 7, images)
    logits = rng.normal(size=(images, 7)).astype(np.float32)
    logits[np.arange(images), labels] += strength
    return logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_bins_are_those_of_scikit_learn(temperature: float) -> None:
    logits, labels = outputs(0)
    probabilities = probabilities_of(logits, temperature)
    np.testing.assert_allclose(probabilities, softmax(logits.astype(float) / temperature, axis=1), rtol=1e-9)
    bins = reliability(probabilities, labels)
    right = probabilities.argmax(axis=1) == labels
    share, confidence = calibration_curve(right, probabilities.max(axis=1), n_bins=15)
    np.testing.assert_allclose([each.correct / each.images for each in bins], share)
    np.testing.assert_allclose([each.confidence for each in bins], confidence)
    assert sum(each.images for each in bins) == len(labels)


def test_the_error_is_the_one_of_the_metrics() -> None:
    logits, labels = outputs(1)
    metrics = SplitMetrics(7)
    metrics.update(torch.tensor(logits), torch.tensor(labels))
    error = calibration_error(reliability(probabilities_of(logits), labels))
    assert error == pytest.approx(metrics.compute().scalars["ece"], abs=1e-5)


def test_perfect_confidences_rarely_exceed_the_error_by_chance() -> None:
    rng = np.random.default_rng(2)
    probabilities = probabilities_of(rng.normal(size=(600, 7)) * 2)
    draws = rng.random((400, 600, 1))
    exceeded = 0
    for draw in draws:
        bins = reliability(probabilities, (probabilities.cumsum(axis=1) < draw).sum(axis=1).clip(max=6))
        exceeded += calibration_error(bins) > error_by_chance(bins)
    assert 0 < exceeded / len(draws) < 0.06  # 2.5 % by the normal approximation
    wrong = reliability(probabilities, rng.integers(0, 7, 600))
    assert calibration_error(wrong) > error_by_chance(wrong)


def test_a_diverged_network_has_no_bins() -> None:
    assert reliability(np.full((5, 3), np.nan), np.zeros(5, np.int64)) == []
