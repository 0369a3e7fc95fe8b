"""Decides which folders of a data set are splits and which are classes, from their names and places alone.

`find_classes` tries the ways in which people sort images, in this order:

1. What the option `splits` says.
2. Split folders: train/cat, test/cat, under any name that surely means a split. Other folders are left out.
3. Folds: fold1/cat … fold5/cat.
4. Split folders inside each class: cat/train, cat/test.
5. Class folders: cat, dog.

Single folders that wrap all the others are opened first, at each level. What could be meant in two ways is refused
with a sentence that says how to tell. `Node.images` and all counts cover image files only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitreous.data.layout.doubts import ask, refuse_doubtful_classes, refuse_flat, refuse_plain, suggestion
from vitreous.data.layout.named_splits import named_folders
from vitreous.data.layout.names import natural_key, text_of
from vitreous.data.layout.nodes import (
    SHOWN,
    Node,
    count_images,
    key_of,
    name_of,
    names_of,
    outside,
    unwrapped,
    wrappers,
)
from vitreous.data.layout.split_names import (
    beside_images,
    fold_of,
    no_class,
    no_split,
    only_images,
    split_name,
    split_of,
)
from vitreous.data.store import SPLIT_NAMES
from vitreous.errors import VitreousError
from vitreous.wording import count, series


@dataclass(frozen=True)
class ClassFolder:
    """A folder that holds the images of one class in one split; `parent` is the folder whose class it is."""

    split: str
    node: Node
    label: str
    parent: Node


@dataclass
class Structure:
    """What the folders mean.

    Attributes:
        top: the folder inside all wrapping folders.
        classes: the class folders with images.
        empty: the class folders without images.
        left_out: folders whose images are not used, with the reason as a kind of `PassedOver`.
        understood: sentences about what could be meant differently.
    """

    top: Node
    classes: list[ClassFolder] = field(default_factory=list)
    empty: list[ClassFolder] = field(default_factory=list)
    left_out: list[tuple[Node, str]] = field(default_factory=list)
    understood: list[str] = field(default_factory=list)

    def add_classes(self, split: str, parent: Node) -> None:
        """Takes each folder in `parent` for a class."""
        for node in sorted(parent.folders.values(), key=lambda node: natural_key(node.name)):
            folder = ClassFolder(split, node, node.name, parent)
            if node.total:
                self.classes.append(folder)
            elif not no_class(node.name):
                self.empty.append(folder)


def find_classes(path: Path, root: Node, splits: str) -> Structure:
    """Finds the class folders of each split.

    Args:
        path: the folder or zip, for messages.
        splits: see `ReadOptions`.

    Raises:
        VitreousError: there are no class folders, or the folders can be understood in several ways.
    """
    annotations = [] if splits == "none" else _remove_annotations(root)
    outer = wrappers(root, stop_at_split=splits != "none")
    structure = Structure(outer[-1])
    for node in annotations:
        structure.left_out.append((node, f"in {text_of(node.name)}/, which belongs to the images beside it"))
    if splits == "none":
        structure.add_classes("train", structure.top)
        if not structure.classes:
            refuse_flat(path, [])
    elif splits != "auto":
        _use_named_folders(path, outer, structure, splits)
    else:
        _recognise(path, structure)
    if annotations:
        structure.understood.append(
            f"{name_of(annotations[0])} stands beside a folder of images and is left out, as something that belongs to "
            "them."
        )
    return structure


def _remove_annotations(root: Node) -> list[Node]:
    """Removes folders such as masks/ where only folders such as images/ are beside them, and returns them."""
    removed = []
    for outer in root.walk():
        inner = outer.full
        annotations = [node for node in inner if beside_images(node.name)]
        images = [node for node in inner if only_images(node.name) and node not in annotations]
        if images and annotations and len(images) + len(annotations) == len(inner):
            removed += annotations
            for node in annotations:
                del outer.folders[node.name]
    count_images(root)
    return removed


def _recognise(path: Path, structure: Structure) -> None:
    tops = _without_copy(structure)
    split_of_folder = _in_order({node: split_of(node.name) for node in tops}) or _in_order(_named_alike(tops))
    folds = [node for node in tops if fold_of(node.name) is not None and unwrapped(node).full]
    if split_of_folder and not _may_be_classes(path, split_of_folder, tops):
        _use_splits(path, structure, tops, split_of_folder)
    elif _splits_inside(path, tops):
        _use_splits_inside(structure, tops)
    elif len(folds) > 1 and not split_of_folder:
        _use_splits(path, structure, tops, _splits_of_folds(folds), folds=True)
    else:
        refuse_doubtful_classes(path, tops)
        structure.add_classes("train", structure.top)
        structure.understood += [
            f"{name_of(node)} is taken for a class, because it holds images directly and stands beside "
            f"{names_of([other for other in tops if other is not node])}."
            for node in split_of_folder
        ]
    _say_deeper_folders(structure)


def _in_order(split_of_folder: Mapping[Node, str]) -> dict[Node, str]:
    """The folders with a split, train first."""
    return {
        node: split for split in SPLIT_NAMES for node in split_of_folder if split_of_folder[node] == split
    }


# ---- splits


def _use_named_folders(path: Path, outer: Sequence[Node], structure: Structure, splits: str) -> None:
    split_of_folder = named_folders(path, outer, splits)
    flat = [node for node in split_of_folder if not unwrapped(node).full]
    if flat:
        refuse_flat(path, flat)
    for node, split in split_of_folder.items():
        structure.add_classes(split, unwrapped(node))
    structure.left_out += [(node, in_no_split(node)) for node in outside(outer[0], split_of_folder)]


def _without_copy(structure: Structure) -> list[Node]:
    """The folders with images at the top, without one that repeats all the others, as some archives have it."""
    tops = structure.top.full
    total = sum(node.total for node in tops)
    for node in tops:
        if 2 * node.total != total or split_name(node.name):
            continue
        inner = wrappers(node)[-1]
        others = {
            image[len(structure.top.path) :].lstrip("/")
            for other in tops
            if other is not node
            for image in other.all_images()
        }
        for prefix in {node.path, inner.path}:
            if others == {image[len(prefix) + 1 :] for image in node.all_images()}:
                name = text_of(node.name)
                del structure.top.folders[node.name]
                structure.left_out.append((node, f"in {name}/, which repeats the folders beside it"))
                structure.understood.append(
                    f"{name}/ holds files of the same names as the folders beside it and is left out as a copy."
                )
                return [other for other in tops if other is not node]
    return tops


def _named_alike(tops: Sequence[Node]) -> dict[Node, str]:
    """Splits named after their data set, as in cars_train/ and cars_test/, if both hold class folders."""
    meanings = [split_name(node.name) for node in tops]
    splits = [meaning.split for meaning in meanings if meaning]
    if (
        len(tops) < 2
        or len(splits) < len(tops)
        or len(set(splits)) < len(tops)
        or "train" not in splits
        or len({frozenset(meaning.rest) for meaning in meanings if meaning}) > 1
        or not any(unwrapped(node).full for node in tops)
    ):
        return {}
    return dict(zip(tops, splits, strict=True))


def _splits_of_folds(folds: Sequence[Node]) -> dict[Node, str]:
    """The last fold is test, the one before it val, and the rest train. Of two folds, none is val."""
    ordered = sorted(folds, key=lambda node: fold_of(node.name) or 0)
    last = ["val", "test"] if len(ordered) > 2 else ["test"]
    splits = ["train"] * (len(ordered) - len(last)) + last
    return dict(zip(ordered, splits, strict=True))


def _may_be_classes(path: Path, split_of_folder: Mapping[Node, str], tops: Sequence[Node]) -> bool:
    """Whether folders with the names of splits are classes: `train` beside `bus`, both with images directly."""
    if any(unwrapped(node).full for node in split_of_folder):
        return False
    others = [node for node in tops if node not in split_of_folder]
    if not others:
        refuse_flat(path, list(split_of_folder))
    if any(unwrapped(node).full for node in others):
        ask(path, tops, f"{names_of(list(split_of_folder))} holds no class folders")
    if set(split_of_folder.values()) != {"train"}:
        raise VitreousError(
            f"{names_of(list(split_of_folder))} of {path} may be a class or a split without labels, since images are "
            f"directly in it, as in {names_of(others)}; say --splits none if it is a class, or else move it to another "
            "place."
        )
    return True


def _use_splits(
    path: Path,
    structure: Structure,
    tops: Sequence[Node],
    split_of_folder: Mapping[Node, str],
    folds: bool = False,
) -> None:
    """Takes `split_of_folder` for the splits, and the folders in them for the classes."""
    opened = {node: unwrapped(node) for node in tops}
    train = [opened[node] for node, split in split_of_folder.items() if split == "train"]
    trained = {key_of(label) for node in train for label in node.full}
    if not trained and train:
        refuse_flat(path, [node for node, split in split_of_folder.items() if split == "train"])
    if not trained:
        ask(path, tops, "there are no images in train/", split_of_folder)
    splits = dict(split_of_folder)
    for node, split in split_of_folder.items():
        labels = {key_of(label) for label in opened[node].full}
        if not labels or (split != "train" and len(labels) == 1 < len(trained) and not labels & trained):
            if split == "train":
                ask(path, tops, f"{name_of(node)} holds no class folders", split_of_folder)
            del splits[node]
            structure.left_out.append((node, f"in {text_of(node.name)}/, which has no class folders"))
            structure.understood.append(
                f"{name_of(node)} has no class folders, so its {count(node.total, 'image')} have no labels and are not "
                f"used; sort them into class folders to have a {split} split."
            )
        elif len(labels) > 1 and all(
            split_of(label.name) or fold_of(label.name) is not None for label in opened[node].full
        ):
            others = [other for other in tops if other is not node]
            ask(path, [*opened[node].full, *others], f"{name_of(node)} holds splits of its own")
    for split in SPLIT_NAMES:
        same = [node for node in splits if splits[node] == split]
        if len(same) > 1 and not folds:
            raise VitreousError(
                f"{path} has both {name_of(same[0])} and {name_of(same[1])}, which are the same split; keep one of "
                f"them, or name all that you mean, as in --splits {suggestion(tops, splits)}."
            )
    for node in tops:
        if node not in split_of_folder:
            _leave_out(path, structure, node, tops, trained, split_of_folder)
    for parent in train:
        refuse_plain(path, parent.full)
    for node, split in splits.items():
        structure.add_classes(split, opened[node])
    _say_splits(structure, splits, folds)


def _leave_out(
    path: Path,
    structure: Structure,
    node: Node,
    tops: Sequence[Node],
    trained: set[str],
    split_of_folder: Mapping[Node, str],
) -> None:
    """Leaves out a folder beside the splits, unless it may be a split or a class."""
    labels = unwrapped(node).full
    if not no_split(node.name):
        if key_of(node) in trained:
            ask(path, tops, f"{name_of(node)} is a class of train and stands beside it", split_of_folder)
        if trained & {key_of(label) for label in labels}:
            ask(path, tops, f"{name_of(node)} holds the same classes as the splits", split_of_folder)
        if any(split_of(label.name) for label in labels):
            ask(path, tops, f"{name_of(node)} holds splits of its own", split_of_folder)
    structure.left_out.append((node, in_no_split(node)))


def in_no_split(node: Node) -> str:
    """The kind of `PassedOver` of images beside the splits."""
    return f"in {text_of(node.name)}/, which is no split"


def _say_splits(structure: Structure, splits: Mapping[Node, str], folds: bool) -> None:
    """Says which folders are which splits, unless they have the plain names; names splits without images."""
    names = {node: name_of(node) for node in splits}
    if folds:
        ordered = list(splits)
        val = f"{names[ordered[-2]]} is val and " if len(ordered) > 2 else ""
        structure.understood.append(
            f"{series(list(names.values()))} are taken for folds: {names[ordered[-1]]} is the test split, {val}"
            f"the rest is train; choose others as in --splits {suggestion(ordered, splits)}."
        )
    elif any(text_of(node.name).casefold() != split for node, split in splits.items()):
        verbs = ("is the split", "are the splits")[len(splits) > 1]
        structure.understood.append(
            f"{series(list(names.values()))} {verbs} {series(list(splits.values()))}."
        )
    for node in structure.top.folders.values():
        split = split_of(node.name)
        if split and not node.total and split not in splits.values():
            structure.understood.append(
                f"{name_of(node)} holds no images and is not used as the {split} split."
            )


# ---- splits inside each class


def _splits_inside(path: Path, tops: Sequence[Node]) -> bool:
    """Whether each class folder holds split folders: cat/train/*.jpg. Refuses where only some do."""
    inner = {
        node: list(_in_order({label: split_of(label.name) for label in wrappers(node)[-1].full}))
        for node in tops
    }
    holders = [node for node in tops if len({split_of(label.name) for label in inner[node]}) > 1]
    if len(tops) < 2 or not holders:
        return False
    classes_inside = [node for node in holders if any(unwrapped(split).full for split in inner[node])]
    if classes_inside:
        raise VitreousError(
            f"{path} holds {series([name_of(node) for node in holders][:SHOWN])}, with "
            f"{series([name_of(label) for label in inner[holders[0]]])} and class folders inside; give one of them, "
            f"such as {path / text_of(holders[0].path)}, or say --splits none if each of "
            f"{names_of(tops)} is a class."
        )
    for node in tops:
        loose = bool(wrappers(node)[-1].images)
        if loose or "train" not in {split_of(label.name) for label in inner[node]}:
            raise VitreousError(
                f"{name_of(holders[0])} of {path} holds {series([name_of(label) for label in inner[holders[0]]])}, but "
                f"{name_of(node)} holds {'images directly' if loose else 'no train/'}; put the images of every "
                f"class into such folders, or say --splits none if each of {names_of(tops)} is a class as it is."
            )
    return True


def _use_splits_inside(structure: Structure, tops: Sequence[Node]) -> None:
    splits = set()
    for node in tops:
        for inner in wrappers(node)[-1].full:
            split = split_of(inner.name)
            if split:
                splits.add(split)
                structure.classes.append(ClassFolder(split, inner, node.name, structure.top))
            else:
                structure.left_out.append((inner, in_no_split(inner)))
    names = series([split for split in SPLIT_NAMES if split in splits])
    structure.understood.append(f"The splits {names} are taken from the folders inside each class folder.")


def _say_deeper_folders(structure: Structure) -> None:
    deeper = [
        folder for folder in structure.classes if len(unwrapped(folder.node).full) > 0 and folder.node.full
    ]
    if deeper:
        first = deeper[0]
        inner = unwrapped(first.node).full[0]
        structure.understood.append(
            f"Images in folders inside a class folder belong to that class: those in {text_of(inner.path)}/ to "
            f"{text_of(first.label)}."
        )
