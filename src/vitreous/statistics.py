"""What a number of images can tell: 95 % intervals of accuracies and of differences between runs.

R runs of one recipe that differ in the seed, N images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054  # two-sided 95 % of a normal distribution


def interval(correct: int, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, as two fractions (Wilson 1927, "Probable Inference").

    Args:
        correct: how many images were classified correctly, 0 … `images`.
        images: how many there were, at least 1.
    """
    return _wilson(correct / images, images, Z)


def mean_recall_interval(hits: Sequence[int], support: Sequence[int]) -> tuple[float, float]:
    """The 95 % interval of the mean of the classes' recalls, as two fractions.

    The distances of each class's recall from the ends of its Wilson interval are added up as standard errors are (Zou
    and Donner 2008, "Construction of confidence limits about effect measures", doi 10.1002/sim.3095). So a class that
    is always right still adds what its few images cannot tell.

    Args:
        hits, support: correct and all images of each class; classes without images are left out.
    """
    known = [(right, images) for right, images in zip(hits, support, strict=True) if images]
    recalls = np.array([right / images for right, images in known])
    low, high = np.array([interval(right, images) for right, images in known]).T
    mean = float(recalls.mean())
    below, above = (math.sqrt(float(((recalls - end) ** 2).sum())) / len(known) for end in (low, high))
    return mean - below, mean + above


def _wilson(share: float, images: float, z: float) -> tuple[float, float]:
    square = z * z
    centre = (share + square / (2 * images)) / (1 + square / images)
    half = z / (1 + square / images) * math.sqrt(share * (1 - share) / images + square / (4 * images**2))
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)


def accuracy_text(correct: int, images: int) -> str:
    """An accuracy with its interval, with no more digits than the images can tell.

    "87.5 % (95 %: 86.8 to 88.1)" on 10,000 images, "86 % (95 %: 81 to 90)" on 250.
    """
    low, high = interval(correct, images)
    digits = digits_of(images)
    if 0 < correct < images and f"{100 * correct / images:.{digits}f}" in ("0", "0.0", "100", "100.0"):
        digits += 1  # neither never nor always
    shown = [f"{100 * value:.{digits}f}" for value in (correct / images, low, high)]
    return f"{shown[0]} % (95 %: {shown[1]} to {shown[2]})"


def digits_of(images: int) -> int:
    """Decimals of a percentage that `images` can tell: none below 1,000 images, else one."""
    return 0 if images < 1000 else 1


# ---- differences between runs


@dataclass(frozen=True)
class Difference:
    """How much the accuracy of a second recipe is above that of a first, as fractions.

    `p` is the probability of a difference at least as large between equal ones. `over_seeds` says that the interval
    covers the choice of the seeds too, not only that of the images.
    """

    value: float
    low: float
    high: float
    p: float
    over_seeds: bool

    @property
    def told(self) -> bool:
        """Whether the data tell a difference: the interval leaves out 0, and p is below 0.05."""
        return not self.low <= 0 <= self.high and self.p < 0.05


