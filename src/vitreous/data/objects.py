"""Recognises the Python objects that a data set can be made from, and reads their images one by one.

torch, pandas and datasets are recognised without being imported. Letters: N images, S side of the converted images.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from vitreous.data.decode import (
    MAX_BYTES,
    BadImage,
    decode_to,
    image_dimensions,
    pixels_and_facts,
    read_image,
)
from vitreous.data.folder import WORKERS
from vitreous.data.labels import Labels, read_labels
from vitreous.data.layout.split_names import split_of
from vitreous.data.splits import TITLES
from vitreous.data.tensors import Wording, as_array, channels_last, check_values, kind_of
from vitreous.data.values import Facts, facts_of_array
from vitreous.depth import FLOATS, KEY, OutOfRange, inside, origin_of
from vitreous.errors import VitreousError
from vitreous.files import human_size, path_of
from vitreous.preprocess import Preprocess, upright
from vitreous.wording import count

# Keys of a mapping, and columns of a dataset, in small letters.
IMAGE_KEYS = ("image", "images", "img", "imgs", "pixel_values", "picture", "pictures", "photo", "x", "data")
FILE_COLUMNS = (
    *IMAGE_KEYS,
    "path",
    "paths",
    "file",
    "files",
    "filename",
    "file_name",
    "image_path",
    "filepath",
)
LABEL_KEYS = ("label", "labels", "target", "targets", "class", "y", "category")
ACCEPTED = (
    "give a name, a path, (images, labels), a Dataset of torch or Hugging Face, "
    'or {"train": …, "test": …} with such parts'
)
AHEAD = 256  # files that threads may have read before they are needed
TWICE = 8  # images of a dataset that are read twice to see whether they change
Result = tuple[np.ndarray, Facts] | BadImage


@dataclass
class Part:
    """The images of one split, with their labels.

    Attributes:
        wording: how messages speak of them.
        names: [N], which identify the images.
        labels: as they were given, or None until all images have been read, if they come with the images.
        classes: the class names that the source gives to its labels; None if it gives none.
        notes: sentences about what may be meant differently.
        keeps_size: whether images that are all alike in size and square keep it, if they are not large.
    """

    wording: Wording
    names: Sequence[str]
    labels: Any = None
    classes: Sequence[str] | None = None
    notes: tuple[str, ...] = ()
    keeps_size: bool = True

    def __len__(self) -> int:
        return len(self.names)

    def square(self) -> int | None:
        """The side that all images have, in pixels, if the source itself says so."""
        return None

    def dimensions(self, positions: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Width and height of the images at `positions`, as far as they can be read."""
        raise NotImplementedError

    def convert(self, settings: Preprocess, positions: Sequence[int]) -> Iterator[Result]:
        """The images at `positions` as uint8 [S, S, 3], with what they contribute to choices for all of them."""
        raise NotImplementedError

    def check(self, value_range: tuple[float, float] | None) -> None:
        """Raises `VitreousError` if the values of all images together leave open what is white."""

    def read_labels(self, split: str, kept: np.ndarray) -> Labels:
        """The labels of the images at the positions `kept`, after all images have been converted.

        Args:
            split: as in "test", for messages; "" if it is the only one.
            kept: int [M].
        """
        kind = "dataset" if self.wording.kind == "dataset" else ""
        return read_labels(self.labels, len(self), split, self.classes, kind).subset(kept)


# ---- images in one array


@dataclass
class ArrayPart(Part):
    """Images in an array: `array` [N, H, W] or [N, H, W, C]."""

    array: np.ndarray = field(default_factory=lambda: np.empty(0))

    def square(self) -> int | None:
        height, width = self.array.shape[1:3]
        return height if height == width else None

    def dimensions(self, positions: Sequence[int]) -> Iterator[tuple[int, int]]:
        height, width = self.array.shape[1:3]
        for _ in positions:
            yield width, height

    def convert(self, settings: Preprocess, positions: Sequence[int]) -> Iterator[Result]:
        for position in positions:
            yield convert(settings, self.array[position])

    def check(self, value_range: tuple[float, float] | None) -> None:
        ranged = self.array.dtype.kind in "iuf"
        if ranged and value_range is not None:
            return
        low, high = (float(self.array.min()), float(self.array.max())) if ranged else (0.0, 1.0)
        self.notes += check_values(low, high, self.array.dtype, self.wording)


