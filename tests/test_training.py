"""Whole runs on tiny data: budgets, output, resumption to the same bits, evaluation, the run folder."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import vitreous
from vitreous import recipe as recipes
from vitreous.data.arrays import from_arrays
from vitreous.data.augment import Augment
from vitreous.data.module import ImageData
from vitreous.dial import describe_strengths
from vitreous.errors import VitreousError
from vitreous.model.vit import VisionTransformer
from vitreous.native.build import load_kernels
from vitreous.plan import open_module
from vitreous.request import Request
from vitreous.training import budget as budgets
from vitreous.training.budget import BudgetKeeper, Sizes, planned_steps
from vitreous.training.checkpoint import CheckpointKeeper, newest
from vitreous.training.classifier import Classifier, make_optimizer
from vitreous.training.cost import RunCost, StepCost, count_cost, forward_loss
from vitreous.training.schedule import Timeline, phases

Arrays = tuple[np.ndarray, np.ndarray]


def weights(run: vitreous.Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "bundle" / "model.safetensors")


def same(a: vitreous.Run, b: vitreous.Run) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


@pytest.fixture(params=["torch", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and isinstance(load_kernels(torch.float32), str):
        pytest.skip("no C++ compiler")
    return str(request.param)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A real SIGINT when `step` steps are done."""
    save = CheckpointKeeper.on_train_batch_end

    def hook(self: CheckpointKeeper, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        save(self, trainer, *args)

    monkeypatch.setattr(CheckpointKeeper, "on_train_batch_end", hook)


def test_it_learns_and_the_folder_explains_itself(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "VALIDATION_SHARE", 1.0)
    run = vitreous.train(arrays, epochs=4, out=tmp_path / "run", **tiny)
    summary = run.summary
    assert summary["test_acc"] > 0.9 > summary["test_majority"]
    origin = ("loss", "acc", "cat_prec", "cat_recall", "cat_f1", "ovr_prec", "ovr_recall", "ovr_f1")
    assert {f"{stage}_{name}" for stage in ("val", "test") for name in origin} <= set(summary)
    costs = (
        "parameters",
        "train_flops",
        "encoder_flops_share",
        "planned_epochs",
        "planned_flops",
        "train_seconds",
        "total_seconds",
        "images_per_second",
        "epochs",
        "steps",
        "seed",
    )
    assert set(costs) <= set(summary)
    assert summary["epochs"] == 4
    assert summary["steps"] == 4 * run.resolved["steps_per_epoch"]
    assert (
        0.6 < summary["train_flops"] / (summary["steps"] * run.resolved["step_flops"]) < 1
    )  # small ones first
    assert 0 < summary["train_seconds"] < summary["total_seconds"]
    for name in (
        "recipe.toml",
        "metrics.csv",
        "evaluation.json",
        "mistakes.npz",
        "split.json",
        "log.txt",
        "report.html",
    ):
        assert (run.path / name).stat().st_size > 0
    rows = run.metrics
    assert rows[-1]["step"] == summary["steps"] and rows[-1]["val_acc"] == pytest.approx(summary["val_acc"])
    assert [row["step"] for row in rows if row["train_loss"] is not None] == list(
        range(1, summary["steps"] + 1)
    )
    assert [row["epoch"] for row in rows if row["val_loss"] is not None] == [1, 2, 3, 4]
    images, labels = arrays
    assert (run.predict(images) == labels).mean() > 0.9
    assert np.allclose(run.predict_proba(images[:5]).sum(axis=1), 1, atol=1e-5)


Capture = pytest.CaptureFixture[str]


def test_a_run_prints_three_lines_before_it_and_three_after(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    run = vitreous.train(arrays, steps=6, seed=7, backend="torch", **tiny)
    assert run.path == Path(
        "runs/arrays-default-embed_dim32-num_heads2-mlp_dim32-depth1-and-2-more-seed7-001"
    )
    val, test = (run.predictions[split] for split in ("val", "test"))
    right = [(output.logits.argmax(axis=1) == output.labels).mean() for output in (test, val)]
    train_labels = np.concatenate([val.labels, test.labels])
    assert len(val.labels) == len(test.labels) == 30 and (np.bincount(train_labels) == 20).all()
    output = capsys.readouterr()
    data, network, budget, result, cost, report = output.out.splitlines()
    assert data == (
        "data: arrays, 240 images to train on, 30 to validate (cut from training), "
        "30 to test (cut from training), 3 classes (0, 1, 2), 16 x 16 pixels"
    )
    parameters = sum(p.numel() for p in run.model.parameters())
    strengths = describe_strengths(0.4, {key: values[0] for key, values in run.resolved["dial"].items()})
    assert strengths.startswith("0.4 epochs → augmentation: crop 1")
    assert network == f"network: compact, 32 wide, 1 layer, {parameters:,} parameters ({strengths})"
    assert budget == f"budget: 6 steps of 16 images, 0.40 epochs, saved in {run.path}"
    assert result == (
        f"Test accuracy: {100 * right[0]:.1f} % on 30 images it had never seen "
        f"(always guessing the largest class: 33.3 %); validation {100 * right[1]:.1f} % on 30."
    )
    assert re.fullmatch(
        r"6 steps, 0\.40 epochs, \d(\.\d+)?e\d+ FLOPs, [\d,]+ images/s, \d+:\d\d in all", cost
    )
    assert report == f"report: {run.path / 'report.html'}"
    log = (run.path / "log.txt").read_text().splitlines()
    for detail in (
        "precision: 32, as given",
        "backend: torch, as given",
        "optimizer: Muon at learning rate 0.02",
    ):
        assert any(line.startswith(detail) for line in log)
    assert [line for line in log if line in output.out.splitlines()] == output.out.splitlines()


def test_verbose_prints_what_the_log_has_and_is_not_part_of_the_run(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    first = vitreous.train(arrays, steps=2, out=tmp_path / "first", verbose=True, **tiny)
    assert capsys.readouterr().out == (first.path / "log.txt").read_text()
    assert "verbose" not in (first.path / "recipe.toml").read_text()
    again = vitreous.repeat(first.path, arrays, out=tmp_path / "again", verbose=True)
    assert capsys.readouterr().out == (again.path / "log.txt").read_text()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 1)
        vitreous.train(arrays, steps=2, out=tmp_path / "cut", **tiny)
    before = len((tmp_path / "cut" / "log.txt").read_text())
    capsys.readouterr()
    vitreous.resume(tmp_path / "cut", arrays, verbose=True)
    assert capsys.readouterr().out == (tmp_path / "cut" / "log.txt").read_text()[before:]


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"steps": 1}, "1 step of 16 images, 0.07 epochs"),
        ({"epochs": 2}, "2 epochs, 30 steps of 16 images"),
        ({"flops": 1e9}, "1e9 FLOPs, "),
        ({"minutes": 0.02}, "0.02 minutes, about "),
    ],
)
def test_a_budget_is_said_once_in_its_own_unit(
    budget: dict[str, float],
    words: str,
    arrays: Arrays,
    tiny: dict[str, Any],
    tmp_path: Path,
    capsys: Capture,
) -> None:
    run = vitreous.train(arrays, out=tmp_path / "run", **budget, **tiny)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("budget: "))
    assert line.startswith(f"budget: {words}") and line.endswith(f", saved in {run.path}")
    if "minutes" not in budget:
        steps, epochs = run.summary["steps"], run.summary["epochs"]
        assert f"{steps} step" in line
        assert "epochs" in budget or f"{epochs:.2f} epochs" in line


