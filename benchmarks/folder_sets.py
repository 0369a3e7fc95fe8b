"""The data sets of `folders.py`: which images train, which validate, and which are the test split.

Letters: N training images, M test images, H height and width in pixels.
"""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitreous.data.arrays import from_arrays
from vitreous.data.cache import data_folder
from vitreous.data.copies import copies_of
from vitreous.data.identity import ChannelStatistics
from vitreous.data.packed import open_store, pack, read_header, store_path
from vitreous.data.sources import open_data
from vitreous.data.splits import join_groups, plan_cut
from vitreous.data.store import ImageStore, Split
from vitreous.errors import VitreousError
from vitreous.preprocess import Preprocess
from vitreous.recipe import DataSection

SPLIT_SEED = 42
VAL_FRACTION = DataSection().val_fraction  # what `vitreous train` holds out
FOLDS, FEW_IMAGES = 5, 5000  # fewer training images than this validate in folds
NEVER = -1  # the fold of an image that only trains

LONG = ("3e13", "1.2e14")


@dataclass(frozen=True)
class BenchSet:
    """A row of the table of data sets.

    Attributes:
        title: for the pages.
        origin: "cifar10" or "cifar100", which vitreous knows by name; "trashnet" or "fashion-mnist", a file or folder.
        budgets: training FLOPs, as people write them.
        image_size: that a folder's images are read at, in pixels.
        largest: number of training images in the first class; None for all of them.
        ratio: of the first class's size to the last one's. The sizes between fall exponentially.
    """

    title: str
    origin: str
    budgets: tuple[str, ...] = ("3e13",)
    image_size: int | None = None
    largest: int | None = None
    ratio: float = 1.0


SETS: dict[str, BenchSet] = {
    "cifar10-2k": BenchSet("CIFAR-10, 2,000 images", "cifar10", largest=200),
    "trashnet": BenchSet("TrashNet, 96 pixels", "trashnet", image_size=96),
    "cifar10-unequal": BenchSet("CIFAR-10, 20:1 unequal", "cifar10", ratio=20.0),
    "cifar10": BenchSet("CIFAR-10", "cifar10", LONG),
    "cifar100": BenchSet("CIFAR-100", "cifar100", LONG),
    "fashion-mnist": BenchSet("Fashion-MNIST", "fashion-mnist"),
}


