"""Datasets of torch and of Hugging Face as data, against the arrays that they are made of."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from conftest import TINY
from vitreous import Run, evaluate, train
from vitreous.data.objects import Part, understand
from vitreous.data.sources import open_data
from vitreous.errors import VitreousError

CLASSES = ["cat", "dog", "owl"]
LABELS = np.arange(12) % 3
IMAGES = np.random.default_rng(2).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
Item = Callable[[int], Any]


def quiet(line: str) -> None:
    pass


class Items(Dataset):
    """A dataset of torch whose items are those of a function."""

    def __init__(self, item: Item, count: int = 12) -> None:
        self.item, self.count = item, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> Any:
        if position >= self.count:
            raise IndexError
        return self.item(position)


class NamedItems(Items):
    """The same with class names, as torchvision keeps them."""

    classes = CLASSES


def picture(i: int) -> Image.Image:
    return Image.fromarray(IMAGES[i])


def tensor(i: int) -> torch.Tensor:
    """As torchvision's ToTensor makes it: float32 [3, H, W] from 0 to 1."""
    return torch.from_numpy(IMAGES[i]).permute(2, 0, 1).float() / 255


def label(i: int) -> int:
    return int(LABELS[i])


def arrays_of(source: Any, **options: Any) -> tuple[np.ndarray, list[str]]:
    """The images and the names of their classes in the order of the source."""
    store = open_data(source, say=quiet, **options)
    part = store.splits["train"]
    positions = np.argsort([int(name.removeprefix("array:")) for name in part.names])
    return part.images[positions], [store.classes[i] for i in part.labels[positions]]


# ---- torch


FORMS: dict[str, Item] = {
    "PIL": lambda i: (picture(i), label(i)),
    "list": lambda i: [picture(i), label(i)],
    "array": lambda i: (IMAGES[i], LABELS[i]),
    "tensor": lambda i: (tensor(i), torch.tensor(label(i))),
    "uint8 tensor": lambda i: (torch.from_numpy(IMAGES[i]).permute(2, 0, 1), LABELS[i : i + 1]),
    "one-hot": lambda i: (tensor(i), torch.eye(3)[label(i)]),
    "image and label": lambda i: {"image": picture(i), "label": label(i), "index": i},
    "img and labels": lambda i: {"img": IMAGES[i], "labels": label(i)},
    "pixel_values and labels": lambda i: {"pixel_values": tensor(i), "labels": torch.tensor(label(i))},
}


@pytest.mark.parametrize("form", FORMS)
def test_items_of_any_form_are_taken(form: str) -> None:
    images, names = arrays_of(Items(FORMS[form]))
    np.testing.assert_array_equal(images, IMAGES)
    assert names == [str(number) for number in LABELS]
    images, names = arrays_of([FORMS[form](i) for i in range(12)])  # as a list too
    np.testing.assert_array_equal(images, IMAGES)


def test_class_names_come_from_the_dataset_also_below_others() -> None:
    named = NamedItems(FORMS["PIL"])
    order = [5, 0, 3, 1]
    wrapped: list[Any] = [named, ConcatDataset([named])]
    for dataset in wrapped:
        assert arrays_of(dataset)[1] == [CLASSES[i] for i in LABELS]
    assert arrays_of(Subset(Subset(named, order), [0, 1, 2, 3]))[1] == [CLASSES[LABELS[i]] for i in order]
    assert open_data(Subset(named, order), say=quiet).classes == tuple(CLASSES)
    assert open_data(named, say=quiet, classes=["owl", "cat", "dog"]).classes == ("owl", "cat", "dog")
    assert arrays_of(named, classes=["owl", "cat", "dog"])[1] == [CLASSES[i] for i in LABELS]
    assert arrays_of(Items(FORMS["PIL"]), classes=CLASSES)[1] == [CLASSES[i] for i in LABELS]
    names = arrays_of(Items(lambda i: (picture(i), CLASSES[LABELS[i]])))[1]
    assert names == [CLASSES[i] for i in LABELS]


def test_splits_are_given_as_a_pair_or_by_name() -> None:
    named = NamedItems(FORMS["tensor"])
    rest = Subset(named, [0, 1, 2])
    for source, splits in (
        ((named, rest), {"train", "test"}),
        ({"train": named, "val": rest}, {"train", "val"}),
    ):
        store = open_data(source, say=quiet)
        assert (set(store.splits), store.name, store.classes) == (splits, "NamedItems", tuple(CLASSES))
    arrays = TensorDataset(torch.from_numpy(IMAGES).permute(0, 3, 1, 2), torch.from_numpy(LABELS))
    np.testing.assert_array_equal(arrays_of(arrays)[0], IMAGES)


