"""The folders that the option `splits` names, as in "train=fold1+fold2,test=fold3"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from vitreous.data.layout.names import text_of
from vitreous.data.layout.nodes import SHOWN, Node, name_of
from vitreous.data.layout.split_names import split_of
from vitreous.data.store import SPLIT_NAMES
from vitreous.errors import VitreousError, unknown
from vitreous.wording import series


def parse_splits(splits: str) -> dict[str, str]:
    """The folders of each split, from a text such as "train=fold1+fold2,test=fold3"."""
    folders: dict[str, str] = {}
    for item in re.split(r",\s*(?=\w+\s*=)", splits):
        name, _, folder = item.partition("=")
        split = split_of(name.strip())
        if not split:
            raise unknown("split", name.strip(), SPLIT_NAMES)
        if not folder.strip():
            raise VitreousError(f"--splits gives no folder for {split}; write {split}=DIR.")
        if split in folders:
            raise VitreousError(f"--splits names {split} twice; join its folders by +, as in {split}=a+b.")
        folders[split] = folder.strip()
    if "train" not in folders:
        raise VitreousError("--splits names no folder to train on; add train=DIR.")
    return folders


def named_folders(path: Path, outer: Sequence[Node], splits: str) -> dict[Node, str]:
    """The folders that `splits` names, with their splits.

    Args:
        path: the folder or zip, for messages.
        outer: the root and the folders that wrap all others. Names may be relative to any of them.
        splits: as in `parse_splits`.

    Raises:
        VitreousError: a folder does not exist or has no images, or two of them share files.
    """
    paths: dict[str, Node] = {}
    for wrapper in reversed(outer):
        inside = len(text_of(wrapper.path)) + 1 if wrapper.path else 0
        paths |= {text_of(node.path)[inside:]: node for node in wrapper.walk() if node.total}

    def node_of(folder: str) -> Node | None:
        parts = folder.replace("\\", "/").split("/")
        return paths.get(folder) or paths.get("/".join(part for part in parts if part not in ("", ".")))

    split_of_folder: dict[Node, str] = {}
    for split, text in parse_splits(splits).items():
        folders = [text] if node_of(text) else [folder.strip() for folder in text.split("+")]
        for folder in folders:
            node = node_of(folder)
            if node is None:
                raise _no_folder(path, folder, [name for name in paths if name])
            for other in split_of_folder:
                if _is_in(node, other) or _is_in(other, node):
                    raise VitreousError(
                        f"--splits names {name_of(other)} and {name_of(node)}, which share files; "
                        "name folders that are apart."
                    )
            split_of_folder[node] = split
    return split_of_folder


def _is_in(inner: Node, outer: Node) -> bool:
    return not outer.path or f"{inner.path}/".startswith(f"{outer.path}/")


def _no_folder(path: Path, folder: str, known: Sequence[str]) -> VitreousError:
    near = [
        name for name in known if f"/{folder.rstrip('/')}".endswith(f"/{name}")
    ]  # a path from further outside
    near = sorted(near, key=len)[-1:] or get_close_matches(folder, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"choose from {series(sorted(known)[:SHOWN], 'or')}."
    return VitreousError(f"{path} has no folder {folder} with images, which --splits names; {hint}")
