"""What a person sees while training: one living line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import pytorch_lightning as pl
from pytorch_lightning.utilities.warnings import PossibleUserWarning

from vitreous.training.budget import BudgetKeeper

BAR = 24
PLAIN_EVERY_SECONDS = 15.0
LIVE_EVERY_SECONDS = 0.2


class Progress(pl.Callback):
    """Loss, images/s, time left and the last validation's figures.

    Args:
        keeper: knows the timeline and the time of a step.
        stream: standard error by default; a living line where it is a terminal.
    """

    def __init__(self, keeper: BudgetKeeper, stream: TextIO | None = None) -> None:
        self.keeper = keeper
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.shown_at = 0.0
        self.width = 0
        self.validation = ""

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, total = trainer.global_step, self.keeper.timeline.total
        now = time.monotonic()
        every = LIVE_EVERY_SECONDS if self.live else PLAIN_EVERY_SECONDS
        if now - self.shown_at < every and step < total and not trainer.should_stop:
            return
        self.shown_at = now
        per_step = self.keeper.step_seconds
        rate = f"{len(batch['label']) / per_step:,.0f} images/s" if per_step else "warming up"
        left = f"{duration((total - step) * self.keeper.seconds_ahead(step))} left" if per_step else ""
        share = min(step / total, 1.0)
        epochs = step / trainer.num_training_batches
        parts = [
            f"loss {float(outputs['loss']):.3f}",
            rate,
            left,
            self.validation,
            f"step {step}/{total}",
            f"epoch {epochs:.2f}",
        ]
        self._write(share, "  ".join(part for part in parts if part))

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        if "val_acc" in metrics:
            self.validation = f"val_loss {metrics['val_loss']:.3f} val_acc {metrics['val_acc']:.4f}"

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.close()

    def close(self) -> None:
        """Ends the living line, so that what follows starts on its own."""
        if self.width:
            self.stream.write("\n")
            self.stream.flush()
            self.width = 0

    def _write(self, share: float, text: str) -> None:
        if self.live:
            columns = shutil.get_terminal_size().columns
            bar = min(BAR, max(0, columns - len(text) - 8))  # first the figures, then the bar
            filled = round(share * bar)
            line = f"{'━' * filled}{'╌' * (bar - filled)} {share:4.0%}  {text}"[: columns - 1]
            self.stream.write("\r" + line.ljust(self.width))
            self.width = len(line)
        else:
            self.stream.write(f"{share:4.0%}  {text}\n")
        self.stream.flush()


def duration(seconds: float) -> str:
    """`seconds` for a person: "0:07", "12:30", "3:05:00"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keeps Lightning's own remarks, made for people who write Trainers, out of what users read."""
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
