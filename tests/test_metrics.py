"""Figures over a split against scikit-learn and plain numpy, however the batches were cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from torch import Tensor, nn

from vitreous.errors import VitreousError
from vitreous.metrics import FIGURES, Figures, SplitMetrics
from vitreous.report import SHOWN

BATCHES = [7, 64, 1, 30, 128]  # unequal on purpose: a mean over batches would differ
COUNT = sum(BATCHES)


def split(num_classes: int, occurring: int, allowed: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and labels; classes from `occurring` on never occur, from `allowed` on are never predicted."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(occurring, COUNT, p=np.arange(1, occurring + 1) / np.arange(1, occurring + 1).sum())
    logits = rng.normal(size=(COUNT, num_classes))
    logits[np.arange(COUNT), labels] += 1.5
    logits[:, allowed:] -= 20
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)


def measured(logits: Tensor, labels: Tensor, batches: list[int] = BATCHES) -> Figures:
    metrics = SplitMetrics(logits.shape[1])
    for batch_logits, batch_labels in zip(logits.split(batches), labels.split(batches), strict=True):
        metrics.update(batch_logits, batch_labels)
    return metrics.compute()


CASES = [
    pytest.param(2, 2, 2, id="two classes"),
    pytest.param(2, 1, 2, id="only one of two occurs"),
    pytest.param(10, 10, 10, id="all occur"),
    pytest.param(10, 6, 6, id="four neither occur nor are predicted"),
    pytest.param(10, 6, 10, id="four are predicted but never occur"),
    pytest.param(10, 10, 4, id="six occur but are never predicted"),
    pytest.param(1000, 300, 500, id="a thousand"),
]


@pytest.mark.parametrize(("num_classes", "occurring", "allowed"), CASES)
def test_figures_equal_scikit_learn(num_classes: int, occurring: int, allowed: int) -> None:
    logits, labels = split(num_classes, occurring, allowed)
    figures = measured(logits, labels)
    predicted = logits.argmax(dim=1)
    every = range(num_classes)

    expected = {"acc": accuracy_score(labels, predicted)}
    for prefix, average in (("cat", "macro"), ("ovr", "micro")):
        values = precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)[:3]
        expected |= dict(zip((f"{prefix}_prec", f"{prefix}_recall", f"{prefix}_f1"), values, strict=True))
    probabilities = logits.double().softmax(dim=1).numpy()
    expected["loss"] = log_loss(labels, probabilities, labels=every)
    expected["majority"] = np.bincount(labels).max() / COUNT
    if num_classes > 10:
        expected["top5"] = top_k_accuracy_score(labels, logits.numpy(), k=5, labels=every)

    assert {name: figures.scalars[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert set(figures.scalars) == {*expected, "ece"}
    assert figures.confusion == confusion_matrix(labels, predicted, labels=every).tolist()
    by_class = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), by_class, strict=True):
        assert [entry[name] for entry in figures.per_class] == pytest.approx(list(values))


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 50.0])  # the last gives many a confidence of exactly 1
def test_calibration_error_equals_its_definition(sharpness: float) -> None:
    logits, labels = split(10, 10, 10, seed=1)
    probabilities = (logits * sharpness).softmax(dim=1).numpy()
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels.numpy()
    edges = np.linspace(0, 1, 16)
    expected = 0.0
    for low, high in pairwise(edges):
        inside = (confidence >= low) & ((confidence < high) | (high == 1))
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert measured(logits * sharpness, labels).scalars["ece"] == pytest.approx(expected, rel=1e-4)


def test_how_the_split_is_cut_into_batches_changes_nothing() -> None:
    logits, labels = split(12, 12, 12)
    one, many = measured(logits, labels, [COUNT]), measured(logits, labels)
    assert one.scalars == pytest.approx(many.scalars, rel=1e-6)
    assert one.confusion == many.confusion


def test_logits_in_bf16_are_measured_in_float32() -> None:
    logits, labels = split(10, 10, 10)
    assert measured(logits.bfloat16(), labels) == measured(logits.bfloat16().float(), labels)


def test_named_gives_the_logged_names() -> None:
    logits, labels = split(10, 10, 10)
    named = measured(logits, labels).named("val")
    origin = ("loss", "acc", "cat_prec", "cat_recall", "cat_f1", "ovr_prec", "ovr_recall", "ovr_f1")
    assert list(named) == [f"val_{name}" for name in (*origin, "ece", "majority")]


def test_every_figure_is_named_once_and_has_its_row_in_the_report() -> None:
    logits, labels = split(11, 11, 11)
    assert set(measured(logits, labels).scalars) == set(FIGURES)
    micro = {"ovr_prec", "ovr_recall"}  # one row with ovr_f1, which they are equal to
    assert set(FIGURES) - micro <= set(SHOWN)
    assert len({figure.title for figure in FIGURES.values()}) == len(FIGURES)
    assert all(figure.meaning for figure in FIGURES.values())


def test_it_leaves_no_trace_in_checkpoints() -> None:
    metrics = SplitMetrics(2)
    module = nn.ModuleDict({"head": nn.Linear(3, 2), "metrics": metrics})
    metrics.update(torch.randn(4, 2), torch.tensor([0, 1, 1, 0]))
    assert list(module.state_dict()) == ["head.weight", "head.bias"]
    assert list(module.parameters()) == list(module["head"].parameters())


def test_it_moves_with_its_module_and_keeps_its_precision() -> None:
    metrics = SplitMetrics(2)
    nn.ModuleDict({"metrics": metrics}).to("meta").bfloat16()
    assert metrics._totals.confusion.is_meta
    assert metrics._totals.loss.dtype == torch.float32


def test_reset_begins_anew_also_from_inference_mode() -> None:
    logits, labels = split(10, 10, 10)
    metrics = SplitMetrics(10)
    with torch.inference_mode():
        metrics.update(logits.roll(1, 0), labels)
        metrics.compute()
        metrics.reset()
    metrics.update(logits.requires_grad_(), labels)
    assert metrics.compute().scalars == pytest.approx(measured(logits, labels).scalars)


def test_a_diverged_model_has_no_finite_loss() -> None:
    logits, labels = split(10, 10, 10)
    logits[3] = torch.nan
    scalars = measured(logits, labels).scalars
    assert np.isnan(scalars["loss"]) and np.isnan(scalars["ece"])


def test_an_empty_split_is_refused_in_a_sentence() -> None:
    metrics = SplitMetrics(3)
    with pytest.raises(VitreousError, match="no images"):
        metrics.compute()
    metrics.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(VitreousError, match="no images"):
        metrics.compute()
