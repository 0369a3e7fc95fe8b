"""The cost of training steps: FLOPs counted on the `meta` device, seconds measured on a copy of the network."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vitreous.machine import best_time
from vitreous.model.vit import VisionTransformer
from vitreous.recipe import Recipe, ScheduleSection
from vitreous.training.classifier import make_optimizer
from vitreous.training.schedule import phases

GUESSED_SPEED = 1e11  # FLOP/s before anything is measured; the first steps correct it
SHORT_SECONDS = 2.0  # a step shorter than this is timed twice


@dataclass(frozen=True)
class StepCost:
    """The cost of one step of a batch.

    Attributes:
        flops: of the forward and backward pass and the optimizer's products, a multiply-add counted as two.
        seconds: of a step that is not compiled; a guess from the FLOPs unless `measure_seconds` measured it.
        evaluation_seconds: of the forward pass in evaluation; unless measured, a third of the guess.
    """

    flops: int
    seconds: float
    evaluation_seconds: float


@dataclass(frozen=True)
class RunCost:
    """The cost of a run's steps, phase by phase: `parts` holds (share of the steps at its end, cost of a step)."""

    parts: tuple[tuple[float, StepCost], ...]

    @property
    def full(self) -> StepCost:
        """The cost of a step on images of full size."""
        return self.parts[-1][1]

    def at(self, fraction: float) -> StepCost:
        """The cost of the step at the share `fraction` of the run."""
        return next((cost for until, cost in self.parts if fraction < until), self.full)

    def mean(self, start: float = 0.0) -> tuple[float, float]:
        """Mean FLOPs and seconds of a step, from the share `start` of the run to its end."""
        flops = seconds = 0.0
        began = start
        for until, cost in self.parts:
            share = max(0.0, until - began) / max(1 - start, 1e-9)
            flops, seconds = flops + share * cost.flops, seconds + share * cost.seconds
            began = max(began, until)
        return (flops, seconds) if start < 1 else (self.full.flops, self.full.seconds)


def count_cost(recipe: Recipe, image_size: int, num_classes: int, batch_size: int) -> RunCost:
    """The cost of a recipe's steps, with FLOPs counted on the plain network on the `meta` device.

    The count is instant and exact, and depends on neither machine nor backend. The seconds are guesses.
    """
    with torch.device("meta"):
        # Evaluation mode has the same products and needs no random numbers.
        network = VisionTransformer(recipe.model, image_size, num_classes).eval()
    network.set_attention("explicit")  # the counter knows all its products
    parts = []
    for phase in phases(recipe.schedule, image_size):
        images = torch.empty(batch_size, 3, phase.side, phase.side, device="meta")
        labels = torch.empty(batch_size, dtype=torch.int64, device="meta")
        with FlopCounterMode(display=False) as counter:
            forward_loss(network, images, labels, bf16=False).backward()
            if recipe.optimizer.name == "muon":  # AdamW has no products
                make_optimizer(network, recipe.optimizer, bf16=False).step()
        network.zero_grad()
        seconds = counter.get_total_flops() / GUESSED_SPEED
        parts.append((phase.until, StepCost(counter.get_total_flops(), seconds, seconds / 3)))
    return RunCost(tuple(parts))


def encoder_flops_share(model: VisionTransformer, schedule: ScheduleSection) -> float:
    """The encoder's share of all forward FLOPs of a run, 0 to 1.

    The encoder is all blocks. Stem, pooling and head are the rest. Both sums weight each image size by its steps.
    """
    with torch.device("meta"):
        network = VisionTransformer(model.architecture, model.image_size, model.num_classes).eval()
    network.set_attention("explicit")  # the counter knows every one of its products
    encoder_flops = forward_flops = start = 0.0
    with torch.no_grad():
        for phase in phases(schedule, model.image_size):
            images = torch.empty(1, 3, phase.side, phase.side, device="meta")
            with FlopCounterMode(display=False) as forward:
                network(images)
            tokens = network.embed(images)
            with FlopCounterMode(display=False) as block:
                network.blocks[0](tokens)  # all blocks are alike
            steps = phase.until - start  # as a fraction of the run's
            encoder_flops += steps * len(network.blocks) * block.get_total_flops()
            forward_flops += steps * forward.get_total_flops()
            start = phase.until
    return encoder_flops / forward_flops


def measure_seconds(
    cost: RunCost, network: VisionTransformer, recipe: Recipe, batch_size: int, device: str, *, bf16: bool
) -> RunCost:
    """The cost with measured seconds. Trains `network` on noise, so it cannot be used afterwards."""
    network = network.to(device).train()
    optimizer = make_optimizer(network, recipe.optimizer, bf16=bf16)
    parts = []
    with torch.random.fork_rng(devices=[device] if device == "cuda" else []):
        for phase, (until, step) in zip(phases(recipe.schedule, network.image_size), cost.parts, strict=True):
            images = torch.randn(batch_size, 3, phase.side, phase.side, device=device)
            images = images.contiguous(memory_format=torch.channels_last)  # the layout after augmentation
            labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
            seconds = _step_seconds(network, optimizer, images, labels, bf16)  # a warm-up
            if seconds < SHORT_SECONDS:
                seconds = min(_step_seconds(network, optimizer, images, labels, bf16) for _ in range(2))
            parts.append((until, dataclasses.replace(step, seconds=seconds)))
    network.eval()
    with torch.no_grad():
        evaluation = best_time(lambda: forward_loss(network, images, labels, bf16=False).item(), device, 1)
    return RunCost(
        tuple((until, dataclasses.replace(step, evaluation_seconds=evaluation)) for until, step in parts)
    )


def _step_seconds(
    network: VisionTransformer, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, bf16: bool
) -> float:
    start = time.perf_counter()
    loss = forward_loss(network, images, labels, bf16=bf16)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    loss.item()  # waits for the device
    return time.perf_counter() - start


def forward_loss(network: VisionTransformer, images: Tensor, labels: Tensor, *, bf16: bool) -> Tensor:
    """Mean cross-entropy of a batch, under autocast if `bf16`."""
    if not bf16:
        return F.cross_entropy(network(images), labels)
    with torch.autocast(images.device.type, torch.bfloat16):
        logits = network(images)
    return F.cross_entropy(logits.float(), labels)
