"""Where figures go while training: `metrics.csv` always, TensorBoard and Weights & Biases on request."""

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
RATES = ("learning_rate", "muon_learning_rate")  # AdamW's, and that of Muon where it trains the matrices
COLUMNS = ("step", "epoch", "seconds", *RATES, "train_loss", *(f"val_{name}" for name in FIGURES))
HISTOGRAM_STEPS = 100  # between two sets of histograms
HISTOGRAM_BINS = 64


class MetricsCsv(Logger):
    """`metrics.csv`: one row for each logged step or validation, empty cells where nothing was logged.

    Args:
        path: of the file; its rows up to `start_step` are kept. Later rows are discarded; those steps run again.
            A later row that cannot be written (a full disk) is left out, with a warning for the first one on stderr.
        seconds: the run's training clock.
        steps_per_epoch: for the `epoch` column, a fraction.

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
            raise VitreousError(f"{error} Or delete it: the run then goes on without its rows.") from None
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows([{k: "" if v is None else v for k, v in row.items()} for row in kept])
        atomic_write(path, text.getvalue())

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The recipe stands in the run folder already."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        known = {
            key: value for key, value in metrics.items() if key in COLUMNS and key not in ("epoch", "step")
        }
        if not known or step is None:
            return
        done = step + 1  # Lightning counts the step in progress, a person those that are done
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
                    f"Warning: the figures of step {done} were not written; training goes on, and later rows are "
                    f"still tried. {write_failure(self.path, error)}",
                    file=sys.stderr,
                )
            self.warned = True

    def _append(self, row: Mapping[str, float]) -> None:
        """Adds the whole row or, with an OSError, nothing: later rows would run on from a part of it."""
        size = self.path.stat().st_size
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
        except OSError:
            os.truncate(self.path, size)
            raise


class TensorBoard(TensorBoardLogger):
    """TensorBoard, with one file of events for each process.

    Lightning closes the file when training ends; the last figures would then begin a second one.
    """

    def finalize(self, status: str) -> None:
        self.save()


class Wandb(WandbLogger):
    """Weights & Biases, with histograms of all parameters and gradients every 100 steps.

    Its own `watch` would slow training down: a network with forward hooks runs in torch, not on the native kernels.
    """

    def log_histograms(self, model: nn.Module, step: int) -> None:
        """Logs them at `step`, before the optimizer's step, if it is their turn."""
        if step % HISTOGRAM_STEPS:
            return
        import wandb

        histograms: dict[str, Any] = {}
        for name, parameter in model.named_parameters():
            for kind, values in (("parameters", parameter.detach()), ("gradients", parameter.grad)):
                if values is None:
                    continue
                finite = values[values.isfinite()].float().cpu().numpy()  # no histogram holds NaN
                if finite.size:
                    counts, edges = np.histogram(finite, HISTOGRAM_BINS)
                    histograms[f"{kind}/{name}"] = wandb.Histogram(
                        np_histogram=(counts.tolist(), edges.tolist())
                    )
        self.log_metrics(histograms, step)


def check_logger(name: str) -> None:
    """Raises `VitreousError` where there is no logger called `name`, or it cannot be used.

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
    """The logger called `name` beside the CSV, writing into the run's folder.

    Raises:
        VitreousError: Weights & Biases cannot be reached.
    """
    if name == "tensorboard":
        return TensorBoard(save_dir=folder, name=None, version="tensorboard", default_hp_metric=False)
    if name == "wandb":
        import wandb

        logger = Wandb(project="vitreous", name=folder.name, save_dir=folder, config=dict(config))
        try:
            _ = logger.experiment  # begins the run
        except wandb.Error as error:
            raise VitreousError(
                f"--logger wandb cannot be used ({str(error).rstrip('.')}); mend that, "
                "or set WANDB_MODE=offline to log into the run folder only."
            ) from None
        return logger
    return None


def finish(loggers: Iterable[Logger], figures: Mapping[str, float], step: int) -> None:
    """Hands over a run's last figures and ends what has to be ended."""
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
