"""The tree of the folders of a data set, and the folders that only wrap others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vitreous.data.layout.names import natural_key, text_of
from vitreous.data.layout.split_names import only_images, split_of
from vitreous.wording import series

SHOWN = 4  # folders that a message names


class Node:
    """A folder.

    Attributes:
        name: its own name; "" for the root.
        path: its path below the root.
        folders: the folders in it, by name.
        images: the paths of the image files that are directly in it.
        total: number of image files in it at any depth.
    """

    __slots__ = ("folders", "images", "name", "path", "total")

    def __init__(self, name: str = "", path: str = "") -> None:
        self.name, self.path = name, path
        self.folders: dict[str, Node] = {}
        self.images: list[str] = []
        self.total = 0

    @property
    def full(self) -> list[Node]:
        """The folders with images in them at any depth, in natural order."""
        nodes = [node for node in self.folders.values() if node.total]
        return sorted(nodes, key=lambda node: natural_key(node.name))

    def walk(self) -> Iterator[Node]:
        """This folder and all below it."""
        pending = [self]
        while pending:
            node = pending.pop()
            yield node
            pending += node.folders.values()

    def all_images(self) -> Iterator[str]:
        for node in self.walk():
            yield from node.images


def build_tree(images: Iterable[str], folders: Iterable[str]) -> Node:
    """The tree of `folders` and of all folders of `images`."""
    root = Node()
    nodes = {"": root}

    def node_at(path: str) -> Node:
        node = nodes.get(path)
        if node is None:
            parent, _, name = path.rpartition("/")
            node = nodes[path] = node_at(parent).folders[name] = Node(name, path)
        return node

    for folder in folders:
        node_at(folder)
    for image in images:
        node_at(image.rpartition("/")[0]).images.append(image)
    count_images(root)
    return root


def count_images(root: Node) -> None:
    """Sets `Node.total` of `root` and all folders below."""
    for node in reversed(list(root.walk())):  # the inner folders first
        node.total = len(node.images) + sum(inner.total for inner in node.folders.values())


def wrappers(root: Node, stop_at_split: bool = True) -> list[Node]:
    """`root` and the folders that wrap all others, from the outside; the last one holds splits or classes or images.

    A folder wraps if it is the only one with images and holds further folders with images. One with images directly
    is the class of them, unless its name says that it is no class: images/*.jpg, test/test/*.jpg.
    """
    chain = [root]
    while len(chain[-1].full) == 1:
        outer, inner = chain[-1], chain[-1].full[0]
        if stop_at_split and split_of(inner.name) and inner.full and not holds_splits(inner):
            break
        repeats = text_of(inner.name).casefold() == text_of(outer.name).casefold() or (
            bool(outer.name) and split_of(inner.name) == split_of(outer.name) != ""
        )
        if not inner.full and (outer.images or not (repeats or only_images(inner.name))):
            break
        chain.append(inner)
    return chain


def holds_splits(node: Node) -> bool:
    """Whether folders of a training split and of another one are directly in `node`."""
    splits = {split_of(inner.name) for inner in node.full} - {""}
    return "train" in splits and len(splits) > 1


def unwrapped(node: Node) -> Node:
    """The folder inside all that wrap the content of a split folder."""
    return wrappers(node, stop_at_split=False)[-1]


def single_folders(root: Node) -> list[Node]:
    """`root` and each folder that is the only one with images in the one before."""
    chain = [root]
    while len(chain[-1].full) == 1:
        chain += chain[-1].full
    return chain


def outside(node: Node, named: Iterable[Node]) -> list[Node]:
    """The outermost folders in `node` that neither are nor hold nor are in one of `named`."""
    paths = {part.path for part in named}
    if node.path in paths:
        return []
    outermost = []
    for inner in node.full:
        if any(f"{path}/".startswith(f"{inner.path}/") for path in paths):
            outermost += outside(inner, named)
        else:
            outermost.append(inner)
    return outermost


def names_of(nodes: Sequence[Node], whole: bool = False) -> str:
    """The first names or whole paths, as in "a/, b/ and 3 more"."""
    names = [f"{text_of(node.path)}/" if whole else name_of(node) for node in nodes]
    more = [f"{len(names) - SHOWN:,} more"] if len(names) > SHOWN else []
    return series([*names[:SHOWN], *more])


def name_of(node: Node) -> str:
    return f"{text_of(node.name)}/"


def key_of(node: Node) -> str:
    """A class name for comparison between splits."""
    return text_of(node.name).strip().casefold()
