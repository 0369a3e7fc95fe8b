"""What one training step costs: counted FLOPs and measured seconds, on a twin that is thrown away."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vitreous.machine import best_time
from vitreous.model.vit import VisionTransformer
from vitreous.native.accelerate import accelerate, is_accelerated, plain
from vitreous.recipe import OptimizerSection
from vitreous.training.classifier import make_optimizer

SHORT_SECONDS = 2.0  # a step shorter than this is timed again, warm


@dataclass(frozen=True)
class StepCost:
    """Of one step of a batch.

    Attributes:
        flops: of forward, backward and the optimizer's products, a multiply-add as two.
        seconds: not compiled.
        evaluation_seconds: of the forward pass alone, as evaluation does it.
    """

    flops: int
    seconds: float
    evaluation_seconds: float


@dataclass(frozen=True)
class RunCost:
    """Of the steps of a run, phase by phase: `parts` holds (until which share of the steps, cost of one)."""

    parts: tuple[tuple[float, StepCost], ...]

    @property
    def full(self) -> StepCost:
        """Of a step on pictures of full size."""
        return self.parts[-1][1]

    def at(self, fraction: float) -> StepCost:
        """Of the step at that share of the run."""
        return next((cost for until, cost in self.parts if fraction < until), self.full)

    def mean(self, start: float = 0.0) -> tuple[float, float]:
        """FLOPs and seconds of a step, on average from the share `start` of the run to its end."""
        flops = seconds = 0.0
        began = start
        for until, cost in self.parts:
            share = max(0.0, until - began) / max(1 - start, 1e-9)
            flops, seconds = flops + share * cost.flops, seconds + share * cost.seconds
            began = max(began, until)
        return (flops, seconds) if start < 1 else (self.full.flops, self.full.seconds)


def step_cost(
    model: VisionTransformer, section: OptimizerSection, images: Tensor, labels: Tensor, *, bf16: bool
) -> StepCost:
    """Runs a real eager step on a copy of `model`, on the device of `images` [B, 3, H, W], normalised."""
    twin = copy.deepcopy(model).to(images.device).train()

    def step(optimizer: torch.optim.Optimizer) -> float:
        start = time.perf_counter()
        loss = forward_loss(twin, images, labels, bf16=bf16)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        return time.perf_counter() - start

    native, attention = is_accelerated(twin), twin.attention
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        plain(twin).set_attention("explicit")  # the counter knows every one of its products
        with FlopCounterMode(display=False) as counter:
            seconds = step(make_optimizer(twin, section, bf16=bf16))
        twin.set_attention(attention)
        if native:
            accelerate(twin)
        optimizer = make_optimizer(twin, section, bf16=bf16)
        if seconds < SHORT_SECONDS:
            seconds = min(step(optimizer), step(optimizer))
        elif native or attention != "explicit":
            seconds = step(optimizer)
    twin.eval()
    with torch.no_grad():
        evaluation = best_time(
            lambda: forward_loss(twin, images, labels, bf16=bf16).item(), images.device.type, 1
        )
    return StepCost(counter.get_total_flops(), seconds, evaluation)


def forward_loss(model: VisionTransformer, images: Tensor, labels: Tensor, *, bf16: bool) -> Tensor:
    """Cross-entropy of a batch, under autocast if `bf16`."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        logits = model(images)
    return F.cross_entropy(logits.float(), labels)
