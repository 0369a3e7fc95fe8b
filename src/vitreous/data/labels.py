"""Labels in any form as positions in a list of class names.

Letters: N images, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitreous.data.layout.names import natural_key
from vitreous.data.splits import TITLES
from vitreous.data.tensors import as_array, kind_of
from vitreous.errors import VitreousError
from vitreous.wording import count, shortened

MANY = 1000  # classes that nobody names by hand


@dataclass(frozen=True)
class Labels:
    """The labels of one split, and what they mean as far as their source says it.

    Attributes:
        numbers: int64 [N], or None if the labels are names.
        names: [N] class names, or None if the labels are numbers.
        classes: the class names that the source gives to its numbers; None if it gives none.
        defaults: names for the numbers where nobody gives any; None calls each class by its number.
        kind: what holds the labels: "numpy", "torch", "list" or "dataset".
    """

    numbers: np.ndarray | None = None
    names: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    defaults: tuple[str, ...] | None = None
    kind: str = "list"

    def subset(self, index: Sequence[int] | np.ndarray) -> Labels:
        """The labels at `index` int [M]."""
        if self.names is not None:
            return replace(self, names=tuple(self.names[i] for i in index))
        assert self.numbers is not None
        return replace(self, numbers=self.numbers[index])


def class_names(classes: Any) -> tuple[str, ...]:
    """Checks the class names that a person gave.

    Raises:
        VitreousError: they are not a list of different, non-empty texts.
    """
    if isinstance(classes, str | bytes | Mapping) or not isinstance(classes, Iterable):
        raise VitreousError(f"The class names are {classes!r}; give a list of names.")
    names = tuple(classes)
    for name in names:
        # A lone surrogate comes from a file name in another encoding. It cannot be written to any file.
        if not isinstance(name, str) or not name or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise VitreousError(f"The class name {name!r} is not valid text; give each class a name.")
    repeated = [name for name, number in Counter(names).items() if number > 1]
    if repeated:
        raise VitreousError(f"Two classes have the name {repeated[0]!r}; give each class its own name.")
    return tuple(str(name) for name in names)


def read_labels(
    labels: Any, images: int, split: str = "", classes: Sequence[str] | None = None, kind: str = ""
) -> Labels:
    """Reads the labels of one split.

    Args:
        labels: numbers [N] or [N, 1]; 0 and 1 as [N, C] with one 1 in each row (one-hot); or names [N].
        images: N.
        split: as in "test", for messages; "" if there is one split only.
        classes: the class names that the source gives to its numbers.
        kind: what holds the labels, if not what `labels` show.

    Raises:
        VitreousError: they are something else, or not one for each image.
    """
    subject = f"The {split} labels" if split else "The labels"
    if isinstance(labels, set | frozenset):
        raise VitreousError(
            f"{subject} are a set, which has no order; give a list with one label for each image."
        )
    kind = kind or kind_of(labels)
    declared = None if classes is None else class_names(classes)
    values = _as_values(labels, subject)
    if len(values) != images:
        raise VitreousError(
            f"{subject} are {len(values):,} for {count(images, 'image')}; give one label for each image."
        )
    if isinstance(values, list):
        return Labels(names=tuple(values), kind=kind)
    if values.ndim == 2 and values.shape[1] > 1:
        return Labels(
            _one_hot(values, subject), classes=declared, defaults=_digits(values.shape[1]), kind=kind
        )
    if values.ndim == 2:
        values = values[:, 0]
    if values.ndim != 1:
        raise VitreousError(f"{subject} have the shape {list(values.shape)}; give one label for each image.")
    if values.dtype == bool:
        return Labels(values.astype(np.int64), classes=declared, defaults=("False", "True"), kind=kind)
    if values.dtype.kind == "f":
        whole = np.isfinite(values) & (values == np.rint(values))
        code = {"torch": "labels.long()", "numpy": "labels.astype(int)"}.get(
            kind, "[int(label) for label in labels]"
        )
        advice = "whole numbers from the dataset" if kind == "dataset" else f"`{code}`"
        hint = f"give {advice}" if whole.all() else "give the number or the name of a class"
        raise VitreousError(
            f"{subject} are floats ({_first(values[~whole] if not whole.all() else values)}), and a class is a whole "
            f"number or a name; {hint}."
        )
    if values.dtype.kind == "u" and len(values) and values.max() > np.iinfo(np.int64).max:
        raise VitreousError(f"{subject} reach {values.max()}; give positions from 0, or class names.")
    return Labels(values.astype(np.int64), classes=declared, kind=kind)


def _as_values(labels: Any, subject: str) -> np.ndarray | list[str]:
    """Labels as a list of names, or as an array of numbers."""
    if isinstance(labels, str | bytes | Mapping) or not hasattr(labels, "__len__"):
        raise VitreousError(
            f"{subject} are given as {type(labels).__name__}; give a list of one label for each image."
        )
    if hasattr(labels, "detach") or (isinstance(labels, np.ndarray) and labels.dtype.kind in "biuf"):
        return as_array(labels, subject)
    items = [_plain(label) for label in _flat(labels)]
    for position, label in enumerate(items):
        if label is None or (
            isinstance(label, float) and label != label
        ):  # NaN marks what is missing in pandas
            raise VitreousError(
                f"{subject} lack a value at position {position}; leave out the images without a label."
            )
    named = [isinstance(label, str) for label in items]
    if all(named) and items:
        return [_valid(label, subject) for label in items]
    if any(named):
        raise VitreousError(
            f"{subject} are numbers and names mixed ({items[named.index(False)]!r} and {items[named.index(True)]!r}); "
            "give all of them as names, as in `[str(label) for label in labels]`."
        )
    for label in items:
        if isinstance(label, Mapping) or not (np.isscalar(label) or hasattr(label, "__len__")):
            raise VitreousError(
                f"{subject} are of the type {type(label).__name__}; give the number or the name of one class for "
                "each image."
            )
    try:
        values = np.asarray(items)
    except ValueError:
        values = np.empty(0, object)
    if values.dtype.kind not in "biuf":
        raise VitreousError(
            f"{subject} differ in their form ({_first(items)}); give the number or the name of one class for each "
            "image."
        )
    return values


def _flat(labels: Any) -> Iterable[Any]:
    """Labels one by one, of [N, 1] texts too."""
    if isinstance(labels, np.ndarray) and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if hasattr(labels, "to_numpy"):  # a column of pandas, whose own index need not count from 0
        return list(labels.to_numpy())
    return list(labels) if isinstance(labels, Iterable) else [labels[i] for i in range(len(labels))]


def _plain(label: Any) -> Any:
    """A label as Python holds it, if it is a single value."""
    if hasattr(label, "detach"):
        label = label.detach().cpu().numpy()
    if isinstance(label, np.ndarray | list | tuple) and np.size(label) == 1:
        label = np.asarray(label).reshape(-1)[0]
    if isinstance(label, np.generic):
        label = label.item()
    return label.decode("utf-8", "replace") if isinstance(label, bytes) else label


def _valid(name: Any, subject: str) -> str:
    if not name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise VitreousError(
            f"{subject} have the name {name!r}, which is not valid text; give each class a name."
        )
    return str(name)


def _one_hot(values: np.ndarray, subject: str) -> np.ndarray:
    """The positions of the ones in 0 and 1 [N, C]."""
    ones = values == 1
    wrong = np.flatnonzero((ones.sum(axis=1) != 1) | ~(ones | (values == 0)).all(axis=1))
    if len(wrong):
        advice = "labels[:, 0]` if that column holds the classes"
        if values.dtype.kind == "f" and ((values >= 0) & (values <= 1)).all():
            advice = "labels.argmax(1)` for the most likely one"
        raise VitreousError(
            f"{subject} have the shape {list(values.shape)}, but row {wrong[0]} is not one 1 among zeros; give one "
            f"class for each image, as in `{advice}."
        )
    return ones.argmax(axis=1).astype(np.int64)


def resolve_labels(
    labels: Mapping[str, Labels], classes: Sequence[str] | None = None
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The labels of all splits as positions in one list of class names.

    Args:
        labels: of each split.
        classes: the class names in the order of their positions, if a person gave them. Labels that are names are
            matched to them, and other labels are positions in them.

    Returns:
        int64 [N] of each split, and the class names.

    Raises:
        VitreousError: the labels of the splits do not fit together, or do not fit the class names.
    """
    given = None if classes is None else class_names(classes)
    known = given or _known_classes(labels)
    subjects = {split: f"The {TITLES[split]} labels" if len(labels) > 1 else "The labels" for split in labels}
    named = {
        split: _names_of(part, subjects[split], split, positions=given is not None)
        for split, part in labels.items()
    }
    numbered = [split for split, names in named.items() if names is None]
    if known is None and numbered and len(numbered) < len(named):
        other = next(split for split in named if split not in numbered)
        raise VitreousError(
            f"{subjects[numbered[0]]} are numbers, but {_lower(subjects[other])} are names; give both as names, or say "
            "with classes=[…] which number is which class."
        )
    if known is None:
        if numbered:
            return _by_number(labels)
        every = {name for names in named.values() if names is not None for name in names}
        known = tuple(sorted(every, key=natural_key))
    positions = {name: position for position, name in enumerate(known)}
    resolved = {}
    for split, part in labels.items():
        names = named[split]
        if names is None:
            assert part.numbers is not None
            _check_range(part.numbers, len(known))
            resolved[split] = part.numbers
            continue
        unknown = sorted(set(names) - positions.keys(), key=natural_key)
        if unknown:
            raise UnknownClasses(unknown, known, subjects[split], own=given is None)
        resolved[split] = np.array([positions[name] for name in names], dtype=np.int64)
    return resolved, known