def difference(
    first: np.ndarray,
    second: np.ndarray,
    paired: bool,
    comparisons: int = 1,
    groups: Sequence[np.ndarray] | None = None,
) -> Difference:
    """The difference of two accuracies with its 95 % interval.

    With one run on each side, the interval is that of Agresti and Min 2005, "Simple improved confidence intervals for
    comparing matched proportions" (doi 10.1002/sim.1781), and p is that of McNemar's exact test. Unpaired, it is that
    of Agresti and Caffo 2000, "Simple and effective confidence intervals for proportions and differences of
    proportions" (doi 10.1080/00031305.2000.10474560). Both are Wald's interval after a few made-up images: half an
    image for each outcome of a pair, or one right and one wrong image on each side.

    With several runs of a recipe, images and seeds are crossed random effects, since every seed is judged on the same
    images. The variance among images already holds what a seed does to single images. The variance among the runs'
    accuracies holds it too, so it is subtracted there (the method of moments of a two-way layout). The variance among
    seeds is assumed to be equal for all recipes, since it is estimated from few runs of each. The interval takes
    Student's t with the degrees of freedom of Satterthwaite 1946, "An approximate distribution of estimates of variance
    components" (doi 10.2307/3002019).

    Args:
        first, second: bool [R, N], whether a run classified an image correctly; one row for each seed. For balanced
            accuracy, float [R, N]: the image's weight where it was, else 0. The weights have a mean of 1.
        paired: whether column i of both is the same image. Then N is equal.
        comparisons: the number of comparisons for which the intervals shall hold together, and by which p is
            multiplied (Bonferroni).
        groups: the runs of every recipe that says how much seeds vary, bool [R, N] each; by default both sides.
            With an empty list the interval covers the images alone, for these very networks.
    """
    value = float(second.mean() - first.mean())
    if paired:
        per_image = second.mean(axis=0) - first.mean(axis=0)
        images = first.shape[1] + 2
        centre = float(per_image.sum()) / images
        variance = (float((per_image**2).sum()) + 1 - images * centre**2) / images**2
        smallest = images - 1
    else:
        centre, variance, smallest = 0.0, 0.0, min(first.shape[1], second.shape[1]) + 1
        for sign, correct in ((-1, first), (1, second)):
            share = correct.mean(axis=0)
            images = len(share) + 2
            mean = (float(share.sum()) + 1) / images
            centre += sign * mean
            variance += (float((share**2).sum()) + 1 - images * mean**2) / images**2
    repeated = [runs for runs in ((first, second) if groups is None else groups) if len(runs) > 1]
    variance, freedom = _with_seeds(variance, smallest, 1 / len(first) + 1 / len(second), repeated)
    half = student_quantile(0.05 / comparisons, freedom) * math.sqrt(variance)
    if paired and not repeated and len(first) == len(second) == 1:
        p = mcnemar(int((first > second).sum()), int((second > first).sum()))
    else:
        p = student_p(centre / math.sqrt(variance), freedom)
    low, high = max(centre - half, -1.0), min(centre + half, 1.0)
    return Difference(value, low, high, min(1.0, p * comparisons), bool(repeated))


def mean_recall_difference(
    first: np.ndarray,
    second: np.ndarray,
    classes: np.ndarray,
    comparisons: int = 1,
    groups: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
) -> Difference:
    """The difference of the means of the classes' recalls with its 95 % interval.

    The classes are strata, so their variances add up. That of each class is Wald's with two made-up images, as in
    `difference`. With several runs of a recipe, the variance among seeds is added as there.

    Args:
        first, second: bool [R, N], as for `difference`, paired.
        classes: [N], the class of each image.
        comparisons: as for `difference`.
        groups: the runs of every recipe that says how much seeds vary, bool [R, N], each with the classes of its images
            [N]; by default both sides.
    """
    per_image = second.mean(axis=0) - first.mean(axis=0)
    names = np.unique(classes)
    value = variance = spread = 0.0
    for name in names:
        own = per_image[classes == name]
        images = len(own) + 2
        value += float(own.mean()) / len(names)
        squares = float((own**2).sum()) + 1 - float(own.sum()) ** 2 / images
        of_class = squares / images**2 / len(names) ** 2
        variance += of_class
        spread += of_class**2 / (images - 1)
    freedom = variance**2 / spread  # Satterthwaite's, since a small class may bring most of the variance
    groups = ((first, classes), (second, classes)) if groups is None else groups
    repeated = [weighted_by_class(runs, own) for runs, own in groups if len(runs) > 1]
    if repeated:
        variance, freedom = _with_seeds(variance, freedom, 1 / len(first) + 1 / len(second), repeated)
    half = student_quantile(0.05 / comparisons, freedom) * math.sqrt(variance)
    p = student_p(value / math.sqrt(variance), freedom)
    low, high = max(value - half, -1.0), min(value + half, 1.0)
    return Difference(value, low, high, min(1.0, p * comparisons), bool(repeated))


