"""Data sets from arrays, tensors and lists of images, against numpy and Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sample_data import raw_split
from vitreous.data.arrays import from_arrays
from vitreous.data.sources import open_data
from vitreous.data.store import ImageStore
from vitreous.errors import VitreousError

CLASSES = np.array(["cat", "dog", "owl"])


def quiet(line: str) -> None:
    pass


def images(height: int = 6, width: int = 6, count: int = 12) -> np.ndarray:
    """uint8 [count, height, width, 3]."""
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


LABELS = np.arange(12) % 3


def by_name(store: ImageStore, split: str = "train") -> dict[str, tuple[np.ndarray, str]]:
    """The image and the class name of each image name."""
    part = store.splits[split]
    return {
        name: (image, store.classes[label])
        for name, image, label in zip(part.names, part.images, part.labels, strict=True)
    }


def in_order(store: ImageStore, split: str = "train") -> np.ndarray:
    """The images of a split in the order of their source."""
    found = by_name(store, split)
    return np.stack([found[f"array:{i}"][0] for i in range(len(found))])


def test_from_arrays_accepts_numpy_torch_and_grey() -> None:
    images, labels, _ = raw_split([5, 4, 3])
    store = from_arrays(images, labels, classes=["x", "y", "z"], test=(images[:4], labels[:4]), name="mine")
    assert (store.name, store.classes, store.path, store.image_size) == ("mine", ("x", "y", "z"), None, 6)
    np.testing.assert_array_equal(in_order(store), images)
    assert len(store.splits["test"]) == 4
    tensors = from_arrays(torch.from_numpy(images), torch.from_numpy(labels), classes=["x", "y", "z"])
    assert tensors.classes == store.classes
    np.testing.assert_array_equal(tensors.splits["train"].images, store.splits["train"].images)
    grey = from_arrays(images[..., 0], labels.tolist())
    assert grey.classes == ("0", "1", "2")
    assert (grey.splits["train"].images == grey.splits["train"].images[..., :1]).all()


def test_labels_past_ten_keep_their_meaning() -> None:
    images, labels, _ = raw_split([1] * 12)
    store = from_arrays(images, labels)
    assert store.classes[10] == "10"
    assert store.splits["train"].labels.tolist() == list(range(12))


# ---- shapes and values


UINT8 = images()
GREY = UINT8[..., :1]
SAME: dict[str, tuple[Any, np.ndarray]] = {  # images, and what they must become
    "channels last": (UINT8, UINT8),
    "channels first": (UINT8.transpose(0, 3, 1, 2), UINT8),
    "tensor, channels first": (torch.from_numpy(UINT8).permute(0, 3, 1, 2), UINT8),
    "list of arrays": (list(UINT8), UINT8),
    "list of tensors, channels first": ([torch.from_numpy(x).permute(2, 0, 1) for x in UINT8], UINT8),
    "nested lists of bool": ((UINT8 > 99).tolist(), (UINT8 > 99) * np.uint8(255)),
    "grey [N, H, W]": (GREY[..., 0], GREY.repeat(3, -1)),
    "grey [N, H, W, 1]": (GREY, GREY.repeat(3, -1)),
    "grey [N, 1, H, W]": (GREY.transpose(0, 3, 1, 2), GREY.repeat(3, -1)),
    "bool": (UINT8 > 99, (UINT8 > 99) * np.uint8(255)),
    "float64": (UINT8 / 255, UINT8),
    "float32": ((UINT8 / 255).astype(np.float32), UINT8),
    "as ToTensor makes them": (torch.from_numpy(UINT8).permute(0, 3, 1, 2).float() / 255, UINT8),
    "floats with rounding errors": (UINT8 / 255 * 1.0000001 - 1e-7, UINT8),
    "uint16 of 16 bits": (UINT8.astype(np.uint16) * 257, UINT8),
    "uint16 of 12 bits": (UINT8.astype(np.uint16) * 16, UINT8),
    "uint16 of 8 bits": (UINT8.astype(np.uint16), UINT8),
    "opaque RGBA": (np.concatenate([UINT8, np.full_like(GREY, 255)], -1), UINT8),
    "transparent RGBA": (np.concatenate([UINT8, np.zeros_like(GREY)], -1), np.full_like(UINT8, 255)),
    "PIL": ([Image.fromarray(x) for x in UINT8], UINT8),
    "PIL, grey": ([Image.fromarray(x[..., 0]) for x in GREY], GREY.repeat(3, -1)),
    "tuple of arrays": (tuple(UINT8), UINT8),
    "object array": (np.array([*UINT8, None], object)[:-1], UINT8),
}


@pytest.mark.parametrize("form", SAME)
def test_square_images_of_any_form_become_the_same_pixels(form: str) -> None:
    given, expected = SAME[form]
    store = open_data((given, LABELS), say=quiet)
    np.testing.assert_array_equal(in_order(store), expected)
    # The recorded settings make the same of the images, given one by one with channels last.
    singles = [x.permute(1, 2, 0) if hasattr(x, "permute") and x.shape[0] in (1, 3) else x for x in given]
    singles = [
        x.transpose(1, 2, 0) if isinstance(x, np.ndarray) and x.shape[0] in (1, 3) else x for x in singles
    ]
    singles = [np.array(x) if isinstance(x, list) else x for x in singles]
    np.testing.assert_array_equal(store.preprocess.batch(singles), expected)


def test_values_of_more_than_8_bits_share_one_range_that_is_said_and_kept() -> None:
    said: list[str] = []
    store = open_data((UINT8.astype(np.uint16) * 16, LABELS), say=said.append)
    assert store.preprocess.value_range == (0, 4095)
    assert any("0 to 4095 (12 bits)" in line and "value_range= changes this" in line for line in said)
    # One white for both splits, although the test images alone are dark.
    dark = (UINT8 // 16).astype(np.uint16)
    both = open_data(((UINT8.astype(np.uint16) * 16, LABELS), (dark, LABELS)), say=quiet)
    np.testing.assert_array_equal(in_order(both, "test"), dark >> 4)


def resized(image: np.ndarray, size: int, fit: str) -> np.ndarray:
    """The image as Pillow makes it."""
    picture = Image.fromarray(image)
    height, width = image.shape[:2]
    side = min(height, width)
    if fit == "crop":
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize(("shape", "size"), [((20, 40), 32), ((60, 50), 64), ((47, 60), 32), ((48, 60), 64)])
def test_images_that_are_not_square_are_resized_as_those_of_a_folder(
    shape: tuple[int, int], size: int, fit: str
) -> None:
    given, said = images(*shape), list[str]()
    expected = np.stack([resized(image, size, fit) for image in given])
    for form in (given, list(given), [Image.fromarray(image) for image in given]):
        store = open_data((form, LABELS), say=said.append, fit=fit)
        np.testing.assert_array_equal(in_order(store), expected)
        assert (store.preprocess.size, store.preprocess.fit) == (size, fit)
    assert f"resized to {size} by {size} pixels" in said[0] and "image_size=" in said[0]
    store = open_data((given, LABELS), say=quiet, fit=fit, image_size=16)
    np.testing.assert_array_equal(in_order(store), np.stack([resized(x, 16, fit) for x in given]))


def test_images_of_different_sizes_are_taken_in_a_list() -> None:
    given = [images(20 + i, 30, 1)[0] for i in range(12)]
    expected = np.stack([resized(image, 32, "crop") for image in given])
    tensors = [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in given]
    for form in (given, tensors, [Image.fromarray(image) for image in given]):
        np.testing.assert_array_equal(in_order(open_data((form, LABELS), say=quiet, fit="crop")), expected)


def test_the_size_of_square_images() -> None:
    def side(given: Any, **options: Any) -> int:
        return open_data((given, LABELS), say=quiet, **options).image_size

    large = images(100, 100)
    assert side(large) == 100  # an array keeps its size, bit for bit
    np.testing.assert_array_equal(in_order(open_data((large, LABELS))), large)
    assert side([Image.fromarray(x) for x in images(28, 28)]) == 28
    assert side([Image.fromarray(x) for x in large]) == 64
    assert side(large, image_size=24) == 24
    np.testing.assert_array_equal(
        in_order(open_data((large, LABELS), image_size=24)), np.stack([resized(x, 24, "crop") for x in large])
    )


def test_test_images_of_another_size_become_like_the_training_images() -> None:
    said: list[str] = []
    store = open_data(((UINT8, LABELS), (images(9, 9), LABELS)), say=said.append)
    np.testing.assert_array_equal(
        in_order(store, "test"), np.stack([resized(x, 6, "crop") for x in images(9, 9)])
    )
    assert "The test images are resized to 6 by 6 pixels, the size of the training images." in said


def test_what_is_cut_off_is_said() -> None:
    said: list[str] = []
    open_data((images(20, 40), LABELS), say=said.append, fit="crop")
    assert any('fit="pad" or fit="stretch" keeps all of it' in line for line in said)
    said.clear()
    open_data((images(20, 40), LABELS), say=said.append, fit="pad")
    assert not any("crop" in line for line in said)


def test_images_of_zeros_and_ones_are_taken_with_a_word() -> None:
    said: list[str] = []
    store = open_data(((UINT8 > 99).astype(np.uint8), LABELS), say=said.append)
    assert in_order(store).max() == 1
    assert 'if 1 is white, give `images.astype("bool")`' in said[0]


# ---- labels


NAMES = CLASSES[LABELS]
FORMS: dict[str, Any] = {
    "numbers": LABELS,
    "list of numbers": LABELS.tolist(),
    "uint8": LABELS.astype(np.uint8),
    "[N, 1]": LABELS[:, None],
    "tensor": torch.from_numpy(LABELS),
    "tensor [N, 1]": torch.from_numpy(LABELS)[:, None],
    "list of tensors": [torch.tensor(int(label)) for label in LABELS],
    "one-hot": np.eye(3)[LABELS],
    "one-hot of bool": np.eye(3, dtype=bool)[LABELS],
    "one-hot of int": np.eye(3, dtype=int)[LABELS].tolist(),
    "one-hot tensor": torch.eye(3)[torch.from_numpy(LABELS)],
    "names": NAMES.tolist(),
    "array of names": NAMES,
    "array of names [N, 1]": NAMES[:, None],
    "array of objects": NAMES.astype(object),
    "bytes": NAMES.astype("S3"),
    "tuple of names": tuple(NAMES),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_any_form_mean_the_same(form: str) -> None:
    store = open_data((UINT8, FORMS[form]), say=quiet)
    named = "names" in form or form in ("array of objects", "bytes")
    assert store.classes == (("cat", "dog", "owl") if named else ("0", "1", "2"))
    found = by_name(store)
    for i, label in enumerate(LABELS):
        assert found[f"array:{i}"][1] == store.classes[label]
    # Class names may come in any order for names, and are positions for numbers.
    ordered = open_data((UINT8, FORMS[form]), say=quiet, classes=["owl", "dog", "cat"])
    assert ordered.classes == ("owl", "dog", "cat")
    expected = NAMES if named else np.array(["owl", "dog", "cat"])[LABELS]
    assert [by_name(ordered)[f"array:{i}"][1] for i in range(12)] == expected.tolist()


def test_names_sort_naturally_and_truth_has_names() -> None:
    store = open_data((UINT8, (LABELS * 2 + 8).astype(str)), say=quiet)
    assert store.classes == ("8", "10", "12")
    assert open_data((UINT8, LABELS > 0), say=quiet).classes == ("False", "True")
    assert open_data((UINT8, np.eye(5)[LABELS]), say=quiet).classes == ("0", "1", "2", "3", "4")
    assert open_data((UINT8, LABELS * 2), say=quiet, classes=list("abcde")).classes == tuple("abcde")


def test_columns_of_pandas_are_labels_whatever_their_index() -> None:
    pandas = pytest.importorskip("pandas")
    column = pandas.Series(NAMES, index=range(100, 112))
    for form in (column, column.astype("category"), column.astype("string")):
        assert [
            by_name(open_data((UINT8, form), say=quiet))[f"array:{i}"][1] for i in range(12)
        ] == NAMES.tolist()
    numbers = pandas.Series(LABELS)[3:]
    assert [by_name(open_data((UINT8[3:], numbers), say=quiet))["array:0"][1]] == ["0"]
    table = pandas.DataFrame({"file": ["a.png"], "animal": ["cat"]})
    with pytest.raises(VitreousError, match=r'as in `\(table\["file"\], table\["animal"\]\)`'):
        open_data(table)
    with pytest.raises(VitreousError, match="lack a value at position 11"):
        open_data((UINT8, pandas.Series([*NAMES[:-1], None])))


# ---- splits


def test_splits_of_ones_own() -> None:
    part = (UINT8, LABELS)
    for source, splits in (
        ((part, part), {"train", "test"}),
        ([part, part], {"train", "test"}),
        ((part, part, part), {"train", "val", "test"}),
        ((list(zip(UINT8, LABELS, strict=True)), list(zip(UINT8, LABELS, strict=True))), {"train", "test"}),
        ({"train": part, "test": part}, {"train", "test"}),
        ({"Training": part, "validation": part, "testing": part}, {"train", "val", "test"}),
        ({"train": part, "dev": part}, {"train", "val"}),
        ({"images": UINT8, "labels": LABELS}, {"train"}),
        ({"X": UINT8, "y": LABELS}, {"train"}),
        ({"x_train": UINT8, "y_train": LABELS, "x_test": UINT8, "y_test": LABELS}, {"train", "test"}),
        (
            {f"{split}_{column}": UINT8 if column == "images" else LABELS[:, None]
             for split in ("train", "val", "test") for column in ("images", "labels")},
            {"train", "val", "test"},
        ),
    ):  # fmt: skip
        store = open_data(source, say=quiet)
        assert set(store.splits) == splits
        for split in splits:
            np.testing.assert_array_equal(in_order(store, split), UINT8)


def test_three_parts_are_said_to_be_training_validation_and_test() -> None:
    said: list[str] = []
    store = open_data(((UINT8, LABELS), (UINT8[:3], LABELS[:3]), (UINT8[:6], LABELS[:6])), say=said.append)
    assert {split: len(part) for split, part in store.splits.items()} == {"train": 12, "val": 3, "test": 6}
    assert said[0].startswith("The three parts are taken for training, validation and test, in this order")


def test_an_archive_of_numpy_is_opened_in_python(tmp_path: Path) -> None:
    np.savez(tmp_path / "digits.npz", x_train=UINT8, y_train=LABELS)
    with np.load(tmp_path / "digits.npz") as arrays:
        np.testing.assert_array_equal(in_order(open_data(arrays, say=quiet)), UINT8)
    with pytest.raises(
        VitreousError, match=r"holds arrays; open it in Python, as in `vitreous.train\(dict\(numpy"
    ):
        open_data(tmp_path / "digits.npz")


def test_labels_of_splits_are_matched_by_name() -> None:
    store = open_data(((UINT8, NAMES), (UINT8[:2], ["owl", "dog"])), say=quiet)
    assert [by_name(store, "test")[f"array:{i}"][1] for i in range(2)] == ["owl", "dog"]
    mixed = open_data(((UINT8, LABELS), (UINT8[:2], ["owl", "dog"])), say=quiet, classes=CLASSES.tolist())
    assert [by_name(mixed, "test")[f"array:{i}"][1] for i in range(2)] == ["owl", "dog"]


# ---- paths


@pytest.fixture
def pets(tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder of 12 images of 40 by 50 pixels in class folders, and the paths of its files."""
    paths = []
    for i, (image, name) in enumerate(zip(images(40, 50), NAMES, strict=True)):
        file = tmp_path / "pets" / name / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
        paths.append(str(file))
    return tmp_path / "pets", paths