class UnknownClasses(VitreousError):  # noqa: N818 (the name says what it is)
    """Labels with class names that are not among the known ones.

    Attributes:
        names: those class names.
    """

    def __init__(self, names: Sequence[str], known: Sequence[str], subject: str, own: bool) -> None:
        self.names = tuple(names)
        named = f"{subject} have {'the class' if len(names) == 1 else 'the classes'} {shortened(names)}"
        super().__init__(
            f"{named}, which the training labels do not have; leave them out, or name all classes with classes=[…]."
            if own
            else f"{named}, but `classes` names only {shortened(known)}; name all of them, or leave `classes` out."
        )


def _known_classes(labels: Mapping[str, Labels]) -> tuple[str, ...] | None:
    """The class names that the source of the training labels gives, or that of another split."""
    for part in (labels.get("train"), *labels.values()):
        if part is not None and part.classes is not None:
            return part.classes
    return None


def _names_of(part: Labels, subject: str, split: str, positions: bool) -> tuple[str, ...] | None:
    """The labels as names, if they are names or their source names its numbers.

    Args:
        positions: whether numbers can be positions in the class names that a person gave.
    """
    if part.names is not None or part.classes is None:
        return part.names
    assert part.numbers is not None
    hidden = part.numbers == -1
    if hidden.any():
        what = "that split" if hidden.all() and split != "train" else "the images without a label"
        raise VitreousError(
            f"{subject} are -1 for {hidden.sum():,} of {count(len(hidden), 'image')}, which means that they "
            f"are not known; leave out {what}."
        )
    if len(part.numbers) and (part.numbers.min() < 0 or part.numbers.max() >= len(part.classes)):
        if positions:
            return None
        raise VitreousError(
            f"{subject} range from {part.numbers.min()} to {part.numbers.max()}, but the dataset names only "
            f"{count(len(part.classes), 'class', 'classes')} ({shortened(part.classes)}); name all classes with "
            "classes=[…]."
        )
    return tuple(part.classes[number] for number in part.numbers)


