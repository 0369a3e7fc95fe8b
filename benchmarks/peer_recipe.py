"""A peer trained by its own published recipe for a number of minutes: CCT-2/3x2, a small convolutional transformer.

    make bench-peer-recipe MINUTES=5

The network is vit-pytorch's. The recipe is the authors' command for CCT-2/3x2 on CIFAR-10, `examples/README.md` with
the defaults of `examples/main.py` in the repository SHI-Labs/Compact-Transformers (Hassani et al., arXiv 2104.05704),
which reached 89.17 % in 200 epochs: AdamW, AutoAugment's CIFAR-10 policy, random crops after padding by 4, flips,
label smoothing, warm-up over 5 of the 200 epochs, then a cosine. The 200 epochs are scaled to the minutes: the
learning rate is a function of the elapsed share of them.

Two things differ. The policy is torchvision's, where the authors' own file has slightly other strengths of some
operations. The last incomplete batch of an epoch is dropped. For speed it has the best that torch offers uncompiled:
bf16 where the machine is faster in it, fused AdamW, our memory settings, and processes that augment beside it.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import sys
import time
from typing import Any

import numpy as np
import record
import torch
import torch.nn.functional as F
from PIL import Image
from race import surroundings
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from vitreous import machine as machines
from vitreous.data.normalize import normalize, to_float
from vitreous.data.sources import open_data
from vitreous.machine import keep_memory
from vitreous.wording import count, duration

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH, PEAK, DECAY, SMOOTHING = 128, 5e-4, 3e-2, 0.1
EPOCHS, WARM_UP_EPOCHS = 200, 5
RECIPE = {
    "source": "SHI-Labs/Compact-Transformers, examples/README.md (CCT-2/3x2) and the defaults of examples/main.py",
    "optimizer": {"name": "adamw", "learning_rate": PEAK, "weight_decay": DECAY},
    "schedule": {"name": "cosine", "epochs": EPOCHS, "warm_up_epochs": WARM_UP_EPOCHS},
    "augment": {"auto_augment": "cifar10", "pad": 4, "flip": True},
    "training": {"batch_size": BATCH, "label_smoothing": SMOOTHING},
}
GREY = 128  # fills what AutoAugment's geometric operations uncover
EVALUATION_SECONDS = 4.0  # set aside for the test split


class AugmentedImages(Dataset[tuple[Tensor, int]]):
    """Training images, augmented one at a time."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        from torchvision import transforms  # not at the top: only the peers' environment has it

        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10, fill=[GREY] * 3),
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--workers", type=int, default=1, help="processes that augment (default: 1)")
    record.add_replace_option(parser)
    return parser


def main() -> None:
    from vit_pytorch.cct import cct_2  # not at the top: only the peers' environment has it

    args = make_parser().parse_args()
    id = f"cifar10-cct2-authors-{args.minutes:g}min-seed{args.seed}"
    command = (
        f"python benchmarks/peer_recipe.py --minutes {args.minutes:g} --seed {args.seed} "
        f"--workers {args.workers}"
    )
    record.check_replacement(id, command, args.replace)
    source_state = record.state()
    torch.manual_seed(args.seed)
    machine = machines.choose_precision(machines.detect_machine("cpu"), "auto")
    keep_memory().__enter__()  # for as long as this process lives
    splits = open_data("cifar10", None, say=print).splits
    train, test = splits["train"], splits["test"]
    bf16 = machine.precision == "bf16"

    began = time.monotonic()
    loader = DataLoader(
        AugmentedImages(np.asarray(train.images), np.asarray(train.labels)),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
    )
    model = cct_2(
        img_size=32, kernel_size=3, n_conv_layers=2, num_classes=10, positional_embedding="learnable"
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=DECAY, fused=True)

    def step(images: Tensor, labels: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    steps, step_flops = 0, 0
    training_seconds = 60 * args.minutes - EVALUATION_SECONDS
    while time.monotonic() - began < training_seconds:
        for images, labels in loader:
            elapsed = (time.monotonic() - began) / training_seconds
            if elapsed >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(elapsed)
            if steps == 0:
                with FlopCounterMode(display=False) as counter:
                    loss = step(images, labels)
                step_flops = counter.get_total_flops()
            else:
                loss = step(images, labels)
            steps += 1
            if steps % 100 == 0:
                print(f"{100 * elapsed:3.0f} %  step {steps:,}  loss {loss:.3f}", flush=True)
    train_seconds = time.monotonic() - began
    accuracy = test_accuracy(model, np.asarray(test.images), np.asarray(test.labels), bf16)
    figures: dict[str, Any] = {
        "seed": args.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "epochs": steps * BATCH / len(train),
        "train_flops": step_flops * steps,
        "train_seconds": train_seconds,
        "images_per_second": steps * BATCH / train_seconds,
        "test_acc": accuracy,
        "total_seconds": time.monotonic() - began,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(
        f"test_acc {accuracy:.4f} after {count(steps, 'step')}, {figures['epochs']:.2f} epochs, "
        f"{duration(figures['total_seconds'])}"
    )
    record.add(
        id,
        study="peer-recipe",
        arm="CCT-2/3x2",
        command=command,
        data="cifar10",
        seed=args.seed,
        path=f"torch, {'bf16' if bf16 else 'float32'}",
        recipe=RECIPE,
        **surroundings(machine, ("torch", "torchvision", "vit-pytorch")),
        figures=figures,
        source_state=source_state,
        replace=args.replace,
        peer="CCT-2/3x2 of vit-pytorch, by its authors' recipe for it",
    )
    sys.stdout.flush()
    os._exit(0)  # without waiting for the workers


def learning_rate(elapsed: float) -> float:
    """The recipe's learning rate at the share `elapsed` of the run: constant within each of its 200 epochs."""
    epoch = int(elapsed * EPOCHS)
    if epoch < WARM_UP_EPOCHS:
        return PEAK / (WARM_UP_EPOCHS - epoch)
    return PEAK * (1 + math.cos(math.pi * (epoch - WARM_UP_EPOCHS) / (EPOCHS - WARM_UP_EPOCHS))) / 2


@torch.inference_mode()
def test_accuracy(model: torch.nn.Module, images: np.ndarray, labels: np.ndarray, bf16: bool) -> float:
    """Share of the test images that are classified correctly."""
    model.eval()
    correct = 0
    for start in range(0, len(images), 500):
        x = normalize(to_float(torch.from_numpy(images[start : start + 500])), MEAN, STD)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            predictions = model(x).argmax(1)
        correct += int((predictions == torch.from_numpy(labels[start : start + 500])).sum())
    return correct / len(images)


if __name__ == "__main__":
    main()
