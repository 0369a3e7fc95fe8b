"""Loggers of the figures during training: `metrics.csv` always, TensorBoard and Weights & Biases on request."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import nn

from vitreous.errors import VitreousError, unknown
from vitreous.files import atomic_write, write_failure
from vitreous.metrics import FIGURES
from vitreous.run import read_metrics

LOGGERS = ("csv", "tensorboard", "wandb")
LEARNING_RATES = ("learning_rate", "muon_learning_rate")  # of AdamW, and of Muon if it trains the matrices
COLUMNS = ("step", "epoch", "seconds", *LEARNING_RATES, "train_loss", *(f"val_{name}" for name in FIGURES))
HISTOGRAM_STEPS = 100  # from one set of histograms to the next
HISTOGRAM_BINS = 64


class MetricsCsv(Logger):
    """Writes `metrics.csv`: one row for each logged step or validation, with empty cells for values not logged.

    A row that cannot be written, as on a full disk, is left out. The first one gives a warning on standard error.

    Args:
        path: the file. Its rows up to `start_step` are kept. Later rows are discarded; those steps run again.
        seconds: returns the training time so far.
        steps_per_epoch: for the `epoch` column, which holds fractions.
        start_step: the step that the run continues from.

    Raises:
        VitreousError: the file is damaged, or cannot be read or written at the start.
    """

    def __init__(
        self, path: Path, *, seconds: Callable[[], float], steps_per_epoch: int, start_step: int = 0
    ) -> None:
        super().__init__()
        self.path, self.clock, self.steps_per_epoch = path, seconds, steps_per_epoch
        self.warned = False
        try:
            kept = [row for row in read_metrics(path) if row["step"] <= start_step] if path.exists() else []
        except VitreousError as error:
            raise VitreousError(f"{error} Or delete it, and the run goes on without its rows.") from None
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(
            {column: "" if value is None else value for column, value in row.items()} for row in kept
        )
        atomic_write(path, text.getvalue())

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing, since the recipe is in the run folder."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        known = {
            key: value for key, value in metrics.items() if key in COLUMNS and key not in ("epoch", "step")
        }
        if not known or step is None:
            return
        done = step + 1  # Lightning gives the index of the step, from 0
        row = {
            "step": done,
            "epoch": round(done / self.steps_per_epoch, 4),
            "seconds": round(self.clock(), 2),
            **known,
        }
        try:
            self._append(row)
        except OSError as error:
            if not self.warned:
                print(
                    f"Warning: the figures of step {done:,} were not written. Training goes on and tries to write "
                    f"later rows. {write_failure(self.path, error)}",
                    file=sys.stderr,
                )
            self.warned = True

    def _append(self, row: Mapping[str, float]) -> None:
        """Adds the whole row or, with an OSError, nothing, since a later row would be glued to a part of it."""
        size = self.path.stat().st_size
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
        except OSError:
            os.truncate(self.path, size)
            raise


class TensorBoard(TensorBoardLogger):
    """TensorBoard with a single event file for each process.

    Lightning closes the file at the end of training, and the final figures would then start a second one.
    """

    def finalize(self, status: str) -> None:
        self.save()


class Wandb(WandbLogger):
    """Weights & Biases with histograms of all parameters and gradients every 100 steps.

    Its own `watch` would slow training down, because a network with forward hooks cannot run on the native kernels.
    """

    def log_histograms(self, model: nn.Module, step: int) -> None:
        """Logs histograms before the optimizer's step, if `step` is a multiple of `HISTOGRAM_STEPS`."""
        if step % HISTOGRAM_STEPS:
            return
        import wandb

        histograms: dict[str, Any] = {}
        for name, parameter in model.named_parameters():
            for kind, values in (("parameters", parameter.detach()), ("gradients", parameter.grad)):
                if values is None:
                    continue
                finite = values[values.isfinite()].float().cpu().numpy()  # histograms cannot hold NaN
                if finite.size:
                    counts, edges = np.histogram(finite, HISTOGRAM_BINS)
                    histograms[f"{kind}/{name}"] = wandb.Histogram(
                        np_histogram=(counts.tolist(), edges.tolist())
                    )
        self.log_metrics(histograms, step)


def check_logger(name: str) -> None:
    """Raises `VitreousError` if the logger `name` is unknown or cannot be used.

    On a terminal, Weights & Biases may ask for its key.
    """
    if name not in LOGGERS:
        raise unknown("logger", name, LOGGERS)
    if name != "csv" and find_spec(name) is None:
        raise VitreousError(
            f"--logger {name} needs its package; install it with pip install 'vitreous[{name}]'."
        )
    if name == "wandb":
        import wandb

        mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        if mode in ("offline", "dryrun", "disabled"):
            return
        try:
            wandb.login(verify=False)
        except wandb.Error as error:
            raise VitreousError(
                f"--logger wandb cannot be used ({str(error).rstrip('.')}); run wandb login, "
                "or set WANDB_MODE=offline to log into the run folder only."
            ) from None


def extra_logger(name: str, folder: Path, config: Mapping[str, Any]) -> Logger | None:
    """The logger `name`, which writes into the run's folder; None for "csv", which is always written.

    Raises:
        VitreousError: Weights & Biases cannot be reached.
    """
    if name == "tensorboard":
        return TensorBoard(save_dir=folder, name=None, version="tensorboard", default_hp_metric=False)
    if name == "wandb":
        import wandb

        logger = Wandb(project="vitreous", name=folder.name, save_dir=folder, config=dict(config))
        try:
            _ = logger.experiment  # starts its run
        except wandb.Error as error:
            raise VitreousError(
                f"--logger wandb cannot be used ({str(error).rstrip('.')}); mend that, "
                "or set WANDB_MODE=offline to log into the run folder only."
            ) from None
        return logger
    return None


def finish(loggers: Iterable[Logger], figures: Mapping[str, float], step: int) -> None:
    """Logs a run's final figures and closes the loggers."""
    for logger in loggers:
        if isinstance(logger, TensorBoard):  # for its table of hyperparameters against figures
            logger.log_hyperparams(logger.hparams, dict(figures), step)
        else:
            logger.log_metrics(dict(figures), step=step)
        logger.finalize("success")
        if isinstance(logger, TensorBoard):
            logger.experiment.close()
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
