"""Augmentation against references for one image at a time, and its random numbers against integers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import stats

from vitreous.data import augment as module
from vitreous.data.augment import Augment, random_boxes, resize_boxes, resized, uniform
from vitreous.data.loader import BatchLoader, partners
from vitreous.data.normalize import normalize, to_float
from vitreous.data.store import Split
from vitreous.errors import VitreousError


def random_images(count: int, height: int = 12, width: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


# ---- counted randomness


class SplitMix64:
    """The published generator, in Python's own integers."""

    def __init__(self, state: int) -> None:
        self.state = state % 2**64

    def output(self, number: int) -> int:
        """The `number`th output, from 1."""
        for _ in range(number):
            self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)


def test_the_reference_is_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]  # for the seed 1234567
    assert [SplitMix64(1234567).output(n) for n in (1, 2, 3)] == published


@pytest.mark.parametrize("seed", [0, 42, -1, 2**63 + 5])
@pytest.mark.parametrize("epoch", [0, 1, 57])
def test_uniform_is_the_hash_it_says(seed: int, epoch: int) -> None:
    index = torch.tensor([0, 1, 7, 300])
    drawn = uniform(seed, epoch, index, 5)
    assert drawn.dtype == torch.float32 and drawn.shape == (4, 5)
    key = SplitMix64(SplitMix64(seed).output(1)).output(epoch + 1)
    for row, i in zip(drawn.tolist(), index.tolist(), strict=True):
        sample = SplitMix64(key).output(i + 1)
        assert row == [(SplitMix64(sample).output(s + 1) >> 40) / 2**24 for s in range(5)]