@dataclass(frozen=True)
class Images:
    """A data set as the bench uses it.

    Attributes:
        train: all images that may train or validate, N.
        test: M images that stay unread until `--final`.
        fold: int [N], the fold in which an image validates, `NEVER` if it only trains.
        classes: class names.
        fingerprint: of the data set that the images are from.
    """

    name: str
    train: Split
    test: Split
    fold: np.ndarray
    classes: tuple[str, ...]
    fingerprint: str

    @property
    def folds(self) -> int:
        return int(self.fold.max()) + 1

    def positions(self, fold: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the images that train and that are judged: in `train` for a fold, in `test` for None."""
        if fold is None:
            return np.arange(len(self.train)), np.arange(len(self.test))
        return np.flatnonzero(self.fold != fold), np.flatnonzero(self.fold == fold)

    def judged_labels(self, fold: int | None) -> np.ndarray:
        part = self.test if fold is None else self.train
        return np.asarray(part.labels)[self.positions(fold)[1]]

    def store(self, fold: int | None) -> ImageStore:
        """The training, validation and test split of a fold, or for None all training images and the test split.

        Mean and standard deviation are those of the images that train.
        """
        training, judged = self.positions(fold)
        splits = {"train": self.train if fold is None else self.train.subset(training), "test": self.test}
        if fold is not None:
            splits["val"] = self.train.subset(judged)
        statistics = ChannelStatistics()
        for start in range(0, len(training), 1000):
            statistics.add(np.ascontiguousarray(splits["train"].images[start : start + 1000]))
        return ImageStore(
            name=self.name,
            classes=self.classes,
            splits=splits,
            mean=statistics.mean(),
            std=statistics.std(),
            fingerprint=f"{self.name}-{'all' if fold is None else fold}",
            source=self.name,
            preprocess=Preprocess(int(self.train.images.shape[1])),
        )


def open_set(name: str, data_dir: Path | None, paths: dict[str, Path]) -> Images:
    """Opens a row of the table, with the same images in the same folds on every machine.

    Copies of an image, near-copies too, stay in one fold. They are searched for once and kept with the packed data.

    Args:
        data_dir: the folder of packed data sets; vitreous's own by default.
        paths: of the origins that vitreous does not know by name.

    Raises:
        VitreousError: the data are not there.
    """
    row = SETS[name]
    store = open_origin(row, data_dir, paths)
    sizes = {split: len(part) for split, part in store.splits.items()}
    groups = join_groups(sizes, copies_of(store).groups)["train"]
    train, test = store.splits["train"], store.splits.get("test")
    labels = np.asarray(train.labels)
    if row.largest or row.ratio != 1:
        chosen = draw(labels, store.num_classes, row.largest, row.ratio)
        train, labels, groups = train.subset(chosen), labels[chosen], groups[chosen]
    if test is None:
        cut = plan_cut(labels, store.num_classes, groups, ("test",), VAL_FRACTION, SPLIT_SEED)
        test = train.subset(cut["test"])
        train, labels, groups = train.subset(cut["train"]), labels[cut["train"]], groups[cut["train"]]
    fold = folds_of(labels, store.num_classes, groups)
    numbered = [
        replace(part, names=[f"{split}:{position}" for position in range(len(part))], groups=None)
        for split, part in (("train", train), ("test", test))
    ]
    return Images(name, numbered[0], numbered[1], fold, store.classes, store.fingerprint)


def folds_of(labels: np.ndarray, num_classes: int, groups: np.ndarray) -> np.ndarray:
    """The fold in which each image validates, int [N]: five folds of few images, else fold 0 of a tenth, by class.

    Args:
        labels: int [N].
        groups: int [N]; images with equal numbers share a fold.
    """
    fold = np.full(len(labels), NEVER)
    if len(labels) >= FEW_IMAGES:
        fold[plan_cut(labels, num_classes, groups, ("val",), VAL_FRACTION, SPLIT_SEED)["val"]] = 0
        return fold
    names = tuple(map(str, range(FOLDS - 1)))
    cut = plan_cut(labels, num_classes, groups, names, 1 / FOLDS, SPLIT_SEED)
    for number, part in enumerate((*names, "train")):  # what remains is the last fold
        fold[cut[part]] = number
    return fold


def draw(labels: np.ndarray, num_classes: int, largest: int | None, ratio: float) -> np.ndarray:
    """Positions of a random choice of images, ascending: exponential class sizes from `largest` down by `ratio`."""
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        size = round((largest or len(members)) * ratio ** (-label / (num_classes - 1)))
        stream = np.random.Philox(key=np.array([SPLIT_SEED, label], dtype=np.uint64))
        chosen.append(members[np.argsort(stream.random_raw(len(members)), kind="stable")[:size]])
    return np.sort(np.concatenate(chosen))


def open_origin(row: BenchSet, data_dir: Path | None, paths: dict[str, Path]) -> ImageStore:
    if row.origin == "fashion-mnist":
        return open_idx(paths[row.origin], data_dir)
    source = paths.get(row.origin, row.origin)
    return open_data(source, data_dir, row.image_size)


def open_idx(folder: Path, data_dir: Path | None) -> ImageStore:
    """Packs the four IDX files of Fashion-MNIST once, and opens the packed data set."""
    path = store_path(data_folder(data_dir), "bench-fashion-mnist")
    if read_header(path):
        return open_store(path)
    parts = {
        split: (read_idx(folder, f"{stem}-images-idx3-ubyte"), read_idx(folder, f"{stem}-labels-idx1-ubyte"))
        for split, stem in (("train", "train"), ("test", "t10k"))
    }
    store = from_arrays(*parts["train"], test=parts["test"], name="fashion-mnist")
    splits = {split: (part.images, part.labels, part.names) for split, part in store.splits.items()}
    return pack(path, name=store.name, classes=store.classes, splits=splits, source=str(folder))


def read_idx(folder: Path, name: str) -> np.ndarray:
    """The array of an IDX file of bytes, as it is or gzipped (http://yann.lecun.com/exdb/mnist)."""
    plain, zipped = folder / name, folder / f"{name}.gz"
    if not plain.exists() and not zipped.exists():
        raise VitreousError(
            f"{folder} has no {name}; install Debian's package dataset-fashion-mnist, or give the folder of the four "
            "files with --fashion-mnist."
        )
    content = plain.read_bytes() if plain.exists() else gzip.decompress(zipped.read_bytes())
    kind, dimensions = content[2], content[3]
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    if kind != 8:
        raise VitreousError(f"{folder / name} does not hold bytes; give the original files.")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