def test_the_split_that_a_run_is_judged_by_is_named(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, capsys: Capture
) -> None:
    images, labels = arrays
    data = (arrays, (images[::2], labels[::2]))
    vitreous.train(data, steps=1, judge="val", out=tmp_path / "val", **tiny)
    output = capsys.readouterr().out
    assert "270 images to train on, 30 to validate (cut from training), 150 to test, 3 classes" in output
    assert re.search(r"^Validation accuracy: [\d.]+ % on 30 images .*not looked at\.$", output, re.MULTILINE)
    vitreous.train(data, steps=1, judge="test", out=tmp_path / "test", **tiny)
    output = capsys.readouterr().out
    assert "300 images to train on, validation images among them, 150 to test, 3 classes" in output
    assert re.search(
        r"^Test accuracy: [\d.]+ % on 150 images, 150 of them in training too [^;]*\.$", output, re.MULTILINE
    )


def test_ctrl_c_and_resume_say_where_the_run_goes_on(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    path = tmp_path / "cut"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 3)
        vitreous.train(arrays, minutes=0.5, out=path, **tiny)
    output = capsys.readouterr().out
    assert output.endswith(f"Interrupted; continue with: vitreous train --resume {path}\n")
    assert output.count("nterrupted") == 1
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 5)
        vitreous.resume(path, arrays)
    assert (
        f"budget: 0.5 minutes, resumed after step 3 (step-00000003.ckpt), saved in {path}\n"
        in capsys.readouterr().out
    )


