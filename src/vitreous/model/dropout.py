"""Noise in training: dropout of single numbers, and stochastic depth, which leaves out whole residual branches.

With keys (`key_noise`) it is a function of (seed, step, sample, module, element), by one hash for torch and for the
kernels of `vitreous.native`; so neither the size of a batch nor the number of processes changes it. Elsewhere each
module draws its keys from torch's generator.

Letters in the shape comments: B batch, E elements of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitreous.counted import random_bits, shift_right

SIGN = -(2**31)
CHUNK = 2**17  # elements hashed at a time: they stay in a core's cache, which makes it several times faster


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014) at `rate`: a share of all elements is zeroed, the others scaled up."""

    keys: Tensor | None = None

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = float(rate)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = keep_mask(keys_of(self, x), math.prod(x.shape[1:]), self.rate).view(x.shape)
        return torch.where(kept, x * (1 / (1 - self.rate)), 0.0)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): a residual branch is left out at random, sample by sample."""

    rate: Tensor
    keys: Tensor | None = None

    def __init__(self, rate: float) -> None:
        super().__init__()
        # A tensor, not a number, so that one compiled block serves all layers.
        self.register_buffer("rate", torch.tensor(rate), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        uniform = shift_right(lowbias32(keys_of(self, x)), 8) * 2.0**-24  # [B], the bits that a float32 holds
        kept = (uniform >= self.rate).view(-1, 1, 1)
        return x * (kept / (1 - self.rate)).to(x.dtype)


@contextmanager
def keyed_noise(model: nn.Module, seed: int, step: int, samples: Tensor) -> Iterator[None]:
    """Inside, the noise of `model` is a function of (seed, step, sample, module, element); see `key_noise`.

    What else a model may draw from torch's generator is a function of (seed, step), as in `counted_generator`.
    """
    key_noise(model, seed, step, samples)
    try:
        with counted_generator(seed, step, samples.device):
            yield
    finally:
        free_noise(model)


def key_noise(model: nn.Module, seed: int, step: int, samples: Tensor) -> None:
    """Gives each of the model's noisy modules its keys, until `free_noise`.

    They are to stay for the backward pass, in which a checkpointed block runs again.

    Args:
        seed, step: any int; the step from 0.
        samples: int64 [B], on the model's device: each sample's position in its split.
    """
    sites = noisy_modules(model)
    # [B, sites], the lower half of the bits; most networks have no noise, and pay nothing for it.
    keys = random_bits(seed, step, samples, len(sites)).int().unbind(1) if sites else ()
    for site, own in zip(sites, keys, strict=True):
        site.keys = own


def free_noise(model: nn.Module) -> None:
    """Takes the keys away: each forward pass draws its own from torch's generator again."""
    for site in noisy_modules(model):
        site.keys = None


def noisy_modules(model: nn.Module) -> list[Dropout | DropPath]:
    return [m for m in model.modules() if isinstance(m, DropPath) or (isinstance(m, Dropout) and m.rate)]


@contextmanager
def counted_generator(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's generators of CPU and device begin at (seed, step); the caller's are left as they were."""
    begin = (seed * 0x9E3779B1 + step) % 2**64
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(begin)
        if device.type == "cuda":
            torch.cuda.manual_seed(begin)
        yield


def keys_of(site: Dropout | DropPath, x: Tensor) -> Tensor:
    """Keys of a module's noise, int32 [B]: those of `key_noise`, else drawn."""
    if site.keys is not None:
        return site.keys
    return torch.randint(SIGN, -SIGN, (x.shape[0],), dtype=torch.int32, device=x.device)


def keep_mask(keys: Tensor, elements: int, rate: float) -> Tensor:
    """Which elements dropout keeps, bool [B, E], for keys int32 [B]: those whose hash is at least rate · 2³²."""
    return _keep_mask(keys, elements, int(rate * 2**32))


@torch.library.custom_op("vitreous::keep_mask", mutates_args=())
def _keep_mask(keys: Tensor, elements: int, threshold: int) -> Tensor:
    """An operator, so that compilation leaves the loop alone."""
    place = torch.arange(elements, dtype=torch.int32, device=keys.device) * (0x9E3779B1 - 2**32)
    rows = max(1, CHUNK // max(elements, 1)) if keys.device.type == "cpu" else max(1, len(keys))
    kept = torch.empty(len(keys), elements, dtype=torch.bool, device=keys.device)
    for start in range(0, len(keys), rows):
        hashed = lowbias32(keys[start : start + rows, None] + place)
        # As unsigned numbers: with the sign bit of both turned, signed ones compare alike.
        torch.ge(hashed.bitwise_xor_(SIGN), threshold + SIGN, out=kept[start : start + rows])
    return kept


@_keep_mask.register_fake
def _(keys: Tensor, elements: int, threshold: int) -> Tensor:
    return keys.new_empty((keys.shape[0], elements), dtype=torch.bool)


def lowbias32(x: Tensor) -> Tensor:
    """C. Wellons' hash of 32 bits, on int32 whose products wrap around."""
    x = (x ^ shift_right(x, 16)) * 0x7FEB352D
    x = (x ^ shift_right(x, 15)) * (0x846CA68B - 2**32)
    return x ^ shift_right(x, 16)