# ---- images in files


@dataclass
class FilePart(Part):
    """Images as the bytes of files: `read` returns those of the image at a position, or raises `BadImage`."""

    read: Callable[[int], bytes] = lambda position: b""

    def dimensions(self, positions: Sequence[int]) -> Iterator[tuple[int, int]]:
        for position in positions:
            try:
                yield image_dimensions(self.read(position))
            except BadImage:
                continue

    def convert(self, settings: Preprocess, positions: Sequence[int]) -> Iterator[Result]:
        def decoded(position: int) -> Result:
            try:
                return decode_to(settings, self.read(position))
            except BadImage as bad:
                return bad

        with ThreadPoolExecutor(WORKERS) as pool:
            for start in range(0, len(positions), AHEAD):
                yield from pool.map(decoded, positions[start : start + AHEAD])


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file; raises `BadImage`."""
    try:
        file = Path(path).expanduser()
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
            raise BadImage(
                "not an image", "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            )
        if status.st_size > MAX_BYTES:
            raise BadImage("too large", human_size(status.st_size))
        return file.read_bytes()
    except (OSError, RuntimeError, ValueError) as error:  # no such file, no such user, a null character
        raise BadImage("unreadable", (getattr(error, "strerror", None) or str(error)).lower()) from None


# ---- images one by one


@dataclass
class ItemPart(Part):
    """Images that are objects: `item` returns the one at a position, with its label if `labels` is None."""

    item: Callable[[int], tuple[Any, Any]] = lambda position: (None, None)
    low: float = np.inf
    high: float = -np.inf
    collected: dict[int, Any] = field(default_factory=dict)

    def dimensions(self, positions: Sequence[int]) -> Iterator[tuple[int, int]]:
        for position in positions:
            try:
                image, _ = self._image(position)
            except BadImage:
                continue
            yield image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])

    def convert(self, settings: Preprocess, positions: Sequence[int]) -> Iterator[Result]:
        for position in positions:
            try:
                image, label = self._image(position)
            except BadImage as bad:
                yield bad
                continue
            self.collected[position] = label
            if isinstance(image, np.ndarray) and settings.value_range is None:
                self._check_values(image)
            yield convert(settings, image)

    def check(self, value_range: tuple[float, float] | None) -> None:
        if self.high >= self.low and value_range is None:
            self.notes += check_values(self.low, self.high, np.dtype(np.float32), self.wording)

    def read_labels(self, split: str, kept: np.ndarray) -> Labels:
        if self.labels is not None:
            return super().read_labels(split, kept)
        kind = "dataset" if self.wording.kind == "dataset" else ""
        return read_labels(
            [self.collected[position] for position in kept], len(kept), split, self.classes, kind
        )

    def repeats(self) -> bool:
        """Whether the images are the same when they are read again."""
        for position in sample(len(self), TWICE):
            try:
                first, second = (self._image(position)[0] for _ in range(2))
            except BadImage:
                continue
            if not np.array_equal(np.asarray(first), np.asarray(second)):
                return False
        return True

    def _image(self, position: int) -> tuple[Image.Image | np.ndarray, Any]:
        """An image as a PIL image, or as an array [H, W] or [H, W, C], with its label."""
        try:
            image, label = self.item(position)
            if isinstance(image, Image.Image):
                image.info[KEY] = origin_of(image)  # loading loses it
                image.load()
        except OutOfRange as error:
            raise BadImage("unsupported", f"{error.values}; {error.remedy}") from None
        except VitreousError:
            raise
        except Exception as error:  # whatever the reader of a stranger raises
            reason = str(error) or type(error).__name__
            raise BadImage("unreadable", f"{type(error).__name__}: {reason}"[:200]) from error
        if isinstance(image, Image.Image):
            return image, label
        if isinstance(image, Mapping) and {"bytes", "path"} & set(image):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, str | bytes | os.PathLike):
            return _decoded(image), label
        subject = self.wording.subject
        place = "" if subject == "The images" else f" of {subject[0].lower()}{subject[1:]}"
        wording = Wording(f"Image {position}{place}", self.wording.kind)
        array = as_array(image, wording.subject)
        if array.dtype.kind not in "biuf" or array.ndim not in (2, 3):
            raise VitreousError(
                f"{wording.subject} is {_described(image)}; give a PIL image, or an array [H, W, 3] or [H, W]."
            )
        if array.ndim == 3:
            array = channels_last(array[None], wording)[0]
        return array, label

    def _check_values(self, array: np.ndarray) -> None:
        low, high = float(array.min()), float(array.max())
        if array.dtype.kind == "f":
            self.low, self.high = float(np.min([self.low, low])), float(np.max([self.high, high]))
            if inside("f", self.low, self.high, FLOATS):
                return  # until all are known
            low, high = self.low, self.high
        elif array.dtype in (np.uint8, np.uint16, bool):
            return
        check_values(low, high, array.dtype, self.wording)


def _decoded(source: Any) -> Image.Image:
    return read_image(source if isinstance(source, bytes) else read_file(source))


def convert(settings: Preprocess, image: Image.Image | np.ndarray) -> Result:
    """One image as uint8 [S, S, 3], with what it contributes to choices for all of them.

    Raises:
        VitreousError: the values of an array do not fit the range of `settings`.
    """
    if isinstance(image, np.ndarray):
        ranged = image.dtype.kind in "iuf" and settings.value_range is not None
        deep = image.dtype == np.uint16 or (ranged and image.dtype != np.uint8)
        return settings.from_array(image), facts_of_array(image, deep=deep)
    try:
        return pixels_and_facts(settings, upright(image), origin_of(image))
    except OutOfRange as error:
        return BadImage("unsupported", f"{error.values}; {error.remedy}")
    except Exception as error:  # Pillow raises nearly anything for damaged bytes
        return BadImage("unreadable", f"{type(error).__name__}: {error}"[:200])


def sample(total: int, number: int) -> range:
    """Positions of up to about `number` images, evenly from all of them."""
    return range(0, total, max(1, total // number))


# ---- what an object is


@dataclass(frozen=True)
class Source:
    """A Python object that was understood.

    Attributes:
        name: what the data set is called.
        parts: the images of each split that it has.
        notes: sentences about what may be meant differently.
    """

    name: str
    parts: dict[str, Part]
    notes: tuple[str, ...] = ()


def understand(source: Any) -> Source:
    """Understands a Python object as a data set; no image is read, except for the first ones of a dataset.

    Raises:
        VitreousError: it is something else, or cannot be read in full.
    """
    refuse_streams(source)
    if isinstance(source, Mapping):
        return Source(name_of(source), _parts_of_mapping(source))
    if isinstance(source, tuple | list):
        if len(source) in (2, 3) and all(map(is_part, source)):
            splits = ("train", "test") if len(source) == 2 else ("train", "val", "test")
            number, meaning = "two", "training and test"
            if len(source) == 3:
                number, meaning = "three", "training, validation and test"
            note = (
                f"The {number} parts are taken for {meaning}, in this order "
                '({"train": …, "val": …, "test": …} names them).'
            )
            parts = {split: part_of(part, split) for split, part in zip(splits, source, strict=True)}
            return Source(name_of(source), parts, (note,))
        if not (is_pair(source) or _is_list_of_items(source)):
            _refuse_sequence(source)
    elif not is_dataset(source):
        raise VitreousError(f"A data set cannot be made from {_described(source)}; {_hint(source)}.")
    return Source(name_of(source), {"train": part_of(source, "")})


def name_of(source: Any) -> str:
    """What the data set of a Python object is called."""
    if isinstance(source, Mapping):
        inner = next((source[key] for key in source if split_of(str(key))), None)
        return "arrays" if inner is None else name_of(inner)
    if isinstance(source, tuple | list):
        return name_of(source[0]) if source and all(map(is_dataset, source)) else "arrays"
    info = getattr(source, "info", None)
    if is_huggingface(source):
        name = getattr(info, "dataset_name", None) or getattr(info, "builder_name", None) or "dataset"
    else:
        while hasattr(source, "dataset"):  # such as torch's Subset
            source = source.dataset
        name = type(source).__name__ if is_dataset(source) else "arrays"
    return re.sub(r"[^\w.]+", "-", str(name))[:40].strip("-.") or "dataset"


def is_huggingface(source: Any) -> bool:
    """Whether an object comes from the package datasets."""
    return type(source).__module__.partition(".")[0] == "datasets"


def is_dataset(source: Any) -> bool:
    """Whether an object is a dataset whose items are images with labels, such as torch's."""
    if is_huggingface(source) and hasattr(source, "column_names"):
        return True
    if isinstance(source, str | bytes | tuple | list | Mapping | np.ndarray | os.PathLike | Image.Image):
        return False
    if not (hasattr(source, "__getitem__") and hasattr(source, "__len__")) or hasattr(source, "__array__"):
        return False
    return not _is_column(source)