def test_a_seed_of_numpy_is_the_same_seed_and_a_fraction_is_none() -> None:
    index = torch.arange(3)
    assert torch.equal(uniform(np.int64(4), 0, index, 2), uniform(4, 0, index, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        uniform(1.5, 0, index, 2)  # type: ignore[arg-type]


def test_uniform_does_not_depend_on_the_batch_or_the_number_of_streams() -> None:
    index = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    whole = uniform(3, 9, index, 6)
    assert torch.equal(torch.cat([uniform(3, 9, part, 6) for part in index.split(77)]), whole)
    assert torch.equal(uniform(3, 9, index, 2), whole[:, :2])
    assert torch.equal(uniform(3, 9, index.flip(0), 6), whole.flip(0))


def test_uniform_is_uniform_and_independent() -> None:
    index = torch.arange(4000)
    first, other_seed, next_epoch = (uniform(*at, index, 8).double() for at in ((1, 0), (2, 0), (1, 1)))
    for stream in first.T:
        assert stats.kstest(stream.numpy(), "uniform").pvalue > 1e-4
    pairs = [(first[:, s], first[:, s + 1]) for s in range(7)]  # streams of a sample
    pairs += [(first[:-1, s], first[1:, s]) for s in range(8)]  # neighbouring samples
    pairs += [(first[:, s], other_seed[:, s]) for s in range(8)]
    pairs += [(first[:, s], next_epoch[:, s]) for s in range(8)]
    pairs += [(first[1:, s], next_epoch[:-1, s]) for s in range(8)]  # a shift common to sample and epoch
    for a, b in pairs:
        cells = np.histogram2d(a.numpy(), b.numpy(), bins=8, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(cells.ravel()).pvalue > 1e-5


# ---- the operations, against references for one image


def draws(augment: Augment, index: torch.Tensor, epoch: int, streams: int = 27) -> np.ndarray:
    return uniform(augment.seed, epoch, index, streams).double().numpy()


def as_float(image: torch.Tensor) -> np.ndarray:
    """[H, W, 3] uint8 -> [3, H, W] float32 in 0..1, as numpy."""
    return image.numpy().transpose(2, 0, 1).astype(np.float32) / np.float32(255)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (9, 14)])
@pytest.mark.parametrize("pad", [1, 4])
def test_crop_is_a_window_on_the_mirrored_image(pad: int, height: int, width: int) -> None:
    images, index = random_images(40, height, width), torch.arange(100, 140)
    augment = Augment(crop=pad, seed=5)
    out = augment(images, index, 3)
    u = draws(augment, index, 3)
    corners = set()
    for i, image in enumerate(images):
        padded = np.pad(as_float(image), ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
        top, left = int(u[i, 0] * (2 * pad + 1)), int(u[i, 1] * (2 * pad + 1))
        corners.add((top, left))
        assert np.array_equal(out[i].numpy(), padded[:, top : top + height, left : left + width])
    tops, lefts = {top for top, _ in corners}, {left for _, left in corners}
    assert tops == lefts == set(range(2 * pad + 1))


def test_random_flip() -> None:
    images, index = random_images(64), torch.arange(64)
    augment = Augment(flip="random")
    for epoch in range(3):
        u = draws(augment, index, epoch)
        for i, out in enumerate(augment(images, index, epoch)):
            image = as_float(images[i])
            assert np.array_equal(out.numpy(), image[:, :, ::-1] if u[i, 2] < 0.5 else image)


def test_alternating_flip_shows_each_side_in_turn() -> None:
    images, index = random_images(64), torch.arange(64)
    augment = Augment(flip="alternating", seed=4)
    epochs = [augment(images, index, epoch) for epoch in range(4)]
    plain = torch.stack([torch.from_numpy(as_float(image)) for image in images])
    flipped = (epochs[0] != plain).flatten(1).any(1)
    assert 16 < flipped.sum() < 48  # the first side is random
    assert torch.equal(epochs[0], torch.where(flipped[:, None, None, None], plain.flip(3), plain))
    assert torch.equal(epochs[1], epochs[0].flip(3))
    assert torch.equal(epochs[2], epochs[0]) and torch.equal(epochs[3], epochs[1])


@pytest.mark.parametrize("side", [1, 4, 5, 30])
def test_cutout_paints_a_clipped_square(side: int) -> None:
    images, index = random_images(30, 12, 10), torch.arange(30)
    augment = Augment(cutout=side, fill=(0.25, 0.5, 0.75), seed=2)
    out = augment(images, index, 1).numpy()
    u = draws(augment, index, 1)
    for i, image in enumerate(images):
        expected = as_float(image)
        top, left = int(u[i, 3] * 12) - side // 2, int(u[i, 4] * 10) - side // 2
        for y in range(max(0, top), min(12, top + side)):
            for x in range(max(0, left), min(10, left + side)):
                expected[:, y, x] = (0.25, 0.5, 0.75)
        assert np.array_equal(out[i], expected)


def reference_box(
    u: np.ndarray, height: int, width: int, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A random resized crop's box as torchvision draws it, for one image: top, left, height, width."""
    for t in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u[7 + 2 * t])
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * u[8 + 2 * t])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u[5] * (height - h + 1)), int(u[6] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(("height", "width"), [(32, 32), (10, 30), (30, 10)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.5), (0.97, 1.0), (1e-4, 1e-3)])
def test_boxes_are_drawn_as_the_reference_draws_them(
    scale: tuple[float, float], height: int, width: int
) -> None:
    u = uniform(0, 0, torch.arange(3000), 27)
    boxes = random_boxes(u, height, width, scale).tolist()
    expected = [reference_box(row, height, width, scale) for row in u.double().numpy()]
    assert boxes == [list(box) for box in expected]


def test_the_boxes_fallback_is_reached_and_is_the_whole_square() -> None:
    u = uniform(0, 0, torch.arange(3000), 27)
    u[0, 7:] = torch.tensor([0.99, 0.99] * 10)  # ten times nearly all of the area at nearly 4:3
    box = random_boxes(u, 32, 32, (0.08, 1.0))[0]
    assert box.tolist() == [0, 0, 32, 32]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 14)])
def test_resizing_a_box_is_cutting_and_interpolating(height: int, width: int) -> None:
    x = to_float(random_images(200, height, width))
    boxes = random_boxes(uniform(1, 0, torch.arange(200), 27), height, width, (0.02, 1.0))
    boxes[0] = torch.tensor([0, 0, height, width])
    boxes[1] = torch.tensor([height - 1, width - 1, 1, 1])
    out = resize_boxes(x, boxes)
    for i, (top, left, h, w) in enumerate(boxes.tolist()):
        cut = x[i : i + 1, :, top : top + h, left : left + w]
        expected = F.interpolate(cut, (height, width), mode="bilinear", align_corners=False, antialias=False)
        torch.testing.assert_close(out[i : i + 1], expected, atol=2e-5, rtol=0)


