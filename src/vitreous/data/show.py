"""Draws a mosaic of a data set: some images of each class, unchanged and augmented, to look at before training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from vitreous.data.augment import Augment
from vitreous.data.originals import Original, describe_fit, read_originals
from vitreous.data.store import ImageStore
from vitreous.errors import VitreousError
from vitreous.files import atomic_write, path_of
from vitreous.preprocess import cut_off
from vitreous.wording import count, printable

PER_LINE = 4  # images of a class side by side
EPOCHS = 3  # epochs whose augmentation is shown
MAX_CLASSES = 20
MIN_LINES = 8  # a few classes fill several lines each
TILE = 96  # pixels: images are enlarged to the largest whole multiple up to this, or shrunk to it

GAP = 4  # between images
SPACE = 20  # between groups, and around the mosaic
INK, GREY, PAPER, LINE = "#1f2328", "#6b7280", "#ffffff", "#d1242f"

SOFTWARE = "vitreous data show"  # in the PNG, by which its own files are known
STRIP_TITLES = {
    "crop": "what crop keeps (inside the line) of images that are not square",
    "pad": "images that are not square, and what pad makes of them",
    "stretch": "images that are not square, and what stretch makes of them",
}
ORIGINAL_WIDTH = 240  # pixels: an original is shrunk to this width or to the height of a tile
CAPTION = 18  # pixels: height of a line below an original
DIMMED = 0.7  # share of white over what is cut off


def show(store: ImageStore, augment: Augment | None, path: Path) -> Path:
    """Writes a PNG of training images with their class names, and of the same images augmented.

    Each line holds images of one class, unchanged and, if `augment` is given, once more for each of the first epochs.
    If there are many classes, it shows some of them and says so.

    Args:
        store: the data set.
        augment: the augmentation of training, or None to leave it out. If it mixes images, each is mixed with another
            image of the mosaic that is as far away as possible, so usually with one of another class.
        path: the PNG to write; an existing PNG is replaced.

    At the bottom, a few images of a folder or zip that were not square are shown as they were, with what `fit` made
    of them.

    Returns:
        `path`.

    Raises:
        VitreousError: `path` cannot be written, or is a file that is no PNG.
    """
    path = check_target(path)
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
    fit = describe_fit(store)
    top = 116 if fit else 96
    line_height = max(tile, 36)
    class_height = lines * (line_height + GAP) + (2 * GAP if lines > 1 else 0)
    heading = _heading(store, len(shown))
    width = left + groups * (group_width + SPACE)
    texts = ((heading[0], title), (heading[1], regular), (fit, regular))
    width = round(max(width, *(2 * SPACE + font.getlength(text) for text, font in texts)))
    bottom = top + len(shown) * class_height + SPACE
    strip = _strip(read_originals(store), store.preprocess.fit, width, regular, bold)
    sheet = Image.new("RGB", (width, bottom + (strip.height if strip else 0)), PAPER)
    if strip:
        sheet.paste(strip, (0, bottom))
    draw = ImageDraw.Draw(sheet)
    draw.text((SPACE, SPACE - 4), heading[0], INK, title)
    draw.text((SPACE, SPACE + 22), heading[1], GREY, regular)
    draw.text((SPACE, SPACE + 42), fit, GREY, regular)
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
        mark = PngInfo()
        mark.add_text("Software", SOFTWARE)
        sheet.save(file, format="PNG", optimize=True, pnginfo=mark)

    atomic_write(path, write)
    return path


def check_target(path: Path | str) -> Path:
    """The path of the PNG to write, if nothing else is there.

    Raises:
        VitreousError: it is a folder or a file that is no PNG, or its name is that of another kind of image.
    """
    path = path_of(path)
    if path.is_dir():
        raise VitreousError(f"{path} is a folder; give the name of the PNG file to write.")
    if Image.registered_extensions().get(path.suffix.lower(), "PNG") != "PNG":
        raise VitreousError(f"{path} would be a PNG; give a name that ends in .png.")
    if path.exists() and _software(path) is None:
        raise VitreousError(f"{path} exists and is not a PNG, so it is not replaced; give another name.")
    return path


def default_target(name: str) -> Path:
    """NAME.png in the current folder, or NAME-2.png and so on where another program's file has that name."""
    numbers = itertools.count(2)
    path = Path(f"{name}.png")
    while path.is_symlink() or (path.exists() and _software(path) != SOFTWARE):
        path = Path(f"{name}-{next(numbers)}.png")
    return path


def _software(path: Path) -> str | None:
    """The program that a PNG says it is from, "" if it says none; None for other files."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return str(image.info.get("Software", ""))
    except (OSError, ValueError, SyntaxError):  # Pillow raises the last two on damaged files
        return None


def _strip(
    originals: Sequence[Original],
    fit: str,
    width: int,
    regular: ImageFont.FreeTypeFont,
    bold: ImageFont.FreeTypeFont,
) -> Image.Image | None:
    """The originals in rows, each with its size and with what `fit` made of it; None without any."""
    if not originals:
        return None
    cells = [_cell(original, fit, regular) for original in originals]
    rows: list[list[Image.Image]] = [[]]
    for cell in cells:
        if rows[-1] and SPACE + sum(other.width + SPACE for other in [*rows[-1], cell]) > width:
            rows.append([])
        rows[-1].append(cell)
    height = 24 + sum(max(cell.height for cell in row) + SPACE for row in rows)
    strip = Image.new("RGB", (width, height), PAPER)
    ImageDraw.Draw(strip).text((SPACE, 0), STRIP_TITLES[fit], INK, bold)
    y = 24
    for row in rows:
        x = SPACE
        for cell in row:
            strip.paste(cell, (x, y))
            x += cell.width + SPACE
        y += max(cell.height for cell in row) + SPACE
    return strip


def _cell(original: Original, fit: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """An original with its size below, and either what is cut off dimmed, or the square beside it."""
    width, height = original.width, original.height
    scale = min(ORIGINAL_WIDTH / width, TILE / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = original.image.resize(size, Image.Resampling.LANCZOS)
    captions = [f"{width}×{height}"]
    if fit == "crop":
        left, top, right, bottom = cut_off(width, height, fit)
        x, y = round(left * scale), round(top * scale)
        box = x, y, max(x + 1, round(right * scale)), max(y + 1, round(bottom * scale))
        dimmed = Image.blend(image, Image.new("RGB", size, PAPER), DIMMED)
        dimmed.paste(image.crop(box), box[:2])
        ImageDraw.Draw(dimmed).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=LINE, width=2)
        parts = [dimmed]
        captions.append(f"keeps {100 * (right - left) * (bottom - top) / (width * height):.0f} %")
    else:
        tile = _tile(original.square, TILE)
        frame = Image.new("RGB", (tile.width + 2, tile.height + 2), GREY)  # shows where white bars end
        frame.paste(tile, (1, 1))
        parts = [image, frame]
    across = sum(part.width + GAP for part in parts) - GAP
    across = max(across, *(round(font.getlength(caption)) for caption in captions))
    tall = max(part.height for part in parts)
    cell = Image.new("RGB", (across, tall + 4 + CAPTION * len(captions)), PAPER)
    x = 0
    for part in parts:
        cell.paste(part, (x, tall - part.height))
        x += part.width + GAP
    for line, caption in enumerate(captions):
        ImageDraw.Draw(cell).text((0, tall + 2 + CAPTION * line), caption, GREY, font)
    return cell


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
