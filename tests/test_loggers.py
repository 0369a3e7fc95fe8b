"""What the loggers leave behind, read back with their own packages."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitreous
from vitreous.errors import VitreousError
from vitreous.training.loggers import MetricsCsv, read_metrics

Arrays = tuple[np.ndarray, np.ndarray]


def test_tensorboard(arrays: Arrays, tiny: dict[str, Any], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = vitreous.train(arrays, steps=20, out=tmp_path / "run", logger="tensorboard", **tiny)
    events = accumulator.EventAccumulator(str(run.path / "tensorboard")).Reload()
    losses = {event.step: event.value for event in events.Scalars("train_loss")}
    written = {row["step"] - 1: row["train_loss"] for row in run.metrics if row["train_loss"] is not None}
    assert losses == pytest.approx(written)
    assert events.Scalars("test_acc")[-1].value == pytest.approx(run.summary["test_acc"])


def wandb_records(data: bytes) -> Iterator[Any]:
    """Records of a .wandb file: after 7 bytes, a LevelDB log (blocks of 32 KiB, chunks with 7-byte headers)."""
    from wandb.proto import wandb_internal_pb2

    position, whole = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        position += 7
        whole += data[position : position + length]
        position += length
        if kind in (1, 4):  # a full record, or the last chunk of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_wandb_offline(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = vitreous.train(arrays, steps=120, out=tmp_path / "run", logger="wandb", **tiny)
    (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
    history: set[str] = set()
    config: set[str] = set()
    for record in wandb_records(file.read_bytes()):
        history |= {item.key or "/".join(item.nested_key) for item in record.history.item}
        config |= {item.key for item in record.run.config.update} | {
            item.key for item in record.config.update
        }
    assert {"train_loss", "val_acc", "test_acc"} <= history
    assert any(key.startswith("gradients/") for key in history)
    assert any(key.startswith("parameters/") for key in history)
    assert {"model", "optimizer"} <= config


def test_unknown_logger(arrays: Arrays, tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(VitreousError, match="'wandb'"):
        vitreous.train(arrays, steps=1, out=tmp_path / "run", logger="wandbb", **tiny)
    assert not (tmp_path / "run").exists()


def test_csv_forgets_a_lost_future(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsCsv(path, seconds=lambda: 1.5, steps_per_epoch=4)
    for step in range(6):
        log.log_metrics({"train_loss": float(step), "epoch": 0}, step)
    log.log_metrics({"val_loss": 0.5, "val_acc": 0.25}, 5)
    with path.open("a") as file:
        file.write("7,1.7")  # a crash in the middle of a row
    MetricsCsv(path, seconds=lambda: 2.0, steps_per_epoch=4, start_step=4)
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[3]["train_loss"] == 3.0 and rows[3]["epoch"] == 1.0 and rows[3]["val_loss"] is None
