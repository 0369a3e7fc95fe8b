"""The living line on a real terminal of 80 columns, and plain lines without one."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vitreous.training.progress import Progress, duration
from vitreous.training.schedule import Timeline

COMMAND = [
    "train",
    "shapes",
    "--steps",
    "12",
    "--device",
    "cpu",
    "--precision",
    "32",
    "depth=1",
    "embed_dim=32",
    "num_heads=2",
    "mlp_dim=32",
    "stem_dims=[8,16]",
    "batch_size=32",
]


def on_a_terminal(columns: int, folder: Path) -> str:
    """What a terminal of that width is sent."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    child = subprocess.Popen(
        [sys.executable, "-m", "vitreous", *COMMAND, "--out", str(folder / "run")],
        stdin=slave, stdout=slave, stderr=slave, env=environment,
    )  # fmt: skip
    os.close(slave)
    sent = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other side has closed
            break
        if not piece:
            break
        sent += piece
    os.close(master)
    assert child.wait() == 0
    return sent.decode()


def test_the_living_line_fits_a_terminal(tmp_path: Path) -> None:
    sent = on_a_terminal(80, tmp_path)
    living = [line for line in sent.split("\n") if "images/s" in line and "\r" in line.rstrip("\r")]
    assert living, sent
    frames = [frame for line in living for frame in line.split("\r") if frame]
    assert len(frames) > 1
    assert all(len(frame) < 80 for frame in frames)
    assert "100%" in frames[-1]


def test_plain_lines_without_a_terminal(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vitreous", *COMMAND, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\r" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith("100%")


def test_the_loss_is_read_only_where_it_is_shown() -> None:
    """Reading it waits for the device; a loss on meta cannot be read at all."""
    stream = io.StringIO()
    keeper = SimpleNamespace(timeline=Timeline([(0, 100)]), step_seconds=0.0)
    progress = Progress(keeper, stream)  # type: ignore[arg-type]
    batch = {"label": torch.zeros(4)}
    for step in range(1, 51):
        trainer = SimpleNamespace(global_step=step, should_stop=False, num_training_batches=10)
        loss = torch.tensor(0.25) if step == 1 else torch.empty((), device="meta")
        progress.on_train_batch_end(trainer, None, {"loss": loss}, batch, step)  # type: ignore[arg-type]
    assert stream.getvalue().count("loss 0.250") == 1 and len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.2, "0:07"), (59.6, "1:00"), (750, "12:30"), (11100, "3:05:00")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
