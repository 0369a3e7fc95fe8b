"""The one form a data set takes at run time, how it lies on disk, and how it is split.

Letters: N pictures, H image_size (height and width), 3 channels red, green, blue.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from vitreous.errors import VitreousError
from vitreous.files import atomic_write, check_free_space, write_failure

SPLIT_NAMES = ("train", "val", "test")
HEADER = "store.json"
PARTIAL = ".partial"  # ends the name of a folder that is being written
FORMAT = "vitreous image store"
VERSION = 1
CHUNK_BYTES = 1 << 24

# What an importer hands over for one split: images uint8 [N, H, H, 3], labels int [N], names [N].
RawSplit = tuple[np.ndarray, np.ndarray, Sequence[str]]


@dataclass(frozen=True)
class Split:
    """Pictures with their labels: `images` uint8 [N, H, H, 3], `labels` int64 [N], `names` [N].

    A name is that of the picture in its source: "train/cat/001.png", "train:17", "array:3".
    """

    images: np.ndarray
    labels: np.ndarray
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: np.ndarray) -> Split:
        """The pictures at `index` int64 [M], copied into memory."""
        return Split(self.images[index], np.asarray(self.labels[index]), [self.names[i] for i in index])


@dataclass(frozen=True)
class ImageStore:
    """A whole data set, in canonical order.

    `splits` always has "train", and "val" and "test" where the source has them. `mean` and `std` are the
    channels' over the source's training split, before validation is cut from it, in units of 0 to 1; `std` is
    at least 1/255, a step of a pixel's value, as a channel that is the same everywhere is divided by it, too.
    `fingerprint` identifies classes, labels and pixels, wherever they came from. `path` is the folder of
    the packed arrays, None for a data set that is only in memory.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str
    source: str
    path: Path | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """Height and width of every picture."""
        return int(self.splits["train"].images.shape[1])


class FingerprintError(VitreousError):
    """The pictures are whole, but not those of the data set that they were given for."""


# ---- identity: order, statistics, fingerprint


def canonical_order(images: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The order that pictures take whatever order their source had: by class, then content, then name.

    Args:
        images: uint8 [N, H, H, 3], may be memory-mapped (read once, forwards).
        labels: int [N].
        names: [N]; decides only between equal pictures of one class, so it cannot change the arrays.

    Returns:
        int64 [N], the old position of each picture in the new order.
    """
    digests = [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images]
    classes = labels.tolist()
    order = sorted(range(len(classes)), key=lambda i: (classes[i], digests[i], names[i]))
    return np.array(order, dtype=np.int64)


def _chunks(images: np.ndarray, order: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """`images` (in `order`, if given) piece by piece, so that a large set never has to fit in memory."""
    step = max(1, CHUNK_BYTES // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), step):
        piece = slice(start, start + step)
        yield np.ascontiguousarray(images[piece] if order is None else images[order[piece]])


class _Moments:
    """Channel mean and standard deviation from exact integer sums: the same bits in whatever order."""

    def __init__(self) -> None:
        self.count = 0
        self.sums = [0, 0, 0]
        self.squares = [0, 0, 0]

    def add(self, images: np.ndarray) -> None:
        pixels = images.reshape(-1, 3)
        self.count += len(pixels)
        for channel in range(3):
            values = pixels[:, channel].astype(np.uint16)
            self.sums[channel] += int(values.sum(dtype=np.int64))
            self.squares[channel] += int((values * values).sum(dtype=np.int64))  # 255² fits in uint16

    def mean(self) -> tuple[float, float, float]:
        r, g, b = (total / (255 * self.count) for total in self.sums)
        return r, g, b

    def std(self) -> tuple[float, float, float]:
        n = self.count
        pairs = zip(self.sums, self.squares, strict=True)
        r, g, b = (math.sqrt((n * squares - total * total) / (n * n)) for total, squares in pairs)
        return max(r, 1) / 255, max(g, 1) / 255, max(b, 1) / 255


class _Fingerprint:
    """SHA-256 over classes, shapes, labels and pixels of all splits; sources and names stay out of it."""

    def __init__(self, classes: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
        head = {"classes": list(classes), "shapes": {split: list(shape) for split, shape in shapes.items()}}
        self.hash = hashlib.sha256(json.dumps(head, sort_keys=True).encode())

    def add(self, array: np.ndarray) -> None:
        self.hash.update(np.ascontiguousarray(array).data)

    def hexdigest(self) -> str:
        return self.hash.hexdigest()


def _checked(splits: Mapping[str, RawSplit], classes: Sequence[str]) -> dict[str, RawSplit]:
    """The splits in their fixed order, labels as little-endian int64; an importer's mistakes end here."""
    if "train" not in splits or not set(splits) <= set(SPLIT_NAMES):
        raise ValueError(f"splits must be train and perhaps val and test, not {sorted(splits)}")
    size = splits["train"][0].shape[1]
    checked = {}
    for split in SPLIT_NAMES:
        if split not in splits:
            continue
        images, labels, names = splits[split]
        labels = np.asarray(labels).astype("<i8")
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"{split}: images are {images.dtype} {images.shape}, not uint8 [N, {size}, {size}, 3]"
            )
        if not len(images) == len(labels) == len(names) or len(images) == 0:
            raise ValueError(f"{split}: {len(images)} images, {len(labels)} labels, {len(names)} names")
        if labels.min() < 0 or labels.max() >= len(classes):
            raise ValueError(
                f"{split}: labels reach from {labels.min()} to {labels.max()} of {len(classes)} classes"
            )
        checked[split] = (images, labels, names)
    return checked


