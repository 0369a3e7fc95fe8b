"""From uint8 images to the normalised floats that the network takes, for training and for prediction."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float(image: Tensor) -> Tensor:
    """Converts stored images, uint8 [B, H, W, 3], to float32 [B, 3, H, W] from 0 to 1.

    Only the view is transposed: the result is channels last in memory.
    """
    return image.permute(0, 3, 1, 2).to(torch.float32).div_(255)  # [B, H, W, 3] -> [B, 3, H, W]


def normalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Subtracts the mean and divides by the standard deviation of each channel.

    Args:
        x: float [B, 3, H, W] from 0 to 1.
        mean, std: three numbers each, in units of 0 to 1.

    Returns:
        float [B, 3, H, W], channels last in memory.
    """
    width = x.shape[3]
    # Whole rows, with the statistics repeated along them: five times as fast on a CPU as three channels at a time.
    shift, scale = (constant(channels, x).repeat(width) for channels in (mean, std))
    rows = x.permute(0, 2, 3, 1).flatten(2)  # [B, H, 3W]
    return (rows - shift).div_(scale).unflatten(2, (width, -1)).permute(0, 3, 1, 2)


def constant(values: tuple[float, ...], x: Tensor) -> Tensor:
    """The numbers as a tensor with the type and on the device of `x`."""
    if x.is_cuda:  # torch.tensor would wait until the GPU has done all earlier work
        return torch.tensor(values, dtype=x.dtype).to(x.device, non_blocking=True)
    return torch.tensor(values, dtype=x.dtype, device=x.device)
