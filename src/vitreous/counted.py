"""Counted random numbers: each is a hash of its purpose (seed, step, sample, …) instead of a generator's next value.

A sample gets the same numbers in any batch, process or device, and a resumed run needs no saved state.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15


def random_bits(seed: int, count: int, index: Tensor, streams: int) -> Tensor:
    """64 random bits for each sample and stream.

    Uses SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014) on three levels: seed
    and count choose a generator over samples, which seeds a generator over streams for each sample.

    Args:
        seed: any int.
        count: the epoch or step, from 0.
        index: int64 [B], the positions of the samples in their split.
        streams: how many numbers each sample gets.

    Returns:
        int64 [B, streams], on the device of `index`.
    """
    key = _mix((operator.index(seed) + GAMMA) % 2**64)  # operator.index, since a numpy integer would overflow
    key = _mix((key + (count + 1) * GAMMA) % 2**64)
    stream = torch.arange(1, streams + 1, device=index.device)
    sample = _mix_tensor(_signed(key) + (index + 1) * _signed(GAMMA))  # [B]
    return _mix_tensor(sample[:, None] + stream * _signed(GAMMA))  # [B, streams]


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Shifts int32 or int64 right and fills with zeros, where torch's own shift repeats the sign bit."""
    return (x >> bits) & ((1 << (8 * x.element_size() - bits)) - 1)


def _mix(x: int) -> int:
    """SplitMix64's output function on an unsigned 64-bit Python int."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def _mix_tensor(x: Tensor) -> Tensor:
    """`_mix` on int64 tensors. Products wrap around as they should; only the shifts need care."""
    x = (x ^ shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ shift_right(x, 31)


def _signed(x: int) -> int:
    """The int64 that has the bits of an unsigned 64-bit int."""
    return x - 2**64 if x >= 2**63 else x
