"""A peer trained by its own published recipe for so many minutes: CCT-2/3x2, a small convolutional one.

    make bench-peer-recipe MINUTES=5

The network is vit-pytorch's, the recipe that of its paper for CIFAR-10 (Hassani et al., arXiv 2104.05704, and the
authors' configuration for 300 epochs, `cct_7-3x1_cifar10_300epochs.yml`), by timm's augmentation, as theirs: AdamW,
RandAugment, crops of 80 % and more, mixup and cutmix until 175/300 of the run, label smoothing, cosine with warm-up
over 10/300. Its 300 epochs are shrunk to what fits: everything is a function of the share of the minutes that is
gone. It runs uncompiled, in bf16 where the machine is faster in it, with fused AdamW and our memory settings; one
process augments beside it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import os
import resource
import sys
import time
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import RECORDS, write
from timm.data import Mixup, create_transform
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from vit_pytorch.cct import cct_2

from vitreous import machine as machines
from vitreous.data.normalize import normalize, to_float
from vitreous.data.sources import open_data
from vitreous.machine import instruction_sets, keep_memory

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH, PEAK, LOWEST, DECAY, SMOOTHING = 128, 55e-5, 1e-5, 6e-2, 0.1
WARMUP, MIXED = 10 / 300, 175 / 300  # shares of the run
EVALUATION_SECONDS = 4.0  # set aside for the test split


class Pictures(Dataset[tuple[Tensor, int]]):
    """Training pictures, augmented one at a time by timm."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels
        self.transform = create_transform(
            32,
            is_training=True,
            scale=(0.8, 1.0),
            auto_augment="rand-m9-inc1",  # theirs varies the 9 by 0.5, at which Pillow refuses to posterize
            interpolation="random",
            mean=MEAN,
            std=STD,
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--workers", type=int, default=1, help="processes that augment (default: 1)")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    machine = machines.choose_precision(machines.detect_machine("cpu"), "auto")
    keep_memory().__enter__()  # for as long as this process lives
    splits = open_data("cifar10", None, say=print).splits
    train, test = splits["train"], splits["test"]
    bf16 = machine.precision == "bf16"

    began = time.monotonic()
    loader = DataLoader(
        Pictures(np.asarray(train.images), np.asarray(train.labels)),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        persistent_workers=True,
    )
    model = cct_2(
        img_size=32, kernel_size=3, n_conv_layers=2, num_classes=10, positional_embedding="learnable"
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=DECAY, fused=True)
    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=SMOOTHING, num_classes=10)
    soft, hard = SoftTargetCrossEntropy(), LabelSmoothingCrossEntropy(SMOOTHING)

    def step(images: Tensor, labels: Tensor, mixed: bool) -> float:
        if mixed:
            images, labels = mix(images, labels)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images)
        loss = (soft if mixed else hard)(logits.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    steps, flops = 0, 0
    span = 60 * args.minutes - EVALUATION_SECONDS
    while (gone := (time.monotonic() - began) / span) < 1:
        for images, labels in loader:
            gone = (time.monotonic() - began) / span
            if gone >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = rate(gone)
            if steps == 0:
                with FlopCounterMode(display=False) as counter:
                    loss = step(images, labels, gone < MIXED)
                flops = counter.get_total_flops()
            else:
                loss = step(images, labels, gone < MIXED)
            steps += 1
            if steps % 100 == 0:
                print(f"{100 * gone:3.0f} %  step {steps}  loss {loss:.3f}", flush=True)
    trained = time.monotonic() - began
    accuracy = evaluate(model, np.asarray(test.images), np.asarray(test.labels), bf16)
    figures: dict[str, Any] = {
        "seed": args.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "epochs": steps * BATCH / len(train),
        "train_flops": flops * steps,
        "train_seconds": trained,
        "images_per_second": steps * BATCH / trained,
        "test_acc": accuracy,
        "total_seconds": time.monotonic() - began,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(f"test_acc {accuracy:.4f} after {figures['epochs']:.2f} epochs, {figures['total_seconds']:.0f} s")
    packages = ("torch", "torchvision", "timm", "vit-pytorch")
    write(
        RECORDS / f"cifar10-cct2-{args.minutes:g}min-seed{args.seed}",
        f"python benchmarks/peer_recipe.py --minutes {args.minutes:g} --seed {args.seed} --workers {args.workers}",
        peer="CCT-2/3x2 of vit-pytorch, by its published recipe",
        machine=machine.record() | {"instruction_sets": instruction_sets()},
        versions={"python": sys.version.split()[0]}
        | {name: importlib.metadata.version(name) for name in packages},
        figures=figures,
    )
    sys.stdout.flush()
    os._exit(0)  # without waiting for the workers


def rate(gone: float) -> float:
    """The learning rate when that share of the run is gone: warm-up, then cosine."""
    if gone < WARMUP:
        return LOWEST + (PEAK - LOWEST) * gone / WARMUP
    return LOWEST + (PEAK - LOWEST) * (1 + math.cos(math.pi * gone)) / 2


@torch.inference_mode()
def evaluate(model: torch.nn.Module, images: np.ndarray, labels: np.ndarray, bf16: bool) -> float:
    """Share of pictures that are classified rightly."""
    model.eval()
    right = 0
    for start in range(0, len(images), 500):
        x = normalize(to_float(torch.from_numpy(images[start : start + 500])), MEAN, STD)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found = model(x).argmax(1)
        right += int((found == torch.from_numpy(labels[start : start + 500])).sum())
    return right / len(images)


if __name__ == "__main__":
    main()
