"""Groups of classes that are taken for each other."""

from __future__ import annotations

import numpy as np
import pytest

from vitreous.confusion import LARGEST_GROUP, confusions, groups_of


def planted(seed: int) -> tuple[np.ndarray, list[set[int]]]:
    """A matrix of 60 shuffled classes in families of 5 that are confused, with a few other mistakes; the families."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(60)
    matrix = np.diag(rng.integers(60, 100, 60))
    families = [shuffled[i : i + 5] for i in range(0, 60, 5)]
    for family in families:
        matrix[np.ix_(family, family)] += rng.integers(5, 12, (5, 5))
    matrix[rng.integers(0, 60, 100), rng.integers(0, 60, 100)] += 1
    return matrix, [set(family.tolist()) for family in families]


def test_families_are_found_and_stand_side_by_side() -> None:
    matrix, families = planted(0)
    order, groups = groups_of(matrix)
    assert sorted(order) == list(range(60))
    assert {frozenset(group) for group in groups} == {frozenset(family) for family in families}
    for family in families:
        places = sorted(order.index(i) for i in family)
        assert places == list(range(places[0], places[0] + 5))
    wrong = [matrix[np.ix_(g, g)].sum() - np.trace(matrix[np.ix_(g, g)]) for g in groups]
    assert wrong == sorted(wrong, reverse=True)


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_small_and_apart_on_any_matrix(seed: int) -> None:
    matrix = np.random.default_rng(seed).integers(0, 9, (50, 50))
    order, groups = groups_of(matrix)
    assert sorted(order) == list(range(50))
    members = [i for group in groups for i in group]
    assert len(members) == len(set(members))
    assert all(2 <= len(group) <= LARGEST_GROUP for group in groups)


def test_without_mistakes_no_group_is_found() -> None:
    assert groups_of(np.diag([3, 4, 0])) == ([0, 1, 2], [])


def test_the_worst_pairs_come_first() -> None:
    pairs = confusions(("a", "b", "c"), [[5, 1, 0], [4, 5, 0], [2, 0, 9]], most=2)
    assert [tuple(pair) for pair in pairs] == [("b", "a", 4, 9), ("c", "a", 2, 11)]