def in_memory(
    *, name: str, classes: Sequence[str], splits: Mapping[str, RawSplit], source: str
) -> ImageStore:
    """An `ImageStore` of decoded arrays that stays in memory; arguments as for `pack`."""
    raw = _checked(splits, classes)
    fingerprint = _Fingerprint(classes, {split: images.shape for split, (images, _, _) in raw.items()})
    moments = _Moments()
    stored = {}
    for split, (images, labels, names) in raw.items():
        order = canonical_order(images, labels, names)
        stored[split] = Split(images, labels, names).subset(order)
        fingerprint.add(stored[split].labels)
        for chunk in _chunks(stored[split].images):
            fingerprint.add(chunk)
            if split == "train":
                moments.add(chunk)
    return ImageStore(
        name, tuple(classes), stored, moments.mean(), moments.std(), fingerprint.hexdigest(), source
    )


# ---- on disk: a folder a data set; `<split>_images.npy`, `<split>_labels.npy`, `<split>_names.json`, HEADER


def store_path(data_dir: Path, key: str) -> Path:
    """Where the packed data set `key` lies under the data folder."""
    return data_dir / "datasets" / key


def packed_size(pictures: int, image_size: int) -> int:
    """About how many bytes `pictures` of `image_size` take when packed."""
    return pictures * (image_size * image_size * 3 + 40)


