"""Finds images that are copies of one another, exactly or nearly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from vitreous.data.store import ImageStore


@dataclass(frozen=True)
class Pair:
    """Two images that are copies of one another.

    Attributes:
        first, second: (split, position in it) of each.
        exact: whether all pixels are equal.
    """

    first: tuple[str, int]
    second: tuple[str, int]
    exact: bool

    def across(self, first: str, second: str) -> bool:
        """Whether the pair's images are in these splits, in this order."""
        return (self.first[0], self.second[0]) == (first, second)


@dataclass(frozen=True)
class Copies:
    """The copies in a data set.

    Attributes:
        groups: by split, int64 [N]: images with equal numbers, in any split, are copies of one another.
        pairs: a pair for each copy: the image, and an earlier one of its group, preferably in another split.
    """

    groups: dict[str, np.ndarray]
    pairs: tuple[Pair, ...]


def find_copies(images: Mapping[str, np.ndarray]) -> Copies:
    """Finds the copies among the images of all splits.

    Args:
        images: by split, uint8 [N, S, S, 3]; may be memory-mapped.
    """
    seen: dict[bytes, tuple[int, str, int]] = {}
    groups, pairs = {}, []
    total = 0
    for split, part in images.items():
        numbers = np.empty(len(part), np.int64)
        for i, image in enumerate(part):
            key = sha256(np.ascontiguousarray(image).data).digest()
            number, first, at = seen.setdefault(key, (total, split, i))
            if number != total:
                pairs.append(Pair((first, at), (split, i), True))
            numbers[i] = number
            total += 1
        groups[split] = numbers
    return Copies(groups, tuple(pairs))


def copies_of(store: ImageStore) -> Copies:
    """The copies in a data set, found once and then kept beside its packed arrays."""
    return find_copies({name: split.images for name, split in store.splits.items()})
