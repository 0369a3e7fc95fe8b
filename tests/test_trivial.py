"""TrivialAugment's batched operations against Pillow, image by image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from vitreous.data.augment import Augment, uniform
from vitreous.data.trivial import OPERATIONS, STRENGTHS, trivial

FILL = (10 / 255, 120 / 255, 230 / 255)
COLOUR = (10, 120, 230)
GEOMETRIC = ("shear_x", "shear_y", "rotate")
ENHANCING = ("brightness", "color", "contrast", "sharpness")


def sample_images(count: int, height: int, width: int) -> torch.Tensor:
    """Smooth and noisy images, one of a single colour and one of two colours."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    images = np.empty((count, height, width, 3), np.uint8)
    for i in range(count):
        waves = 128 + 100 * np.sin(x[..., None] / (2 + i) + y[..., None] / 5 + np.arange(3) + i)
        images[i] = np.clip(waves + rng.normal(0, 3 * (i % 7), images[i].shape), 0, 255)
    images[0] = 77
    images[1] = np.where((x + y)[..., None] % 2, 40, 200)
    return torch.from_numpy(images)


def by_pillow(name: str, image: Image.Image, strength: float, sign: float) -> Image.Image:
    """The operation as in the published code, on one image."""

    def affine(*data: float) -> Image.Image:
        how = Image.Resampling.NEAREST
        return image.transform(image.size, Image.Transform.AFFINE, data, how, fillcolor=COLOUR)

    signed = strength * sign
    if name == "identity":
        return image
    if name == "shear_x":
        return affine(1, 0.99 * signed, 0, 0, 1, 0)
    if name == "shear_y":
        return affine(1, 0, 0, 0.99 * signed, 1, 0)
    if name == "translate_x":
        return affine(1, 0, math.floor(32 * strength) * sign, 0, 1, 0)
    if name == "translate_y":
        return affine(1, 0, 0, 0, 1, math.floor(32 * strength) * sign)
    if name == "rotate":
        return image.rotate(135 * signed, fillcolor=COLOUR)
    if name in ENHANCING:
        return getattr(ImageEnhance, name.capitalize())(image).enhance(1 + 0.99 * signed)
    if name == "posterize":
        return ImageOps.posterize(image, 8 - round(6 * strength))
    if name == "solarize":
        return ImageOps.solarize(image, 255 * (1 - strength))  # type: ignore[arg-type]  # a float works
    assert name in ("autocontrast", "equalize")
    return getattr(ImageOps, name)(image)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (21, 34)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_the_bytes_of_pillow(name: str, height: int, width: int) -> None:
    images = sample_images(2 * STRENGTHS, height, width)
    strength = torch.arange(2 * STRENGTHS) // 2 / (STRENGTHS - 1)
    sign = torch.tensor([1.0, -1.0]).repeat(STRENGTHS)
    colour = torch.tensor(COLOUR, dtype=torch.uint8)
    out = OPERATIONS[name](images, strength, sign, colour)
    assert out.dtype == torch.uint8 and out.shape == images.shape
    expected = np.stack(
        [
            np.asarray(by_pillow(name, Image.fromarray(image.numpy()), s, w))
            for image, s, w in zip(images, strength.tolist(), sign.tolist(), strict=True)
        ]
    )
    wrong = (out.numpy() != expected).any(axis=-1)
    if (
        name in GEOMETRIC
    ):  # Pillow's fixed-point coordinates sometimes fall on the other side of a pixel's edge
        assert wrong.mean() < 0.01
    elif name in ENHANCING:  # Pillow's float32 factor may round to a neighbouring value
        assert np.abs(out.numpy().astype(int) - expected).max() <= 1
        assert wrong.mean() < 0.01
    else:
        assert not wrong.any()
    if name != "identity":
        assert (out != images).any()


def test_each_image_gets_the_operation_that_it_drew() -> None:
    images, index = sample_images(300, 16, 16), torch.arange(300)
    u = uniform(3, 1, index, 3)
    out = trivial(images, u, FILL)
    seen = set()
    for i, (a, b, c) in enumerate(u.tolist()):
        name = list(OPERATIONS)[int(a * 14)]
        seen.add(name)
        strength, sign = int(b * 31) / 30, 1.0 if c < 0.5 else -1.0
        expected = np.asarray(by_pillow(name, Image.fromarray(images[i].numpy()), strength, sign)).astype(int)
        assert (np.abs(out[i].numpy() - expected) > 1).any(axis=-1).mean() < 0.05
    assert seen == set(OPERATIONS)


def test_in_an_augmentation_it_follows_crop_and_flip() -> None:
    images, index = sample_images(50, 16, 16), torch.arange(50)
    plain = Augment(crop=2, flip="random", fill=FILL, seed=9)
    both = Augment(crop=2, flip="random", trivial=True, fill=FILL, seed=9)
    before = (plain(images, index, 4) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    expected = trivial(before, uniform(9, 4, index, 30)[:, 27:], FILL)
    assert torch.equal((both(images, index, 4) * 255).round().to(torch.uint8).permute(0, 2, 3, 1), expected)