def _is_column(source: Any) -> bool:
    """Whether an object holds the values of one column, images or labels, rather than pairs of them."""
    if is_huggingface(source):
        return not hasattr(source, "column_names")
    return hasattr(type(source), "dtype") or hasattr(source, "iloc") or isinstance(source, range)


def is_part(source: Any) -> bool:
    """Whether an object can be one split of a data set: images and labels together."""
    if isinstance(source, tuple | list):
        return is_pair(source) or _is_list_of_items(source)
    if isinstance(source, Mapping):
        return _find_key(source, IMAGE_KEYS) is not None and _find_key(source, LABEL_KEYS) is not None
    return is_dataset(source)


def is_pair(source: Sequence[Any]) -> bool:
    """Whether two objects are images and their labels."""
    return len(source) == 2 and _holds_images(source[0]) and _holds_labels(source[1])


def _holds_images(values: Any) -> bool:
    if isinstance(values, str | bytes | Mapping | Image.Image) or not hasattr(values, "__len__"):
        return False
    dimensions = getattr(values, "ndim", 1)
    if dimensions != 1:
        return dimensions >= 2
    if is_dataset(values):
        return False
    first = _first(values)
    return first is None or is_image(first) or isinstance(first, list | tuple)


def _holds_labels(values: Any) -> bool:
    if isinstance(values, str | bytes | Mapping | Image.Image) or not hasattr(values, "__len__"):
        return False
    if hasattr(values, "ndim"):
        return 1 <= values.ndim <= 2
    if is_dataset(values):
        return False
    first = _first(values)
    return first is None or isinstance(first, Mapping) or _is_label(first)