def pack(
    path: Path,
    *,
    name: str,
    classes: Sequence[str],
    splits: Mapping[str, RawSplit],
    source: str,
    extra: Mapping[str, Any] | None = None,
    expected: str | None = None,
) -> ImageStore:
    """Put decoded pictures into canonical order, write them as a packed data set and open it.

    The folder appears at `path` only when whole. Where one with the same fingerprint and `extra` is there by
    then (another process was faster), that one is used; any other packed data set at `path` is replaced.

    Args:
        path: the folder to make; its parents are made too.
        name: what the data set is called.
        classes: class names; a label is a position in them.
        splits: for "train" and perhaps "val" and "test": (images uint8 [N, H, H, 3], labels int [N],
            names [N]) in any order; images may be memory-mapped and are read piece by piece.
        source: where the pictures came from, for a person.
        extra: JSON-able facts kept in the header, for `read_header` (such as the state of a source folder).
        expected: the fingerprint that the result must have, or nothing is kept.

    Raises:
        VitreousError: the disk is too small or cannot be written.
        FingerprintError: the result is not the `expected` data set.
    """
    raw = _checked(splits, classes)
    image_size = int(raw["train"][0].shape[1])
    pictures = sum(len(labels) for _, labels, _ in raw.values())
    check_free_space(path, packed_size(pictures, image_size), f"Packing {name}")
    fingerprint = _Fingerprint(classes, {split: images.shape for split, (images, _, _) in raw.items()})
    moments = _Moments()
    with partial_folder(path) as partial:
        try:
            for split, (images, labels, names) in raw.items():
                order = canonical_order(images, labels, names)
                labels = labels[order]
                fingerprint.add(labels)
                _write_array(partial / f"{split}_labels.npy", labels.shape, labels.dtype, [labels])

                def measured(
                    images: np.ndarray = images, order: np.ndarray = order, split: str = split
                ) -> Iterator[np.ndarray]:
                    for chunk in _chunks(images, order):
                        fingerprint.add(chunk)
                        if split == "train":
                            moments.add(chunk)
                        yield chunk

                _write_array(partial / f"{split}_images.npy", images.shape, images.dtype, measured())
                atomic_write(partial / f"{split}_names.json", json.dumps([names[i] for i in order]))
            found = fingerprint.hexdigest()
            if expected is not None and found != expected:
                raise FingerprintError(f"{name} from {source} has the fingerprint {found}, not {expected}.")
            header = {
                "format": FORMAT,
                "version": VERSION,
                "name": name,
                "classes": list(classes),
                "image_size": image_size,
                "splits": {split: len(labels) for split, (_, labels, _) in raw.items()},
                "mean": moments.mean(),
                "std": moments.std(),
                "fingerprint": found,
                "source": source,
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
    """A hidden folder beside `path` for what is not whole yet; gone at the end, unless it was renamed."""
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
    """Give the whole data set at `partial` the name `path`, unless its equal has that name already."""

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
        if identity(path) != identity(partial):  # not a race lost to another process, but a real failure
            raise


def _write_array(path: Path, shape: tuple[int, ...], dtype: np.dtype, chunks: Iterable[np.ndarray]) -> None:
    """Write a `.npy` piece by piece; by plain writes, as a full disk under a memory map kills the process."""
    with path.open("wb") as file:
        descr = np.lib.format.dtype_to_descr(dtype)
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        for chunk in chunks:
            file.write(chunk.data)
        file.flush()
        os.fsync(file.fileno())


def read_header(path: Path) -> dict[str, Any] | None:
    """The header of the packed data set at `path`, or None where there is none of ours.

    Keys: name, classes, image_size, splits (pictures in each), mean, std, fingerprint, source, files
    (bytes of each), extra (as given to `pack`).
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
    """Open the packed data set at `path`; its arrays are memory-mapped.

    The maps are copy-on-write: what is written into them stays in this process.

    Raises:
        VitreousError: there is none, it is of another version, or a file of it is missing or cut short.
    """
    header = read_header(path)
    if header is None:
        raise VitreousError(f"{path} holds no packed data set; import it again.")
    mend = f"remove it with `vitreous data clear {path}` and import it again."
    if header.get("version") != VERSION:
        raise VitreousError(f"{path} was packed by another version of vitreous; {mend}")
    try:
        for file, size in header["files"].items():
            if (path / file).stat().st_size != size:
                raise ValueError(f"{file} was cut short or changed")
        splits = {}
        for split, count in header["splits"].items():
            images = np.load(path / f"{split}_images.npy", mmap_mode="c", allow_pickle=False)
            labels = np.load(path / f"{split}_labels.npy", mmap_mode="c", allow_pickle=False)
            names = json.loads((path / f"{split}_names.json").read_text("utf-8"))
            expected = (count, header["image_size"], header["image_size"], 3)
            if (
                images.shape != expected
                or (labels.shape, labels.dtype) != ((count,), "<i8")
                or len(names) != count
            ):
                raise ValueError(f"its {split} split is not as its header says")
            splits[split] = Split(images, labels, names)
        _checked(
            {name: (part.images, part.labels, part.names) for name, part in splits.items()}, header["classes"]
        )
        texts = [header["name"], header["source"], header["fingerprint"]]
        lists = [header["classes"], *(part.names for part in splits.values())]
        if not all(isinstance(each, str) for each in chain(texts, *lists)):
            raise ValueError("a name in it is no text")
        moments = [*header["mean"], *header["std"]]
        if len(moments) != 6 or not all(map(math.isfinite, moments)) or min(header["std"]) <= 0:
            raise ValueError("its mean and std are no numbers to normalise by")
        return ImageStore(
            name=header["name"],
            classes=tuple(header["classes"]),
            splits=splits,
            mean=tuple(header["mean"]),
            std=tuple(header["std"]),
            fingerprint=header["fingerprint"],
            source=header["source"],
            path=path,
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        TokenError,
    ) as error:  # the last by numpy
        raise VitreousError(f"The packed data set {path} is damaged ({error}); {mend}") from error


def remove_store(path: Path) -> int:
    """Remove the packed data set at `path` and return the bytes freed, 0 if there is none.

    Touches only a real folder with a header of ours, and in it only the files that `pack` writes.
    """
    if path.is_symlink() or not path.is_dir() or read_header(path) is None:
        return 0
    ours = [
        path / f"{split}_{kind}"
        for split in SPLIT_NAMES
        for kind in ("images.npy", "labels.npy", "names.json")
    ]
    freed = 0
    for file in [path / HEADER, *ours]:  # the header first: half removed is then not taken for whole
        if file.is_file():
            freed += file.lstat().st_size
            file.unlink()
    path.rmdir()
    return freed


# ---- arrays from Python


def _as_numpy(array: Any, what: str) -> np.ndarray:
    try:
        if hasattr(array, "detach"):  # a torch tensor, without importing torch
            array = array.detach().cpu().numpy()
        return np.asarray(array)
    except (ValueError, TypeError, RuntimeError) as error:  # of unequal shapes, of a type that numpy has not
        raise VitreousError(
            f"The {what} cannot be read as one array ({error}); give a numpy array, or a list of equal shapes."
        ) from error


def _array_split(images: Any, labels: Any, what: str) -> RawSplit:
    images = _as_numpy(images, f"{what} images")
    labels = _as_numpy(labels, f"{what} labels")
    if images.dtype != np.uint8:
        raise VitreousError(
            f"The {what} images are {images.dtype}; give uint8 from 0 to 255 "
            "(for floats from 0 to 1: `(images * 255).round()` as uint8)."
        )
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)  # grey: [N, H, W] -> [N, H, W, 3]
    if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] != images.shape[2] or 0 in images.shape:
        hint = (
            ", channels last (`images.transpose(0, 2, 3, 1)`)"
            if images.ndim == 4 and images.shape[1] == 3
            else ""
        )
        raise VitreousError(
            f"The {what} images have the shape {images.shape}; "
            f"give square ones as [N, H, H, 3]{hint} or [N, H, H]."
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise VitreousError(
            f"The {what} labels are {labels.dtype} {labels.shape}; give one integer for each of "
            f"the {len(images)} images."
        )
    return images, labels.astype(np.int64), [f"array:{i}" for i in range(len(images))]


def _class_names(classes: Sequence[str]) -> list[str]:
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise VitreousError(f"The class names are {classes!r}; give a list of them.")
    names = list(classes)
    for name in names:
        # A lone surrogate, what is left of a file's name in another encoding, cannot be written to any file.
        if not isinstance(name, str) or not name or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise VitreousError(f"The class name {name!r} is no text; give every class a name.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise VitreousError(f"Two classes have the name {twice[0]!r}; give each its own.")
    return [str(name) for name in names]


def from_arrays(
    images: Any,
    labels: Any,
    classes: Sequence[str] | None = None,
    test: tuple[Any, Any] | None = None,
    name: str = "arrays",
) -> ImageStore:
    """A data set from numpy arrays or torch tensors.

    Args:
        images: uint8 [N, H, H, 3], or [N, H, H] for grey.
        labels: integers [N] from 0 to the number of classes less one.
        classes: class names, a label being a position in them; the numbers themselves if left out.
        test: (images, labels) of a test split; one is cut from `images` if left out.
        name: what the data set is called.

    Raises:
        VitreousError: a shape, a type, a label or a class name is not as described.
    """
    if classes is not None:
        classes = _class_names(classes)
    splits = {"train": _array_split(images, labels, "training")}
    if test is not None:
        splits["test"] = _array_split(*test, "test")
        if splits["test"][0].shape[1:] != splits["train"][0].shape[1:]:
            raise VitreousError(
                "The test images have another size than the training images; resize one of them."
            )
    every = np.concatenate([labels for _, labels, _ in splits.values()])
    present = np.unique(every)
    if classes is None:
        classes = [str(label) for label in range(len(present))]
        gap = np.flatnonzero(present != np.arange(len(present)))
        if present[0] >= 0 and len(gap):
            raise VitreousError(
                f"Labels reach to {present[-1]}, but none is {gap[0]}; number the classes from 0 without gaps, or "
                "name them all: `open_data((images, labels), classes=[…])` gives a data set to train on."
            )
    if present[0] < 0 or present[-1] >= len(classes):
        raise VitreousError(
            f"Labels reach from {present[0]} to {present[-1]}; give positions from 0 to {len(classes) - 1}."
        )
    return in_memory(name=name, classes=list(classes), splits=splits, source="arrays")


# ---- the splits of a run


@dataclass(frozen=True)
class Splits:
    """What a run trains on, chooses on, and is judged on; `notes` say what was cut from what."""

    train: Split
    val: Split
    test: Split
    notes: tuple[str, ...]
    seed: int
    val_fraction: float
    cut: tuple[str, ...]  # which of "val" and "test" were cut from the source's training split

    def record(self) -> dict[str, Any]:
        """For the run's `split.json`: seed, fraction, and the names of the pictures that were cut."""
        names = {split: list(getattr(self, split).names) for split in self.cut}
        return {"seed": self.seed, "val_fraction": self.val_fraction, "cut_from_train": names}

    def with_val_trained_on(self) -> Splits:
        """The same with the validation pictures behind the training pictures; they are then no judge."""
        images, labels = (
            np.concatenate([getattr(self.train, part), getattr(self.val, part)])
            for part in ("images", "labels")
        )
        train = Split(images, labels, [*self.train.names, *self.val.names])
        return replace(self, train=train)


def resolve_splits(store: ImageStore, val_fraction: float = 0.1, seed: int = 42) -> Splits:
    """The training, validation and test split of a run, from what the source has.

    What it lacks is cut from its training split, class by class, `val_fraction` of each: the pictures of
    class c with the smallest numbers in the Philox stream of key (seed, c). A source with train and val
    only has its val taken as the test split. A cut takes at least one picture of a class and leaves at
    least one in train; a class of one picture is only trained on. The pictures kept are copied into memory.

    Args:
        store: the data set.
        val_fraction: above 0 and at most 0.5; below 0.5 where both val and test are cut.
        seed: any int.

    Raises:
        VitreousError: the fraction is not in that range, there are too few pictures to cut from, or those to train
            on show fewer than two classes.
    """
    if not isinstance(val_fraction, int | float | np.floating) or not 0 < val_fraction <= 0.5:
        raise VitreousError(
            f"val_fraction is {val_fraction!r}; give more than 0 and at most 0.5, such as 0.1."
        )
    if not isinstance(seed, int | np.integer):
        raise VitreousError(f"The seed of the split is {seed!r}; give a whole number.")
    present = np.unique(store.splits["train"].labels)
    if len(present) < 2:
        raise VitreousError(
            f"All training pictures of {store.name} are of the class {store.classes[present[0]]!r}; "
            "training needs at least two classes to tell apart."
        )
    given = dict(store.splits)
    notes = []
    if "val" in given and "test" not in given:
        given["test"] = given.pop("val")
        notes.append(
            f"{store.name} has train and val only: its val ({len(given['test']):,} pictures) is the test "
            "split, read once at the end."
        )
    cut = tuple(split for split in ("test", "val") if split not in given)
    if len(cut) * val_fraction >= 1:
        raise VitreousError(
            f"{store.name} has neither a validation nor a test split, and val_fraction {val_fraction:g} of its "
            "training pictures for each leaves none to train on; give less, such as 0.1."
        )
    if cut:
        train = given["train"]
        labels = np.asarray(train.labels)
        parts: dict[str, list[np.ndarray]] = {split: [] for split in ("train", *cut)}
        for label in range(store.num_classes):
            members = np.flatnonzero(labels == label)
            # Raw bits, not a Generator's shuffle: numpy keeps only the former the same over versions.
            stream = np.random.Philox(key=np.array([int(seed) % 2**64, label], dtype=np.uint64))
            members = members[np.argsort(stream.random_raw(len(members)), kind="stable")]
            share = max(1, math.floor(len(members) * val_fraction + 0.5))
            for split in cut:
                taken = min(share, max(0, len(members) - 1))
                parts[split].append(members[:taken])
                members = members[taken:]
            parts["train"].append(members)
        for split, pieces in parts.items():
            given[split] = train.subset(np.sort(np.concatenate(pieces)))
        for split in cut:
            if len(given[split]) == 0:
                raise VitreousError(
                    f"{store.name} has too few pictures to cut a {split} split from; "
                    "give at least three of a class."
                )
            notes.append(
                f"{store.name} has no {'test' if split == 'test' else 'validation'} split: "
                f"{len(given[split]):,} of {len(train):,} training pictures were cut for it "
                f"(by class, seed {seed})."
            )
    return Splits(given["train"], given["val"], given["test"], tuple(notes), seed, val_fraction, cut)