def _by_number(labels: Mapping[str, Labels]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels that are numbers, with the numbers as class names."""
    numbers = {split: part.numbers for split, part in labels.items() if part.numbers is not None}
    defaults = next((part.defaults for part in labels.values() if part.defaults is not None), None)
    if defaults is not None:
        largest = max(int(part.max()) for part in numbers.values() if len(part))
        for part in numbers.values():
            _check_range(part, max(len(defaults), largest + 1))
        return numbers, defaults if largest < len(defaults) else _digits(largest + 1)
    present = np.unique(np.concatenate(list(numbers.values())))
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if present[0] < 0:
        raise VitreousError(f"The labels reach down to {present[0]}; give positions from 0, or class names.")
    if len(gaps):
        raise VitreousError(
            f"The largest label is {present[-1]}, but no label is {gaps[0]}; "
            f"{_without_gaps(next(iter(labels.values())).kind, int(present[-1]) + 1)}."
        )
    return numbers, _digits(len(present))


def _without_gaps(kind: str, classes: int) -> str:
    """Advice for numbers that are not those from 0 without gaps."""
    naming = f"name {'both' if classes == 2 else f'all {classes:,}'} classes with classes=[…]"
    if kind == "dataset":
        return f"{naming}, or let the dataset give the names of the classes as labels"
    code = {"torch": "labels.numpy().astype(str)", "numpy": "labels.astype(str)"}.get(
        kind, "[str(label) for label in labels]"
    )
    text = f"use the numbers as names, as in `{code}`"
    return text if classes > MANY else f"{text}, or {naming}"


def _check_range(numbers: np.ndarray, classes: int) -> None:
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= classes):
        raise VitreousError(
            f"Labels range from {numbers.min()} to {numbers.max()}; give positions from 0 to {classes - 1}."
        )


def _digits(classes: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(classes))


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _first(values: Sequence[Any] | np.ndarray) -> str:
    """The first values, for messages."""
    return ", ".join(f"{value!s:.20}" for value in list(values[:3])) + (", …" if len(values) > 3 else "")