def is_image(value: Any) -> bool:
    """Whether an object is one image, or the path or bytes of one."""
    if isinstance(value, Image.Image | str | bytes | os.PathLike):
        return True
    if isinstance(value, Mapping):
        return bool({"bytes", "path"} & set(value))
    return getattr(value, "ndim", 0) in (2, 3)


def _is_label(value: Any) -> bool:
    """Whether an object is the label of one image: a number, a name, or a row of a few numbers."""
    if isinstance(value, str | bytes | int | float | np.generic) or value is None:
        return True
    if hasattr(value, "ndim"):
        return value.ndim <= 1
    return isinstance(value, list | tuple) and all(isinstance(number, int | float) for number in value)


def _first(values: Any) -> Any:
    """The first of several values, or None if there is none."""
    if hasattr(values, "iloc"):
        return values.iloc[0] if len(values) else None
    return values[0] if len(values) and hasattr(values, "__getitem__") else next(iter(values), None)


def _is_list_of_items(source: Sequence[Any]) -> bool:
    """Whether a list holds (image, label) pairs, or mappings with the keys image and label."""
    return bool(source) and all(_is_item(item) for item in (source[0], source[-1]))


def _is_item(item: Any) -> bool:
    if isinstance(item, Mapping):
        return _find_key(item, IMAGE_KEYS) is not None and _find_key(item, LABEL_KEYS) is not None
    if not (isinstance(item, tuple | list) and len(item) == 2):
        return False
    return is_image(item[0]) and _is_label(item[1])


