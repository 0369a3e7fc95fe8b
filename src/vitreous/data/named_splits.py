"""The folders that the option `splits` names, as in "train=fold1+fold2,test=fold3"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from vitreous.data.names import text_of
from vitreous.data.nodes import SHOWN, Node, name_of
from vitreous.data.split_names import split_of
from vitreous.data.store import SPLIT_NAMES
from vitreous.errors import VitreousError, unknown
from vitreous.wording import series


def parse_splits(splits: str) -> dict[str, str]:
    """The folders of each split, from a text such as "train=fold1+fold2,test=fold3"."""
    folders: dict[str, str] = {}
    for item in re.split(r",\s*(?=\w+\s*=)", splits):
        name, _, folder = item.partition("=")
        split = split_of(name.strip())
        if not split or not folder.strip():
            raise (
                unknown("split", name.strip(), SPLIT_NAMES)
                if not split
                else VitreousError(f"--splits gives no folder for {split}; write {split}=DIR.")
            )
        if split in folders:
            raise VitreousError(f"--splits names {split} twice; join its folders by +, as in {split}=a+b.")
        folders[split] = folder.strip()
    if "train" not in folders:
        raise VitreousError("--splits names no folder to train on; add train=DIR.")
    return folders


def named_folders(path: Path, root: Node, top: Node, splits: str) -> dict[Node, str]:
    """The folders that `splits` names, below the root or below its single wrapping folder, with their splits."""
    paths = {text_of(node.path): node for node in root.walk() if node.total}
    if top.path:
        inside = len(text_of(top.path)) + 1
        paths = {text_of(node.path)[inside:]: node for node in top.walk() if node.total} | paths

    def node_of(folder: str) -> Node | None:
        clean = "/".join(
            part for part in folder.strip().replace("\\", "/").split("/") if part not in ("", ".")
        )
        return paths.get(folder.strip()) or paths.get(text_of(clean)) or paths.get(clean)

    split_of_folder: dict[Node, str] = {}
    for split, text in parse_splits(splits).items():
        for folder in [text] if node_of(text) else text.split("+"):
            node = node_of(folder)
            if node is None:
                raise _no_folder(path, folder.strip(), [name for name in paths if name])
            for other in split_of_folder:
                if f"{node.path}/".startswith(
                    f"{other.path}/" if other.path else ""
                ) or f"{other.path}/".startswith(f"{node.path}/" if node.path else ""):
                    raise VitreousError(
                        f"--splits names {name_of(other)} and {name_of(node)}, which share files; "
                        "name folders that are apart."
                    )
            split_of_folder[node] = split
    return split_of_folder


def _no_folder(path: Path, folder: str, known: Sequence[str]) -> VitreousError:
    near = get_close_matches(folder, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"choose from {series(sorted(known)[:SHOWN], 'or')}."
    return VitreousError(f"{path} has no folder {folder} with images, which --splits names; {hint}")
