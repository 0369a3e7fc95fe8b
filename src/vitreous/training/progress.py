"""The progress line of a training, and a filter for Lightning's own messages."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import pytorch_lightning as pl
from pytorch_lightning.utilities.warnings import PossibleUserWarning

from vitreous.progress import ProgressLine
from vitreous.training.budget import BudgetKeeper
from vitreous.wording import duration


class Progress(pl.Callback):
    """Shows loss, time left, images/s, position and the last validation's figures while training.

    Args:
        keeper: has the timeline and the time of a step.
        stream: standard error by default.
    """

    def __init__(self, keeper: BudgetKeeper, stream: TextIO | None = None) -> None:
        self.keeper = keeper
        self.line = ProgressLine(stream)
        self.validation = ""

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, total = trainer.global_step, self.keeper.timeline.total
        # The loss is read only when it is shown, because reading it waits for the device.
        if not self.line.due() and step < total and not trainer.should_stop:
            return
        per_step = self.keeper.step_seconds
        rate = f"{len(batch['label']) / per_step:,.0f} images/s" if per_step else "warming up"
        left = f"{duration((total - step) * self.keeper.seconds_ahead(step))} left" if per_step else ""
        loss = f"loss {float(outputs['loss']):.3f}"
        position = f"step {step:,}/{total:,}"
        epochs = f"epoch {step / trainer.num_training_batches:.2f}"
        self.line.show(min(step / total, 1.0), (loss, left, rate, self.validation, position, epochs))

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        if "val_acc" in metrics:
            self.validation = f"val_acc {metrics['val_acc']:.4f}"

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.line.close()


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hides Lightning's own messages, which address the authors of Trainers, not users."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        try:
            yield
        finally:
            logger.setLevel(level)
