"""Checkpoints: written whole, hashed, resumed to the same bits; and what Ctrl-C does."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from vitreous.errors import VitreousError
from vitreous.files import atomic_write, sha256

KEPT = 2


class WholeFile(TorchCheckpointIO):
    """Lightning's checkpoints, written whole or not at all, beside where they end up."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        atomic_write(Path(path), lambda file: torch.save(checkpoint, file))


class CheckpointKeeper(pl.Callback):
    """Saves the whole state of a run now and then, at its end, and on Ctrl-C or SIGTERM.

    The first Ctrl-C lets the step in progress finish, saves and stops the run; a second one stops
    at once, and the run goes on from the checkpoint before.

    Args:
        folder: `checkpoints/` of the run.
        every_seconds: time between two checkpoints.
        say: is told of trouble; a checkpoint that cannot be written does not end a training.
    """

    def __init__(
        self, folder: Path, *, every_seconds: float = 60.0, say: Callable[[str], None] = print
    ) -> None:
        self.folder, self.every_seconds, self.say = folder, every_seconds, say
        self.interrupted = False
        self.saved_at = 0.0
        self.saved_step = -1
        self._previous: dict[int, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.saved_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._interrupt)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.say("Stopping after this step, with a checkpoint (Ctrl-C again stops at once).")

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ends = self.interrupted or trainer.should_stop
        if ends or time.monotonic() - self.saved_at >= self.every_seconds:
            self.save(trainer)
        if self.interrupted:
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # Lightning would validate before it stops

    def save(self, trainer: pl.Trainer) -> None:
        """Writes `step-N.ckpt` and its hash beside it, then removes all but the newest two."""
        step = trainer.global_step
        path = self.folder / f"step-{step:08d}.ckpt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(path)
            atomic_write(path.with_suffix(".sha256"), sha256(path) + "\n")
        except (OSError, VitreousError) as error:
            self.say(f"Warning: there is no checkpoint at step {step}, training goes on without it. {error}")
        self.saved_at, self.saved_step = time.monotonic(), step
        for old in sorted(self.folder.glob("step-*.ckpt"))[:-KEPT]:
            old.unlink(missing_ok=True)
            old.with_suffix(".sha256").unlink(missing_ok=True)


def newest(folder: Path, say: Callable[[str], None] = print) -> Path | None:
    """The newest checkpoint whose hash is right, or None; tells of damaged ones that it passes over."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        try:
            if sha256(path) == path.with_suffix(".sha256").read_text().strip():
                return path
        except OSError:
            pass
        say(f"Passing over the damaged checkpoint {path.name}.")
    return None
