"""A data set on disk: one folder with `<split>_images.npy`, `<split>_labels.npy`, `<split>_names.json` and a header.

Letters: N images, H image_size (height and width), 3 channels red, green, blue.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from vitreous.data.identity import ChannelStatistics, Fingerprint, canonical_order, chunks
from vitreous.data.store import SPLIT_NAMES, ImageStore, RawSplit, Split, validated
from vitreous.errors import VitreousError
from vitreous.files import atomic_write, check_free_space, write_failure
from vitreous.preprocess import Preprocess

HEADER = "store.json"
COPIES = "copies.npz"  # which images are copies of one another, written when it is first asked; see copies.py
PARTIAL = ".partial"  # suffix of a folder that is still being written
FORMAT = "vitreous image store"
VERSION = 1


class FingerprintError(VitreousError):
    """The images are readable, but they are not the data set that they were expected to be."""


def store_path(data_dir: Path, key: str) -> Path:
    """The folder of the packed data set `key` inside the data folder."""
    return data_dir / "datasets" / key


def packed_size(image_count: int, image_size: int) -> int:
    """Estimates the bytes on disk of `image_count` packed images of side `image_size`."""
    return image_count * (image_size * image_size * 3 + 40)


def pack(
    path: Path,
    *,
    name: str,
    classes: Sequence[str],
    splits: Mapping[str, RawSplit],
    source: str,
    groups: Mapping[str, Sequence[str]] | None = None,
    preprocess: Preprocess | None = None,
    notes: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
    expected: str | None = None,
) -> ImageStore:
    """Puts decoded images into canonical order, writes them as a packed data set and opens it.

    The folder appears at `path` only when it is complete. If another process has meanwhile packed the same data
    (equal fingerprint and `extra`), its folder is used. Any other packed data set at `path` is replaced.

    Args:
        path: the folder to create, with its parents.
        name: what the data set is called.
        classes: class names; a label is a position in them.
        splits: for "train" and optionally "val" and "test": (images uint8 [N, H, H, 3], labels int [N],
            names [N]) in any order. Images may be memory-mapped and are read piece by piece.
        source: where the images came from, for a person to read.
        groups: the group of each image, in the order of `splits`, see `Split`.
        preprocess: the settings by which the images were converted; by default those of images of this size.
        notes: sentences about what was guessed or passed over when the images were read.
        extra: JSON-able facts kept in the header, for `read_header` (such as the state of a source folder).
        expected: the fingerprint that the result must have; otherwise nothing is kept.

    Raises:
        VitreousError: the disk is too small or cannot be written.
        FingerprintError: the result is not the `expected` data set.
    """
    raw_splits = validated(splits, classes)
    image_size = int(raw_splits["train"][0].shape[1])
    image_count = sum(len(labels) for _, labels, _ in raw_splits.values())
    check_free_space(path, packed_size(image_count, image_size), f"Packing {name}")
    fingerprint = Fingerprint(classes, {split: images.shape for split, (images, _, _) in raw_splits.items()})
    statistics = ChannelStatistics()
    with partial_folder(path) as partial:
        try:
            for split, (images, labels, names) in raw_splits.items():
                order = canonical_order(images, labels, names)
                labels = labels[order]
                fingerprint.add(labels)
                _write_array(partial / f"{split}_labels.npy", labels.shape, labels.dtype, [labels])

                def measured(
                    images: np.ndarray = images, order: np.ndarray = order, split: str = split
                ) -> Iterator[np.ndarray]:
                    for chunk in chunks(images, order):
                        fingerprint.add(chunk)
                        if split == "train":
                            statistics.add(chunk)
                        yield chunk

                _write_array(partial / f"{split}_images.npy", images.shape, images.dtype, measured())
                atomic_write(partial / f"{split}_names.json", json.dumps([names[i] for i in order]))
                if groups is not None:
                    grouped = json.dumps([groups[split][i] for i in order])
                    atomic_write(partial / f"{split}_groups.json", grouped)
            digest = fingerprint.hexdigest()
            if expected is not None and digest != expected:
                raise FingerprintError(f"{name} from {source} has the fingerprint {digest}, not {expected}.")
            header = {
                "format": FORMAT,
                "version": VERSION,
                "name": name,
                "classes": list(classes),
                "image_size": image_size,
                "splits": {split: len(labels) for split, (_, labels, _) in raw_splits.items()},
                "mean": statistics.mean(),
                "std": statistics.std(),
                "fingerprint": digest,
                "source": source,
                "preprocess": dataclasses.asdict(preprocess or Preprocess(image_size)),
                "notes": list(notes),
                "files": {file.name: file.stat().st_size for file in sorted(partial.iterdir())},
                "extra": dict(extra or {}),
            }
            atomic_write(partial / HEADER, json.dumps(header, indent=1))
            _put_in_place(partial, path)
        except OSError as error:
            raise write_failure(path, error) from error
    return open_store(path)


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` for unfinished files. It is removed at the end, unless it was renamed."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise write_failure(partial, error) from error
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, path: Path) -> None:
    """Renames the finished data set at `partial` to `path`, unless an equal one is already there."""

    def identity(folder: Path) -> Any:
        header = read_header(folder)
        return header and tuple(header.get(key) for key in ("version", "fingerprint", "extra"))

    present = identity(path)
    if present == identity(partial):
        return
    if present is not None:
        with partial_folder(path) as aside:
            path.rename(aside / path.name)
    try:
        partial.rename(path)
    except OSError:
        if identity(path) != identity(partial):  # a real failure, not a race lost to another process
            raise


def _write_array(path: Path, shape: tuple[int, ...], dtype: np.dtype, pieces: Iterable[np.ndarray]) -> None:
    """Writes a `.npy` file piece by piece. A memory map would kill the process when the disk is full."""
    with path.open("wb") as file:
        descr = np.lib.format.dtype_to_descr(dtype)
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        for piece in pieces:
            file.write(piece.data)
        file.flush()
        os.fsync(file.fileno())


def read_header(path: Path) -> dict[str, Any] | None:
    """The header of the packed data set at `path`, or None if there is no packed data set.

    Keys: name, classes, image_size, splits (number of images in each), mean, std, fingerprint, source, preprocess,
    notes, files (bytes of each), extra (as given to `pack`).
    """
    try:
        header = json.loads((path / HEADER).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        return None
    extra = header.get("extra")
    return {**header, "extra": extra if isinstance(extra, dict) else {}}


def open_store(path: Path) -> ImageStore:
    """Opens the packed data set at `path` with memory-mapped arrays.

    The maps are copy-on-write: changes to the arrays never reach the files.

    Raises:
        VitreousError: there is no packed data set, it has another version, or a file of it is missing or damaged.
    """
    header = read_header(path)
    if header is None:
        raise VitreousError(f"{path} contains no packed data set; import it again.")
    remedy = f"remove it with `vitreous data clear {path}` and import it again."
    if header.get("version") != VERSION:
        raise VitreousError(f"{path} was packed by another version of vitreous; {remedy}")
    try:
        return _open_checked(path, header)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, TokenError) as error:
        # numpy raises a TokenError for a damaged array header.
        raise VitreousError(f"The packed data set {path} is damaged ({error}); {remedy}") from error


def _open_checked(path: Path, header: Mapping[str, Any]) -> ImageStore:
    """Maps the arrays and compares them with the header; on a damaged data set it raises nearly anything."""
    for file, size in header["files"].items():
        if (path / file).stat().st_size != size:
            raise ValueError(f"{file} was cut short or changed")
    splits = {
        split: _open_split(path, split, count, header["image_size"])
        for split, count in header["splits"].items()
    }
    validated(
        {name: (part.images, part.labels, part.names) for name, part in splits.items()}, header["classes"]
    )
    texts = [header["name"], header["source"], header["fingerprint"]]
    names = chain(texts, header["classes"], *(part.names for part in splits.values()))
    if not all(isinstance(text, str) for text in names):
        raise ValueError("a name in it is not text")
    moments = [*header["mean"], *header["std"]]
    if len(moments) != 6 or not all(map(math.isfinite, moments)) or min(header["std"]) <= 0:
        raise ValueError("its mean and std cannot normalise images")
    return ImageStore(
        name=header["name"],
        classes=tuple(header["classes"]),
        splits=splits,
        mean=tuple(header["mean"]),
        std=tuple(header["std"]),
        fingerprint=header["fingerprint"],
        source=header["source"],
        preprocess=_preprocess(header),
        notes=tuple(header.get("notes", ())),
        path=path,
    )


def _preprocess(header: Mapping[str, Any]) -> Preprocess:
    """The settings by which the images were converted. Data sets from before they were recorded have the first ones."""
    settings = header.get("preprocess") or {"size": header["image_size"]}
    return Preprocess(**{"profiles": "ignored", **settings})


def _open_split(path: Path, split: str, count: int, image_size: int) -> Split:
    images = np.load(path / f"{split}_images.npy", mmap_mode="c", allow_pickle=False)
    labels = np.load(path / f"{split}_labels.npy", mmap_mode="c", allow_pickle=False)
    names = json.loads((path / f"{split}_names.json").read_text("utf-8"))
    expected = (count, image_size, image_size, 3)
    if images.shape != expected or (labels.shape, labels.dtype) != ((count,), "<i8") or len(names) != count:
        raise ValueError(f"its {split} split differs from its header")
    grouped = path / f"{split}_groups.json"
    groups = json.loads(grouped.read_text("utf-8")) if grouped.exists() else None
    if groups is not None and not (len(groups) == count and all(isinstance(group, str) for group in groups)):
        raise ValueError(f"the groups of its {split} split differ from its header")
    return Split(images, labels, names, groups)


def remove_store(path: Path) -> int:
    """Removes the packed data set at `path` and returns the bytes freed, 0 if there is none.

    Only a real folder with a vitreous header is touched, and in it only files that vitreous writes.
    """
    if path.is_symlink() or not path.is_dir() or read_header(path) is None:
        return 0
    packed_files = [
        path / f"{split}_{kind}"
        for split in SPLIT_NAMES
        for kind in ("images.npy", "labels.npy", "names.json", "groups.json")
    ]
    freed = 0
    found_later = [path / COPIES, *path.glob(f".{COPIES}.*.tmp")]  # the latter if a process was killed
    # The header first: without it nothing takes the rest for complete.
    for file in [path / HEADER, *packed_files, *found_later]:
        if file.is_file():
            freed += file.lstat().st_size
            file.unlink()
    path.rmdir()
    return freed
