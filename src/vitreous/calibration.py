"""How well confidences tell the share of correct images: reliability by bins, and what chance alone would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vitreous.metrics import CALIBRATION_BINS
from vitreous.statistics import Z


class Bin(NamedTuple):
    """Images whose confidence is between `low` and `high`: their number, and how many of them are correct.

    `confidence` is their mean confidence. `variance` is that of `correct` if each confidence were the probability of
    being correct.
    """

    low: float
    high: float
    images: int
    correct: int
    confidence: float
    variance: float


def probabilities_of(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """softmax(logits / temperature), float64 [N, C]."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
    return powers / powers.sum(axis=1, keepdims=True)


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[Bin]:
    """The bins that have images, of `CALIBRATION_BINS` equal bins of the top confidence (Guo et al. 2017, 1706.04599).

    Args:
        probabilities: float [N, C]; an image with one that is not finite is left out.
        labels: int [N].
    """
    finite = np.isfinite(probabilities).all(axis=1)
    confidence = probabilities[finite].max(axis=1)
    right = probabilities[finite].argmax(axis=1) == labels[finite]
    places = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins = []
    for place in np.unique(places):
        inside = places == place
        bins.append(
            Bin(
                float(place / CALIBRATION_BINS),
                float((place + 1) / CALIBRATION_BINS),
                int(inside.sum()),
                int(right[inside].sum()),
                float(confidence[inside].mean()),
                float((confidence[inside] * (1 - confidence[inside])).sum()),
            )
        )
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: the mean gap between confidence and accuracy over all images."""
    images = sum(each.images for each in bins)
    return sum(abs(each.correct - each.images * each.confidence) for each in bins) / max(images, 1)


def error_by_chance(bins: Sequence[Bin]) -> float:
    """The calibration error that perfect confidences exceed in 2.5 % of samples, by the normal approximation.

    The gap of each bin is then normal with the bin's variance, and its absolute value half-normal.
    """
    images = sum(each.images for each in bins)
    variances = np.array([each.variance for each in bins])
    mean, spread = (
        math.sqrt(2 / math.pi) * np.sqrt(variances).sum(),
        math.sqrt((1 - 2 / math.pi) * variances.sum()),
    )
    return float(mean + Z * spread) / max(images, 1)
