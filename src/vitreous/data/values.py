"""Settings that hold for a whole data set and follow from its files: range of values, ground under transparency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitreous.preprocess import Preprocess


@dataclass(frozen=True)
class Facts:
    """What one image contributes to the choices for its data set.

    Attributes:
        width, height: in pixels, upright.
    """

    width: int
    height: int

    def depends(self, first: Preprocess, final: Preprocess) -> bool:
        """Whether the image, converted with the settings `first`, must be converted again with `final`."""
        return False


def settle(
    settings: Preprocess, facts: Sequence[Facts], value_range: tuple[float, float] | None
) -> tuple[Preprocess, tuple[str, ...]]:
    """Chooses the settings for a whole data set.

    Args:
        settings: those with which the images were converted first.
        facts: of every image.
        value_range: as a person gave it, or None.

    Returns:
        The settings, and sentences about what was chosen.

    Raises:
        VitreousError: the range of values cannot be decided.
    """
    return settings, ()
