"""Refuses folders that could be meant in several ways, with a sentence that says how to tell."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from vitreous.data.layout.names import text_of
from vitreous.data.layout.nodes import SHOWN, Node, key_of, name_of, names_of, unwrapped
from vitreous.data.layout.split_names import fold_of, only_images, split_name, split_of
from vitreous.data.store import SPLIT_NAMES
from vitreous.errors import VitreousError

MOST = 12  # folders up to which a suggestion names all


class NoClassesError(VitreousError):
    """Images without class folders."""


def refuse_flat(path: Path, nodes: Sequence[Node]) -> NoReturn:
    """Refuses images without class folders, directly in `path` or in `nodes`."""
    name = text_of(path.name)
    place = f"{name}/"
    subject, classes = f"{path} has no class folders", ""
    if nodes:
        verb = "hold" if len(nodes) > 1 else "holds"
        subject += f": {names_of(nodes)} {verb} images without a class"
        splits = [node for node in nodes if split_of(node.name)]
        place = f"{text_of(splits[0].path)}/" if splits else place
    if len(nodes) > 1 and not any("/" in node.path for node in nodes):
        classes = f" Say --splits none if each of {names_of(nodes)} is a class."
    raise NoClassesError(
        f"{subject}; put the images of each class into a folder of its own, such as {place}cat/1.jpg and "
        f"{place}dog/1.jpg, or write a table {name}/labels.csv with the header file,label (or file,label,split) and "
        f"a row for each image.{classes}"
    )


def refuse_doubtful_classes(path: Path, tops: Sequence[Node]) -> None:
    """Refuses folders that are probably not classes."""
    if not tops:
        refuse_flat(path, [])
    refuse_plain(path, tops)
    named = [meaning.split for node in tops if (meaning := split_name(node.name))]
    if (len(set(named)) > 1 and 2 * len(named) >= len(tops)) or (
        len(named) == len(tops) and "train" in named
    ):
        ask(path, tops, "their names look like those of splits")
    if len(tops) > 1 and all(fold_of(node.name) is not None for node in tops):
        refuse_flat(path, tops)
    opened = {node: unwrapped(node) for node in tops}
    inner = {node: [key_of(label) for label in o.full if not o.images] for node, o in opened.items()}
    holders = Counter(label for labels in inner.values() for label in labels)
    if len(tops) > 1 and len(holders) > 1 and min(holders.values()) > len(tops) / 2:
        same = names_of(max(opened.values(), key=lambda o: len(o.full)).full)
        ask(path, tops, f"they hold folders of the same names ({same})")
    keys = {key_of(node) for node in tops}
    for node, labels in inner.items():
        if len(keys & set(labels)) > 1:
            ask(path, tops, f"{name_of(node)} holds folders of the same names as those beside it")


def refuse_plain(path: Path, nodes: Sequence[Node]) -> None:
    """Refuses folders such as images/ and photos/, whose names say no class."""
    if nodes and all(only_images(node.name) for node in nodes):
        if any(unwrapped(node).full for node in nodes):
            ask(path, nodes, "their names are no class names")
        refuse_flat(path, nodes)


def ask(path: Path, nodes: Sequence[Node], reason: str, splits: Mapping[Node, str] | None = None) -> NoReturn:
    """Refuses folders that may be splits or classes, and says how to tell."""
    folders = names_of(nodes, whole=True)
    if any(unwrapped(node).full for node in nodes):
        mend = (
            f"or name the splits, as in --splits {suggestion(nodes, splits)} "
            '(in Python splits="none" or splits={"train": "DIR", "test": "DIR"})'
        )
    else:
        mend = "or else put class folders into each split, such as train/cat/1.jpg"
    raise VitreousError(
        f"Are the folders {folders} of {path} splits or classes? This is not clear, since {reason}. "
        f"Say --splits none if each of them is a class, {mend}."
    )


def suggestion(nodes: Sequence[Node], splits: Mapping[Node, str] | None = None) -> str:
    """A value for --splits that is accepted: only folders with class folders in them, and one to train on."""
    usable = [node for node in nodes if unwrapped(node).full]
    if "train" in (splits or {}).values():  # then the other folders are better left out
        usable = [node for node in usable if node in (splits or {})]
    meanings = {node: split_name(node.name) for node in usable}
    chosen = {
        node: (splits or {}).get(node) or (meaning.split if meaning else "train")
        for node, meaning in meanings.items()
    }
    if "train" not in chosen.values():
        chosen[max(usable, key=lambda node: node.total)] = "train"
    elif len(usable) > 1 and set(chosen.values()) == {"train"}:
        chosen[usable[-1]] = "test"
    folders = {
        split: [text_of(node.path) for node in usable if chosen[node] == split] for split in SPLIT_NAMES
    }
    if len(usable) > MOST:
        folders = {split: paths[:SHOWN] for split, paths in folders.items()}
    return shlex.quote(",".join(f"{split}={'+'.join(paths)}" for split, paths in folders.items() if paths))
