"""Checkpoints on full disks, after kills, and from strangers."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file

import vitreous
from vitreous.files import sha256
from vitreous.training.checkpoint import CheckpointKeeper, WholeFile, newest

Arrays = tuple[np.ndarray, np.ndarray]


def weights(run: vitreous.Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "bundle" / "model.safetensors")


def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after each step."""
    keep = CheckpointKeeper.__init__
    monkeypatch.setattr(
        CheckpointKeeper, "__init__", lambda self, folder, **kw: keep(self, folder, every_seconds=0, **kw)
    )


@pytest.fixture
def cut(arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that SIGTERM stopped after step 4 of 6, with checkpoints of steps 3 and 4."""
    with monkeypatch.context() as patch:
        often(patch)
        save = CheckpointKeeper.on_train_batch_end

        def hook(self: CheckpointKeeper, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            save(self, trainer, *args)

        patch.setattr(CheckpointKeeper, "on_train_batch_end", hook)
        with pytest.raises(KeyboardInterrupt):
            vitreous.train(arrays, steps=6, out=tmp_path / "cut", **tiny)
    return tmp_path / "cut"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("limit", [0, 20_000])  # met when the file is flushed, and inside torch's writer
def test_training_goes_on_where_a_checkpoint_meets_a_full_disk(
    arrays: Arrays,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    limit: int,
) -> None:
    whole = vitreous.train(arrays, steps=3, out=tmp_path / "whole", **tiny)
    save = WholeFile.save_checkpoint

    def on_a_full_disk(self: WholeFile, *args: Any, **options: Any) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # the system refuses to write any further
        try:
            save(self, *args, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(WholeFile, "save_checkpoint", on_a_full_disk)
    run = vitreous.train(arrays, steps=3, out=tmp_path / "run", **tiny)
    assert run.summary["status"] == "finished"
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(run).values(), strict=True))
    assert "Warning: the checkpoint of step 3 was not written" in capsys.readouterr().out
    assert names(run.path / "checkpoints") == []


def test_a_real_full_disk_is_named(arrays: Arrays, tiny: dict[str, Any], tmp_path: Path) -> None:
    """A file system of 64 kB as `checkpoints`, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    try:
        said: list[str] = []
        content = {"weights": [torch.zeros(10_000) for _ in range(10)]}
        trainer = SimpleNamespace(
            global_step=3, save_checkpoint=lambda path: WholeFile().save_checkpoint(content, path)
        )
        CheckpointKeeper(folder, say=said.append).save(trainer)  # type: ignore[arg-type]
        assert "full; free some space" in said[0]
        assert names(folder) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from vitreous.training.checkpoint import WholeFile

class Kill:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)

WholeFile().save_checkpoint({"weight": torch.zeros(10), "then": Kill()}, Path(sys.argv[1]))
"""


def test_what_a_kill_left_is_removed_on_resume(cut: Path, arrays: Arrays) -> None:
    folder = cut / "checkpoints"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder / "step-00000005.ckpt")], check=False)
    assert killed.returncode == -signal.SIGKILL
    (folder / "step-00000004.sha256").unlink()  # killed between the two files
    (folder / "step-00000001.sha256").write_text("0" * 64)  # killed between the two removals
    (folder / "notes.txt").write_text("mine")
    assert [name for name in names(folder) if name.startswith(".step-00000005.ckpt.")]
    run = vitreous.resume(cut, arrays)
    assert run.summary["status"] == "finished"
    assert names(folder) == [
        "notes.txt",
        "step-00000003.ckpt",
        "step-00000003.sha256",
        "step-00000006.ckpt",
        "step-00000006.sha256",
    ]


class Evil:
    """A pickle that would make a file if it were executed."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.mark), "w")


def spoil_hash(path: Path) -> None:
    path.with_suffix(".sha256").write_bytes(b"\xff\xfe\x00")


def spoil_empty_hash(path: Path) -> None:
    path.with_suffix(".sha256").write_text("")


def spoil_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(path.parent / "executed")))


def spoil_zipped_pickle(path: Path) -> None:
    torch.save({"state_dict": Evil(path.parent / "executed")}, path)


def spoil_by_cutting(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def spoil_by_emptying(path: Path) -> None:
    path.write_bytes(b"")


def spoil_by_another_table(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def spoil_by_no_table(path: Path) -> None:
    torch.save(torch.zeros(3), path)


def spoil_by_another_step(path: Path) -> None:
    path.write_bytes((path.parent / "step-00000003.ckpt").read_bytes())


def spoil_by_another_run(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    torch.save({**content, "run": "2020-01-01 of another data set"}, path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_hash, "hash"),
        (spoil_empty_hash, "hash"),
        (spoil_pickle, "not a checkpoint"),
        (spoil_zipped_pickle, "not a checkpoint"),
        (spoil_by_cutting, "not a checkpoint"),
        (spoil_by_emptying, "not a checkpoint"),
        (spoil_by_another_table, "not a checkpoint"),
        (spoil_by_no_table, "not a checkpoint"),
        (spoil_by_another_step, "it is of step 3"),
        (spoil_by_another_run, "another run"),
    ],
)
def test_an_unusable_checkpoint_is_skipped_with_its_reason(
    cut: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    path = cut / "checkpoints" / "step-00000004.ckpt"
    spoil(path)
    if "hash" not in reason:
        path.with_suffix(".sha256").write_text(sha256(path) + "\n")
    said: list[str] = []
    assert newest(path.parent, said.append) == path.with_name("step-00000003.ckpt")
    assert len(said) == 1 and path.name in said[0] and reason in said[0]
    assert not (path.parent / "executed").exists()


def test_names_that_are_no_steps_are_left_alone(cut: Path, arrays: Arrays) -> None:
    folder = cut / "checkpoints"
    for name in ("step-abc.ckpt", "step-.ckpt", "step-00000009x.ckpt"):
        (folder / name).write_bytes(b"mine")
        (folder / name).with_suffix(".sha256").write_text(sha256(folder / name))
    assert vitreous.resume(cut, arrays).summary["status"] == "finished"
    assert {"step-abc.ckpt", "step-.ckpt", "step-00000009x.ckpt", "step-00000006.ckpt"} <= set(names(folder))


def test_resuming_without_a_usable_checkpoint_starts_again_and_says_so(
    cut: Path, arrays: Arrays, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (cut / "checkpoints").glob("*.sha256"):
        path.write_text("")
    run = vitreous.resume(cut, arrays)
    assert run.summary["status"] == "finished" and run.summary["steps"] == 6
    assert "starts again from its first step" in capsys.readouterr().out
    assert [row["step"] for row in run.metrics if row["train_loss"] is not None] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "content",
    [
        b"step,train_loss\nx,1\n",
        b"step,train_loss\n1,2,3\n",
        b"step,train_loss\n,2\n",
        b"epoch\n1\n",
        b"\xff\xfe\n",
        b"step,train_loss\n1,0.5\x00\n",
    ],
)
def test_a_damaged_curve_is_told_in_a_sentence(cut: Path, arrays: Arrays, content: bytes) -> None:
    (cut / "metrics.csv").write_bytes(content)
    with pytest.raises(vitreous.VitreousError, match=r"metrics\.csv cannot be read .*delete it"):
        vitreous.resume(cut, arrays)
    (cut / "metrics.csv").unlink()
    assert vitreous.resume(cut, arrays).metrics[0]["step"] == 5
