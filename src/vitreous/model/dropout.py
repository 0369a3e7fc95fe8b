"""What is left out at random in training: single numbers, or whole residual branches."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 2**16  # of a rate on a CPU: 16 random bits decide


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014) at `rate`, on a CPU rounded to 1/65536.

    There torch draws its numbers one by one, on one thread: in the notebook's network a third of the step. A
    generator of numpy's, seeded from torch's, takes a fiftieth of that.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.rate)
        seed = torch.randint(2**62, (1,))
        return torch.where(kept(seed, x.shape, self.rate), x * (1 / (1 - self.rate)), 0.0)


@torch.library.custom_op("vitreous::kept", mutates_args=())
def kept(seed: Tensor, shape: list[int], rate: float) -> Tensor:
    """Bool tensor of `shape`, each True with probability 1 - rate; an operator, so that compilation lets it be."""
    count = math.prod(shape)
    bits = np.random.SFC64(int(seed)).random_raw(-(-count // 4)).view(np.int16)[:count]
    return (torch.from_numpy(bits) >= round(rate * STEPS) - STEPS // 2).view(shape)


@kept.register_fake
def _(seed: Tensor, shape: list[int], rate: float) -> Tensor:
    return torch.empty(shape, dtype=torch.bool)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): a residual branch left out at random, picture by picture."""

    rate: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        # A tensor, not a number, so that one compiled block serves all layers.
        self.register_buffer("rate", torch.tensor(rate), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)
