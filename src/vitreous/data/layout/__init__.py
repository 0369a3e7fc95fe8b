"""Derives splits and classes of a folder or zip from the names in it alone, so that both give the same data set.

`names` sorts the files, `structure` finds the class folders, and `table` reads labels.csv. Only that table, and files
whose name does not tell what they are, are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vitreous.data.layout.doubts import NoClassesError
from vitreous.data.layout.entries import (
    OUTSIDE,
    EmptyClass,
    Entry,
    Files,
    Layout,
    PassedOver,
    Problem,
    ReadFile,
    order,
    quoted,
    refuse_unusable,
)
from vitreous.data.layout.names import (
    IMAGE_SUFFIXES,
    LITTER,
    NO_SUFFIX,
    UNSUPPORTED,
    kind_by_signature,
    litter_of,
    natural_key,
    stem_of,
    suffix_of,
    text_of,
)
from vitreous.data.layout.nodes import Node, build_tree
from vitreous.data.layout.structure import ClassFolder, find_classes
from vitreous.data.layout.table import TABLES, UnusableTable
from vitreous.data.layout.table_layout import labels_from_table
from vitreous.data.store import SPLIT_NAMES
from vitreous.errors import VitreousError
from vitreous.wording import series

__all__ = ["EmptyClass", "Entry", "Layout", "PassedOver", "Problem", "ReadFile", "read_layout", "sort_files"]
SPECIAL = "of a special type (pipe, socket or device)"  # a kind of `PassedOver`
MAX_DEPTH = 64  # folders in each other


def read_layout(
    path: Path,
    files: Collection[str],
    folders: Collection[str],
    read: ReadFile,
    splits: str = "auto",
    unusable: Mapping[str, tuple[str, str]] | None = None,
) -> Layout:
    """Understands the files and folders of `path`.

    Args:
        path: the folder or zip, for messages.
        files, folders: names of all files and folders below it, with "/" between their parts.
        read: returns the bytes of a file: all of a table of labels, the first ones of files whose name does not tell
            what they are.
        splits: see `ReadOptions`.
        unusable: reason and detail of each of `files` that must not be opened: "dangling link", "not an image" for
            pipes and devices, or "unreadable" for folders.

    Raises:
        VitreousError: there are no images, no classes, or several ways to understand the folders.
    """
    for name in (*files, *folders):
        if name.count("/") > MAX_DEPTH:
            raise VitreousError(
                f"{path} has more than {MAX_DEPTH} folders in each other; give one further inside."
            )
    found = sort_files(files, read, unusable or {})
    if not found.images:
        raise _no_images(path, found)
    parents = {
        name.rpartition("/")[0] for kind, names in found.by_kind.items() if kind != LITTER for name in names
    }
    root = build_tree(
        found.images, parents.union(name for name in folders if not litter_of(name, folder=True))
    )
    layout = _understand(path, root, found, read, splits)
    kinds = sorted((kind, names) for kind, names in found.by_kind.items() if names)
    return replace(
        layout,
        passed_over=tuple(PassedOver(kind, tuple(sorted(map(text_of, names)))) for kind, names in kinds),
        problems=tuple(sorted([*layout.problems, *found.problems], key=lambda problem: problem.name)),
    )


def _understand(path: Path, root: Node, found: Files, read: ReadFile, splits: str) -> Layout:
    """The layout that a table of labels gives, or else the folders."""
    try:
        layout = labels_from_table(path, root, found, read, splits)
    except UnusableTable as error:
        try:
            layout = _labels_from_folders(path, root, found, splits)
        except VitreousError:
            raise error from None
        note = f"The table of labels is not used, and the folders give the classes. {error}"
        return replace(layout, understood=(note, *layout.understood))
    try:
        return layout or _labels_from_folders(path, root, found, splits)
    except NoClassesError as error:
        raise VitreousError(f"{error}{_table_hint(found)}") from None


# ---- files


def sort_files(files: Collection[str], read: ReadFile, unusable: Mapping[str, tuple[str, str]]) -> Files:
    """Tells the images among `files` from all others; the arguments are those of `read_layout`."""
    found = Files()
    litter = set()
    unsupported = {}
    for name in sorted(files):
        suffix = suffix_of(name)
        reason, detail = unusable.get(name, ("", ""))
        if part := litter_of(name):
            litter.add(part)
        elif reason == "unreadable" or (
            reason == "dangling link" and not suffix
        ):  # probably a folder of images
            found.problems.append(Problem(reason, text_of(name), detail))
        elif suffix in IMAGE_SUFFIXES:
            found.images[name] = unusable.get(name)
        elif suffix in UNSUPPORTED:
            unsupported[name] = UNSUPPORTED[suffix]
        elif reason and not suffix:
            found.by_kind[SPECIAL].append(name)
        elif suffix:
            found.by_kind[f".{suffix}"].append(name)
        else:
            kind = _kind_by_content(name, read)
            if kind == "image":
                found.images[name] = None
            elif kind:
                unsupported[name] = kind
            else:
                found.by_kind[NO_SUFFIX].append(name)
    found.by_kind[LITTER] += litter
    readable = {(name.rpartition("/")[0], stem_of(name)) for name in found.images}
    for name, kind in unsupported.items():
        if (name.rpartition("/")[0], stem_of(name)) in readable:  # the JPEG of a raw photo, for example
            found.by_kind[f".{suffix_of(name)}"].append(name)
        else:
            found.images[name] = unusable.get(
                name, ("unsupported format", f"{kind}; convert it to PNG or JPEG")
            )
    return found


def _kind_by_content(name: str, read: ReadFile) -> str:
    try:
        return kind_by_signature(read(name, 256))
    except VitreousError:  # too large, or it may not be read
        return ""


def _no_images(path: Path, found: Files) -> VitreousError:
    kinds = sorted(found.by_kind.items(), key=lambda item: -len(item[1]))
    texts = [PassedOver(kind, tuple(names)).text for kind, names in kinds if names and kind != LITTER][:3]
    holds = f"; it holds {series(texts)}" if texts else ""
    if found.problems:
        first = found.problems[0]
        return VitreousError(
            f"{path} contains no images{holds}; {first.name} is a {first.reason} ({first.detail})."
        )
    archives = {".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz"} & set(found.by_kind)
    mend = (
        "unpack what is in it"
        if archives
        else "give a folder or zip of class folders with PNG or JPEG images"
    )
    return VitreousError(f"{path} contains no images{holds}; {mend}.")


def _table_hint(found: Files) -> str:
    """A sentence about a table that may hold labels under another name than labels.csv."""
    tables = [name for kind in (".csv", ".tsv") for name in found.by_kind.get(kind, ())]
    tables = [name for name in tables if name.rpartition("/")[2].lower() not in TABLES]
    return (
        f" If {text_of(min(tables, key=len))} gives the labels, copy it there with such a header."
        if tables
        else ""
    )


# ---- labels from folders


def _labels_from_folders(path: Path, root: Node, found: Files, splits: str) -> Layout:
    structure = find_classes(path, root, splits)
    prefix = len(structure.top.path) + 1 if structure.top.path else 0
    labels, understood = _class_names(structure.classes)
    entries, problems, empty = [], [], []
    placed = set()
    for folder, label in zip(structure.classes, labels, strict=True):
        usable = 0
        for image in folder.node.all_images():
            placed.add(image)
            name = text_of(image[prefix:])
            problem = found.images[image]
            if problem:
                problems.append(Problem(problem[0], name, problem[1]))
            else:
                usable += 1
                entries.append(Entry(name, folder.split, label, image))
        if not usable:
            empty.append((folder, label))
    label_of = {label.strip().casefold(): label for label in labels}
    empty += [
        (folder, label_of.get(text_of(folder.label).strip().casefold(), text_of(folder.label)))
        for folder in structure.empty
    ]
    refuse_unusable(path, entries, problems)
    for node, kind in structure.left_out:
        found.pass_over(node.all_images(), kind)
    found.pass_over([image for image in found.images if image not in placed], OUTSIDE)
    contents = _contents(found, [folder.node.path for folder, _ in empty])
    return Layout(
        entries=tuple(sorted(entries, key=order)),
        classes=tuple(sorted({entry.label for entry in entries}, key=natural_key)),
        empty_classes=tuple(
            EmptyClass(text_of(folder.node.path[prefix:]), folder.split, label, contents[folder.node.path])
            for folder, label in sorted(empty, key=lambda item: item[0].node.path)
        ),
        problems=tuple(problems),
        understood=(*structure.understood, *understood),
    )


def _class_names(folders: Sequence[ClassFolder]) -> tuple[list[str], list[str]]:
    """The class name of each folder, and sentences about names that differ only in letter case or blanks.

    Such names are one class, spelled as in the first split, if they are in different splits. If one folder holds both,
    its owner tells them apart, and they are different classes.
    """
    spellings: dict[str, dict[str, list[str]]] = defaultdict(
        lambda: defaultdict(list)
    )  # by key, then by parent
    for folder in sorted(folders, key=lambda folder: SPLIT_NAMES.index(folder.split)):
        label = text_of(folder.label)
        of_parent = spellings[label.strip().casefold()][folder.parent.path]
        if label not in of_parent:
            of_parent.append(label)
    chosen: dict[str, str] = {}
    sentences = []
    for of_parents in spellings.values():
        labels = list(dict.fromkeys(label for of_parent in of_parents.values() for label in of_parent))
        apart = any(len(of_parent) > 1 for of_parent in of_parents.values())
        chosen |= {label: label if apart else labels[0] for label in labels}
        if apart:
            sentences.append(f"{quoted(labels)} are different classes.")
        elif len(labels) > 1:
            sentences.append(f"{quoted(labels)} are one class, {labels[0]!r}.")
    return [chosen[text_of(folder.label)] for folder in folders], sentences


def _contents(found: Files, folders: Sequence[str]) -> dict[str, str]:
    """What class folders without a readable image hold, in words."""
    kinds: dict[str, dict[str, int]] = {folder: {} for folder in folders}
    if not kinds:
        return {}
    files = [(name, kind) for kind, names in found.by_kind.items() if kind != LITTER for name in names]
    files += [
        (
            name,
            f".{suffix_of(name)}"
            if problem and problem[0] == "unsupported format"
            else "that cannot be used",
        )
        for name, problem in found.images.items()
    ]
    for name, kind in files:
        parent = name
        while parent := parent.rpartition("/")[0]:
            if parent in kinds:
                kinds[parent][kind] = kinds[parent].get(kind, 0) + 1
    texts = {}
    for folder, counts in kinds.items():
        held = [PassedOver(kind, ("",) * number).text for kind, number in sorted(counts.items())]
        texts[folder] = f"only {series(held)}" if held else "a folder without files"
    return texts
