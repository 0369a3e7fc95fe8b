"""How the files of a folder or zip are understood: the types that `layout` makes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vitreous.data.store import SPLIT_NAMES
from vitreous.errors import VitreousError
from vitreous.wording import count, series

OUTSIDE = "outside the class folders"  # a kind of `PassedOver`


class ReadFile(Protocol):
    """Returns the bytes of a file by its path in the folder or zip."""

    def __call__(self, location: str, limit: int | None = None, /) -> bytes:
        """At most the first `limit` bytes, or all."""


@dataclass(frozen=True)
class Entry:
    """An image file of a data set.

    Attributes:
        name: its path below the folder of splits or classes, such as "train/cat/001.png".
        split: "train", "val" or "test".
        label: its class name.
        location: its path in the folder or zip, which may start with more folders than `name`.
        group: images with the same text stay on one side of every cut; "" if no table of labels gives a group.
    """

    name: str
    split: str
    label: str
    location: str
    group: str = ""


@dataclass(frozen=True)
class Problem:
    """Something that would harm training.

    Attributes:
        reason: one of `check.REASONS`.
        name: the file or the class.
        detail: more about it, or "".
    """

    reason: str
    name: str
    detail: str = ""


@dataclass(frozen=True)
class PassedOver:
    """Files that are not read, because they are no images by their name or have no class.

    Attributes:
        kind: what they have in common: a suffix such as ".txt", or words such as "outside the class folders".
        names: their names, sorted.
    """

    kind: str
    names: tuple[str, ...]

    @property
    def text(self) -> str:
        """Their number and kind, as in "12 .txt files" or "1 file outside the class folders"."""
        if self.kind.startswith("."):
            return count(len(self.names), f"{self.kind} file")
        return f"{count(len(self.names), 'file')} {self.kind}"


@dataclass(frozen=True)
class EmptyClass:
    """A class folder without an image that we read.

    Attributes:
        name: the path of the folder, as in `Entry.name`.
        split, label: as in `Entry`.
        detail: what it holds instead, such as "only 3 .txt files".
    """

    name: str
    split: str
    label: str
    detail: str


@dataclass(frozen=True)
class Layout:
    """How the files of a folder or zip are understood, before any of them is decoded.

    Attributes:
        entries: the images, in the order of the splits, then of their names.
        classes: class names in natural order ("2" before "10"), in Unicode's composed form.
        empty_classes: class folders without an image that we read.
        passed_over: files that are not read, by kind.
        problems: files that look like images and cannot be used, known from their names alone, such as dangling links.
        understood: sentences about what was recognised and could be meant differently.
    """

    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    empty_classes: tuple[EmptyClass, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()
    problems: tuple[Problem, ...] = ()
    understood: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        present = {entry.split for entry in self.entries}
        return tuple(split for split in SPLIT_NAMES if split in present)

    @property
    def empty(self) -> tuple[str, ...]:
        """The names of the class folders without an image that we read."""
        return tuple(folder.name for folder in self.empty_classes)


@dataclass
class Files:
    """All files by what they are.

    Attributes:
        images: the files that are or should be images, and for those that cannot be used the reason and its detail.
        by_kind: the other files, by the kind of `PassedOver`.
        problems: what cannot be used wherever it is, such as a folder that may not be read.
    """

    images: dict[str, tuple[str, str] | None] = field(default_factory=dict)
    by_kind: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    problems: list[Problem] = field(default_factory=list)

    def pass_over(self, images: Iterable[str], kind: str) -> None:
        for image in images:
            if image in self.images:
                del self.images[image]
                self.by_kind[kind].append(image)


def order(entry: Entry) -> tuple[int, str]:
    return SPLIT_NAMES.index(entry.split), entry.name


def quoted(labels: Sequence[str]) -> str:
    return series([repr(label) for label in labels])


def refuse_unusable(path: Path, entries: Sequence[Entry], problems: Sequence[Problem]) -> None:
    if any(entry.split == "train" for entry in entries):
        return
    if problems:
        first = problems[0]
        raise VitreousError(
            f"{path} has no training image that can be used: {count(len(problems), 'file')} cannot, such as "
            f"{first.name}, {first.reason} ({first.detail})."
        )
    present = [split for split in SPLIT_NAMES if split in {entry.split for entry in entries}]
    raise VitreousError(f"{path} has {series(present)} but no training images; add some.")
