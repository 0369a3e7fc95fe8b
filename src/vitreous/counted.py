"""Counted randomness: numbers that are a hash of what they are for, in place of a generator that is carried along.

The same sample meets the same numbers whatever batch, process or device it falls into, and a resumed run needs no
state.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15


def random_bits(seed: int, count: int, index: Tensor, streams: int) -> Tensor:
    """64 random bits for each of [B] samples and each stream: int64 [B, streams], on the device of `index`.

    SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), three times over: seed
    and count choose a generator of samples, which seeds a generator of streams for each.

    Args:
        seed: any int.
        count: any int from 0: of epochs or steps.
        index: int64 [B], the samples' positions in their split.
        streams: how many numbers for each sample.
    """
    key = _mix((operator.index(seed) + GAMMA) % 2**64)  # a numpy integer would overflow
    key = _mix((key + (count + 1) * GAMMA) % 2**64)
    stream = torch.arange(1, streams + 1, device=index.device)
    sample = _mix_tensor(_signed(key) + (index + 1) * _signed(GAMMA))  # [B]
    return _mix_tensor(sample[:, None] + stream * _signed(GAMMA))  # [B, streams]


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Shifts int32 or int64 right and fills with zeros; torch's own shift repeats the sign."""
    return (x >> bits) & ((1 << (8 * x.element_size() - bits)) - 1)


def _mix(x: int) -> int:
    """SplitMix64's output function on an unsigned 64-bit Python int."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def _mix_tensor(x: Tensor) -> Tensor:
    """`_mix` on int64 tensors: products wrap around, so only the shifts need care."""
    x = (x ^ shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ shift_right(x, 31)


def _signed(x: int) -> int:
    """The int64 with the bits of an unsigned 64-bit int."""
    return x - 2**64 if x >= 2**63 else x
