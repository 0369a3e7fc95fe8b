"""Figures of a written bundle: the only way by which a run's `val_` and `test_` figures come about."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitreous import run as runs
from vitreous.bundle import Bundle, load_bundle
from vitreous.data.store import Split, Splits
from vitreous.files import atomic_write
from vitreous.metrics import Figures, SplitMetrics

MISTAKES = 25


def evaluate_split(bundle: Bundle, split: Split) -> tuple[Figures, torch.Tensor]:
    """Figures of a bundle over a whole split, and its logits float32 [N, C]."""
    logits = bundle.logits(split.images)
    metrics = SplitMetrics(len(bundle.classes))
    metrics.update(logits, torch.as_tensor(np.asarray(split.labels)))
    return metrics.compute(), logits


def final_figures(path: Path, splits: Splits, judges: tuple[str, ...], device: str) -> dict[str, float]:
    """Evaluates the written bundle, this once, on the splits `judges`; writes what the report shows of it."""
    bundle = load_bundle(path / "bundle", device)
    evaluation: dict[str, Any] = {"classes": bundle.classes}
    named: dict[str, float] = {}
    for stage in judges:
        split = getattr(splits, stage)
        figures, logits = evaluate_split(bundle, split)
        named |= figures.named(stage)
        evaluation[stage] = {
            "figures": figures.scalars,
            "per_class": figures.per_class,
            "confusion": figures.confusion,
        }
    runs.write_json(path / "evaluation.json", evaluation)
    write_mistakes(path / "mistakes.npz", split, logits)
    return named


def write_mistakes(path: Path, split: Split, logits: torch.Tensor) -> None:
    """Writes the most confident mistakes on a split, most confident first."""
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    labels = torch.as_tensor(np.asarray(split.labels))
    wrong = (predicted != labels).nonzero().squeeze(1)
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)[:MISTAKES]].numpy()
    file = BytesIO()
    np.savez_compressed(
        file,
        images=split.images[worst],
        label=labels[worst].numpy(),
        predicted=predicted[worst].numpy(),
        confidence=confidence[worst].numpy(),
        name=np.array([split.names[i] for i in worst], dtype=np.str_),
    )
    atomic_write(path, file.getvalue())
