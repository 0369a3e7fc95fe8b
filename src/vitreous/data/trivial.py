"""TrivialAugment for whole batches: one random change of random strength to each image.

Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation" (arXiv 2103.10158), in its
wide space of 14 operations and 31 strengths. Each operation gives the same bytes as Pillow and processes all images of
the batch that drew it at once.

Letters: B images of a batch, K of them that share an operation, H and W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

STRENGTHS = 31  # equal steps from no change to the largest change


def trivial(image: Tensor, u: Tensor, fill: tuple[float, float, float]) -> Tensor:
    """Changes each image by its own operation, strength and sign.

    Args:
        image: uint8 [B, H, W, 3].
        u: [B, 3], uniform in [0, 1): operation, strength and sign.
        fill: colour, from 0 to 1, of pixels that a shift, shear or rotation uncovers.

    Returns:
        uint8 [B, H, W, 3].
    """
    chosen = (u[:, 0] * len(OPERATIONS)).long()
    strength = (u[:, 1] * STRENGTHS).long() / (STRENGTHS - 1)  # [B], 0..1
    sign = torch.where(u[:, 2] < 0.5, 1.0, -1.0)
    colour = (torch.tensor(fill, device=image.device) * 255).round().to(torch.uint8)
    out = image.clone()
    for number, operation in enumerate(OPERATIONS.values()):
        index = (chosen == number).nonzero()[:, 0]
        if len(index):
            out[index] = operation(image[index], strength[index], sign[index], colour)
    return out


def affine(image: Tensor, matrix: Tensor, colour: Tensor) -> Tensor:
    """Takes each pixel from the pixel of `image` [K, H, W, 3] to which `matrix` [K, 2, 3] maps its centre (x, y, 1)."""
    K, H, W, _ = image.shape
    y, x = torch.meshgrid(
        torch.arange(H, device=image.device) + 0.5, torch.arange(W, device=image.device) + 0.5, indexing="ij"
    )
    at = torch.stack([x, y, torch.ones_like(x)]).reshape(3, H * W)
    column, row = (matrix @ at).floor().long().unbind(1)  # each [K, H·W]
    inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
    pixel = row.clamp(0, H - 1) * W + column.clamp(0, W - 1)
    pixels = image.reshape(K, H * W, 3).gather(1, pixel[:, :, None].expand(-1, -1, 3))
    return torch.where(inside[:, :, None], pixels, colour).view(K, H, W, 3)


def matrices(a: Tensor | float, b: Tensor | float, c: Tensor | float, *rest: Tensor | float) -> Tensor:
    """Matrices [K, 2, 3] of six entries, row by row, each a number or a tensor [K]."""
    device = next(entry.device for entry in (a, b, c, *rest) if isinstance(entry, Tensor))
    entries = [torch.as_tensor(entry, dtype=torch.float32, device=device) for entry in (a, b, c, *rest)]
    return torch.stack(torch.broadcast_tensors(*entries), dim=-1).unflatten(-1, (2, 3))


def shear_x(image: Tensor, strength: Tensor, sign: Tensor, colour: Tensor) -> Tensor:
    return affine(image, matrices(1, 0.99 * strength * sign, 0, 0, 1, 0), colour)


def shear_y(image: Tensor, strength: Tensor, sign: Tensor, colour: Tensor) -> Tensor:
    return affine(image, matrices(1, 0, 0, 0.99 * strength * sign, 1, 0), colour)


def translate_x(image: Tensor, strength: Tensor, sign: Tensor, colour: Tensor) -> Tensor:
    return affine(image, matrices(1, 0, (32 * strength).floor() * sign, 0, 1, 0), colour)


def translate_y(image: Tensor, strength: Tensor, sign: Tensor, colour: Tensor) -> Tensor:
    return affine(image, matrices(1, 0, 0, 0, 1, (32 * strength).floor() * sign), colour)


def rotate(image: Tensor, strength: Tensor, sign: Tensor, colour: Tensor) -> Tensor:
    """Rotates around the centre of the image by up to 135 degrees."""
    angle = 135 * strength * sign * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    x, y = image.shape[2] / 2, image.shape[1] / 2
    return affine(image, matrices(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), colour)


def blend(degenerate: Tensor, image: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Blends `image` with weight 1 ± 0.99·strength and `degenerate` with the rest; clips to bytes like Pillow."""
    factor = (1 + 0.99 * strength * sign)[:, None, None, None]
    mixed = degenerate.float() + factor * (image.float() - degenerate.float())
    return mixed.clamp(0, 255).to(torch.uint8)