def weighted_by_class(correct: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """float [R, N]: `correct` times weights with a mean of 1, so that each row's mean is that of the classes' recalls.

    Args:
        correct: bool [R, N].
        classes: [N], the class of each image.
    """
    _, index, counts = np.unique(classes, return_inverse=True, return_counts=True)
    return correct * (len(classes) / len(counts) / counts)[index]


def mean_interval(correct: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean accuracy of a recipe, over images and seeds.

    It is Wilson's for the number of images that would give the same variance, with Student's t. `difference` says how
    the variance is estimated. With one run it is `interval`.

    Args:
        correct: bool [R, N].
    """
    share, images = float(correct.mean()), correct.shape[1]
    variance = float(correct.mean(axis=0).var()) / images
    if len(correct) == 1 or variance == 0:
        return interval(round(share * images), images)
    variance, freedom = _with_seeds(variance, images - 1, 1 / len(correct), [correct])
    return _wilson(share, share * (1 - share) / variance, student_quantile(0.05, freedom))


def _with_seeds(
    variance: float, freedom: float, weight: float, repeated: Sequence[np.ndarray]
) -> tuple[float, float]:
    """A variance among images with that among seeds added, and its degrees of freedom.

    Args:
        variance: of a mean or difference, by the choice of the images.
        freedom: its degrees of freedom.
        weight: by which the variance of one run's accuracy among seeds enters: the sum of 1 / R over the sides.
        repeated: the runs of each recipe with several seeds, as in `difference`, [R, N].
    """
    if not repeated:
        return variance, math.inf
    shares = np.array([len(runs) - 1 for runs in repeated])
    among_seeds = int(shares.sum())
    of_means = float(shares @ [runs.mean(axis=1).var(ddof=1) for runs in repeated]) / among_seeds
    of_images = [runs.var(axis=0, ddof=1).mean() / runs.shape[1] for runs in repeated]
    in_both = float(shares @ of_images) / among_seeds
    total = max(variance, variance + weight * (of_means - in_both))
    rest = max(variance - weight * in_both, 0.0)
    spread = rest**2 / freedom + (weight * of_means) ** 2 / among_seeds
    return total, total**2 / spread if spread else math.inf


def mcnemar(only_first: int, only_second: int) -> float:
    """The p-value of McNemar's test, exact and two-sided (McNemar 1947, "Note on the sampling error …").

    Args:
        only_first, only_second: how many images only the first, or only the second run classified correctly.
    """
    images, fewer = only_first + only_second, min(only_first, only_second)
    k = np.arange(fewer, dtype=np.float64)
    # log of each binomial coefficient from the one before; the sum of all of them is 2^images
    logs = np.concatenate([[0.0], np.cumsum(np.log((images - k) / (k + 1)))]) - images * math.log(2)
    return min(1.0, 2 * float(np.exp(logs).sum()))


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


def student_p(t: float, freedom: float) -> float:
    """The probability that a variable of Student's distribution is farther from 0 than `t`."""
    if freedom > 1e6:
        return math.erfc(abs(t) / math.sqrt(2))
    # With t = sqrt(freedom) tan(angle), the density is proportional to cos(angle)^(freedom - 1).
    angle = math.atan(abs(t) / math.sqrt(freedom))
    inside = float((np.cos(angle * (_NODES + 1) / 2) ** (freedom - 1) * _WEIGHTS).sum()) * angle / 2
    whole = math.sqrt(math.pi) / 2 * math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2))
    return max(0.0, 1 - inside / whole)


def student_quantile(p: float, freedom: float) -> float:
    """The t for which `student_p` is `p`, from 0 to 1e6."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, freedom) > p else (low, middle)
    return (low + high) / 2
