"""How many images a confidence threshold accepts, and how many of those are right, counted on validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from vitreous.errors import VitreousError

STEPS = 1000  # thresholds are thousandths


@dataclass(frozen=True)
class Coverage:
    """Counts of validation images by threshold.

    Attributes:
        accepted: int [STEPS], images whose calibrated confidence is at least i / STEPS, at position i.
        correct: int [STEPS], how many of those are classified correctly.
    """

    accepted: tuple[int, ...]
    correct: tuple[int, ...]

    def __post_init__(self) -> None:
        for counts in (self.accepted, self.correct):
            if len(counts) != STEPS or not all(type(n) is int and 0 <= n < 2**53 for n in counts):
                raise VitreousError(f"The coverage is not {STEPS} numbers of images.")
            if any(after > before for before, after in pairwise(counts)):
                raise VitreousError("The coverage rises with the threshold.")
        if self.accepted[0] == 0 or any(c > a for c, a in zip(self.correct, self.accepted, strict=True)):
            raise VitreousError("The coverage has more correct images than accepted ones.")

    @property
    def images(self) -> int:
        """The number of validation images."""
        return self.accepted[0]

    def at(self, threshold: float) -> tuple[int, int]:
        """How many validation images `threshold` accepts, and how many of those are right.

        Raises:
            VitreousError: it is not above 0 and below 1, in thousandths.
        """
        place = check_threshold(threshold)
        return self.accepted[place], self.correct[place]


def check_threshold(threshold: float) -> int:
    """A threshold in thousandths; raises `VitreousError` unless it is one above 0 and below 1."""
    place = round(threshold * STEPS) if 0 < threshold < 1 else 0
    if not 0 < place < STEPS or abs(threshold * STEPS - place) > 1e-6:
        raise VitreousError(
            f"The confidence below which an image is unknown is {threshold!r}; give a number above 0 and below 1 with "
            "at most three decimals, such as 0.9."
        )
    return place


def coverage_of(probabilities: np.ndarray, labels: np.ndarray) -> Coverage:
    """The coverage of calibrated probabilities float [N, C] with true classes int [N], N at least 1."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    thresholds = np.arange(STEPS) / STEPS

    def at_least(values: np.ndarray) -> tuple[int, ...]:
        below = np.searchsorted(np.sort(values), thresholds, side="left")
        return tuple(map(int, len(values) - below))

    return Coverage(at_least(confidence), at_least(confidence[right]))


def parse_coverage(content: Mapping[str, Any] | None) -> Coverage | None:
    """The coverage in a bundle's config.json; raises KeyError, TypeError or `VitreousError` if it is damaged."""
    return None if content is None else Coverage(tuple(content["accepted"]), tuple(content["correct"]))