def grey(image: Tensor) -> Tensor:
    """Luma (ITU-R 601) of uint8 [K, H, W, 3], as int32 [K, H, W, 1]."""
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32, device=image.device)
    return ((image.int() * weights).sum(-1, keepdim=True, dtype=torch.int32) + 0x8000) >> 16


def brightness(image: Tensor, strength: Tensor, sign: Tensor, colour: Tensor) -> Tensor:
    return blend(torch.zeros_like(image), image, strength, sign)


def colourfulness(image: Tensor, strength: Tensor, sign: Tensor, colour: Tensor) -> Tensor:
    return blend(grey(image), image, strength, sign)


def contrast(image: Tensor, strength: Tensor, sign: Tensor, colour: Tensor) -> Tensor:
    mean = (grey(image).double().mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor()
    return blend(mean, image, strength, sign)


def sharpness(image: Tensor, strength: Tensor, sign: Tensor, colour: Tensor) -> Tensor:
    kernel = torch.ones(3, 1, 3, 3, device=image.device)
    kernel[:, :, 1, 1] = 5
    smooth = image.clone()
    if min(image.shape[1:3]) >= 3:  # the border stays unchanged
        inner = F.conv2d(image.permute(0, 3, 1, 2).float(), kernel, groups=3) / 13
        smooth[:, 1:-1, 1:-1] = (inner + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return blend(smooth, image, strength, sign)


def posterize(image: Tensor, strength: Tensor, sign: Tensor, colour: Tensor) -> Tensor:
    """Keeps 8 to 2 bits of each value."""
    dropped = (6 * strength).round().int()[:, None, None, None]
    return ((image.int() >> dropped) << dropped).to(torch.uint8)


def solarize(image: Tensor, strength: Tensor, sign: Tensor, colour: Tensor) -> Tensor:
    """Inverts values at or above a threshold, which falls from 255 to 0."""
    threshold = (255 * (1 - strength))[:, None, None, None]
    return torch.where(image < threshold, image, 255 - image)


def autocontrast(image: Tensor, strength: Tensor, sign: Tensor, colour: Tensor) -> Tensor:
    """Stretches each channel to the full range."""
    low, high = image.double().amin((1, 2), keepdim=True), image.double().amax((1, 2), keepdim=True)
    # torch computes a number / tensor as a product with 1/x, which rounds twice.
    scale = high.new_tensor(255.0) / (high - low).clamp(min=1)
    stretched = (image * scale - low * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, image)


def equalize(image: Tensor, strength: Tensor, sign: Tensor, colour: Tensor) -> Tensor:
    """Makes all values of a channel about equally frequent."""
    K, H, W, _ = image.shape
    flat = image.permute(0, 3, 1, 2).reshape(K * 3, H * W).long()
    counts = torch.zeros(K * 3, 256, dtype=torch.long, device=image.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    step = (H * W - counts.gather(1, flat.amax(1, keepdim=True))) // 255  # the brightest are not counted
    before = counts.cumsum(1) - counts
    table = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    even = torch.where(step > 0, table.gather(1, flat), flat)
    return even.to(torch.uint8).view(K, 3, H, W).permute(0, 2, 3, 1)


def identity(image: Tensor, strength: Tensor, sign: Tensor, colour: Tensor) -> Tensor:
    return image


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "identity": identity,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "rotate": rotate,
    "brightness": brightness,
    "color": colourfulness,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
}
