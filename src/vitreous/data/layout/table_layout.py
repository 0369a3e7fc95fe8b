"""The layout that a table of labels gives, whatever the folders are called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from vitreous.data.layout.entries import (
    OUTSIDE,
    Entry,
    Files,
    Layout,
    Problem,
    ReadFile,
    order,
    quoted,
    refuse_unusable,
)
from vitreous.data.layout.named_splits import named_folders
from vitreous.data.layout.names import natural_key, suffix_of, text_of
from vitreous.data.layout.nodes import Node, outside, single_folders, wrappers
from vitreous.data.layout.split_names import split_of
from vitreous.data.layout.structure import in_no_split
from vitreous.data.layout.table import TABLES, Row, Table, match_rows, read_table
from vitreous.errors import VitreousError
from vitreous.wording import count, series


def labels_from_table(path: Path, root: Node, found: Files, read: ReadFile, splits: str) -> Layout | None:
    """The layout that labels.csv gives, or None if there is no such file.

    Raises:
        UnusableTable: the file does not give labels, so class folders may be used instead.
        VitreousError: the file gives labels and has a mistake.
    """
    name = _find_table(path, root, found)
    if name is None:
        return None
    try:
        data = read(name)
    except VitreousError as error:
        reason = getattr(error, "text", str(error))
        raise VitreousError(f"{path / text_of(name)} cannot be read ({reason}).") from None
    return _layout_of_table(
        path, root, found, name, read_table(text_of(name.rpartition("/")[2]), data), splits
    )


def _find_table(path: Path, root: Node, found: Files) -> str | None:
    """The table at the root or in a folder that wraps all others; the outermost one."""
    tables = [name for kind in (".csv", ".tsv") for name in found.by_kind.get(kind, ())]
    tables = [name for name in tables if name.rpartition("/")[2].lower() in TABLES]
    for node in single_folders(root):
        here = [name for name in tables if name.rpartition("/")[0] == node.path]
        if len(here) > 1:
            raise VitreousError(f"{path} has both {here[0]} and {here[1]}; keep one table of labels.")
        if here:
            return here[0]
    return None


def _layout_of_table(path: Path, root: Node, found: Files, name: str, table: Table, splits: str) -> Layout:
    folder = name.rpartition("/")[0]
    prefix = len(folder) + 1 if folder else 0
    inside = [image for image in found.images if not folder or image.startswith(f"{folder}/")]
    rows, elsewhere = match_rows(table, [image[prefix:] for image in inside])
    row_of = {f"{folder}/{image}" if folder else image: row for image, row in rows.items()}
    understood = [table.sentence()]
    if elsewhere:
        understood.append(
            f"{count(len(elsewhere), 'name')} in {table.name} were matched without their folder or suffix, such as "
            f"{elsewhere[0][0]} with {elsewhere[0][1]}."
        )
    split_of_image = _splits_of_images(path, root, found, row_of, table, splits, prefix)
    entries, problems = [], []
    for image, row in row_of.items():
        if image not in split_of_image:
            continue
        problem = found.images[image]
        text = text_of(image[prefix:])
        if problem:
            problems.append(Problem(problem[0], text, problem[1]))
        else:
            entries.append(Entry(text, split_of_image[image], row.label, image, row.group))
    refuse_unusable(path, entries, problems)
    found.by_kind[f".{suffix_of(name)}"].remove(name)
    found.pass_over([image for image in found.images if image not in row_of], f"in no row of {table.name}")
    found.pass_over([image for image in row_of if image not in split_of_image], OUTSIDE)
    classes = sorted({entry.label for entry in entries}, key=natural_key)
    alike: dict[str, list[str]] = defaultdict(list)
    for label in classes:
        alike[label.casefold()].append(label)
    return Layout(
        entries=tuple(sorted(entries, key=order)),
        classes=tuple(classes),
        problems=tuple(problems),
        understood=(
            *understood,
            *(f"{quoted(labels)} are different classes." for labels in alike.values() if len(labels) > 1),
        ),
    )


def _splits_of_images(
    path: Path,
    root: Node,
    found: Files,
    row_of: Mapping[str, Row],
    table: Table,
    splits: str,
    prefix: int,
) -> dict[str, str]:
    """The split of each image: from the table, from the folders that the option `splits` names, or from its folders.

    The first `prefix` characters of a path name the folder of the table.
    """
    if "split" in table.columns:
        if splits not in ("auto", "none"):
            raise VitreousError(
                f"{table.name} gives the splits in its column {table.columns['split']}; leave --splits out, "
                "or remove the column."
            )
        return {image: row.split for image, row in row_of.items()}
    if splits == "none":
        return dict.fromkeys(row_of, "train")
    if splits != "auto":
        named = named_folders(path, wrappers(root), splits)
        for node in outside(root, named):
            found.pass_over(node.all_images(), in_no_split(node))
        return {
            image: split for node, split in named.items() for image in node.all_images() if image in row_of
        }
    by_folder = {image: _split_by_folder(image[prefix:]) for image in row_of}
    known = set(by_folder.values())
    if "train" not in known:
        if len(known - {""}) > 1:
            raise VitreousError(
                f"{table.name} names images in {series(sorted(known - {''}))} folders and none in train; "
                "add a column split, or say --splits none."
            )
        return dict.fromkeys(row_of, "train")
    if "" in known:
        stray = next(image for image, split in by_folder.items() if not split)
        raise VitreousError(
            f"{table.name} names images in split folders and others outside of them, such as {text_of(stray)}; "
            "add a column split, or say --splits none."
        )
    return by_folder


def _split_by_folder(image: str) -> str:
    """The split of the outermost folder of `image` that surely means one."""
    return next((split for part in image.split("/")[:-1] if (split := split_of(part))), "")
