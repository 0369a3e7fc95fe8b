"""Derives splits and classes of a folder or zip from the names in it alone, so that both give the same data set."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitreous.data.store import SPLIT_NAMES
from vitreous.errors import VitreousError

# Names of the split folders, in any capitals, and the split that each holds.
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# What operating systems leave in folders, besides hidden files.
LITTER = {"__macosx", "thumbs.db", "desktop.ini"}


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
        kind: what they have in common, as in "12 .txt files"; such as ".txt" or "outside the class folders".
        names: their names.
    """

    kind: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How the files of a folder or zip are understood, before any of them is decoded.

    Attributes:
        entries: the images, in the order of the splits, then of their names.
        classes: class names in natural order ("2" before "10"), in Unicode's composed form.
        empty: class folders without an image.
        passed_over: files that are not read, by kind.
        problems: files that look like images and cannot be used, known from their names alone, such as dangling links.
        understood: sentences about what was recognised and could be meant differently.
    """

    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    empty: tuple[str, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()
    problems: tuple[Problem, ...] = ()
    understood: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        present = {entry.split for entry in self.entries}
        return tuple(split for split in SPLIT_NAMES if split in present)


def visible(name: str) -> bool:
    return not any(part.startswith(".") or part.casefold() in LITTER for part in name.split("/"))


def read_layout(
    path: Path,
    files: Collection[str],
    folders: Collection[str],
    read: Callable[[str], bytes],
    splits: str = "auto",
) -> Layout:
    """Understands the files and folders of `path`.

    Args:
        path: the folder or zip, for messages.
        files, folders: names of all files and folders below it, with "/" between their parts.
        read: returns the bytes of a file, for a table of labels and for files whose name does not tell what they are.
        splits: see `ReadOptions`.

    Raises:
        VitreousError: there are no images, no classes, or several ways to understand the folders.
    """
    folders = set(folders)
    parts = _unwrapped({name: name.split("/") for name in [*files, *folders]}, files, folders)
    split_of_top = _find_splits(path, parts, files, folders)
    class_depth = 1 if split_of_top else 0  # position of the class name in a path

    entries, empty, outside = [], set(), []
    for location, part in parts.items():
        split = split_of_top.get(part[0], "") if split_of_top else "train"
        name = _text("/".join(part))
        if location in folders:
            if split and len(part) == class_depth + 1:
                empty.add(name)
        elif split and len(part) > class_depth + 1:
            entries.append(Entry(name, split, _text(part[class_depth]), location))
        else:
            outside.append(name)
    outside += [_text(name) for name in files if name not in parts]  # next to the one wrapping folder
    empty -= {"/".join(entry.name.split("/")[: class_depth + 1]) for entry in entries}
    entries.sort(key=lambda entry: (SPLIT_NAMES.index(entry.split), entry.name))
    _refuse_unusable(path, entries, outside, split_of_top)
    return Layout(
        entries=tuple(entries),
        classes=tuple(sorted({entry.label for entry in entries})),
        empty=tuple(sorted(empty)),
        passed_over=(PassedOver("outside the class folders", tuple(sorted(outside))),) if outside else (),
    )


def _unwrapped(
    parts: dict[str, list[str]], files: Collection[str], folders: set[str]
) -> dict[str, list[str]]:
    """The paths without a single folder that wraps all the others; names that are not inside it are dropped."""
    tops = _top_folders(parts, folders)
    nested = any(len(parts[name]) > 2 for name in files)
    if len(tops) == 1 and nested and not any(map(_is_split, tops)):
        return {name: part[1:] for name, part in parts.items() if len(part) > 1}
    return parts


def _top_folders(parts: Mapping[str, list[str]], folders: set[str]) -> set[str]:
    return {part[0] for name, part in parts.items() if len(part) > 1 or name in folders}


def _is_split(top: str) -> bool:
    return top.casefold() in SPLIT_FOLDERS


def _find_splits(
    path: Path, parts: Mapping[str, list[str]], files: Collection[str], folders: set[str]
) -> dict[str, str]:
    """Maps each split folder at the top to its split; empty if the folders at the top are classes."""
    tops = _top_folders(parts, folders)
    # `train` may be a class, of vehicles for example. Then it contains images rather than folders.
    in_train = [part for name, part in parts.items() if name in files and part[0].casefold() == "train"]
    only_splits = bool(tops) and all(map(_is_split, tops))
    if not (only_splits or any(len(part) > 2 for part in in_train)):
        return {}
    split_of_top = {top: SPLIT_FOLDERS[top.casefold()] for top in sorted(tops) if _is_split(top)}
    for split in SPLIT_NAMES:
        same = [top for top in split_of_top if split_of_top[top] == split]
        if len(same) > 1:
            raise VitreousError(
                f"{path} has both {same[0]}/ and {same[1]}/, which are the same split; keep one of them."
            )
    return split_of_top


def _refuse_unusable(
    path: Path, entries: Sequence[Entry], outside: Sequence[str], split_of_top: Collection[str]
) -> None:
    if not entries and outside:
        raise VitreousError(
            f"{path} has no class folders; put the images of each class into a folder of its own, "
            f"such as {path.name}/cat/1.jpg and {path.name}/dog/1.jpg."
        )
    if not entries:
        raise VitreousError(f"{path} contains no images; give a folder or zip of class folders.")
    if split_of_top and "train" not in {entry.split for entry in entries}:
        tops = " and ".join(f"{top}/" for top in split_of_top)
        raise VitreousError(f"{path} has {tops} but no images in train/; add training images.")


def _text(name: str) -> str:
    """A name in Unicode's composed form, since systems differ in it. Bytes that are not text are replaced."""
    return unicodedata.normalize("NFC", name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
