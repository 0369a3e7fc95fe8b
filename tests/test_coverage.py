"""What a confidence threshold accepts, against a count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vitreous.coverage import Coverage, check_threshold, coverage_of
from vitreous.errors import VitreousError

rng = np.random.default_rng(0)


def test_counts_are_those_of_a_plain_comparison() -> None:
    probabilities = rng.dirichlet(np.ones(4), size=500).astype(np.float32)
    probabilities[0] = [
        0.9,
        0.1,
        0,
        0,
    ]  # a confidence of float32(0.9) is on the threshold, and rounds above it
    labels = rng.integers(4, size=500)
    coverage = coverage_of(probabilities, labels)
    confidence, right = probabilities.max(axis=1).astype(np.float64), probabilities.argmax(axis=1) == labels
    for threshold in (0.001, 0.25, 0.5, 0.777, 0.999):
        accepted = confidence >= threshold
        assert coverage.at(threshold) == (accepted.sum(), (accepted & right).sum())
    assert coverage.images == 500


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 1.5, 0.12345, float("nan")])
def test_other_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(VitreousError, match="above 0 and below 1"):
        check_threshold(threshold)


def test_a_damaged_table_is_refused() -> None:
    good = coverage_of(np.array([[0.6, 0.4], [0.3, 0.7]], np.float32), np.array([0, 0]))
    assert good.at(0.65) == (1, 0)
    for accepted, correct in (
        (good.accepted[:-1], good.correct),
        (good.accepted[::-1], good.correct),
        (good.correct, good.accepted),
        ((0,) * 1000, (0,) * 1000),
        ((2.0,) * 1000, good.correct),
    ):
        with pytest.raises(VitreousError, match="coverage"):
            Coverage(accepted, correct)  # type: ignore[arg-type]
