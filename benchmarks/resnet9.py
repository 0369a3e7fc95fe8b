"""A plain ResNet-9, the peer of `folders.py`: network, training and the count of its FLOPs.

The layout is that of Page 2018, "How to train your ResNet", with narrower layers. Training is what most people would
write: random crop and flip, AdamW, OneCycle, label smoothing, all on the device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitreous.data.augment import Augment
from vitreous.data.normalize import to_float

WEIGHT_DECAY = 0.01
LABEL_SMOOTHING = 0.1
LARGE_SIDE = (
    64  # from this side on, one more pooling follows the first convolution: 96 pixels end in 6 x 6 too
)
EVAL_BATCH = 500


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(convolution(width, width), convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def convolution(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


def resnet9(num_classes: int, side: int, width: int = 32) -> nn.Sequential:
    """Eight convolutions and a linear layer, `width` to 8 `width` wide, for images of `side` pixels."""
    return nn.Sequential(
        convolution(3, width, pool=side >= LARGE_SIDE),
        convolution(width, 2 * width, pool=True),
        Residual(2 * width),
        convolution(2 * width, 4 * width, pool=True),
        convolution(4 * width, 8 * width, pool=True),
        Residual(8 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, num_classes),
    )


def step_flops(num_classes: int, side: int, width: int, batch: int) -> int:
    """FLOPs of a training step, forward and backward, a multiply-add counted as two."""
    with torch.device("meta"):
        network = resnet9(num_classes, side, width)
        images, labels = torch.empty(batch, 3, side, side), torch.zeros(batch, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(network(images), labels).backward()
    return counter.get_total_flops()


class Trainer:
    """The training as a step that may be called one by one.

    Args:
        images: uint8 [N, H, H, 3].
        labels: int64 [N].
        mean, std: of each channel, from 0 to 1.
        steps: length of the schedule.
        rate: peak learning rate.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        steps: int,
        batch: int,
        rate: float,
        width: int,
        seed: int,
        device: str,
        bf16: bool,
    ) -> None:
        torch.manual_seed(seed)
        self.device, self.bf16, self.batch = device, bf16, batch
        self.images = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.int64)).to(device)
        side = images.shape[1]
        self.network = resnet9(num_classes, side, width).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=rate, weight_decay=WEIGHT_DECAY, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rate, total_steps=steps + 1)
        self.augment = Augment(crop=side // 8, flip="random", seed=seed)
        # Made once, since a number that goes to the device in each step makes the step wait.
        self.mean, self.std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))
        self.generator = torch.Generator(device).manual_seed(seed)
        self.order = self._order()

    def _order(self) -> Iterator[tuple[Tensor, int]]:
        """Positions of the images of each batch, and the epoch; the last, smaller batch of an epoch is left out."""
        epoch = 0
        while True:
            order = torch.randperm(len(self.labels), generator=self.generator, device=self.device)
            for start in range(0, len(order) - self.batch + 1, self.batch):
                yield order[start : start + self.batch], epoch
            epoch += 1

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Augmented images, float [B, 3, H, H] from 0 to 1, and their labels."""
        index, epoch = next(self.order)
        return self.augment(self.images[index], index, epoch), self.labels[index]

    def step(self, x: Tensor, labels: Tensor) -> Tensor:
        """Trains on one batch and returns the loss, which stays on the device."""
        loss = F.cross_entropy(self._logits(x), labels, label_smoothing=LABEL_SMOOTHING)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return loss

    def _logits(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            logits = self.network((x - self.mean) / self.std)
        return logits.float()

    @torch.no_grad()
    def predict(self, images: np.ndarray) -> np.ndarray:
        """The class of each image, int64 [M], as a position in the classes."""
        self.network.eval()
        parts = [
            self._logits(
                to_float(
                    torch.from_numpy(np.ascontiguousarray(images[start : start + EVAL_BATCH])).to(self.device)
                )
            ).argmax(1)
            for start in range(0, len(images), EVAL_BATCH)
        ]
        self.network.train()
        return torch.cat(parts).cpu().numpy()


def train(
    flops: float,
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    batch: int,
    width: int,
    **options: Any,
) -> tuple[Trainer, dict[str, float]]:
    """Trains for a budget of FLOPs.

    Args:
        options: the other arguments of `Trainer`.

    Returns:
        The trainer with the trained network, and the cost by the names that the summary of a run has.
    """
    each = step_flops(num_classes, images.shape[1], width, batch)
    steps = max(1, round(flops / each))
    trainer = Trainer(images, labels, num_classes, steps=steps, batch=batch, width=width, **options)
    started = time.perf_counter()
    for _ in range(steps):
        loss = trainer.step(*trainer.next_batch())
    loss.item()  # waits for the device
    return trainer, {
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
        "steps": steps,
        "epochs": round(steps / (len(images) // batch), 4),
        "train_flops": steps * each,
        "train_seconds": round(time.perf_counter() - started, 2),
    }