def test_everything_at_once_is_one_after_the_other() -> None:
    images, index = random_images(50, 16, 16), torch.arange(50)
    options: dict[str, Any] = {"seed": 8, "fill": (0.1, 0.2, 0.3)}
    whole = Augment(crop=2, flip="random", resized_crop=(0.3, 1.0), cutout=5, **options)(images, index, 2)
    moved = Augment(crop=2, flip="random", **options)(images, index, 2)
    boxes = random_boxes(uniform(8, 2, index, 27), 16, 16, (0.3, 1.0))
    resized = resize_boxes(moved, boxes)
    square = Augment(cutout=5, fill=(2.0, 2.0, 2.0), seed=8)(images, index, 2) == 2
    expected = torch.where(square, torch.tensor(options["fill"]).view(3, 1, 1), resized)
    assert torch.equal(whole, expected)


EVERYTHING = Augment(crop=3, flip="alternating", cutout=4, resized_crop=(0.08, 1.0), seed=1)


@pytest.mark.parametrize("augment", [Augment(), Augment(crop=2), EVERYTHING])
def test_the_result_is_channels_last_float_in_0_to_1(augment: Augment) -> None:
    images = random_images(20)
    before = images.clone()
    out = augment(images, torch.arange(20), 0)
    assert out.dtype == torch.float32 and out.shape == (20, 3, 12, 12)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.min() >= 0 and out.max() <= 1
    assert torch.equal(images, before)


def test_an_image_is_augmented_alike_in_every_batch() -> None:
    images, index = random_images(60), torch.arange(60) * 3
    whole = EVERYTHING(images, index, 4)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    for part in order.split(7):
        assert torch.equal(EVERYTHING(images[part], index[part], 4), whole[part])
    assert not torch.equal(EVERYTHING(images, index, 5), whole)


def test_no_augmentation_is_to_float() -> None:
    images = random_images(5)
    assert torch.equal(Augment()(images, torch.arange(5), 0), to_float(images))
    assert torch.equal(to_float(images)[2], torch.from_numpy(as_float(images[2])))


