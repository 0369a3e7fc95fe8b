"""Augmentation of whole batches, as tensor code on the device of the batch.

Letters: B batch, H height and W width of an image, S streams of random numbers.

Random numbers are counted, never carried: each is a hash of (seed, epoch, sample, stream). An image is therefore
augmented alike in any batch, process or device, and a resumed run needs no state.

To add an operation, add a stream at the end of the list below, a field of the same name in `Augment` and in
`recipe.AugmentSection`, its call in `Augment.__call__`, and an entry in `tests/test_meta.py`.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from vitreous.counted import random_bits, shift_right
from vitreous.data.normalize import constant, to_float
from vitreous.data.trivial import trivial
from vitreous.errors import VitreousError, unknown

Flip = Literal["none", "random", "alternating"]

# The stream of `uniform` that each operation draws from. Fixed numbers keep the draws of the other operations the
# same when one is switched on.
CROP_Y, CROP_X, FLIP, CUTOUT_Y, CUTOUT_X, BOX_Y, BOX_X, BOX_TRIES = range(8)
MAX_TRIES = 10  # for a random resized crop; each draws an area and a ratio, from stream BOX_TRIES on
RATIO = (3 / 4, 4 / 3)  # range of its width over its height
TRIVIAL = BOX_TRIES + 2 * MAX_TRIES  # three streams: operation, strength, sign
MIX, SHARE, MIX_Y, MIX_X = range(TRIVIAL + 3, TRIVIAL + 7)
STREAMS = TRIVIAL + 7


def uniform(seed: int, epoch: int, index: Tensor, streams: int) -> Tensor:
    """Random numbers in [0, 1), float32 [B, streams], each a function of (seed, epoch, index, stream) only.

    Args:
        seed: any int.
        epoch: any int from 0.
        index: int64 [B], the samples' positions in their split; the result is on its device.
        streams: S, the number of random numbers per sample.
    """
    bits = random_bits(seed, epoch, index, streams)  # [B, S]
    return shift_right(bits, 40).to(torch.float32) * 2.0**-24  # the 24 bits that a float32 holds exactly


@dataclass(frozen=True)
class Augment:
    """Random changes to training images: crop, flip, TrivialAugment, resized crop, cut-out and mixing, in this order.

    Args:
        crop: pad by this many pixels, mirrored at the border, and cut out the original size at a random position.
        flip: left to right: "random" with probability 1/2; "alternating" at random in an image's first epoch and
            then every other epoch, so that two epochs in a row show both sides.
        cutout: side in pixels of a square painted at a random position, its centre anywhere in the image
            (DeVries and Taylor, arXiv 1708.04552).
        trivial: one random operation of random strength per image (TrivialAugment, arXiv 2103.10158).
        resized_crop: (smallest, largest) share of the area that a crop keeps before it is resized to the
            original size, with a random ratio from 3/4 to 4/3 (Szegedy et al., arXiv 1409.4842).
        mixup: probability that an image is blended with its partner (Zhang et al., arXiv 1710.09412, with
            alpha 1); see `mix`.
        cutmix: probability that a box of the partner is pasted into the image (Yun et al., arXiv 1905.04899).
        fill: colour of the cut-out, from 0 to 1. With the mean of the data it is 0 after normalisation.
        seed: seed of all random numbers.

    Raises:
        VitreousError: an option is out of its range.
    """

    crop: int = 0
    flip: Flip = "none"
    cutout: int = 0
    trivial: bool = False
    resized_crop: tuple[float, float] | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    fill: tuple[float, float, float] = (0.5, 0.5, 0.5)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.flip not in get_args(Flip):
            raise unknown("flip", str(self.flip), get_args(Flip))
        for name, value in (("crop", self.crop), ("cutout", self.cutout)):
            if not isinstance(value, int) or value < 0:
                raise VitreousError(f"The augmentation's {name} is {value!r}; give 0 or more whole pixels.")
        shares = self.resized_crop
        if shares is not None and not (len(shares) == 2 and 0 < shares[0] <= shares[1] <= 1):
            raise VitreousError(
                f"The augmentation's resized_crop is {self.resized_crop}; "
                "give a smallest and a largest share of the area, both above 0 and at most 1."
            )
        # Written so that NaN is refused too.
        if not (self.mixup >= 0 and self.cutmix >= 0 and self.mixup + self.cutmix <= 1):
            raise VitreousError(
                f"The augmentation's mixup is {self.mixup} and its cutmix {self.cutmix}; "
                "give two probabilities whose sum is at most 1."
            )

    def __call__(self, image: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Augments uint8 images [B, H, W, 3] to float32 [B, 3, H, W] from 0 to 1, channels last in memory.

        Args:
            image: the images.
            index: int64 [B], on the same device: the position of each image in its split.
            epoch: the epoch, from 0.

        Raises:
            VitreousError: the images are too small for the padding of the crop.
        """
        height = image.shape[1]
        width = image.shape[2]
        if self.crop >= min(height, width):
            raise VitreousError(
                f"The augmentation's crop of {self.crop} pixels is too large for images of {height}×{width}; "
                "choose a smaller crop or a larger image size."
            )
        u = uniform(self.seed, epoch, index, STREAMS if self.trivial or self.resized_crop else BOX_TRIES)

        if self.crop or self.flip != "none":
            rows = torch.arange(height, device=image.device).expand(len(image), -1)  # [B, H]
            cols = torch.arange(width, device=image.device).expand(len(image), -1)  # [B, W]
            flip = self._flipped(u, index, epoch)
            cols = torch.where(flip[:, None], width - 1 - cols, cols)
            if self.crop:
                rows = _mirror(rows + _integers(u[:, CROP_Y], 2 * self.crop + 1)[:, None] - self.crop, height)
                cols = _mirror(cols + _integers(u[:, CROP_X], 2 * self.crop + 1)[:, None] - self.crop, width)
            image = _gather(image, rows, cols)
        if self.trivial:
            image = trivial(image, u[:, TRIVIAL : TRIVIAL + 3], self.fill)
        x = to_float(image)
        if self.resized_crop is not None:
            x = resize_boxes(x, random_boxes(u, height, width, self.resized_crop))
        if self.cutout:
            x = self._cut_out(x, u)
        return x

    @property
    def mixes(self) -> bool:
        """Whether training mixes the augmented images, see `mix`."""
        return self.mixup + self.cutmix > 0

    def mix(self, x: Tensor, partner: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Mixes each image with its partner: by mixup, by cutmix or not at all.

        Each row of the result depends only on the same row of the arguments. A part of a batch is therefore mixed as
        in the full batch if it is given the same partners, each augmented by its own index.

        Args:
            x: float [B, 3, H, W], from a call of this augmentation.
            partner: float [B, 3, H, W], the augmented image that each is mixed with.
            index: int64 [B], the position of each image of `x` in its split.
            epoch: the epoch, from 0.

        Returns:
            The mixed images, and the share of itself that each keeps, float [B] from 0 to 1. The share is the weight
            of the image's own label; the rest goes to the partner's label.
        """
        u = uniform(self.seed, epoch, index, STREAMS)
        blended = u[:, MIX] < self.mixup
        pasted = ~blended & (u[:, MIX] < self.mixup + self.cutmix)
        # Cutmix: a box with 1 - share of the area. It is clipped at the border, and only the visible part counts.
        H, W = x.shape[2:]
        side = (1 - u[:, SHARE]).sqrt()

        def inside(centre: Tensor, size: int) -> Tensor:  # [B] -> bool [B, size]
            middle, half = _integers(centre, size), _integers(side, size) // 2
            position = torch.arange(size, device=x.device)
            return (position >= (middle - half)[:, None]) & (position < (middle + half)[:, None])

        box = inside(u[:, MIX_Y], H)[:, :, None] & inside(u[:, MIX_X], W)[:, None, :]  # [B, H, W]
        box &= pasted[:, None, None]
        kept = torch.where(blended, u[:, SHARE], 1.0)
        x = torch.where(box[:, None], partner, partner + kept[:, None, None, None] * (x - partner))
        share = torch.where(pasted, 1 - box.float().mean(dim=(1, 2)), kept)
        return x, share

    def _flipped(self, u: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Whether each image is mirrored in this epoch, bool [B]."""
        if self.flip == "none":
            return torch.zeros_like(index, dtype=torch.bool)
        if self.flip == "random":
            return u[:, FLIP] < 0.5
        first = uniform(self.seed, 0, index, FLIP + 1)[:, FLIP] < 0.5
        return first if epoch % 2 == 0 else ~first

    def _cut_out(self, x: Tensor, u: Tensor) -> Tensor:
        """Paints the square, clipped at the border, over x [B, 3, H, W]."""

        def inside(u: Tensor, size: int) -> Tensor:  # [B] -> bool [B, size]
            start = _integers(u, size) - self.cutout // 2
            position = torch.arange(size, device=u.device) - start[:, None]
            return (position >= 0) & (position < self.cutout)

        rows = inside(u[:, CUTOUT_Y], x.shape[2])[:, None, :, None]  # [B, 1, H, 1]
        cols = inside(u[:, CUTOUT_X], x.shape[3])[:, None, None, :]  # [B, 1, 1, W]
        fill = constant(self.fill, x).view(1, 3, 1, 1)
        return torch.where(rows & cols, fill, x)


def resized(images: Tensor, side: int) -> Tensor:
    """Shrinks images [B, 3, S, S] to [B, 3, side, side], bilinear: each target pixel is a mean of what it covers.

    This is linear in rows and in columns, so it takes two matrix products, six times as fast on a CPU as
    `interpolate`, which here only computes the matrix. The result is channels last in memory.
    """
    size = images.shape[-1]
    if size == side:
        return images
    eye, three = (torch.eye(count, dtype=images.dtype, device=images.device) for count in (size, 3))
    shrink = F.interpolate(eye[None, None], size=(size, side), mode="bilinear", antialias=True)[0, 0]
    rows = images.permute(0, 2, 3, 1).flatten(2)  # [B, S, 3S]
    kind = images.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        # Over rows, then over columns, whose three channels are interleaved.
        small = (shrink.mT @ rows) @ torch.kron(shrink, three)
    return small.unflatten(2, (side, 3)).permute(0, 3, 1, 2)


def random_boxes(u: Tensor, height: int, width: int, scale: tuple[float, float]) -> Tensor:
    """Draws crops of random area and ratio, int64 [B, 4]: top, left, height, width in pixels.

    Each image takes the first of `MAX_TRIES` boxes that fits into it. If none fits, it takes the largest centred box
    with an allowed ratio.

    Args:
        u: [B, S] of `uniform`.
        height, width: size of the images.
        scale: smallest and largest share of the image's area.
    """
    tries = u[:, BOX_TRIES : BOX_TRIES + 2 * MAX_TRIES]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * tries[:, 0::2])  # [B, MAX_TRIES]
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = torch.exp(low + (high - low) * tries[:, 1::2])  # log-uniform: 3/4 is as likely as 4/3
    box_height = torch.round(torch.sqrt(area / ratio)).long()
    box_width = torch.round(torch.sqrt(area * ratio)).long()
    fits = (box_height > 0) & (box_height <= height) & (box_width > 0) & (box_width <= width)
    first = fits.long().argmax(dim=1, keepdim=True)  # [B, 1]
    fallback_height = min(height, round(width / RATIO[0]))
    fallback_width = min(width, round(height * RATIO[1]))
    any_fits = fits.any(dim=1)
    box_height = box_height.gather(1, first)[:, 0].where(any_fits, fallback_height)
    box_width = box_width.gather(1, first)[:, 0].where(any_fits, fallback_width)
    room_y, room_x = height - box_height, width - box_width
    top = _integers(u[:, BOX_Y], room_y + 1).where(any_fits, room_y // 2)
    left = _integers(u[:, BOX_X], room_x + 1).where(any_fits, room_x // 2)
    return torch.stack([top, left, box_height, box_width], dim=1)


def resize_boxes(x: Tensor, boxes: Tensor) -> Tensor:
    """Cuts a box out of each image and resizes it, bilinear, to the size of the image.

    Pixels outside the box do not enter the result, as if the box had been cut out first.

    Args:
        x: float [B, 3, H, W].
        boxes: int64 [B, 4]: top, left, height, width, inside the image.

    Returns:
        float [B, 3, H, W], channels last in memory.
    """

    def source(start: Tensor, length: Tensor, size: int) -> Tensor:
        """The position of each target pixel's centre, from -1 (first pixel) to 1 (last): [B] -> [B, size]."""
        centre = torch.arange(size, device=x.device) + 0.5
        inside = centre * (length[:, None] / size) - 0.5
        position = start[:, None] + inside.clamp(min=0).minimum((length - 1)[:, None])
        return position * (2 / max(size - 1, 1)) - 1

    B, _, H, W = x.shape
    top, left, height, width = boxes.unbind(1)
    down = source(top, height, H)[:, :, None].expand(B, H, W)
    across = source(left, width, W)[:, None, :].expand(B, H, W)
    grid = torch.stack([across, down], dim=-1)  # [B, H, W, 2]
    out = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return out.contiguous(memory_format=torch.channels_last)


def _integers(u: Tensor, n: int | Tensor) -> Tensor:
    """Uniform integers 0..n-1 (int64) from u in [0, 1)."""
    return (u * n).long()


def _mirror(position: Tensor, size: int) -> Tensor:
    """Folds positions from 1-size to 2·size-2 back into 0..size-1; the border pixel is not repeated."""
    return (size - 1) - ((size - 1) - position.abs()).abs()


def _gather(image: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Picks rows [B, H] and columns [B, W] of each image, uint8 [B, H, W, 3] -> the same shape."""
    B, H, W, _ = image.shape
    first = torch.arange(B, device=image.device) * H
    pixel = (first[:, None] + rows)[:, :, None] * W + cols[:, None, :]  # [B, H, W]
    # The batch as one list of pixels is four times as fast as indexing with three arrays.
    return image.reshape(-1, 3).index_select(0, pixel.flatten()).view(B, H, W, 3)