def refuse_streams(source: Any) -> None:
    """Raises `VitreousError` for objects that can only be read from front to back."""
    kind = type(source).__name__
    if hasattr(source, "dataset") and hasattr(source, "batch_size") and not hasattr(source, "__getitem__"):
        raise VitreousError(f"A {kind} gives batches; give its dataset, as in `loader.dataset`.")
    streamed = "IterableDataset" in {base.__name__ for base in type(source).__mro__}
    if streamed and is_huggingface(source):
        raise VitreousError(
            "A streamed dataset of Hugging Face has no known length; load it without streaming=True, or read a part "
            "of it, as in `list(dataset.take(10_000))`."
        )
    if streamed or (hasattr(source, "__iter__") and not hasattr(source, "__getitem__")):
        raise VitreousError(
            f"A data set cannot be made from {_article(kind)}, which can only be read from front to back; read it "
            "into a list first, as in `list(dataset)`, if that fits into memory."
        )


def _refuse_sequence(source: Sequence[Any]) -> NoReturn:
    kind = type(source).__name__
    if len(source) == 2:
        images, labels = source
        for what, values in (("images", images), ("labels", labels)):
            if hasattr(values, "__iter__") and not hasattr(values, "__len__"):
                raise VitreousError(f"The {what} are {_described(values)}; give `list({what})`.")
        if hasattr(images, "__len__") and not _holds_images(images):
            raise VitreousError(
                f"The images are {_described(images)}; give an array [N, H, W, 3], or a list of images or of paths."
            )
        raise VitreousError(f"The labels are {_described(labels)}; give a list of one label for each image.")
    if source and all(is_image(item) for item in source[:2]):
        raise VitreousError(f"A {kind} of images has no labels; give (images, labels).")
    if len(source) == 3 and is_pair(source[:2]):
        raise VitreousError(
            "A data set cannot be made from a tuple of three; give (images, labels), and the class names as "
            "classes=[…]."
        )
    raise VitreousError(
        f"A data set cannot be made from {_article(kind)} of {count(len(source), 'element')}; {ACCEPTED}."
    )


def _described(value: Any) -> str:
    """What an object is, for messages: "ndarray of the shape [6, 4]"."""
    kind = type(value).__name__
    return f"{kind} of the shape {list(value.shape)}" if getattr(value, "shape", ()) else _article(kind)


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in tuple('aeiou') else 'a'} {noun}"


def _hint(source: Any) -> str:
    """What to give instead of an object."""
    if hasattr(source, "iloc") and hasattr(source, "columns"):
        columns = [str(column) for column in source.columns]
        columns = columns or ["file"]
        image = next((column for column in columns if column.lower() in FILE_COLUMNS), columns[0])
        rest = [column for column in columns if column != image]
        label = next(
            (column for column in rest if column.lower() in LABEL_KEYS), rest[0] if rest else "label"
        )
        return f'give the columns of files and of labels, as in `(table["{image}"], table["{label}"])`'
    if hasattr(source, "ndim"):
        return "give the labels too: (images, labels)"
    return ACCEPTED


# ---- mappings


