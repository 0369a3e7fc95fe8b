"""The files of the loggers, read back with their own packages."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vitreous
from vitreous.errors import VitreousError
from vitreous.training.classifier import Classifier
from vitreous.training.loggers import MetricsCsv, Wandb, extra_logger, read_metrics

Arrays = tuple[np.ndarray, np.ndarray]


def test_tensorboard(arrays: Arrays, tiny: dict[str, Any], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = vitreous.train(arrays, steps=20, out=tmp_path / "run", logger="tensorboard", **tiny)
    assert len(list((run.path / "tensorboard").glob("events.*"))) == 1
    events = accumulator.EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert "hp_metric" not in events.Tags()["scalars"]
    hyperparameters = events.PluginTagToContent("hparams")
    assert b"optimizer/muon_learning_rate" in hyperparameters["_hparams_/session_start_info"]
    assert b"test_acc" in hyperparameters["_hparams_/experiment"]
    assert [event.step for event in events.Scalars("test_acc")] == [19]
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
    forward_hooks: list[str] = []

    def watched(self: Classifier, x: torch.Tensor) -> torch.Tensor:
        forward_hooks.extend(name for name, module in self.model.named_modules() if module._forward_hooks)
        return self.model(x)

    monkeypatch.setattr(Classifier, "forward", watched)
    run = vitreous.train(arrays, steps=120, out=tmp_path / "run", logger="wandb", **tiny)
    assert forward_hooks == []  # with hooks it would run in torch
    plain = vitreous.train(arrays, steps=120, out=tmp_path / "plain", **tiny)
    for name, weight in load_file(plain.path / "bundle" / "model.safetensors").items():
        assert torch.equal(weight, load_file(run.path / "bundle" / "model.safetensors")[name]), name
    (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
    history: set[str] = set()
    config: set[str] = set()
    for record in wandb_records(file.read_bytes()):
        history |= {item.key or "/".join(item.nested_key) for item in record.history.item}
        config |= {item.key for item in record.run.config.update} | {
            item.key for item in record.config.update
        }
    assert {"train_loss", "val_acc", "test_acc"} <= history
    for name, _ in run.model.named_parameters():
        assert {f"gradients/{name}/bins", f"parameters/{name}/bins"} <= history
    assert {"model", "optimizer"} <= config


def test_histograms_leave_out_what_is_not_finite_or_not_trained(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    model = torch.nn.Linear(3, 2)
    model.weight.grad = torch.tensor([[1.0, torch.nan, 2.0], [torch.inf, 3.0, 4.0]])
    model.bias.data.fill_(torch.nan)
    logged: dict[int, dict[str, Any]] = {}
    logger = Wandb(save_dir=tmp_path)
    logger.log_metrics = lambda metrics, step: logged.update({step: metrics})  # type: ignore[method-assign, assignment, misc]
    for step in range(201):
        logger.log_histograms(model, step)
    assert list(logged) == [0, 100, 200]
    assert list(logged[0]) == ["parameters/weight", "gradients/weight"]
    gradients = logged[0]["gradients/weight"]
    assert sum(gradients.histogram) == 4 and gradients.bins[0] == 1 and gradients.bins[-1] == 4


def test_wandb_without_login_is_told_before_anything_is_made(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_CONFIG_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "vitreous", "train", "shapes", "--steps", "1", "--logger", "wandb"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")], env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "wandb login" in done.stderr and "WANDB_MODE=offline" in done.stderr
    assert not (tmp_path / "run").exists()


def test_wandb_that_cannot_be_reached_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")

    def unreachable(**settings: Any) -> None:
        raise wandb.errors.CommError("no route to api.wandb.ai")

    monkeypatch.setattr(wandb, "init", unreachable)
    with pytest.raises(VitreousError, match=r"no route .*WANDB_MODE=offline"):
        extra_logger("wandb", tmp_path, {})


@pytest.mark.parametrize(
    ("optimizer", "peaks"),
    [
        ("muon", {"learning_rate": 2e-3, "muon_learning_rate": 0.03}),
        ("adamw", {"learning_rate": 2e-3, "muon_learning_rate": None}),
    ],
)
def test_each_learning_rate_is_logged_by_its_name(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, optimizer: str, peaks: dict[str, float | None]
) -> None:
    tiny["overrides"] |= {"optimizer.name": optimizer, "learning_rate": 2e-3}
    if optimizer == "muon":
        tiny["overrides"] |= {"muon_learning_rate": 0.03}
    run = vitreous.train(arrays, steps=10, out=tmp_path / "run", **tiny)
    for name, peak in peaks.items():
        logged = [row[name] for row in run.metrics if row["train_loss"] is not None]
        assert len(logged) == 10
        if peak is None:
            assert set(logged) == {None}
        else:  # one step of warm-up, then a line to zero
            assert max(logged) == pytest.approx(peak)
            assert logged[-1] == pytest.approx(peak / 9)


def test_an_older_curve_is_continued_with_the_new_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,seconds,learning_rate,train_loss,val_other\n1,0.25,1.0,0.02,0.5,7\n")
    log = MetricsCsv(path, seconds=lambda: 1.5, steps_per_epoch=4, start_step=1)
    log.log_metrics({"train_loss": 0.4, "learning_rate": 0.002, "muon_learning_rate": 0.02}, 1)
    first, second = read_metrics(path)
    assert (first["learning_rate"], first["muon_learning_rate"], first["train_loss"]) == (0.02, None, 0.5)
    assert (second["learning_rate"], second["muon_learning_rate"]) == (0.002, 0.02)


FULL_DISK = """
import resource, sys
from pathlib import Path
from vitreous.training.loggers import MetricsCsv
path = Path(sys.argv[1])
log = MetricsCsv(path, seconds=lambda: 1.5, steps_per_epoch=4)
log.log_metrics({"train_loss": 1.0}, 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, resource.RLIM_INFINITY))  # a part of a row
for step in (1, 2):
    log.log_metrics({"train_loss": 2.0}, step)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
log.log_metrics({"train_loss": 3.0}, 3)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_full_disk_costs_rows_and_no_training(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Warning: the figures of step 2 were not written") == 1
    assert done.stderr.count("Warning") == 1 and str(path) in done.stderr
    assert [(row["step"], row["train_loss"]) for row in read_metrics(path)] == [(1, 1.0), (4, 3.0)]


def test_unknown_logger(arrays: Arrays, tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(VitreousError, match="'wandb'"):
        vitreous.train(arrays, steps=1, out=tmp_path / "run", logger="wandbb", **tiny)
    assert not (tmp_path / "run").exists()


def test_csv_discards_rows_after_the_step_it_continues_from(tmp_path: Path) -> None:
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
