"""Noise in training: dropout of single elements, and stochastic depth, which drops whole residual branches.

With keys (`key_noise`), the noise is a function of (seed, step, sample, module, element). Torch and the native kernels
compute it with the same hash, and neither the batch size nor the number of processes changes it. Without keys, each
module draws them from torch's generator.

Letters in the shape comments: B batch, E elements of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitreous.counted import random_bits, shift_right

SIGN_BIT = -(2**31)
CHUNK = (
    2**17
)  # elements hashed at a time: they fit into a core's cache, which makes hashing several times faster


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014): zeroes each element with probability `rate`, scales the rest by 1/(1-rate).

    `rate` is in [0, 1). Does nothing in eval mode.
    """

    keys: Tensor | None = None

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = float(rate)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = keep_mask(noise_keys(self, x), math.prod(x.shape[1:]), self.rate).view(x.shape)
        return torch.where(kept, x * (1 / (1 - self.rate)), 0.0)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drops a residual branch [B, N, D] with probability `rate` per sample.

    Kept branches are scaled by 1/(1-rate). Does nothing in eval mode.
    """

    rate: Tensor
    keys: Tensor | None = None

    def __init__(self, rate: float) -> None:
        super().__init__()
        # With a tensor instead of a number, one compiled block serves all layers.
        self.register_buffer("rate", torch.tensor(rate), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        uniform = (
            shift_right(lowbias32(noise_keys(self, x)), 8) * 2.0**-24
        )  # [B], in [0, 1): the 24 bits a float32 holds
        kept = (uniform >= self.rate).view(-1, 1, 1)
        return x * (kept / (1 - self.rate)).to(x.dtype)


@contextmanager
def keyed_noise(model: nn.Module, seed: int, step: int, samples: Tensor) -> Iterator[None]:
    """Context in which the model's noise is a function of (seed, step, sample, module, element); see `key_noise`.

    Anything else that the model draws from torch's generator is a function of (seed, step); see `counted_generator`.
    """
    key_noise(model, seed, step, samples)
    try:
        with counted_generator(seed, step, samples.device):
            yield
    finally:
        free_noise(model)


def key_noise(model: nn.Module, seed: int, step: int, samples: Tensor) -> None:
    """Gives the model's dropout and stochastic-depth modules their keys, which stay until `free_noise`.

    Free them after the backward pass only: it runs checkpointed blocks again, and they need the same noise.

    Args:
        seed: any int.
        step: counted from 0.
        samples: int64 [B], on the model's device: each sample's position in its split.
    """
    modules = noisy_modules(model)
    # int() keeps the lower 32 bits. Networks without noise skip the hash.
    keys = random_bits(seed, step, samples, len(modules)).int().unbind(1) if modules else ()
    for module, module_keys in zip(modules, keys, strict=True):
        module.keys = module_keys


def free_noise(model: nn.Module) -> None:
    """Removes the keys: each forward pass draws new ones from torch's generator again."""
    for module in noisy_modules(model):
        module.keys = None


def noisy_modules(model: nn.Module) -> list[Dropout | DropPath]:
    """The modules that draw noise, in the order of `model.modules()`."""
    return [m for m in model.modules() if isinstance(m, DropPath) or (isinstance(m, Dropout) and m.rate)]


@contextmanager
def counted_generator(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Context in which torch's generators of CPU and `device` start at (seed, step).

    On leaving it, the caller's generators are as they were.
    """
    state = (seed * 0x9E3779B1 + step) % 2**64
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(state)
        if device.type == "cuda":
            torch.cuda.manual_seed(state)
        yield


def noise_keys(module: Dropout | DropPath, x: Tensor) -> Tensor:
    """Keys of a module's noise for a batch x, int32 [B]: from `key_noise`, or drawn now."""
    if module.keys is not None:
        return module.keys
    return torch.randint(SIGN_BIT, -SIGN_BIT, (x.shape[0],), dtype=torch.int32, device=x.device)


def keep_mask(keys: Tensor, elements: int, rate: float) -> Tensor:
    """The elements that dropout keeps, bool [B, E], for keys int32 [B]: those with a hash of at least rate · 2³²."""
    return _keep_mask(keys, elements, int(rate * 2**32))


@torch.library.custom_op("vitreous::keep_mask", mutates_args=())
def _keep_mask(keys: Tensor, elements: int, threshold: int) -> Tensor:
    """`keep_mask` as a custom operator, because torch.compile would unroll the loop."""
    counter = torch.arange(elements, dtype=torch.int32, device=keys.device) * (0x9E3779B1 - 2**32)
    rows = max(1, CHUNK // max(elements, 1)) if keys.device.type == "cpu" else max(1, len(keys))
    kept = torch.empty(len(keys), elements, dtype=torch.bool, device=keys.device)
    for start in range(0, len(keys), rows):
        hashed = lowbias32(keys[start : start + rows, None] + counter)
        # An unsigned comparison: flipping the sign bit on both sides lets signed numbers compare like unsigned ones.
        torch.ge(hashed.bitwise_xor_(SIGN_BIT), threshold + SIGN_BIT, out=kept[start : start + rows])
    return kept


@_keep_mask.register_fake
def _(keys: Tensor, elements: int, threshold: int) -> Tensor:
    return keys.new_empty((keys.shape[0], elements), dtype=torch.bool)


def lowbias32(x: Tensor) -> Tensor:
    """Chris Wellons' 32-bit hash `lowbias32`, element by element on int32, whose products wrap around."""
    x = (x ^ shift_right(x, 16)) * 0x7FEB352D
    x = (x ^ shift_right(x, 15)) * (0x846CA68B - 2**32)
    return x ^ shift_right(x, 16)