def test_a_repeat_takes_the_next_number_of_its_name(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    first = vitreous.train(arrays, "default", steps=2, **tiny)
    again = vitreous.repeat(first.path, arrays)
    assert again.path.name == first.path.name.removesuffix("-001") + "-002"
    vitreous.resume(again.path)
    accuracy = f"{100 * again.summary['test_acc']:.1f}"
    assert f"{again.path} is finished (test accuracy {accuracy} %" in capsys.readouterr().out
    named = vitreous.train(
        arrays, recipes.load("default", tiny.pop("overrides")), steps=2, out="mine", **tiny
    )
    assert vitreous.repeat(named.path, arrays).path == Path("runs/arrays-default-seed42-001")


def test_a_torch_backend_for_lack_of_a_compiler_is_said(tmp_path: Path) -> None:
    code = (
        "import numpy as np, vitreous; images = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), np.uint8);"
        "vitreous.train((images, np.arange(60) % 2), steps=1, device='cpu', overrides=['depth=1'])"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "CXX": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.match(r"backend: torch, because .*C\+\+ compiler", done.stdout), done.stdout


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, backend: str
) -> None:
    a, b, c = (
        vitreous.train(arrays, steps=6, out=tmp_path / name, seed=seed, backend=backend, **tiny)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert same(a, b)
    assert not same(a, c)


def test_a_run_is_repeated_from_its_own_recipe(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, backend: str
) -> None:
    a = vitreous.train(arrays, steps=6, out=tmp_path / "a", backend=backend, **tiny)
    again = vitreous.train(arrays, tmp_path / "a" / "recipe.toml", out=tmp_path / "b", device="cpu")
    assert again.recipe == a.recipe
    assert again.resolved["machine"]["backend"] == backend and again.resolved["machine"]["precision"] == "32"
    assert same(a, again)


# 300 images give 240 to train on, 15 steps of 16 in an epoch: within one, at its end, and at the very end.
@pytest.mark.parametrize("step", [4, 15, 22, 33])
def test_an_interrupted_run_continues_to_the_same_bits(
    arrays: Arrays,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    step: int,
) -> None:
    tiny["overrides"] |= {"dropout": 0.1, "crop": 2} | ({"drop_path": 0.2} if backend == "torch" else {})
    tiny["backend"] = backend
    whole = vitreous.train(arrays, steps=33, out=tmp_path / "whole", **tiny)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            vitreous.train(arrays, steps=33, out=tmp_path / "cut", **tiny)
    cut = vitreous.Run(tmp_path / "cut")
    assert cut.summary["status"] == "interrupted" and cut.summary["steps"] == step
    assert "test_acc" not in cut.summary
    assert (cut.path / "report.html").exists()
    rest = vitreous.resume(cut.path, arrays)
    assert rest.summary["status"] == "finished" and rest.summary["steps"] == 33
    assert same(whole, rest)
    for name in ("test_loss", "val_acc"):
        assert rest.summary[name] == whole.summary[name]

    def losses(run: vitreous.Run) -> list[tuple[int, float]]:
        return [(row["step"], row["train_loss"]) for row in run.metrics if row["train_loss"] is not None]

    assert losses(rest) == losses(whole)
    assert rest.resolved["exact"]


def test_a_damaged_checkpoint_is_passed_over(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    tiny["backend"] = backend
    whole = vitreous.train(arrays, steps=20, out=tmp_path / "whole", **tiny)
    with monkeypatch.context() as patch:
        keep = CheckpointKeeper.__init__
        patch.setattr(
            CheckpointKeeper, "__init__", lambda self, folder, **kw: keep(self, folder, every_seconds=0, **kw)
        )
        interrupt_at(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            vitreous.train(arrays, steps=20, out=tmp_path / "cut", **tiny)
    folder = tmp_path / "cut" / "checkpoints"
    assert [path.name for path in sorted(folder.glob("*.ckpt"))] == [
        "step-00000008.ckpt",
        "step-00000009.ckpt",
    ]
    with (folder / "step-00000009.ckpt").open("r+b") as file:
        file.truncate(1000)
    said: list[str] = []
    assert newest(folder, said.append) == folder / "step-00000008.ckpt"
    assert "step-00000009.ckpt" in said[0]
    assert same(whole, vitreous.resume(tmp_path / "cut", arrays))


def test_resume_refuses_other_data(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            vitreous.train(arrays, steps=9, out=tmp_path / "run", **tiny)
    images, labels = arrays
    with pytest.raises(VitreousError, match="fingerprint"):
        vitreous.resume(tmp_path / "run", (images ^ 1, labels))
    with pytest.raises(VitreousError, match="give them again"):
        vitreous.resume(tmp_path / "run")


def test_evaluate_reproduces_the_runs_own_figures(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path
) -> None:
    run = vitreous.train(arrays, steps=10, out=tmp_path / "run", **tiny)
    for split in ("val", "test"):
        figures = vitreous.evaluate(run.path, split, data=arrays)
        for name, value in figures.named(split).items():
            assert value == run.summary[name]
    with pytest.raises(VitreousError, match="'test'"):
        vitreous.evaluate(run.path, "tets", data=arrays)


def test_minutes_are_kept_on_a_machine_that_changes_speed(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A made-up clock: steps of 50 ms, then of 200 ms, and evaluation in proportion."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    # The forecast must not depend on the real clock, which other work on the machine disturbs.
    monkeypatch.setattr("vitreous.plan.measure_seconds", lambda cost, *_, **__: cost)
    step = Classifier.training_step
    validate = Classifier.validation_step

    def slow_step(self: Classifier, batch: Any, index: int) -> torch.Tensor:
        now[0] += 0.05 if self.global_step < 150 else 0.2
        return step(self, batch, index)

    def slow_validation(self: Classifier, batch: Any, index: int) -> None:
        now[0] += 0.02
        validate(self, batch, index)

    monkeypatch.setattr(Classifier, "training_step", slow_step)
    monkeypatch.setattr(Classifier, "validation_step", slow_validation)
    monkeypatch.setattr(budgets, "REPORT_SECONDS", 0.0)
    run = vitreous.train(arrays, minutes=0.5, out=tmp_path / "run", **tiny)
    assert run.summary["total_seconds"] == pytest.approx(30, rel=0.03)
    assert re.search(r"run would end [\d.]+ s late, so \d+ steps become", (run.path / "log.txt").read_text())
    assert run.metrics[-2]["learning_rate"] < 0.03 * 2e-3  # the schedule came to its end
    assert 150 < run.summary["steps"] < 350


def test_a_slow_start_does_not_end_a_run(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two steps take a hundred times as long as the rest, as on a machine that is just then busy."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    step = Classifier.training_step

    def slow_step(self: Classifier, batch: Any, index: int) -> torch.Tensor:
        now[0] += 5.0 if self.global_step < 2 else 0.05
        return step(self, batch, index)

    monkeypatch.setattr(Classifier, "training_step", slow_step)
    monkeypatch.setattr(budgets, "REPORT_SECONDS", 0.0)
    run = vitreous.train(arrays, minutes=0.5, out=tmp_path / "run", **tiny)
    assert run.summary["total_seconds"] == pytest.approx(30, rel=0.03)
    assert 350 < run.summary["steps"] < 420


def test_a_full_memory_of_the_gpu_is_one_sentence(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(Classifier, "training_step", full)
    with pytest.raises(
        VitreousError, match="memory of the GPU is full; train anew with a smaller batch_size"
    ):
        vitreous.train(arrays, steps=2, out=tmp_path / "run", **tiny)


def keeper(unit: str, amount: float, steps_per_epoch: int = 176) -> BudgetKeeper:
    sizes = Sizes(256, steps_per_epoch, val=5000, test=10000)
    step = StepCost(flops=3_000_000_000, seconds=0.5, evaluation_seconds=0.1)
    cost, budget = RunCost(((1.0, step),)), recipes.Budget(amount, unit)
    timeline = Timeline([(0, planned_steps(budget, cost, sizes))])
    return BudgetKeeper(timeline, budget, cost, sizes, began=time.monotonic())


@pytest.mark.parametrize(
    ("unit", "amount", "steps"),
    [("epochs", 180, 31680), ("steps", 234, 234), ("flops", 3e12, 1000), ("flops", 1, 1)],
)
def test_exact_budgets(unit: str, amount: float, steps: int) -> None:
    assert keeper(unit, amount).timeline.total == steps


def test_validation_keeps_to_its_share() -> None:
    assert keeper("epochs", 180).validate_every == 1
    assert keeper("epochs", 180, steps_per_epoch=20).validate_every == 4  # 1.95 s in each 10 s epoch


SMALL_FIRST = {"schedule.small_sides": [0.5, 0.75], "schedule.small_until": [0.2, 0.6]}


def test_a_run_that_begins_with_smaller_images(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = []

    def watched(self: Classifier, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            sides.append(x.shape[-1])
        return self.model(x)

    monkeypatch.setattr(Classifier, "forward", watched)
    tiny["overrides"] |= {**SMALL_FIRST, "patch_size": 2, "batch_size": 16}
    run = vitreous.train(arrays, steps=20, out=tmp_path / "run", **tiny)
    assert sides == [8] * 4 + [12] * 8 + [16] * 8
    costs = dict(zip((8, 12, 16), flops_of_real_steps(run.recipe, 16, 3, 16), strict=True))
    assert run.summary["train_flops"] == 4 * costs[8] + 8 * costs[12] + 8 * costs[16]


def test_the_mean_cost_ahead() -> None:
    cheap, dear = StepCost(10, 1.0, 0.0), StepCost(40, 3.0, 0.0)
    cost = RunCost(((0.5, cheap), (1.0, dear)))
    assert cost.mean() == (25, 2.0)
    assert cost.mean(0.25) == (pytest.approx((10 + 2 * 40) / 3), pytest.approx((1 + 2 * 3) / 3))
    assert cost.mean(0.5) == cost.mean(0.9) == cost.mean(1.0) == (40, 3.0)
    assert [cost.at(f) for f in (0.0, 0.49, 0.5, 1.0)] == [cheap, cheap, dear, dear]


@pytest.mark.parametrize("name", ["notebook-cifar10", "notebook-cifar100"])
def test_the_notebooks_schedule_and_optimizer(name: str) -> None:
    """45,000 images in steps of 256 are 176 steps an epoch, of which the notebook's schedule knew 234."""
    recipe = recipes.load(name)
    labels = np.arange(50_000) % 2
    images = np.frombuffer(np.arange(50_000, dtype="<u4").tobytes(), np.uint8).reshape(-1, 1, 1, 4)[..., :3]
    module = ImageData(
        from_arrays(images, labels, test=(images[:2], labels[:2])),
        batch_size=recipe.training.batch_size,
        drop_last=recipe.training.drop_last,
        val_fraction=recipe.data.val_fraction,
        split_seed=recipe.data.split_seed,
    )
    module.setup()
    loader = module.train_dataloader()
    assert len(module.splits.train) == 45_000 and len(module.splits.val) == 5_000
    assert len(loader) == 176
    assert keeper("epochs", recipe.budget.amount).timeline.total == 180 * 176
    assert loader.shuffle
    optimizer = make_optimizer(vitreous.create_model("vit-xs4", depth=1), recipe.optimizer, bf16=False)
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    expected = {"notebook-cifar10": 3e-4, "notebook-cifar100": 1e-3}[name]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (expected, 0.03, (0.9, 0.999))


def test_the_head_has_the_datas_classes_and_statistics(arrays: Arrays, tmp_path: Path) -> None:
    """The notebook had 100 outputs and CIFAR-10's statistics for every data set."""
    overrides = {"embed_dim": 32, "num_heads": 2, "mlp_dim": 32, "depth": 1, "head_hidden": 16}
    run = vitreous.train(
        arrays,
        "notebook-cifar100",
        steps=2,
        out=tmp_path / "run",
        device="cpu",
        precision="32",
        overrides=overrides,
    )
    assert run.model.num_classes == 3
    images = arrays[0].astype(np.float64) / 255
    record = json.loads((run.path / "split.json").read_text())["cut_from_train"]
    assert record == {split: list(outputs.names) for split, outputs in run.predictions.items()}
    store = vitreous.open_data(arrays)
    assert run.bundle.mean == store.mean == pytest.approx(tuple(images.mean(axis=(0, 1, 2))), abs=1e-6)


def of_one_layer(optimizer: str, **options: Any) -> recipes.Recipe:
    """A linear stem and one layer, with the sizes of the closed forms below."""
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, **options}
    return recipes.load(
        "default",
        {"variant": "vit-xs4", "optimizer.name": optimizer, "small_sides": [], "small_until": [], **sizes},
    )


def test_step_flops_against_a_closed_form() -> None:
    """Mean pooling: each product once forward and twice backward."""
    B, N, D, M, C = 4, 16, 32, 48, 3
    cost = count_cost(of_one_layer("adamw", mlp_dim=M, pool="mean"), 16, C, B).full
    stem = 2 * B * N * 48 * D
    layer = 2 * B * N * (3 * D * D + 2 * N * D + D * D + 2 * D * M)
    head = 2 * B * D * C
    assert cost.flops == 3 * (layer + head) + 2 * stem  # images need no gradient


def test_muons_products_are_counted() -> None:
    flops = {
        name: count_cost(of_one_layer(name, mlp_dim=32), 16, 3, 2).full.flops for name in ("adamw", "muon")
    }
    shapes = [(32, 48), (32, 32), (32, 32), (32, 32), (96, 32)]  # stem, attention's and the MLP's matrices
    steps = 5 * sum(2 * (2 * min(s) ** 2 * max(s)) + 2 * min(s) ** 3 for s in shapes)
    assert flops["muon"] - flops["adamw"] == steps


def flops_of_real_steps(
    recipe: recipes.Recipe, size: int, classes: int, batch: int, bf16: bool = False
) -> list[int]:
    """FLOPs of a step of each phase, counted while it is really done."""
    flops = []
    for phase in phases(recipe.schedule, size):
        model = VisionTransformer(recipe.model, size, classes).train()
        model.set_attention("explicit")
        images, labels = torch.randn(batch, 3, phase.side, phase.side), torch.zeros(batch, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            optimizer = make_optimizer(model, recipe.optimizer, bf16=bf16)
            forward_loss(model, images, labels, bf16=bf16).backward()
            optimizer.step()
        flops.append(counter.get_total_flops())
    return flops


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("default", {}),
        ("default", {"stem": "linear", "stem_dims": []}),
        ("default", {"optimizer.name": "adamw"}),
        ("default", {"dropout": 0.1, "drop_path": 0.2}),
        ("notebook-cifar10", {}),
    ],
)
def test_what_is_counted_without_memory_is_what_a_step_does(
    name: str, overrides: dict[str, Any], bf16: bool
) -> None:
    recipe = recipes.load(name, overrides)
    counted = [cost.flops for _, cost in count_cost(recipe, 32, 10, 8).parts]
    assert counted == flops_of_real_steps(recipe, 32, 10, 8, bf16)


def test_a_trainer_of_ones_own(arrays: Arrays, tiny: dict[str, Any], tmp_path: Path) -> None:
    """Both Lightning parts in a plain Trainer, with its own checkpoints and restarts."""
    recipe = recipes.load("default", tiny["overrides"])

    def parts() -> tuple[Classifier, ImageData, pl.Trainer]:
        data = ImageData(arrays, augment=Augment(crop=2, flip="random"), batch_size=32, drop_last=True)
        torch.manual_seed(0)
        model = vitreous.VisionTransformer(recipe.model, 16, 3)
        trainer = pl.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path,
        )  # fmt: skip
        return Classifier(model, recipe), data, trainer

    classifier, data, trainer = parts()
    trainer.fit(classifier, datamodule=data)
    assert classifier.timeline is not None and classifier.timeline.total == 3 * 7
    assert float(trainer.callback_metrics["val_acc"]) > 0.9
    (figures,) = trainer.test(classifier, datamodule=data, verbose=False)
    assert figures["test_acc"] > 0.9
    assert classifier.hparams["model"]["embed_dim"] == 32


def test_pairs_of_images_and_labels_will_do(tiny: dict[str, Any]) -> None:
    recipe = recipes.load("default", tiny["overrides"])
    classifier = Classifier(vitreous.VisionTransformer(recipe.model, 16, 3), recipe)
    batches: Any = [(torch.randn(8, 3, 16, 16), torch.arange(8) % 3)] * 2
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(classifier, loader)
    assert trainer.global_step == 2


def test_unknown_arguments_are_refused(arrays: Arrays) -> None:
    with pytest.raises(VitreousError, match="'seed'"):
        vitreous.train(arrays, sed=1)
    with pytest.raises(VitreousError, match="minutes and steps"):
        vitreous.train(arrays, minutes=1, steps=1)
    with pytest.raises(VitreousError, match="above zero"):
        vitreous.train(arrays, steps=0)


def test_small_data_get_smaller_batches(
    arrays: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = {"embed_dim": 32, "num_heads": 2, "mlp_dim": 32, "depth": 1, "stem_dims": [8]}
    run = vitreous.train(
        arrays, steps=1, out=tmp_path / "run", device="cpu", precision="32", overrides=overrides
    )
    assert run.recipe.training.batch_size == 16
    assert "budget: 1 step of 16 images" in capsys.readouterr().out
    assert "batch_size: 16, for at least 8 steps" in (run.path / "log.txt").read_text()
    assert run.recipe.model.patch_size == 2  # of 16 pixels, as 4 of 32
    assert dataclasses.asdict(run.recipe) == dataclasses.asdict(recipes.load(str(run.path / "recipe.toml")))


def test_a_run_may_leave_test_unread(arrays: Arrays, tiny: dict[str, Any], tmp_path: Path) -> None:
    run = vitreous.train(arrays, steps=3, judge="val", out=tmp_path / "run", **tiny)
    assert "val_acc" in run.summary and not [key for key in run.summary if key.startswith("test_")]
    assert set(run.evaluation) == {"classes", "training_images", "val"}
    report = (run.path / "report.html").read_text()
    assert "Validation accuracy" in report and "was stopped before its end" not in report


def test_a_final_run_trains_on_validation_too(arrays: Arrays, tiny: dict[str, Any], tmp_path: Path) -> None:
    usual, all_of_it = (
        open_module(recipes.load("default"), Request(arrays, judge=judge), lambda *_, **__: None).splits
        for judge in ("both", "test")
    )
    assert sorted(all_of_it.train.names) == sorted([*usual.train.names, *usual.val.names])
    assert all_of_it.test.names == usual.test.names
    source = [int(name.partition(":")[2]) for name in all_of_it.train.names]
    assert np.array_equal(all_of_it.train.images, arrays[0][source])
    assert np.array_equal(all_of_it.train.labels, arrays[1][source])
    final = vitreous.train(arrays, epochs=2, judge="test", out=tmp_path / "final", **tiny)
    assert not [key for key in final.summary if key.startswith("val_")]
    assert vitreous.evaluate(final, data=arrays).named("test")["test_acc"] == final.summary["test_acc"]
    with pytest.raises(VitreousError, match="trained on its validation images too"):
        vitreous.evaluate(final, "val", data=arrays)
    with pytest.raises(VitreousError, match="did you mean"):
        vitreous.train(arrays, judge="tests", **tiny)


def test_mixed_images_count_both_labels(tiny: dict[str, Any]) -> None:
    recipe = recipes.load(
        "default", {**tiny["overrides"], "label_smoothing": 0.1, "small_sides": [], "small_until": []}
    )
    model = VisionTransformer(recipe.model, 8, 3)
    classifier = Classifier(model, recipe, timeline=Timeline([(0, 10)]))
    classifier.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    classifier.optimizers = lambda: SimpleNamespace(param_groups=[{"lr": 0.0}])  # type: ignore[method-assign, assignment]
    images, label, other = (
        torch.rand(5, 3, 8, 8),
        torch.tensor([0, 1, 2, 0, 1]),
        torch.tensor([1, 1, 0, 2, 0]),
    )
    share = torch.tensor([1.0, 0.25, 0.5, 0.9, 0.0])
    loss = classifier.training_step({"image": images, "label": label, "other": other, "share": share}, 0)
    target = share[:, None] * F.one_hot(label, 3) + (1 - share[:, None]) * F.one_hot(other, 3)
    target = 0.9 * target + 0.1 / 3
    expected = -(target * model(images).log_softmax(dim=1)).sum(dim=1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_patch_size_and_batch_size_stay_as_they_are_set(
    arrays: Arrays, tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny["overrides"] |= {"patch_size": 4, "batch_size": 64}  # 16 pixels would have 2, 240 images 16
    run = vitreous.train(arrays, steps=2, out=tmp_path / "run", **tiny)
    assert (run.recipe.model.patch_size, run.recipe.training.batch_size) == (4, 64)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 1)
        vitreous.train(arrays, steps=2, out=tmp_path / "cut", **tiny)
    assert vitreous.resume(tmp_path / "cut", arrays).recipe.model.patch_size == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"minutes": "five"}, "minutes must be a number, not 'five'"),
        ({"recipe": recipes.load("default"), "overrides": {"depth": 2}}, "need a recipe given by name"),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence(
    arguments: dict[str, Any], words: str, arrays: Arrays, tmp_path: Path
) -> None:
    with pytest.raises(VitreousError, match=words):
        vitreous.train(arrays, out=tmp_path / "run", device="cpu", **arguments)
    assert not (tmp_path / "run").exists()
