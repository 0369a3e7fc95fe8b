"""Intervals of accuracies, against scipy."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from vitreous.statistics import accuracy_text, interval


@pytest.mark.parametrize(("correct", "images"), [(0, 5), (5, 5), (1, 3), (216, 252), (8750, 10_000)])
def test_the_interval_is_wilsons(correct: int, images: int) -> None:
    expected = binomtest(correct, images).proportion_ci(0.95, method="wilson")
    assert interval(correct, images) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_an_accuracy_has_no_more_digits_than_its_images_can_tell() -> None:
    assert accuracy_text(8750, 10_000) == "87.5 % (95 %: 86.8 to 88.1)"
    assert accuracy_text(216, 252) == "86 % (95 %: 81 to 89)"
