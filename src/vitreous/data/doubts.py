"""Refuses folders that could be meant in several ways, with a sentence that says how to tell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from vitreous.data.names import text_of
from vitreous.data.nodes import SHOWN, Node, names_of, unwrapped
from vitreous.data.split_names import split_name, split_of
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
