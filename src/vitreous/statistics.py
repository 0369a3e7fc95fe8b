"""What a number of images can tell: 95 % intervals of accuracies, and how many digits of them mean something."""

from __future__ import annotations

import math

Z = 1.959963984540054  # two-sided 95 % of a normal distribution


def interval(correct: int, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, as two fractions (Wilson 1927, "Probable Inference").

    Args:
        correct: how many images were classified correctly, 0 … `images`.
        images: how many there were, at least 1.
    """
    share, square = correct / images, Z * Z
    centre = (share + square / (2 * images)) / (1 + square / images)
    half = Z / (1 + square / images) * math.sqrt(share * (1 - share) / images + square / (4 * images**2))
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == images else centre + half)


def accuracy_text(correct: int, images: int) -> str:
    """An accuracy with its interval, with no more digits than the images can tell.

    "87.5 % (95 %: 86.8 to 88.1)" on 10,000 images, "86 % (95 %: 81 to 90)" on 250.
    """
    low, high = interval(correct, images)
    digits = digits_of(images)
    shown = [f"{100 * value:.{digits}f}" for value in (correct / images, low, high)]
    return f"{shown[0]} % (95 %: {shown[1]} to {shown[2]})"


def digits_of(images: int) -> int:
    """Decimals of a percentage that `images` can tell: none below 1,000 images, else one."""
    return 0 if images < 1000 else 1
