"""Intervals of accuracies, against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from scipy.stats import binomtest

from vitreous.statistics import (
    accuracy_text,
    difference,
    interval,
    mcnemar,
    mean_interval,
    student_p,
    student_quantile,
)


@pytest.mark.parametrize(("correct", "images"), [(0, 5), (5, 5), (1, 3), (216, 252), (8750, 10_000)])
def test_the_interval_is_wilsons(correct: int, images: int) -> None:
    expected = binomtest(correct, images).proportion_ci(0.95, method="wilson")
    assert interval(correct, images) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_an_accuracy_has_no_more_digits_than_its_images_can_tell() -> None:
    assert accuracy_text(8750, 10_000) == "87.5 % (95 %: 86.8 to 88.1)"
    assert accuracy_text(249, 250).startswith("99.6 % ")  # not 100 %
    assert accuracy_text(216, 252) == "86 % (95 %: 81 to 89)"


@pytest.mark.parametrize("counts", [(0, 0), (0, 5), (3, 9), (9, 3), (7, 7), (400, 470), (50_000, 50_600)])
def test_mcnemar_is_the_exact_binomial_test_of_the_images_that_differ(counts: tuple[int, int]) -> None:
    expected = binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0
    assert mcnemar(*counts) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("freedom", [1, 1.7, 4, 33.3, 5000, 1e5, math.inf])
def test_students_distribution_is_scipys(freedom: float) -> None:
    for t in (0.1, 1.0, -2.7, 5.0):
        assert student_p(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), abs=1e-10)
    for p in (0.05, 0.05 / 66):
        assert student_quantile(p, freedom) == pytest.approx(stats.t.isf(p / 2, freedom), rel=1e-5)


def table(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two runs, bool [1, N], with these numbers of images that both, one or neither classifies correctly."""
    outcomes = [(1, 1)] * both + [(1, 0)] * only_first + [(0, 1)] * only_second + [(0, 0)] * neither
    first, second = np.array(outcomes, dtype=bool).T
    return first[None], second[None]


def test_a_paired_interval_adds_half_an_image_to_each_cell() -> None:
    found = difference(*table(both=61, only_first=8, only_second=19, neither=12), paired=True)
    # Agresti and Min 2005, by hand: 8.5 and 19.5 of 102
    mean, square = (19.5 - 8.5) / 102, (19.5 + 8.5) / 102
    half = 1.959963984540054 * math.sqrt((square - mean**2) / 102)
    assert found.value == pytest.approx(0.11)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half))
    assert found.p == pytest.approx(binomtest(8, 27).pvalue)
    assert not found.over_seeds


def test_an_unpaired_interval_adds_a_right_and_a_wrong_image_to_each_side() -> None:
    first, second = np.arange(80) < 56, np.arange(50) < 43
    found = difference(first[None], second[None], paired=False)
    # Agresti and Caffo 2000, by hand
    a, b = 57 / 82, 44 / 52
    half = 1.959963984540054 * math.sqrt(a * (1 - a) / 82 + b * (1 - b) / 52)
    assert (found.low, found.high) == pytest.approx((b - a - half, b - a + half))
    assert found.value == pytest.approx(43 / 50 - 56 / 80)


def test_equal_runs_do_not_differ_and_the_interval_keeps_a_width() -> None:
    run = np.arange(431)[None] % 7 > 0
    found = difference(run, run, paired=True)
    assert found.value == 0 and found.p == 1 and not found.told
    assert found.low == -found.high < -0.002
    several = difference(np.repeat(run, 3, axis=0), np.repeat(run, 3, axis=0), paired=True)
    assert several.low < 0 < several.high and not several.told


def test_several_comparisons_widen_each_interval() -> None:
    sides = table(both=600, only_first=40, only_second=66, neither=100)
    alone, together = difference(*sides, paired=True), difference(*sides, paired=True, comparisons=6)
    assert alone.told and not together.told
    assert together.low < alone.low < alone.high < together.high
    assert together.p == pytest.approx(6 * alone.p)


def drawn(
    rng: np.random.Generator, images: int, level: float, hard: np.ndarray, runs: int, spread: float
) -> np.ndarray:
    """bool [runs, images]: a recipe's runs, whose seeds move all images (`spread`) and single ones (the draw)."""
    seeds = rng.normal(0, spread, (runs, 1))
    return rng.random((runs, images)) < expit(level + hard + rng.normal(0, 0.7, images) + seeds)


def accuracy(level: float, spread: float) -> float:
    """The accuracy of `drawn` over all images and seeds, by Gauss's quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    return float(expit(level + math.sqrt(9 + 0.49 + spread**2) * nodes) @ weights / weights.sum())


@pytest.mark.parametrize(
    ("runs", "spread"), [((1, 1), 0.0), ((3, 3), 0.0), ((3, 3), 0.15), ((2, 4), 0.6), ((1, 4), 0.3)]
)
@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_of_a_difference_covers_images_and_seeds(
    runs: tuple[int, int], spread: float, paired: bool
) -> None:
    rng = np.random.default_rng(0)
    true = accuracy(2.5, spread) - accuracy(2.2, spread)
    trials, hits = 300, 0
    for _ in range(trials):
        hard = rng.normal(0, 3, (2, 600))
        first = drawn(rng, 600, 2.2, hard[0], runs[0], spread)
        second = drawn(rng, 600, 2.5, hard[0 if paired else 1], runs[1], spread)
        found = difference(first, second, paired)
        hits += found.low <= true <= found.high
    assert hits / trials > 0.915  # 0.95 less three standard errors


def test_an_interval_of_the_images_alone_misses_what_seeds_do() -> None:
    """The case that makes the one above worth its name: one run of each recipe says nothing about the seeds."""
    rng = np.random.default_rng(1)
    true = accuracy(2.5, 0.6) - accuracy(2.2, 0.6)
    hits = 0
    for _ in range(200):
        hard = rng.normal(0, 3, 600)
        first, second = (drawn(rng, 600, level, hard, 1, 0.6) for level in (2.2, 2.5))
        found = difference(first, second, paired=True)
        hits += found.low <= true <= found.high
    assert hits / 200 < 0.8


def test_two_seeds_of_each_of_many_recipes_tell_more_than_those_of_two() -> None:
    """The spread of the seeds is pooled over all groups: the interval stays right, and is much narrower."""
    rng = np.random.default_rng(3)
    true = accuracy(2.5, 0.3) - accuracy(2.2, 0.3)
    hits, widths = 0, []
    for _ in range(200):
        hard = rng.normal(0, 3, 600)
        groups = [drawn(rng, 600, level, hard, 2, 0.3) for level in (2.2, 2.5, 2.6, 2.7, 2.8, 2.9)]
        found = difference(groups[0], groups[1], paired=True, groups=groups)
        alone = difference(groups[0], groups[1], paired=True)
        hits += found.low <= true <= found.high
        widths.append((found.high - found.low) / (alone.high - alone.low))
    assert hits / 200 > 0.905
    assert np.mean(widths) < 0.9


def test_the_interval_of_a_mean_covers_images_and_seeds() -> None:
    rng = np.random.default_rng(2)
    true, hits = accuracy(2.2, 0.2), 0
    for _ in range(300):
        low, high = mean_interval(drawn(rng, 600, 2.2, rng.normal(0, 3, 600), 4, 0.2))
        hits += low <= true <= high
    assert hits / 300 > 0.915
    one = np.arange(250)[None] < 216
    assert mean_interval(one) == interval(216, 250)