def _parts_of_mapping(source: Mapping[Any, Any]) -> dict[str, Part]:
    """The splits of {"train": part}, {"images": …, "labels": …} or {"x_train": …, "y_train": …}."""
    if is_part(source):
        return {"train": part_of(source, "")}
    columns: dict[str, dict[str, Any]] = {}
    for key in source:
        split, column = _split_column(key)
        if split:
            columns.setdefault(split, {})[column] = key
    pairs = {split: pair for split, pair in columns.items() if len(pair) == 2}
    parts: dict[str, Any] = {
        split: (source[pair["images"]], source[pair["labels"]]) for split, pair in pairs.items()
    }
    in_pairs = {key for pair in pairs.values() for key in pair.values()}
    keys: dict[str, Any] = {split: pair["images"] for split, pair in pairs.items()}
    other = []
    for key in source:
        if key in in_pairs:
            continue
        split = split_of(str(key))
        if not split:
            other.append(str(key))
            continue
        if split in keys:
            raise VitreousError(
                f"The keys {keys[split]!r} and {key!r} mean the same split; leave out one of them."
            )
        keys[split], parts[split] = key, source[key]
    if other and parts:
        raise VitreousError(
            f"The key {other[0]!r} is not that of a split; leave it out, or rename it to train, val or test."
        )
    if not parts:
        raise VitreousError(
            f"The keys of the mapping are {', '.join(map(repr, map(str, source)))}; "
            'give {"train": …, "val": …, "test": …}, or {"images": …, "labels": …}.'
        )
    ordered = {split: parts[split] for split in TITLES if split in parts}
    understood = {split: part_of(part, split) for split, part in ordered.items()}
    for split, part in understood.items():
        if str(keys[split]).lower() not in (split, "validation") and split not in pairs:
            part.notes += (f"The part {str(keys[split])!r} is the {TITLES[split]} split.",)
    return understood


def _split_column(key: Any) -> tuple[str, str]:
    """The split of a key such as "x_train" or "test_labels", and "images" or "labels"; ("", "") for other keys."""
    words = str(key).lower().split("_")
    for split, column in (words, words[::-1]) if len(words) == 2 else ():
        if split_of(split) and column in (*IMAGE_KEYS, *LABEL_KEYS):
            return split_of(split), "images" if column in IMAGE_KEYS else "labels"
    return "", ""


def _find_key(mapping: Mapping[Any, Any], keys: Sequence[str]) -> Any:
    """The key of a mapping that is among `keys` in any letter case; None if none or several are."""
    present = [key for key in mapping if str(key).lower() in keys]
    return present[0] if len(present) == 1 else None


# ---- one split


def part_of(source: Any, split: str) -> Part:
    """The images and labels of one split.

    Args:
        split: "train", "val" or "test"; "" if it is the only one.

    Raises:
        VitreousError: it is not images with labels.
    """
    refuse_streams(source)
    subject = f"The {TITLES[split]} images" if split else "The images"
    if isinstance(source, Mapping) and is_part(source):
        source = (source[_find_key(source, IMAGE_KEYS)], source[_find_key(source, LABEL_KEYS)])
    if isinstance(source, tuple | list) and is_pair(source):
        images, labels = source
        return _part_of_pair(images, labels, subject)
    if isinstance(source, tuple | list) and _is_list_of_items(source):
        return _part_of_dataset(source, subject, "list")
    if is_huggingface(source) and hasattr(source, "column_names"):
        return _part_of_huggingface(source, subject)
    if is_dataset(source):
        return _part_of_dataset(source, subject, "dataset")
    if isinstance(source, tuple | list):
        _refuse_sequence(source)
    raise VitreousError(f"{subject} cannot be made from {_described(source)}; {_hint(source)}.")


