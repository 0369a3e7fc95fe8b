"""Draws a mosaic of a data set: some images of each class, unchanged and augmented, to look at before training."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from vitreous.data.augment import Augment
from vitreous.data.store import ImageStore
from vitreous.errors import VitreousError
from vitreous.files import atomic_write, path_of
from vitreous.wording import count, printable

PER_LINE = 4  # images of a class side by side
EPOCHS = 3  # epochs whose augmentation is shown
MAX_CLASSES = 20
MIN_LINES = 8  # a few classes fill several lines each
TILE = 96  # pixels: images are enlarged to the largest whole multiple up to this, or shrunk to it

GAP = 4  # between images
SPACE = 20  # between groups, and around the mosaic
INK, GREY, PAPER = "#1f2328", "#6b7280", "#ffffff"


def show(store: ImageStore, augment: Augment | None, path: Path) -> Path:
    """Writes a PNG of training images with their class names, and of the same images augmented.

    Each line holds images of one class, unchanged and, if `augment` is given, once more for each of the first epochs.
    If there are many classes, it shows some of them and says so.

    Args:
        store: the data set.
        augment: the augmentation of training, or None to leave it out. If it mixes images, each is mixed with another
            image of the mosaic that is as far away as possible, so usually with one of another class.
        path: the PNG to write; an existing file is replaced.

    Returns:
        `path`.

    Raises:
        VitreousError: `path` cannot be written.
    """
    path = path_of(path)
    if path.is_dir():
        raise VitreousError(f"{path} is a folder; give the name of the PNG file to write.")
    train = store.splits["train"]
    labels = np.asarray(train.labels)
    shown = np.unique(np.linspace(0, store.num_classes - 1, MAX_CLASSES).round().astype(int))
    lines = max(1, MIN_LINES // len(shown))
    groups = 1 if augment is None else 1 + EPOCHS
    across = PER_LINE * (1 if augment is not None else 3)  # without augmentation there is room for more

    # A heading, then lines of a class name and groups of tiles.
    regular, bold, title = _font("DejaVuSans", 14), _font("DejaVuSans-Bold", 14), _font("DejaVuSans-Bold", 20)
    tile = _tile_size(store.image_size)
    names = [_fit(store.classes[label], bold, 160) for label in shown]
    left = round(SPACE + max(bold.getlength(text) for text in [*names, "00,000 images"])) + SPACE
    group_width = across * (tile + GAP) - GAP
    top = 96
    line_height = max(tile, 36)
    class_height = lines * (line_height + GAP) + (2 * GAP if lines > 1 else 0)
    heading = _heading(store, len(shown))
    width = left + groups * (group_width + SPACE)
    width = round(
        max(width, 2 * SPACE + title.getlength(heading[0]), 2 * SPACE + regular.getlength(heading[1]))
    )
    sheet = Image.new("RGB", (width, top + len(shown) * class_height + SPACE), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((SPACE, SPACE - 4), heading[0], INK, title)
    draw.text((SPACE, SPACE + 22), heading[1], GREY, regular)
    for group in range(groups):
        text = "unchanged" if group == 0 else f"augmented, epoch {group}"
        draw.text((left + group * (group_width + SPACE), top - 24), text, INK, bold)

    members = [np.flatnonzero(labels == label) for label in shown]
    # Canonical order within a class is by content digest, so the first images are a random sample.
    indices = [positions[: lines * across] for positions in members]
    index = np.concatenate(indices)
    images = np.ascontiguousarray(train.images[index])
    versions = [images] + [_augmented(images, index, augment, epoch) for epoch in range(EPOCHS) if augment]
    starts = np.cumsum([0, *map(len, indices)])
    for row, name in enumerate(names):
        y = top + row * class_height
        draw.text((left - SPACE, y + tile / 2 - 1), name, INK, bold, anchor="rs")
        size = count(len(members[row]), "image")
        draw.text((left - SPACE, y + tile / 2 + 3), size, GREY, regular, anchor="rt")
        for group, version in enumerate(versions):
            for i, image in enumerate(version[starts[row] : starts[row + 1]]):
                line, column = divmod(i, across)
                at_x = left + group * (group_width + SPACE) + column * (tile + GAP)
                sheet.paste(_tile(image, tile), (at_x, y + line * (line_height + GAP)))

    def write(file: BinaryIO) -> None:
        sheet.save(file, format="PNG", optimize=True)

    atomic_write(path, write)
    return path


def _augmented(images: np.ndarray, index: np.ndarray, augment: Augment, epoch: int) -> np.ndarray:
    """Images uint8 [B, H, W, 3] at `index` [B], augmented as in a training step of `epoch`, before normalisation."""
    at = torch.from_numpy(index)
    x = augment(torch.from_numpy(images), at, epoch)  # [B, 3, H, W] in 0..1
    if augment.mixes:
        x, _ = augment.mix(x, x.roll(len(x) // 2, 0), at, epoch)
    return (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _heading(store: ImageStore, shown: int) -> tuple[str, str]:
    """The two lines at the top: the name of the data set, and its size and how much of it is shown."""
    counts = ", ".join(f"{len(split):,} {name}" for name, split in store.splits.items())
    size = store.image_size
    classes = f"{store.num_classes} classes"
    if shown < store.num_classes:
        classes = f"{shown} of {classes} shown"
    return store.name, f"{counts} images of {size}×{size} pixels · {classes}"


def _tile_size(image_size: int) -> int:
    return image_size * max(1, TILE // image_size) if image_size <= TILE else TILE


def _tile(image: np.ndarray, size: int) -> Image.Image:
    """An image [H, H, 3] at the size at which it is shown. Enlarging keeps the pixels visible."""
    resampling = Image.Resampling.NEAREST if image.shape[0] <= size else Image.Resampling.LANCZOS
    return Image.fromarray(image).resize((size, size), resampling)


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that comes with matplotlib, since those cover more scripts than Pillow's own."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """`text` as one printable line, shortened if it is wider than `width` pixels."""
    text = printable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