def test_paths_are_read_as_a_folder_is(pets: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, paths = pets
    for options in ({}, {"image_size": 20}, {"fit": "pad"}):
        expected = open_data(folder, tmp_path / "cache", say=quiet, **options)
        for form in (paths, [Path(path) for path in paths], np.array(paths), np.array(paths, object)):
            store = open_data((form, NAMES), say=quiet, **options)
            assert store.fingerprint == expected.fingerprint
            assert store.preprocess == expected.preprocess
            assert set(store.splits["train"].names) == set(paths)
    for path in paths:
        Image.open(path).resize((28, 28)).save(path)
    expected = open_data(folder, tmp_path / "cache", say=quiet)
    assert expected.image_size == 32  # an array of such images would keep 28
    assert open_data((paths, NAMES), say=quiet).fingerprint == expected.fingerprint
    for path, image in zip(paths, images(40, 50), strict=True):
        Image.fromarray(image).save(path)
    files = [Path(path).read_bytes() for path in paths]
    assert open_data((files, NAMES), say=quiet).image_size == 32


def test_paths_share_the_range_of_their_values_and_their_groups(tmp_path: Path) -> None:
    paths = []
    for i, image in enumerate(images(32, 32)):
        Image.fromarray(image[..., 0].astype(np.uint16) * 16).save(tmp_path / f"patient{i // 2}-{i}.png")
        paths.append(tmp_path / f"patient{i // 2}-{i}.png")
    store = open_data((paths, LABELS), say=quiet, group_by=r"patient(\d+)")
    assert store.preprocess.value_range == (0, 4095)
    part = store.splits["train"]
    assert part.groups is not None
    for name, image, group in zip(part.names, part.images, part.groups, strict=True):
        number = int(Path(name).stem.partition("-")[2])
        assert group == str(number // 2)
        np.testing.assert_array_equal(image[..., 0], images(32, 32)[number, ..., 0])


def test_bad_files_are_listed_or_left_out(pets: tuple[Path, list[str]]) -> None:
    _, paths = pets
    Path(paths[3]).write_bytes(b"nothing")
    paths[4] = paths[4].replace(".png", ".gone")
    with pytest.raises(VitreousError, match=r"2 of the 12 images cannot be used.*skip_bad=True") as error:
        open_data((paths, NAMES))
    assert f"{paths[3]}: not an image" in str(error.value)
    assert f"{paths[4]}: unreadable (no such file or directory)" in str(error.value)
    said: list[str] = []
    store = open_data((paths, NAMES), say=said.append, skip_bad=True)
    assert set(store.splits["train"].names) == {path for i, path in enumerate(paths) if i not in (3, 4)}
    for name, (_, label) in by_name(store).items():
        assert label == NAMES[paths.index(name)]
    assert any("2 images cannot be used and are left out" in line for line in said)


# ---- what is refused: each case with the words of its message, and what follows its advice


def stack(pictures: Any) -> list[Image.Image]:
    return [Image.fromarray(image) for image in pictures]


F255, WIDE = UINT8.astype(np.float32), UINT8.astype(int) * 300 - 5
NORMALISED = (UINT8 / 255 - 0.5) / 0.25
ODD = np.zeros((12, 3, 8, 3), np.uint8)
Mended = tuple[Any, dict[str, Any]]
REFUSED: dict[str, tuple[Any, str, Callable[[], Mended]]] = {
    "floats to 255": (
        (F255, LABELS),
        r'give `images.astype\("uint8"\)`',
        lambda: ((F255.astype("uint8"), LABELS), {}),
    ),
    "tensor of floats to 255": (
        (torch.from_numpy(F255), LABELS),
        r"give `images.to\(torch.uint8\)`",
        lambda: ((torch.from_numpy(F255).to(torch.uint8), LABELS), {}),
    ),
    "list of lists of numbers": (
        (UINT8.tolist(), LABELS),
        r'give `np.array\(images\).astype\("uint8"\)`',
        lambda: ((np.array(UINT8.tolist()).astype("uint8"), LABELS), {}),
    ),
    "normalised": (
        (NORMALISED, LABELS),
        r"seem to be normalised.* or value_range=\(-2, 2\)",
        lambda: ((NORMALISED, LABELS), {"value_range": (-2, 2)}),
    ),
    "floats to 16": (
        (UINT8 / 16, LABELS),
        r"give value_range=\(0, 16\)",
        lambda: ((UINT8 / 16, LABELS), {"value_range": (0, 16)}),
    ),
    "floats a little beyond": (
        (UINT8 / 255 * 1.1 - 0.05, LABELS),
        r"give value_range=\(0, 1\), which clips",
        lambda: ((UINT8 / 255 * 1.1 - 0.05, LABELS), {"value_range": (0, 1)}),
    ),
    "divided twice": (
        (UINT8 / 255 / 255, LABELS),
        r"divided twice; give value_range=\(0, 0.00393\)",
        lambda: ((UINT8 / 255 / 255, LABELS), {"value_range": (0, 0.00393)}),
    ),
    "NaN": (
        (np.where(UINT8 > 250, np.nan, UINT8 / 255), LABELS),
        r"give `np.nan_to_num\(images, nan=0, posinf=1, neginf=0\)`",
        lambda: (
            (np.nan_to_num(np.where(UINT8 > 250, np.nan, UINT8 / 255), nan=0, posinf=1, neginf=0), LABELS),
            {},
        ),
    ),
    "NaN in a tensor": (
        (torch.full((12, 3, 6, 6), torch.nan), LABELS),
        r"give `images.nan_to_num\(nan=0, posinf=1, neginf=0\)`",
        lambda: ((torch.full((12, 3, 6, 6), torch.nan).nan_to_num(nan=0, posinf=1, neginf=0), LABELS), {}),
    ),
    "int64": (
        (UINT8.astype(int), LABELS),
        r'give `images.astype\("uint8"\)`',
        lambda: ((UINT8.astype(int).astype("uint8"), LABELS), {}),
    ),
    "int64 of 0 and 1": (
        ((UINT8 > 9).astype(int), LABELS),
        r'give `images.astype\("bool"\)`',
        lambda: (((UINT8 > 9).astype(int).astype("bool"), LABELS), {}),
    ),
    "int64 to 60,000": (
        (UINT8.astype(int) * 200, LABELS),
        r'give `images.astype\("uint16"\)`',
        lambda: (((UINT8.astype(int) * 200).astype("uint16"), LABELS), {}),
    ),
    "int64 with a sign": (
        (WIDE, LABELS),
        r"give value_range=\(-5, 76500\)",
        lambda: ((WIDE, LABELS), {"value_range": (-5, 76500)}),
    ),
    "bfloat16": (
        (torch.from_numpy(UINT8 / 255).bfloat16(), LABELS),
        r"give `images.float\(\)`",
        lambda: ((torch.from_numpy(UINT8 / 255).bfloat16().float(), LABELS), {}),
    ),
    "rows": (
        (UINT8[..., 0].reshape(12, -1), LABELS),
        r"`images.reshape\(-1, 6, 6\)`",
        lambda: ((UINT8[..., 0].reshape(12, -1).reshape(-1, 6, 6), LABELS), {}),
    ),
    "rows of colours": (
        (UINT8.reshape(12, -1), LABELS),
        r"`images.reshape\(-1, 3, 6, 6\)` .* `images.reshape\(-1, 6, 6, 3\)`",
        lambda: ((UINT8.reshape(12, -1).reshape(-1, 6, 6, 3), LABELS), {}),
    ),
    "five channels": (
        (np.zeros((12, 8, 8, 5), np.uint8), LABELS),
        r"as in `images\[..., :3\]`",
        lambda: ((np.zeros((12, 8, 8, 5), np.uint8)[..., :3], LABELS), {}),
    ),
    "two channels first": (
        (np.zeros((12, 2, 8, 8), np.uint8), LABELS),
        r"as in `images\[:, :1\]`",
        lambda: ((np.zeros((12, 2, 8, 8), np.uint8)[:, :1], LABELS), {}),
    ),
    "channels anywhere": (
        (ODD, LABELS),
        r"`\[Image.fromarray\(image\) for image in images\]`",
        lambda: ((stack(ODD), LABELS), {}),
    ),
    "gaps": (
        (UINT8, LABELS * 2),
        r"no label is 1; use .* `labels.astype\(str\)`, or name all 5 classes with classes=",
        lambda: ((UINT8, (LABELS * 2).astype(str)), {}),
    ),
    "gaps, named": (
        (UINT8, LABELS * 2),
        r"or name all 5 classes with classes=\[…\]",
        lambda: ((UINT8, LABELS * 2), {"classes": list("abcde")}),
    ),
    "from 1": (
        (UINT8, torch.from_numpy(LABELS + 1)),
        r"no label is 0; use .* `labels.numpy\(\).astype\(str\)`",
        lambda: ((UINT8, torch.from_numpy(LABELS + 1).numpy().astype(str)), {}),
    ),
    "list from 1": (
        (UINT8, (LABELS + 1).tolist()),
        r"`\[str\(label\) for label in labels\]`",
        lambda: ((UINT8, [str(label) for label in (LABELS + 1).tolist()]), {}),
    ),
    "large numbers": (
        (UINT8, LABELS * 10**9),
        r"no label is 1; use the numbers as names, as in `labels.astype\(str\)`\.$",
        lambda: ((UINT8, (LABELS * 10**9).astype(str)), {}),
    ),
    "float labels": (
        (UINT8, LABELS / 1),
        r"give `labels.astype\(int\)`",
        lambda: ((UINT8, (LABELS / 1).astype(int)), {}),
    ),
    "soft labels": (
        (UINT8, np.eye(3)[LABELS] * 0.9),
        r"as in `labels.argmax\(1\)`",
        lambda: ((UINT8, (np.eye(3)[LABELS] * 0.9).argmax(1)), {}),
    ),
    "several labels": (
        (UINT8, torch.ones(12, 3)),
        r"row 0 is not one 1 among zeros.*`labels.argmax\(1\)`",
        lambda: ((UINT8, torch.ones(12, 3).argmax(1)), {}),
    ),
    "mixed labels": (
        (UINT8, ["1", 2] * 6),
        r"as in `\[str\(label\) for label in labels\]`",
        lambda: ((UINT8, [str(label) for label in ["1", 2] * 6]), {}),
    ),
    "unnamed class": (
        (UINT8, NAMES, {"classes": ["cat", "dog"]}),
        "have the class owl, but `classes` names only cat, dog",
        lambda: ((UINT8, NAMES), {"classes": ["cat", "dog", "owl"]}),
    ),
    "class without training": (
        ((UINT8, LABELS), (UINT8, LABELS + 1)),
        "have the class '3', but no training image has it",
        lambda: (((UINT8, LABELS), (UINT8[LABELS < 2], LABELS[LABELS < 2] + 1)), {}),
    ),
    "only test": (
        {"test": (UINT8, LABELS)},
        r'only test images; give training images too, as \{"train": …\}',
        lambda: ({"train": (UINT8, LABELS), "test": (UINT8, LABELS)}, {}),
    ),
    "unknown split": (
        {"train": (UINT8, LABELS), "foo": (UINT8, LABELS)},
        "key 'foo' is not that of a split; leave it out",
        lambda: ({"train": (UINT8, LABELS)}, {}),
    ),
    "same split": (
        {"train": (UINT8, LABELS), "val": (UINT8, LABELS), "valid": (UINT8, LABELS)},
        "'val' and 'valid' mean the same",
        lambda: ({"train": (UINT8, LABELS), "val": (UINT8, LABELS)}, {}),
    ),
    "generator of images": (
        ((image for image in UINT8), LABELS),
        r"The images are a generator; give `list\(images\)`",
        lambda: ((list(iter(UINT8)), LABELS), {}),
    ),
    "images alone": (UINT8, r"give the labels too: \(images, labels\)", lambda: ((UINT8, LABELS), {})),
    "list alone": (
        list(UINT8),
        r"list of images has no labels; give \(images, labels\)",
        lambda: ((list(UINT8), LABELS), {}),
    ),
    "names as a third": (
        (UINT8, LABELS, ["a", "b", "c"]),
        r"the class names as classes=\[…\]",
        lambda: ((UINT8, LABELS), {"classes": ["a", "b", "c"]}),
    ),
    "splits of a folder": (
        (UINT8, LABELS, {"splits": "none"}),
        "leave splits out",
        lambda: ((UINT8, LABELS), {}),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_taken_when_the_advice_is_followed(case: str) -> None:
    given, words, mended = REFUSED[case]
    options = {}
    if isinstance(given, tuple) and isinstance(given[-1], dict):
        *given, options = given
        given = tuple(given)
    with pytest.raises(VitreousError, match=words) as error:
        open_data(given, say=quiet, **options)
    assert len(str(error.value)) < 330 and str(error.value).endswith(".")
    source, options = mended()
    assert isinstance(open_data(source, say=quiet, **options), ImageStore)


def test_advice_on_values_keeps_their_meaning() -> None:
    """The range of values that a message names gives the pixels that the values stand for."""
    for given, value_range in ((NORMALISED, (-2, 2)), (UINT8 / 16, (0, 255 / 16)), (WIDE, (-5, 76495))):
        store = open_data((given, LABELS), say=quiet, value_range=value_range)
        np.testing.assert_array_equal(in_order(store), UINT8)
        np.testing.assert_array_equal(store.preprocess.batch(given), UINT8)  # as prediction sees them


def test_other_arrays_are_refused_with_the_reason() -> None:
    wrong: list[tuple[tuple[Any, ...], str]] = [
        ((UINT8[:0], LABELS[:0]), "The images are none"),
        ((UINT8, LABELS[:3]), "The labels are 3 for 12 images; give one label for each image"),
        (
            (UINT8, LABELS + 0.5),
            "labels are floats .0.5, 1.5, 2.5, ….*give the number or the name of a class",
        ),
        ((UINT8, LABELS - 1), "reach down to -1"),
        ((UINT8, LABELS, ["a", "b"]), "range from 0 to 2; give positions from 0 to 1"),
        ((UINT8, LABELS.astype(np.uint64) + np.uint64(2**63)), "give positions from 0"),
        ((UINT8, [None] * 12), "lack a value at position 0"),
        ((UINT8, [{"boxes": 1}] * 12), "of the type dict"),
        ((UINT8, np.zeros((12, 3, 2))), r"shape \[12, 3, 2\]"),
        ((UINT8, UINT8), r"labels are ndarray of the shape \[12, 6, 6, 3\]"),
        ((LABELS, UINT8), r"images are ndarray of the shape \[12\]"),
        ((UINT8.astype(complex), LABELS), "type complex128; give uint8"),
        ((np.full((12, 8, 8), "x"), LABELS), "type <U1; give uint8"),
        ((np.zeros((12, 0, 8, 3), np.uint8), LABELS), "so they have no pixels"),
        ((np.zeros((12, 2, 8, 8, 3), np.uint8), LABELS), r"shape \[12, 2, 8, 8, 3\]; give them as"),
        ((UINT8, LABELS, "abc"), r"class names are 'abc'; give a list"),
        ((UINT8, LABELS, 3), r"class names are 3; give a list"),
        ((UINT8, LABELS, ["a", "b", 3]), "class name 3 is not valid text"),
        ((UINT8, LABELS, ["a", "b", "\udcff"]), "is not valid text"),
        ((UINT8, LABELS, ["a", "b", ""]), "class name '' is not valid text"),
        ((UINT8, LABELS, ["a", "b", "a"]), r"Two classes have the name 'a'"),
        ((UINT8, ["a", ""] * 6), "have the name '', which is not valid text"),
        ((UINT8, LABELS, None, (UINT8, NAMES)), "training labels are numbers, but the test labels are names"),
    ]
    for arguments, text in wrong:
        with pytest.raises(VitreousError, match=text):
            from_arrays(*arguments)


def test_a_png_in_memory_is_an_image_too() -> None:
    files = []
    for image in images(32, 32):
        files.append(io.BytesIO())
        Image.fromarray(image).save(files[-1], "PNG")
    store = open_data(([file.getvalue() for file in files], LABELS), say=quiet)
    np.testing.assert_array_equal(in_order(store), images(32, 32))


@pytest.mark.parametrize(
    "other", [lambda i: UINT8[i].astype(np.uint16) * 257, lambda i: UINT8[i] > 99], ids=["uint16", "bool"]
)
def test_a_list_of_arrays_of_several_types_keeps_the_white_of_each(other: Callable[[int], Any]) -> None:
    mixed = [other(i) if i % 2 else UINT8[i] for i in range(len(UINT8))]
    found = in_order(open_data((mixed, LABELS), say=quiet))
    for i, image in enumerate(found):
        if i % 2 and mixed[i].dtype == bool:
            np.testing.assert_array_equal(image, mixed[i] * np.uint8(255))
        else:
            np.testing.assert_array_equal(image, UINT8[i])


def test_a_pil_image_keeps_the_white_of_its_file_until_it_is_loaded() -> None:
    def opened(i: int) -> Image.Image:
        values = (UINT8[i, ..., 0] * 16.0).astype(">u2")
        return Image.open(io.BytesIO(b"P5 6 6 4095\n" + values.tobytes()))

    pictures = [opened(i) for i in range(12)]
    store = open_data((pictures, LABELS), say=quiet)
    assert store.preprocess.value_range == (0, 4095)
    np.testing.assert_array_equal(in_order(store), UINT8[..., :1].repeat(3, -1))
    pictures = [opened(i) for i in range(12)]
    for image in pictures:
        image.load()
    with pytest.raises(VitreousError, match="white was lost when Pillow loaded it; give its path"):
        open_data((pictures, LABELS), say=quiet)


def test_a_data_set_may_hold_images_wholly_outside_a_given_range() -> None:
    values = UINT8[..., 0].astype(np.int32) * 8
    values[3] = -1000
    found = in_order(open_data((values, LABELS), say=quiet, value_range=(0, 2047)))
    assert found[3].max() == 0 and found[4].max() > 200