def test_a_test_split_in_the_place_of_the_recipe_is_refused() -> None:
    named = NamedItems(FORMS["PIL"])
    with pytest.raises(VitreousError, match=r"goes into the data: train\(\(train, test\)\)"):
        train(named, named)


def test_images_are_resized_as_they_come() -> None:
    """At most a few of the full images are in memory at a time."""
    large = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    full, packed = 200 * large.nbytes, 200 * 64 * 64 * 3
    tracemalloc.start()
    try:
        store = open_data(Items(lambda i: (large.copy(), i % 2), 200), say=quiet, fit="crop")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * packed + full / 20 < full / 3
    square = Image.fromarray(large).crop((50, 0, 250, 200)).resize((64, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(store.splits["train"].images[0], np.asarray(square))


def test_a_random_transform_is_said() -> None:
    generator = np.random.default_rng(0)
    said: list[str] = []
    open_data(Items(lambda i: (np.roll(IMAGES[i], generator.integers(8), 0), label(i))), say=said.append)
    assert "its transform is random" in said[0] and "remove the random transforms" in said[0]
    said.clear()
    open_data(Items(FORMS["PIL"]), say=said.append)
    assert said == []


def broken_at(position: int) -> Items:
    return Items(lambda i: (picture(i), label(i)) if i != position else (Image.open("/nowhere.png"), 0))


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter([FORMS["PIL"](i) for i in range(12)])


class FewNames(Items):
    classes = CLASSES[:2]


NORMALISED = Items(lambda i: ((tensor(i) - 0.5) / 0.25, label(i)))
TRIPLES = Items(lambda i: (picture(i), label(i), i))
OTHER_KEYS = Items(lambda i: {"a": picture(i), "b": label(i)})
# What is refused, the words of the message, and what follows its advice.
REFUSED: dict[str, tuple[Any, str, Any]] = {
    "normalised": (NORMALISED, "remove Normalize from the transform", Items(FORMS["tensor"])),
    "floats to 255": (
        Items(lambda i: (tensor(i) * 255, label(i))),
        "let the dataset give uint8 from 0 to 255, or floats from 0 to 1",
        Items(FORMS["uint8 tensor"]),
    ),
    "triples": (
        TRIPLES,
        r"`\[\(item\[0\], item\[1\]\) for item in dataset\]`",
        [(item[0], item[1]) for item in (TRIPLES[i] for i in range(12))],
    ),
    "other keys": (
        OTHER_KEYS,
        "'a', 'b'; name one of them image and one of them label",
        Items(FORMS["image and label"]),
    ),
    "no label": (
        Items(picture),
        r"let each item be an image with its label: \(image, label\)",
        Items(FORMS["PIL"]),
    ),
    "batches": (
        DataLoader(Items(FORMS["tensor"])),
        "give its dataset, as in `loader.dataset`",
        Items(FORMS["tensor"]),
    ),
    "stream": (Stream(), r"can only be read from front to back.*`list\(dataset\)`", list(Stream())),
    "empty": (Items(FORMS["PIL"], 0), "the dataset is empty", Items(FORMS["PIL"])),
    "broken": (
        Items(lambda i: 1 // 0),
        "Item 0 of the dataset cannot be read .ZeroDivisionError",
        Items(FORMS["PIL"]),
    ),
    "not an image": (
        Items(lambda i: (None, label(i))),
        "Image 0 is a NoneType; give a PIL image",
        Items(FORMS["PIL"]),
    ),
    "detection": (
        Items(lambda i: (picture(i), {"boxes": 1})),
        "labels are of the type dict",
        Items(FORMS["PIL"]),
    ),
    "few names": (FewNames(FORMS["PIL"]), r"names only 2 classes \(cat, dog\)", NamedItems(FORMS["PIL"])),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_taken_when_the_advice_is_followed(case: str) -> None:
    dataset, words, mended = REFUSED[case]
    with pytest.raises(VitreousError, match=words):
        open_data(dataset, say=quiet)
    np.testing.assert_array_equal(arrays_of(mended)[0], IMAGES)


def test_classes_name_what_the_dataset_does_not() -> None:
    gaps = Items(lambda i: (picture(i), label(i) * 2))
    with pytest.raises(VitreousError, match=r"no label is 1; name all 5 classes with classes=\[…\]"):
        open_data(gaps, say=quiet)
    assert open_data(gaps, say=quiet, classes=list("abcde")).classes == tuple("abcde")
    assert open_data(FewNames(FORMS["PIL"]), say=quiet, classes=CLASSES).classes == tuple(CLASSES)
    with pytest.raises(VitreousError, match=r"but `classes` names only x, y, z; .* or leave `classes` out"):
        open_data(NamedItems(FORMS["PIL"]), say=quiet, classes=["x", "y", "z"])


def test_images_that_cannot_be_read_are_listed_or_left_out() -> None:
    with pytest.raises(VitreousError, match=r"1 of the 12 images cannot be used.*skip_bad=True") as error:
        open_data(broken_at(4), say=quiet)
    assert "array:4: unreadable (FileNotFoundError" in str(error.value)
    store = open_data(broken_at(4), say=quiet, skip_bad=True)
    part = store.splits["train"]
    assert set(part.names) == {f"array:{i}" for i in range(12) if i != 4}
    for name, number in zip(part.names, part.labels, strict=True):
        assert number == LABELS[int(name.removeprefix("array:"))]


def test_a_dataset_is_trained_on_and_evaluated(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = (generator.integers(0, 80, (90, 16, 16, 3)) + 60 * labels[:, None, None, None]).astype(np.uint8)

    def item(i: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(images[i]).permute(2, 0, 1).float() / 255, int(labels[i])

    dataset = NamedItems(item, 90)
    run = train(dataset, steps=3, out=tmp_path / "run", overrides=dict(TINY), device="cpu", precision="32")
    assert run.classes == tuple(CLASSES) and run.resolved["request"]["data"] == "arrays"
    assert evaluate(run, data=dataset).scalars["acc"] == run.summary["test_acc"]  # known for its own
    assert [read["by"] for read in run.test_reads] == ["train", "evaluate"]
    turned = Items(lambda i: (item(i)[0], CLASSES[labels[i]]), 60)  # names instead of numbers
    figures = evaluate(run, data={"test": turned})
    assert figures.scalars["acc"] == np.mean(run.predict(images[:60]) == labels[:60])
    strangers = Items(lambda i: (item(i)[0], "emu"), 9)
    with pytest.raises(VitreousError, match=r"classes that the run does not know \(emu\)"):
        evaluate(Run(run.path), data=strangers)


# ---- Hugging Face


@pytest.fixture(scope="module")
def datasets() -> Any:
    return pytest.importorskip("datasets")


def features(datasets: Any, **more: Any) -> Any:
    return datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=CLASSES), **more)


@pytest.fixture
def pets(datasets: Any) -> Any:
    """The images with class names, as PNG files in the dataset."""
    columns = {"image": [picture(i) for i in range(12)], "label": LABELS.tolist()}
    return datasets.Dataset.from_dict(columns, features=features(datasets))


def test_a_dataset_of_hugging_face_is_taken_with_its_class_names(pets: Any, datasets: Any) -> None:
    expected = open_data((IMAGES, [CLASSES[i] for i in LABELS]), say=quiet).fingerprint
    strings = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    named = {"image": [picture(i) for i in range(12)], "label": [CLASSES[i] for i in LABELS]}
    for dataset in (
        pets,
        pets.with_format("torch"),
        pets.cast_column("image", datasets.Image(decode=False)),
        pets.rename_column("image", "picture of it").rename_column("label", "animal"),  # found by their types
        datasets.Dataset.from_dict(named, features=strings),
    ):
        assert open_data(dataset, say=quiet).fingerprint == expected
    np.testing.assert_array_equal(arrays_of((pets["image"], pets["label"]))[0], IMAGES)
    chosen = pets.shuffle(seed=1).select(range(5))
    names = [CLASSES[number] for number in chosen["label"]]
    assert arrays_of(chosen)[1] == names


def test_the_dataset_of_several_splits(pets: Any, datasets: Any) -> None:
    store = open_data(datasets.DatasetDict({"train": pets, "validation": pets.select(range(4))}), say=quiet)
    assert {split: len(part) for split, part in store.splits.items()} == {"train": 12, "val": 4}
    hidden = datasets.Dataset.from_dict({"image": [picture(0)], "label": [-1]}, features=features(datasets))
    with pytest.raises(VitreousError, match=r"test labels are -1 for 1 of 1 image.*leave out that split"):
        open_data(datasets.DatasetDict({"train": pets, "test": hidden}), say=quiet)
    with pytest.raises(VitreousError, match="'unsupervised' is not that of a split; leave it out"):
        open_data(datasets.DatasetDict({"train": pets, "unsupervised": pets}), say=quiet)


def test_files_of_more_than_8_bits_share_one_range(datasets: Any) -> None:
    deep = [Image.fromarray(image[..., 0].astype(np.uint16) * 16) for image in IMAGES]
    dataset = datasets.Dataset.from_dict(
        {"image": deep, "label": LABELS.tolist()}, features=features(datasets)
    )
    assert open_data(dataset, say=quiet).preprocess.value_range == (0, 4095)
    np.testing.assert_array_equal(arrays_of(dataset)[0], IMAGES[..., :1].repeat(3, -1))


def test_columns_of_numbers_are_images_too(datasets: Any) -> None:
    kinds = (
        datasets.Array3D((8, 8, 3), "uint8"),
        datasets.List(datasets.List(datasets.List(datasets.Value("uint8")))),
    )
    for kind in kinds:
        described = datasets.Features(img=kind, label=datasets.Value("int64"))
        columns = {"img": IMAGES.tolist(), "label": LABELS.tolist()}
        np.testing.assert_array_equal(
            arrays_of(datasets.Dataset.from_dict(columns, features=described))[0], IMAGES
        )


def test_the_transform_of_a_dataset_is_not_applied_and_that_is_said(pets: Any) -> None:
    said: list[str] = []
    store = open_data(pets.with_transform(lambda batch: 1 // 0), say=said.append)
    assert store.fingerprint == open_data(pets, say=quiet).fingerprint
    assert "the transform of the dataset is not applied" in said[0]


def test_what_hugging_face_has_and_is_refused_is_taken_when_the_advice_is_followed(
    pets: Any, datasets: Any
) -> None:
    coarse = pets.add_column("kind", [0] * 12).cast_column("kind", datasets.ClassLabel(names=["pet"]))
    columns = {"image": [picture(i) for i in range(12)], "other": [picture(0)] * 12, "label": LABELS.tolist()}
    twice = datasets.Dataset.from_dict(columns, features=features(datasets, other=datasets.Image()))
    unnamed = pets.rename_column("label", "animal").cast_column("animal", datasets.Value("int64"))
    stream = pets.to_iterable_dataset()
    for dataset, words, mended in (
        (coarse, r'labels \(label, kind\); .*`dataset.remove_columns\(\["kind"\]\)`', coarse.remove_columns(["kind"])),
        (twice, r'images \(image, other\); .*`dataset.remove_columns\(\["other"\]\)`', twice.remove_columns(["other"])),
        (unnamed, r'`dataset.rename_column\("animal", "label"\)`', unnamed.rename_column("animal", "label")),
        (stream, r"`list\(dataset.take\(10_000\)\)`", list(stream.take(10_000))),
        (
            datasets.IterableDatasetDict({"train": stream}),
            r"`list\(dataset.take\(10_000\)\)`",
            {"train": list(stream.take(10_000))},
        ),
    ):  # fmt: skip
        with pytest.raises(VitreousError, match=words):
            open_data(dataset, say=quiet)
        np.testing.assert_array_equal(arrays_of(mended)[0], IMAGES)


def test_an_image_that_is_missing_is_listed(pets: Any, datasets: Any) -> None:
    columns = {"image": [*(picture(i) for i in range(11)), None], "label": LABELS.tolist()}
    dataset = datasets.Dataset.from_dict(columns, features=features(datasets))
    with pytest.raises(VitreousError, match="1 of the 12 images cannot be used") as error:
        open_data(dataset, say=quiet)
    assert "array:11: unreadable (no image is stored)" in str(error.value)
    assert len(open_data(dataset, say=quiet, skip_bad=True).splits["train"]) == 11


def test_no_other_package_is_imported_for_arrays() -> None:
    code = (
        "import sys, numpy as np, vitreous; images = np.zeros((6, 8, 8, 3), 'uint8'); images[::2] = 9\n"
        "vitreous.open_data((images, [0, 1] * 3)); print(*{'datasets', 'pandas', 'torchvision'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == ""


def test_parts_say_what_they_are() -> None:
    source = understand({"train": Items(FORMS["PIL"]), "test": (IMAGES, LABELS)})
    parts: dict[str, Part] = source.parts
    assert {split: (len(part), part.wording.subject) for split, part in parts.items()} == {
        "train": (12, "The training images"),
        "test": (12, "The test images"),
    }


def test_which_part_is_which_split_is_said() -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    labels = np.arange(12) % 2
    said: list[str] = []
    open_data(((images, labels), (images[:4], labels[:4])), say=said.append)
    assert any(line.startswith("The two parts are taken for training and test") for line in said)
    said.clear()
    open_data({"train": (images, labels), "holdout": (images[:4], labels[:4])}, say=said.append)
    assert "The part 'holdout' is the test split." in said
    said.clear()
    open_data({"train": (images, labels), "test": (images[:4], labels[:4])}, say=said.append)
    assert not said