def _part_of_pair(images: Any, labels: Any, subject: str) -> Part:
    total = len(images)
    if total == 0:
        raise VitreousError(f"{subject} are none; give at least one.")
    if is_huggingface(labels):
        labels = list(labels)
    names = [f"array:{i}" for i in range(total)]
    wording = Wording(subject, kind_of(images))
    if _is_numeric_array(images):
        return ArrayPart(wording, names, labels, array=channels_last(as_array(images, subject), wording))
    if not is_huggingface(images):
        images = list(images.to_numpy() if hasattr(images, "iloc") else images)
    first = images[0]
    if isinstance(first, str | os.PathLike):
        return _part_of_paths(images, labels, subject)
    if isinstance(first, bytes):
        return FilePart(Wording(subject, "list"), names, labels, read=images.__getitem__)
    shapes = {getattr(image, "shape", None) for image in images} if not is_huggingface(images) else {None}
    if len(shapes) == 1 and None not in shapes:
        arrays = [as_array(image, subject) for image in images]
        # Stacking converts mixed types to one, but each type has its own white.
        if len({array.dtype.newbyteorder("=") for array in arrays}) == 1:
            return ArrayPart(wording, names, labels, array=channels_last(np.stack(arrays), wording))
    if isinstance(first, list | tuple):  # nested lists of numbers
        return ArrayPart(wording, names, labels, array=channels_last(as_array(images, subject), wording))
    return ItemPart(Wording(subject, "list"), names, labels, item=lambda position: (images[position], None))


def _is_numeric_array(values: Any) -> bool:
    """Whether an object is an array or tensor of numbers, also of another package that numpy can read."""
    if hasattr(values, "detach"):
        return True
    return (
        hasattr(values, "ndim")
        and not hasattr(values, "iloc")
        and np.asarray(values[:1]).dtype.kind not in "USO"
    )


def _part_of_paths(paths: Sequence[Any], labels: Any, subject: str) -> Part:
    for position, path in enumerate(paths):
        if not isinstance(path, str | os.PathLike):
            raise VitreousError(
                f"{subject} are paths, but number {position} is {_described(path)}; give all of them as paths."
            )
    names = [os.fspath(path) for path in paths]
    names = [
        name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in map(os.fsdecode, names)
    ]
    if len(names) == 1 and path_of(names[0]).is_dir():
        raise VitreousError(f"{names[0]} is a folder; give its path alone, without labels.")
    return FilePart(
        Wording(subject, "list"),
        names,
        labels,
        keeps_size=False,  # as for a folder of the same files
        read=lambda position: read_file(paths[position]),
    )


def _part_of_dataset(dataset: Any, subject: str, kind: str) -> Part:
    """A dataset of torch or a list, whose items are (image, label) or mappings."""
    total = len(dataset)
    if total == 0:
        raise VitreousError(f"{subject} are none, because the dataset is empty; give another one.")
    try:
        first = dataset[0]
    except VitreousError:
        raise
    except Exception as error:
        raise VitreousError(
            f"Item 0 of the dataset cannot be read ({type(error).__name__}: {error}); correct the dataset."
        ) from error
    image_key, label_key = _item_keys(first)

    def item(position: int) -> tuple[Any, Any]:
        values = dataset[position]
        return values[image_key], values[label_key]

    classes = declared_classes(dataset)
    part = ItemPart(Wording(subject, kind), [f"array:{i}" for i in range(total)], classes=classes, item=item)
    if kind == "dataset" and not part.repeats():
        part.notes += (
            "The dataset gives other images each time it is read, so its transform is random. Each image is read once; "
            "remove the random transforms, because training augments by itself.",
        )
    return part


def _item_keys(item: Any) -> tuple[Any, Any]:
    """Where an item of a dataset has its image and its label."""
    if isinstance(item, Mapping):
        image, label = (_find_key(item, keys) for keys in (IMAGE_KEYS, LABEL_KEYS))
        if image is None or label is None:
            raise VitreousError(
                f"The items of the dataset have the keys {', '.join(map(repr, map(str, item)))}; "
                "name one of them image and one of them label."
            )
        return image, label
    if isinstance(item, tuple | list):
        if len(item) == 2:
            return 0, 1
        raise VitreousError(
            f"The items of the dataset have {count(len(item), 'part')}; give pairs of image and label, as in "
            "`[(item[0], item[1]) for item in dataset]`."
        )
    raise VitreousError(
        f"The items of the dataset are {_described(item)}; let each item be an image with its label: (image, label)."
    )


