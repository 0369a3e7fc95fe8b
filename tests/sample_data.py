"""Small images, files and splits that several tests share."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitreous.data.store import ImageStore, RawSplit, in_memory

CLASSES = ("ant", "bee", "cat")


def random_image(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    """uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def random_png(seed: int, height: int = 32, width: int = 32) -> bytes:
    return encoded(random_image(seed, height, width))


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, files: Mapping[str, bytes], top: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return path


def raw_split(per_class: list[int], seed: int = 0, size: int = 6) -> RawSplit:
    """Random images, `per_class` of each class, in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(per_class)), per_class))
    images = rng.integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8)
    return images, labels, [f"p{i}" for i in range(len(labels))]


def shuffled(split: RawSplit, seed: int) -> RawSplit:
    images, labels, names = split
    order = np.random.default_rng(seed).permutation(len(labels))
    return images[order], labels[order], [names[i] for i in order]


def toy_store(**splits: RawSplit) -> ImageStore:
    return in_memory(name="toy", classes=CLASSES, splits=splits, source="a test")
