"""The live line on real terminals of several widths, and plain lines without one."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vitreous.progress import fit, rate, track
from vitreous.training.progress import Progress
from vitreous.training.schedule import Timeline
from vitreous.wording import count, duration

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


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_the_live_line_fits_a_terminal(columns: int, tmp_path: Path) -> None:
    sent = on_a_terminal(columns, tmp_path)
    frames = [frame for frame in re.split("[\r\n]+", sent) if re.match("[━╌]+ ", frame)]
    assert len(frames) > 1, sent
    assert all(len(frame) < columns for frame in frames)
    assert "100%" in frames[-1]
    assert len({len(re.match("[━╌]+", frame)[0]) for frame in frames}) == 1, "the bar changes its width"  # type: ignore[index]


def test_parts_are_shown_whole_or_not_at_all() -> None:
    parts = ["loss 0.250", "1:05 left", "1,234 images/s", "val_acc 0.8125", "step 1,000/2,000", "epoch 5.00"]
    for columns in range(20, 200):
        line = fit(0.5, parts, columns)
        assert len(line) <= columns
        shown = line.partition("%")[2].split("  ")[1:]
        assert shown == parts[: len(shown)]
    assert fit(0.5, parts, 199).endswith("epoch 5.00")


def test_track_shows_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(track(range(20), 20, "Reading")) == list(range(20))
    assert not capsys.readouterr().err  # quick work is not worth a line
    clock = iter(range(1000))
    monkeypatch.setattr("vitreous.progress.time.monotonic", lambda: next(clock))
    assert list(track(range(100), 100, "Reading")) == list(range(100))
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out and 5 <= len(lines) <= 20
    assert lines[-1].startswith("100%  Reading: 100 of 100  ") and "left" not in lines[-1]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    list(track(range(50), 50, "Reading"))
    err = capsys.readouterr().err
    assert err.count("\r") > 10 and err.count("\n") == 1 and "50 of 50  " in err.splitlines()[-1]


def test_track_shows_the_rate_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("vitreous.progress.time.monotonic", lambda: now)
    for _ in track(range(2527), 2527, "Reading trash"):
        now += 1 / 310
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == " 25%  Reading trash: 621 of 2,527  310/s  0:06 left"
    assert lines[-1] == "100%  Reading trash: 2,527 of 2,527  310/s"
    assert [rate(number) for number in (12_345.6, 310, 9.97, 3.14, 0.251)] == [
        "12,346",
        "310",
        "10",
        "3.1",
        "0.25",
    ]


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


def test_count() -> None:
    assert [count(n, "step") for n in (0, 1, 2026)] == ["0 steps", "1 step", "2,026 steps"]
    assert count(2, "class", "classes") == "2 classes"