def declared_classes(dataset: Any) -> tuple[str, ...] | None:
    """The class names of a dataset as torchvision keeps them, also below a `Subset` or a `ConcatDataset`."""
    classes = getattr(dataset, "classes", None)
    if isinstance(classes, list | tuple) and classes and all(isinstance(name, str) for name in classes):
        return tuple(classes)
    if hasattr(dataset, "dataset"):
        return declared_classes(dataset.dataset)
    inner = getattr(dataset, "datasets", None)
    if isinstance(inner, list | tuple) and inner:
        every = {declared_classes(part) for part in inner}
        return every.pop() if len(every) == 1 else None
    return None


# ---- Hugging Face


def _part_of_huggingface(dataset: Any, subject: str) -> Part:
    """A `Dataset` of the package datasets; its columns are found by their types."""
    if len(dataset) == 0:
        raise VitreousError(f"{subject} are none, because the dataset is empty; give another one.")
    features = dataset.features
    notes: tuple[str, ...] = ()
    if dataset.format["type"] == "custom":
        notes = (f"{subject} are read as they are stored; the transform of the dataset is not applied.",)
    plain = dataset.with_format(None)
    image = _only_column(features, lambda name, kind: kind == "Image", "image", IMAGE_KEYS)
    label = _only_column(
        {name: feature for name, feature in features.items() if name != image},
        lambda name, kind: kind == "ClassLabel",
        "label",
        LABEL_KEYS,
    )
    if len(features) > 2:
        notes += (f"{subject} are its column {image}, and their labels its column {label}.",)
    feature = features[label]
    classes = tuple(feature.names) if type(feature).__name__ == "ClassLabel" else None
    labels = list(plain[label])
    names = [f"array:{i}" for i in range(len(dataset))]
    wording = Wording(subject, "dataset")
    kind = features[image]
    if type(kind).__name__ != "Image":
        dtype = _dtype_of(kind)

        def array(position: int) -> tuple[Any, Any]:
            value = plain[position][image]
            return (value if dtype is None else np.array(value, dtype)), None

        return ItemPart(wording, names, labels, classes, notes, item=array)
    if getattr(kind, "mode", None):  # the dataset converts its images itself
        return ItemPart(
            wording, names, labels, classes, notes, item=lambda position: (plain[position][image], None)
        )
    stored = plain.select_columns([image]).cast_column(image, type(kind)(decode=False))

    def read(position: int) -> bytes:
        value = stored[position][image]
        if value is None:
            raise BadImage("unreadable", "no image is stored")
        return value["bytes"] if value["bytes"] is not None else read_file(value["path"])

    return FilePart(wording, names, labels, classes, notes, read=read)


def _dtype_of(feature: Any) -> str | None:
    """The type of numbers of a column of arrays; None if it holds something else."""
    while feature is not None and not isinstance(getattr(feature, "dtype", None), str | None):
        feature = getattr(feature, "feature", None)
    inner = getattr(feature, "feature", None)
    if inner is not None:
        return _dtype_of(inner)
    dtype = getattr(feature, "dtype", None)
    return dtype if dtype is not None and re.fullmatch(r"bool|u?int\d+|float\d+", dtype) else None


def _only_column(
    features: Mapping[str, Any], suits: Callable[[str, str], bool], what: str, keys: Sequence[str]
) -> str:
    """The one column whose type suits, or else the one whose name does."""
    columns = [name for name, feature in features.items() if suits(name, type(feature).__name__)]
    columns = columns or [name for name in features if name.lower() in keys]
    if len(columns) == 1:
        return columns[0]
    if columns:
        more = ", ".join(f'"{name}"' for name in columns[1:])
        raise VitreousError(
            f"The dataset has several columns of {what}s ({', '.join(columns)}); keep one of them, as in "
            f"`dataset.remove_columns([{more}])`."
        )
    known = ", ".join(islice(features, 8)) or "none"
    example = next(iter(features), "COLUMN")
    raise VitreousError(
        f"The dataset has no column of {what}s among its columns ({known}); name one of them {what}, as in "
        f'`dataset.rename_column("{example}", "{what}")`.'
    )