@pytest.mark.parametrize(("size", "side"), [(32, 24), (64, 48), (17, 12)])
def test_images_are_shrunk_as_pillow_does(size: int, side: int) -> None:
    x = normalize(to_float(random_images(3, size, size)), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    with torch.autocast("cpu", torch.bfloat16):  # as in a training step; images stay exact
        small = resized(x, side)
    assert small.is_contiguous(memory_format=torch.channels_last)
    for channel, result in zip(x.flatten(0, 1), small.flatten(0, 1), strict=True):
        expected = Image.fromarray(channel.numpy(), "F").resize((side, side), Image.Resampling.BILINEAR)
        torch.testing.assert_close(result, torch.from_numpy(np.array(expected)), atol=1e-5, rtol=0)
    assert resized(x, size) is x


def test_normalize() -> None:
    x = to_float(random_images(50))
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3))
    out = normalize(x, tuple(mean.tolist()), tuple(std.tolist()))
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": "randon"}, "did you mean 'random'"),
        ({"crop": -1}, "crop is -1"),
        ({"cutout": -2}, "cutout is -2"),
        ({"resized_crop": (0.0, 1.0)}, "resized_crop"),
        ({"resized_crop": (0.9, 0.5)}, "resized_crop"),
        ({"resized_crop": (0.9, 1.5)}, "resized_crop"),
        ({"resized_crop": (0.9,)}, "resized_crop"),
        ({"flip": 3}, "no flip '3'"),
        ({"crop": 1.5}, "crop is 1.5; give 0 or more whole pixels"),
        ({"cutout": "4"}, "cutout is '4'; give 0 or more whole pixels"),
        ({"mixup": float("nan")}, "sum is at most 1"),
        ({"cutmix": -0.1}, "sum is at most 1"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(VitreousError, match=message):
        Augment(**options)


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(VitreousError, match="12×12"):
        Augment(crop=12)(random_images(1), torch.zeros(1, dtype=torch.long), 0)
    assert Augment(crop=11)(random_images(1), torch.zeros(1, dtype=torch.long), 0).shape == (1, 3, 12, 12)


# ---- mixing two images


def mixed(seed: int, **probabilities: Any) -> tuple[torch.Tensor, ...]:
    x = torch.rand(200, 3, 12, 15, generator=torch.Generator().manual_seed(1))
    index = torch.arange(50, 250)
    augment = Augment(seed=seed, **probabilities)
    partner = x[torch.from_numpy(partners(200))]
    return x, uniform(seed, 6, index, module.STREAMS), *augment.mix(x, partner, index, 6)


def test_mixup_is_a_blend_with_the_previous_image() -> None:
    x, u, out, share = mixed(4, mixup=0.6)
    blended = 0
    for i in range(200):
        keep = u[i, module.SHARE].item() if u[i, module.MIX] < 0.6 else 1.0
        blended += keep < 1
        assert share[i].item() == pytest.approx(keep)
        assert np.allclose(out[i].numpy(), keep * x[i].numpy() + (1 - keep) * x[i - 1].numpy(), atol=1e-6)
    assert 95 < blended < 145


def test_cutmix_pastes_a_box_and_returns_the_remaining_share() -> None:
    x, u, out, share = mixed(8, cutmix=0.7)
    pasted = 0
    for i in range(200):
        expected = x[i].numpy().copy()
        which, keep, cy, cx = u[i, [module.MIX, module.SHARE, module.MIX_Y, module.MIX_X]].double().tolist()
        if which < 0.7:
            pasted += 1
            height, width = int(12 * math.sqrt(1 - keep)) // 2, int(15 * math.sqrt(1 - keep)) // 2
            rows = slice(max(0, int(cy * 12) - height), int(cy * 12) + height)
            columns = slice(max(0, int(cx * 15) - width), int(cx * 15) + width)
            expected[:, rows, columns] = x[i - 1].numpy()[:, rows, columns]
        assert np.array_equal(out[i].numpy(), expected)
        own = (out[i] == x[i]).all(dim=0).float().mean().item()
        assert share[i].item() == pytest.approx(own, abs=1e-6)
    assert 110 < pasted < 170


def test_mixup_and_cutmix_never_apply_to_the_same_image() -> None:
    _, u, _, share = mixed(2, mixup=0.3, cutmix=0.3)
    assert ((share < 1) <= (u[:, module.MIX] < 0.6)).all() and 80 < (share < 1).sum() < 150
    with pytest.raises(VitreousError, match="sum is at most 1"):
        Augment(mixup=0.6, cutmix=0.6)


def test_a_part_of_a_batch_is_mixed_as_in_the_whole_batch() -> None:
    """Like two processes that each hold a part and fetch the partners that they lack from the split."""
    split = Split(random_images(500).numpy(), np.arange(500) % 7, [""] * 500)
    loader = BatchLoader(split, 64, seed=3, shuffle=True)
    loader.set_epoch(5)
    batch = next(iter(loader))
    augment = Augment(crop=2, flip="random", mixup=0.4, cutmix=0.4, seed=9)

    def fetched(index: torch.Tensor) -> torch.Tensor:
        return augment(torch.from_numpy(split.images[index.numpy()]), index, 5)

    x = fetched(batch["index"])
    whole, share = augment.mix(x, x[batch["partner"]], batch["index"], 5)
    for part in (slice(0, 23), slice(23, 64)):
        own, other = batch["index"][part], batch["index"][batch["partner"][part]]
        out, kept = augment.mix(fetched(own), fetched(other), own, 5)
        assert torch.equal(out, whole[part]) and torch.equal(kept, share[part])
    assert (share < 1).sum() > 30
    assert not set(batch["index"][batch["partner"][:23]].tolist()) <= set(batch["index"][:23].tolist())
