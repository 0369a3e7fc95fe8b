"""Confusion matrices as people read them: the worst pairs, classes in an order that shows groups, and those groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitreous.bundle import Confusion

LARGEST_GROUP = 8  # classes, so that a group's matrix fits a phone
MOST_ORDERED = 1500  # classes; the time grows with their cube


def confusions(
    classes: Sequence[str], confusion: Sequence[Sequence[int]], most: int
) -> tuple[Confusion, ...]:
    """The most frequent mistakes of a confusion matrix [true][predicted], most frequent first."""
    counts = np.array(confusion)
    totals = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:most]
    return tuple(
        Confusion(classes[i], classes[j], int(counts[i, j]), int(totals[i]))
        for i, j in zip(*np.unravel_index(order, counts.shape), strict=True)
        if counts[i, j]
    )


def groups_of(confusion: np.ndarray) -> tuple[list[int], list[list[int]]]:
    """An order of classes that puts those beside one another that are taken for each other, and groups of them.

    Classes are joined step by step by average linkage (Sokal and Michener 1958): next come the two clusters with the
    highest mean share of images of a class that are taken for another class of the other cluster.

    Args:
        confusion: int [C, C], [true, predicted].

    Returns:
        The order, a permutation of 0 … C - 1, and the clusters of 2 to `LARGEST_GROUP` classes that no cluster of that
        size contains, most mistakes within the group first. Above `MOST_ORDERED` classes, the order is the given one
        and no group is returned.
    """
    number = len(confusion)
    if number > MOST_ORDERED:
        return list(range(number)), []
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    sums = shares + shares.T  # over the pairs between two clusters
    np.fill_diagonal(sums, 0)
    sizes = np.ones(number)
    members = {i: [i] for i in range(number)}
    groups: dict[int, list[int]] = {}  # by the first of its classes
    complete: list[list[int]] = []
    while True:
        means = sums / np.outer(sizes, sizes)
        a, b = (int(place) for place in np.unravel_index(means.argmax(), means.shape))
        if means[a, b] <= 0:
            break
        members[a] = _joined(members[a], members.pop(b), shares)
        sums[a] += sums[b]
        sums[:, a] += sums[:, b]
        sums[b], sums[:, b], sums[a, a] = 0, 0, 0
        sizes[a] += sizes[b]
        if len(members[a]) <= LARGEST_GROUP:
            groups.pop(b, None)
            groups[a] = members[a]
        else:
            complete += [groups.pop(place) for place in (a, b) if place in groups]
    order = [i for first in sorted(members, key=lambda c: -len(members[c])) for i in members[first]]

    def mistakes(group: list[int]) -> int:
        part = confusion[np.ix_(group, group)]
        return int(part.sum() - np.trace(part))

    return order, sorted([*complete, *groups.values()], key=mistakes, reverse=True)


def _joined(first: list[int], second: list[int], shares: np.ndarray) -> list[int]:
    """Two clusters in a row, turned so that the classes that meet are confused most."""
    turns = [(a, b) for a in (first, first[::-1]) for b in (second, second[::-1])]
    return max((a + b for a, b in turns), key=lambda row: _meeting(row, len(first), shares))


def _meeting(row: list[int], at: int, shares: np.ndarray) -> float:
    left, right = row[at - 1], row[at]
    return float(shares[left, right] + shares[right, left])
