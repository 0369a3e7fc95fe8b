"""Training and its commands on an NVIDIA GPU. Run with `make test-cuda`; elsewhere these tests are skipped."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import vitreous
from vitreous import attribution, cli, machine
from vitreous import recipe as recipes
from vitreous.bundle import Bundle, load_bundle
from vitreous.counted import random_bits
from vitreous.data.augment import Augment, random_boxes, resized, uniform
from vitreous.data.module import ImageData
from vitreous.data.shapes import shapes
from vitreous.errors import InterruptedRun
from vitreous.export import export
from vitreous.model.dropout import Dropout, DropPath, keep_mask, keyed_noise
from vitreous.model.stem import Whitening
from vitreous.model.vit import VisionTransformer
from vitreous.native.build import cpp_compiler
from vitreous.training.checkpoint import CheckpointKeeper
from vitreous.training.classifier import Classifier, make_optimizer
from vitreous.training.schedule import Timeline

DEVICE = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="these tests need an NVIDIA GPU and torch for CUDA"
    ),
]

SMALL = {"embed_dim": 32, "num_heads": 2, "mlp_dim": 64, "depth": 2, "stem_dims": [16, 32], "batch_size": 64}
NOISY = {**SMALL, "drop_path": 0.2, "dropout": 0.1, "mixup": 0.3, "cutmix": 0.3, "cutout": 8}
STEPS = 40
# The trainings that are made twice, each in a process of its own: from how many FLOPs on torch compiles the network,
# and arguments of `train`.
TWICE: dict[str, tuple[float, dict[str, Any]]] = {
    "eager": (math.inf, {"steps": STEPS, "overrides": NOISY}),
    "compiled": (0.0, {"steps": STEPS, "overrides": NOISY}),
    "float32": (math.inf, {"steps": STEPS, "overrides": SMALL, "precision": "32"}),
    "notebook": (math.inf, {"steps": 12, "recipe": "notebook-cifar10"}),
    "AdamW": (math.inf, {"steps": 12, "overrides": {**SMALL, "optimizer.name": "adamw", "trivial": True}}),
}
RUNNER = f"""
import json, sys
import vitreous, vitreous.machine
vitreous.machine.COMPILE_FLOPS["{DEVICE}"] = float(sys.argv[1])
vitreous.train("shapes", device="{DEVICE}", **json.loads(sys.argv[2]))
"""
SECONDS = 55  # for all of them, side by side


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """The folders of the runs in `TWICE`. All trainings run at once, since most of their time is spent on the CPU."""
    root = tmp_path_factory.mktemp("cuda")
    processes = {}
    for name, (flops, arguments) in TWICE.items():
        if name == "compiled" and cpp_compiler() is None:
            continue
        for twin in ("a", "b"):
            caches = root / f"caches-{name}-{twin}"  # so that nothing compiled is shared
            environment = {
                **os.environ,
                "TORCHINDUCTOR_COMPILE_THREADS": "4",
                "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
                "TRITON_CACHE_DIR": str(caches / "triton"),
            }
            words = json.dumps({**arguments, "out": str(root / name / twin)})
            log = (root / f"{name}-{twin}.txt").open("w+")
            process = subprocess.Popen(
                [sys.executable, "-c", RUNNER, str(flops), words], stdout=log, stderr=log, env=environment
            )
            processes[name, twin] = process, log
    end = time.monotonic() + SECONDS
    for process, log in processes.values():
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.write(f"\nkilled after {SECONDS} s\n")
            process.kill()
    for (name, twin), (process, log) in processes.items():
        if process.wait():
            log.seek(0)
            print(f"{name} {twin}:", log.read()[-1500:])
        log.close()
    return {name: (root / name / "a", root / name / "b") for name, twin in processes if twin == "a"}


@pytest.fixture(scope="module")
def run(pairs: dict[str, tuple[Path, Path]]) -> vitreous.Run:
    """A training that is not compiled."""
    return vitreous.Run(pairs["eager"][0])


def weights(path: Path) -> dict[str, Tensor]:
    return load_file(path / "bundle" / "model.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different
    assert all(tensor.isfinite().all() for tensor in first.values())


# ---- operations


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (256, 32, 32, 3), dtype=torch.uint8, generator=generator)


def test_counted_numbers_and_noise_are_those_of_the_cpu() -> None:
    index = torch.arange(1000)
    bits = random_bits(7, 3, index, 5)
    assert torch.equal(random_bits(7, 3, index.to(DEVICE), 5).cpu(), bits)
    keys = bits[:, 0].int()
    assert torch.equal(keep_mask(keys.to(DEVICE), 700, 0.3).cpu(), keep_mask(keys, 700, 0.3))
    for noise in (Dropout(0.3), DropPath(0.3)):
        x = torch.ones(1000, 4, 8)
        with keyed_noise(noise, 5, 11, index):
            expected = noise(x)
        noise.to(DEVICE)
        with keyed_noise(noise, 5, 11, index.to(DEVICE)):
            out = noise(x.to(DEVICE))
        assert 0.2 < (out == 0).float().mean() < 0.4
        assert torch.equal(out.cpu() == 0, expected == 0)
        torch.testing.assert_close(out.cpu(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("epoch", [0, 3])
def test_augmentation_is_that_of_the_cpu(images: Tensor, epoch: int) -> None:
    augment = Augment(crop=4, flip="alternating", cutout=8, mixup=0.3, cutmix=0.4)
    index = torch.arange(1000, 1256)

    def mixed(device: str) -> tuple[Tensor, Tensor]:
        at = index.to(device)
        out = augment(images.to(device), at, epoch)
        return augment.mix(out, out.roll(1, 0), at, epoch)

    for out, expected in zip(mixed(DEVICE), mixed("cpu"), strict=True):
        torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=1e-6)


def test_resized_crops_and_trivial_augment_are_those_of_the_cpu(images: Tensor) -> None:
    index = torch.arange(256)
    u = uniform(1, 2, index, 30)
    boxes = random_boxes(u, 32, 32, (0.2, 1.0))
    on_gpu = random_boxes(u.to(DEVICE), 32, 32, (0.2, 1.0)).cpu()
    assert (on_gpu == boxes).all(dim=1).float().mean() > 0.98  # rounding may move a border by a pixel
    for options in ({"resized_crop": (0.2, 1.0)}, {"trivial": True}):
        augment = Augment(**options)  # type: ignore[arg-type]
        expected = augment(images, index, 2)
        out = augment(images.to(DEVICE), index.to(DEVICE), 2).cpu()
        assert ((out - expected).abs() > 1e-3).float().mean() < 0.01


def test_smaller_images_and_positions_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 32, 32, generator=generator)
    torch.testing.assert_close(resized(images.to(DEVICE), 24).cpu(), resized(images, 24), rtol=0, atol=1e-5)
    model = VisionTransformer(recipes.load("default").model, 32, 10)
    gradients = []
    for device in ("cpu", DEVICE):
        model = model.to(device)
        model.zero_grad()
        with machine.deterministic():
            position = model.position(4)
            position.square().sum().backward()
        assert model.pos_embed.grad is not None
        gradients.append((position.detach().cpu(), model.pos_embed.grad.cpu()))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_whitening_is_that_of_the_cpu(images: Tensor) -> None:
    noise = images.permute(0, 3, 1, 2).float() / 100
    products = []
    for device in ("cpu", DEVICE):
        whitening = Whitening().to(device)
        whitening.fit(noise.to(device))
        directions = whitening.weight[:12].flatten(1)
        products.append((directions.mT @ directions).cpu())  # the sign of a direction is free
    torch.testing.assert_close(*products, rtol=1e-3, atol=1e-4)


def test_a_training_step_does_not_wait_for_the_gpu() -> None:
    store = shapes(train=200, test=20)
    augment = Augment(crop=2, flip="alternating", cutout=8, mixup=0.2, cutmix=0.2)
    data = ImageData(store, augment=augment, batch_size=64, say=lambda line: None)
    recipe = recipes.load("default", NOISY)
    with machine.deterministic():
        data.setup()
        trainer = pl.Trainer(accelerator="gpu", devices=1, logger=False, enable_checkpointing=False)
        trainer.training = True
        data.trainer = trainer
        model = VisionTransformer(recipe.model, 32, store.num_classes).to(DEVICE)
        classifier = Classifier(model, recipe, timeline=Timeline([(0, 10)])).train()
        classifier.log = lambda *args, **options: None  # type: ignore[method-assign]
        optimizer = make_optimizer(model, recipe.optimizer, bf16=True)
        batches = iter(data.train_dataloader())

        def step(number: int) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Classifier, "global_step", number)
                batch = data.on_before_batch_transfer(next(batches), 0)
                batch = data.transfer_batch_to_device(batch, torch.device(DEVICE, 0), 0)
                batch = data.on_after_batch_transfer(batch, 0)
                with torch.autocast(DEVICE, torch.bfloat16):
                    loss = classifier.training_step(batch, number)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

        step(0)  # kernels and memory
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")


# ---- trainings


@pytest.mark.parametrize("name", TWICE)
def test_two_processes_train_the_same_bits(pairs: dict[str, tuple[Path, Path]], name: str) -> None:
    if name not in pairs:
        pytest.skip("compiling needs a C++ compiler")
    a, b = map(vitreous.Run, pairs[name])
    assert_same_weights(a.path, b.path)
    facts = a.resolved["machine"]
    assert facts["device"] == DEVICE
    assert facts["compile"] == (name == "compiled")
    assert facts["precision"] == ("32" if name == "float32" else "bf16")  # "auto" otherwise
    kept = ("val_loss", "val_acc", "test_loss", "test_acc", "temperature", "train_flops")
    assert {key: a.summary[key] for key in kept} == {key: b.summary[key] for key in kept}


def test_the_first_steps_are_those_of_the_cpu(tmp_path: Path) -> None:
    runs = []
    for device in ("cpu", DEVICE):
        options = {"device": device, "precision": "32", "backend": "torch"}
        runs.append(vitreous.train("shapes", steps=6, out=tmp_path / device, overrides=NOISY, **options))
    losses = []
    for run in runs:
        with (run.path / "metrics.csv").open() as file:
            losses.append([float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]])
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    first, second = (torch.cat([w.flatten() for w in weights(run.path).values()]) for run in runs)
    assert (first - second).norm() < 0.01 * first.norm()
    for key in ("steps", "train_flops", "parameters", "encoder_flops_share"):
        assert runs[0].summary[key] == runs[1].summary[key]


def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(
    run: vitreous.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = CheckpointKeeper.on_train_batch_end

    def hook(self: CheckpointKeeper, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 7:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        save(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointKeeper, "on_train_batch_end", hook)
        with pytest.raises(InterruptedRun):
            vitreous.train("shapes", device=DEVICE, out=tmp_path / "run", **TWICE["eager"][1])
    resumed = vitreous.resume(tmp_path / "run")
    assert resumed.resolved["exact"]
    assert_same_weights(resumed.path, run.path)


def test_a_repeat_has_the_same_bits(run: vitreous.Run, tmp_path: Path) -> None:
    repeated = vitreous.repeat(run.path, out=tmp_path / "run")
    assert repeated.resolved["exact"]
    assert_same_weights(repeated.path, run.path)


def test_a_budget_of_minutes_ends_in_time_and_leaves_torch_as_it_was(tmp_path: Path) -> None:
    before = settings()
    run = vitreous.train("shapes", device=DEVICE, minutes=0.2, out=tmp_path / "run", overrides=SMALL)
    assert run.summary["total_seconds"] == pytest.approx(12, abs=2.5)
    assert run.summary["steps"] > 200
    assert settings() == before


def settings() -> list[Any]:
    """What a training may change in torch."""
    return [
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.get_num_threads(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    ]


# ---- what is done with a run


def test_a_bundle_answers_alike_on_both_devices(run: vitreous.Run) -> None:
    pixels = shapes().splits["test"].images[:64]
    on_gpu, on_cpu = (load_bundle(run.path / "bundle", device) for device in (DEVICE, "cpu"))
    torch.testing.assert_close(on_gpu.logits(pixels), on_cpu.logits(pixels), rtol=0, atol=1e-3)
    assert torch.equal(on_gpu.logits(pixels), on_gpu.logits(pixels))
    np.testing.assert_allclose(on_gpu.embed(pixels), on_cpu.embed(pixels), atol=1e-3)


@pytest.mark.parametrize("method", attribution.METHODS)
def test_heat_maps_are_alike_on_both_devices(run: vitreous.Run, method: str) -> None:
    pixels, classes = shapes().splits["test"].images[:8], np.arange(8) % 3

    def heat(bundle: Bundle) -> np.ndarray:
        return attribution.heat_map(bundle, pixels, classes, method)

    on_gpu, on_cpu = (heat(load_bundle(run.path / "bundle", device)) for device in (DEVICE, "cpu"))
    np.testing.assert_allclose(on_gpu, on_cpu, atol=5e-3)


def test_evaluate_gives_the_figures_of_the_run(run: vitreous.Run) -> None:
    figures = vitreous.evaluate(run, "val")  # on the run's own device
    assert figures.scalars["acc"] == run.summary["val_acc"]
    assert figures.scalars["loss"] == run.summary["val_loss"]
    on_cpu = vitreous.evaluate(run, "val", device="cpu")
    assert on_cpu.scalars["loss"] == pytest.approx(run.summary["val_loss"], rel=1e-4)


def test_predict_and_explain(run: vitreous.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for number, pixels in enumerate(shapes().splits["test"].images[:5]):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(pixels).save(files[-1])
    answers = []
    for device in (DEVICE, "cpu"):
        assert cli.main(["predict", str(run.path), *files, "--json", "--device", device]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert [answer["class"] for answer in answers[0]] == [answer["class"] for answer in answers[1]]
    assert cli.main(["explain", str(run.path), files[0], "--out", str(tmp_path / "explained")]) == 0
    assert list((tmp_path / "explained").iterdir())


@pytest.mark.parametrize("target", ["onnx", "html"])
def test_exports(run: vitreous.Run, target: str, tmp_path: Path) -> None:
    if target == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")
    exported = export(run.path, target, tmp_path / target)
    assert any(exported.folder.iterdir())
