"""Probable label errors: images of validation and test whose label the network contradicts with confidence."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitreous.wording import cell_text


@dataclass(frozen=True)
class Suspects:
    """Probable label errors of a split, the least probable label first.

    Attributes:
        positions: int [K], in the split.
        predicted: int [K], the most likely class.
        probability: float [K], of the predicted class.
        label_probability: float [K], of the label.
    """

    positions: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    label_probability: np.ndarray


def find_suspects(labels: np.ndarray, probabilities: np.ndarray) -> Suspects:
    """Probable label errors by confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068).

    Class j has a threshold: its mean probability over the images that are labelled j. Among the classes whose
    thresholds an image reaches, its true class is taken to be the likeliest one. The image is a suspect if that is not
    its label and its label is not the most likely class either. Suspects are ordered by the probability of their
    label, which the paper calls self-confidence. The network must not have been trained on the images.

    Args:
        labels: int [N], 0 to C - 1.
        probabilities: float [N, C]. Ones that are not finite, as after a divergence, give no suspects.
    """
    number, num_classes = probabilities.shape
    if not number or not np.isfinite(probabilities).all():
        probabilities, labels, number = np.zeros((0, num_classes)), np.zeros(0, np.int64), 0
    probabilities = probabilities.astype(np.float64)
    own = probabilities[np.arange(number), labels]
    images = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, weights=own, minlength=num_classes)
    # A class without images has no threshold, so nothing is taken for it.
    thresholds = np.divide(sums, images, out=np.full(num_classes, np.inf), where=images > 0)
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    predicted = probabilities.argmax(axis=1)
    suspected = (reached.max(axis=1, initial=-1) >= 0) & (reached.argmax(axis=1) != labels)
    found = np.flatnonzero(suspected & (predicted != labels))
    found = found[np.argsort(own[found], kind="stable")]
    return Suspects(found, predicted[found], probabilities[found, predicted[found]], own[found])


def suspects_csv(
    classes: Sequence[str],
    names: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    suspects: Mapping[str, Suspects],
) -> str:
    """The suspects of each split as a CSV. A name that a spreadsheet would take for a formula gets an apostrophe.

    Args:
        names, labels: of all images of each split.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("split", "name", "label", "predicted", "probability", "label_probability"))
    for split, found in suspects.items():
        for place, predicted, probability, label_probability in zip(*vars(found).values(), strict=True):
            cells = str(names[split][place]), classes[labels[split][place]], classes[predicted]
            figures = f"{probability:.4f}", f"{label_probability:.4g}"
            writer.writerow((split, *map(cell_text, cells), *figures))
    return text.getvalue()
