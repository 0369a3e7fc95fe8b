"""Checkpoints: written whole, hashed, and resumed to the same bits. Ctrl-C stops a run with one."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from vitreous.errors import VitreousError
from vitreous.files import atomic_write, sha256
from vitreous.run import Run

KEPT = 2  # checkpoints
PARTS = {"state_dict", "optimizer_states", "loops", "callbacks", "global_step"}  # keys of every checkpoint


class WholeFile(TorchCheckpointIO):
    """Writes Lightning's checkpoints whole or not at all, marked with the run that they belong to.

    Raises:
        VitreousError: (in `save_checkpoint`) the disk is full, or the file cannot be written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        checkpoint = {**checkpoint, "run": run_mark(path.parent.parent)}

        def write(file: BinaryIO) -> None:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # torch's writer fails a second time after a failed write, which hides the system's error.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise OSError(str(error).partition("\n")[0]) from error

        atomic_write(path, write)


def run_mark(folder: Path) -> str | None:
    """A hash of start, data and request that identifies the run in `folder`; None if it is not a run."""
    try:
        resolved = Run(folder).resolved
    except VitreousError:
        return None
    facts = {key: resolved.get(key) for key in ("started", "fingerprint", "request")}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


class CheckpointKeeper(pl.Callback):
    """Saves the whole state of a run at regular times, at its end, and on Ctrl-C or SIGTERM.

    The first Ctrl-C finishes the step in progress, saves and stops the run. A second one stops at once, and the run can
    be resumed from the checkpoint before. Half-written files of a killed process are removed at the next start.

    Args:
        folder: `checkpoints/` of the run.
        every_seconds: time from one checkpoint to the next.
        say: is called with warnings. A checkpoint that cannot be written does not end the training.
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
        remove_leftovers(self.folder)
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
        if sys.stderr.isatty():  # the terminal shows ^C at the end of the progress line
            print(file=sys.stderr)
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
        """Writes `step-N.ckpt` and its hash, then removes all older checkpoints but one."""
        step = trainer.global_step
        path = self.folder / f"step-{step:08d}.ckpt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(path)
            atomic_write(path.with_suffix(".sha256"), sha256(path) + "\n")
            # Checkpoints of later steps were skipped at the start as unusable, and do not count.
            for old in [old for old in numbered(self.folder) if step_of(old) <= step][:-KEPT]:
                old.unlink(missing_ok=True)
                old.with_suffix(".sha256").unlink(missing_ok=True)
        except (OSError, VitreousError) as error:
            self.say(f"Warning: the checkpoint of step {step:,} was not written. {error}")
            remove_leftovers(self.folder)
        self.saved_at, self.saved_step = time.monotonic(), step


def numbered(folder: Path) -> list[Path]:
    """The files in `folder` with the name of a checkpoint, oldest step first."""
    return sorted(
        (path for path in folder.glob("step-*.ckpt") if re.fullmatch(r"step-\d+", path.stem)), key=step_of
    )


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.stem.removeprefix("step-"))


def remove_leftovers(folder: Path) -> None:
    """Removes the remains of a killed process: temporary files, and checkpoints or hashes without their counterpart."""
    leftovers = [
        *folder.glob(".step-*.tmp"),
        *(path for path in numbered(folder) if not path.with_suffix(".sha256").exists()),
        *(path for path in folder.glob("step-*.sha256") if not path.with_suffix(".ckpt").exists()),
    ]
    for path in leftovers:
        with suppress(OSError):
            path.unlink()


def newest(folder: Path, say: Callable[[str], None] = print) -> Path | None:
    """The newest usable checkpoint in `folder`, or None.

    Reports each checkpoint that it skips, with the reason. Code in a file is never executed: only tensors and plain
    values are read.
    """
    for path in reversed(numbered(folder)):
        reason = _unusable(path)
        if reason is None:
            return path
        say(f"Skipping the checkpoint {path.name}, because {reason}.")
    say("The run has no usable checkpoint, so it starts again from its first step.")
    return None


def _unusable(path: Path) -> str | None:
    """Why no run can continue from the checkpoint `path`, or None if one can."""
    try:
        expected = path.with_suffix(".sha256").read_text(encoding="ascii", errors="replace").strip()
        if sha256(path) != expected:
            return "it is damaged (its content does not match its hash)"
    except FileNotFoundError:
        return "it has no hash, so it is incomplete"
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    try:
        content = torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except Exception:  # a foreign file can raise nearly any error
        content = None
    if not isinstance(content, dict) or not content.keys() >= PARTS:
        return "it is not a checkpoint of vitreous"
    if content["global_step"] != step_of(path):
        return f"it is of step {content['global_step']}, which is not the step in its name"
    mark = run_mark(path.parent.parent)
    if content.get("run", mark) != mark:
        return "it belongs to another run"
    return None
