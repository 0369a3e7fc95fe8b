"""Figures of a classifier over a whole split, never averaged over batches.

B batch, C num_classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from vitreous.balance import is_unequal
from vitreous.errors import VitreousError

CALIBRATION_BINS = 15


class Figure(NamedTuple):
    """What a figure is called in text, and what it means."""

    title: str
    meaning: str


# Every figure of a split by the name under which it is logged, in the order in which people read them.
FIGURES: dict[str, Figure] = {
    "loss": Figure("Loss", "mean cross-entropy, in nats"),
    "acc": Figure("Accuracy", "fraction of images classified correctly"),
    "cat_prec": Figure("Precision (macro)", "mean of the classes' precisions"),
    "cat_recall": Figure("Recall (macro)", "mean of class recalls, the balanced accuracy"),
    "cat_f1": Figure("F1 (macro)", "mean of the classes' F1 scores"),
    "ovr_prec": Figure("Precision (micro)", "over all images; equals accuracy"),
    "ovr_recall": Figure("Recall (micro)", "over all images; equals accuracy"),
    "ovr_f1": Figure("F1 (micro)", "over all images; equals accuracy"),
    "top5": Figure("Top-5 accuracy", "true class is among the five likeliest"),
    "ece": Figure("Calibration error", "gap between confidence and accuracy, 15 bins"),
    "majority": Figure("Majority-class baseline", "accuracy of always guessing the largest class"),
}


# The figures that count each class alike, however many images it has. Where classes are unequal, they come first.
MACRO = ("cat_recall", "cat_f1", "cat_prec")

# Only of a run's final figures, since the temperature is fitted at its end.
FINAL_FIGURES: dict[str, Figure] = {
    "ece_calibrated": Figure(
        "Calibration error, calibrated", "of the calibrated probabilities that predict_proba gives"
    ),
}


@dataclass(frozen=True)
class Figures:
    """The figures of one split; all but the loss are fractions from 0 to 1."""

    scalars: dict[str, float]
    """Each of `FIGURES` by its name; top5 only with more than 10 classes."""
    per_class: list[dict[str, Any]]
    """precision, recall, f1 and support (the number of images) of each class."""
    confusion: list[list[int]]
    """Number of images, [true][predicted]."""

    def named(self, stage: str) -> dict[str, float]:
        """The scalars as they are logged: `{"val_loss": …}` for the stage `val`."""
        return {f"{stage}_{name}": value for name, value in self.scalars.items()}

    @property
    def macro_first(self) -> bool:
        """Whether the classes of the split are so unequal that macro figures come first."""
        return is_unequal([entry["support"] for entry in self.per_class])

    def ordered(self) -> Figures:
        """The same figures, with the macro ones first where the classes are unequal."""
        return replace(
            self, scalars={name: self.scalars[name] for name in in_order(self.scalars, self.macro_first)}
        )


def in_order(names: Iterable[str], macro_first: bool) -> list[str]:
    """Names of figures in their order, or with those of `MACRO` first."""
    names = list(names)
    first = [name for name in MACRO if name in names] if macro_first else []
    return first + [name for name in names if name not in first]


class SplitMetrics(nn.Module):
    """Collects a split batch by batch and computes its `Figures`.

    It moves with the module that holds it, puts nothing into a `state_dict`, and adds up over processes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self._totals = _Totals(num_classes)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: `logits` float [B, C] (not yet a softmax), `labels` int64 [B] in 0..C-1."""
        self._totals.update(logits, labels)

    def reset(self) -> None:
        """Forgets everything, for the next evaluation of a split."""
        # Lightning validates in inference mode; states born there could not be updated outside it.
        with torch.inference_mode(False):
            self._totals.reset()

    def compute(self) -> Figures:
        """The figures of everything since the last `reset`.

        Macro (`cat_`) figures average over the classes that occur or are predicted. With one label per
        image, the micro (`ovr_`) precision, recall and F1 all equal the accuracy by definition. `ece` is
        the expected calibration error over 15 equal bins of the top confidence (Guo et al. 2017,
        arXiv:1706.04599).

        Raises:
            VitreousError: there was no image.
        """
        totals = self._totals.compute() if self._totals.update_called else {}
        if not totals or not totals["confusion"].any():
            raise VitreousError("There are no images to evaluate; give a split that has at least one.")

        confusion = totals["confusion"].cpu().numpy()
        count = int(confusion.sum())
        hits, support, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
        precision = _ratio(hits, predicted)
        recall = _ratio(hits, support)
        f1 = _ratio(2 * hits, support + predicted)
        counted = support + predicted > 0
        accuracy = int(hits.sum()) / count

        scalars = {
            "loss": totals["loss"].item() / count,
            "acc": accuracy,
            "cat_prec": float(precision[counted].mean()),
            "cat_recall": float(recall[counted].mean()),
            "cat_f1": float(f1[counted].mean()),
            "ovr_prec": accuracy,
            "ovr_recall": accuracy,
            "ovr_f1": accuracy,
        }
        if self.num_classes > 10:
            scalars["top5"] = totals["top5"].item() / count
        scalars["ece"] = totals["calibration_gap"].abs().sum().item() / count
        scalars["majority"] = int(support.max()) / count
        per_class = [
            {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for p, r, f, n in zip(precision, recall, f1, support, strict=True)
        ]
        return Figures(scalars, per_class, confusion.tolist())


class _Totals(Metric):
    """The sums over a split from which every figure follows.

    One confusion matrix in place of torchmetrics' separate precision, recall and F1, and sums per bin in
    place of its calibration error, which keeps every image's confidence and gives 1.0 a bin of its own.
    """

    full_state_update = False
    loss: Tensor
    top5: Tensor
    calibration_gap: Tensor
    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        shape = (num_classes, num_classes)
        self.add_state("loss", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("top5", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("calibration_gap", torch.zeros(CALIBRATION_BINS), dist_reduce_fx="sum")
        self.add_state("confusion", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        logits = logits.float()  # a bf16 softmax would blur loss and confidence
        self.loss += F.cross_entropy(logits, labels, reduction="sum")
        confidence, predicted = logits.softmax(dim=1).max(dim=1)  # [B], [B]
        correct = predicted == labels

        # index_put_ adds in a fixed order on every device, bincount and scatter_add_ do not.
        self.confusion.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)
        # A diverged model's confidence is NaN: it must not become an index, and it does make the ECE NaN.
        bins = (confidence.nan_to_num(0) * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
        self.calibration_gap.index_put_((bins,), confidence - correct.float(), accumulate=True)
        if logits.shape[1] > 10:
            self.top5 += (logits.topk(5, dim=1).indices == labels[:, None]).sum()

    def compute(self) -> dict[str, Tensor]:
        return {
            "loss": self.loss,
            "top5": self.top5,
            "calibration_gap": self.calibration_gap,
            "confusion": self.confusion,
        }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and 0 where there is nothing to divide by."""
    return part / np.maximum(whole, 1)
