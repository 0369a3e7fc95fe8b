"""The images of a folder or zip as they were before they became square: which are worth a look, and what they lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitreous.data.decode import read_image
from vitreous.data.folder import open_tree
from vitreous.data.packed import read_header
from vitreous.data.sentences import MUCH, cut_share
from vitreous.data.store import ImageStore, Split
from vitreous.data.values import Facts
from vitreous.errors import VitreousError
from vitreous.preprocess import Preprocess
from vitreous.wording import count

EXAMPLES = 8
LARGEST = 512  # pixels of a side


@dataclass(frozen=True)
class Original:
    """An image before and after it became square.

    Attributes:
        width, height: in pixels, upright.
        image: all of it in RGB, of these proportions and at most `LARGEST` pixels wide and high.
        square: uint8 [S, S, 3], as it was packed.
    """

    width: int
    height: int
    image: Image.Image
    square: np.ndarray


def shapes_of(names: Sequence[str], facts: Sequence[Facts]) -> dict[str, Any]:
    """What an import records about the shapes of its images, JSON-able, for `read_originals` and `describe_fit`.

    Keys: images, not_square and cropped (their numbers; cropped are those that lose much by a square crop), examples
    (the names of images that are not square, of as many shapes as possible, from the tallest to the widest).
    """
    elongated = sorted(
        (i for i, fact in enumerate(facts) if fact.width != fact.height),
        key=lambda i: facts[i].width / facts[i].height,
    )
    shapes: dict[tuple[int, int], int] = {}  # in the order of `elongated`, so from the tallest to the widest
    for i in elongated:
        shapes.setdefault((facts[i].width, facts[i].height), i)
    chosen = set(_spread(list(shapes.values()), EXAMPLES))
    chosen |= set(_spread([i for i in elongated if i not in chosen], EXAMPLES - len(chosen)))
    return {
        "images": len(facts),
        "not_square": len(elongated),
        "cropped": sum(cut_share(fact, "crop") > MUCH for fact in facts),
        "examples": [names[i] for i in elongated if i in chosen],
    }


def _spread(items: Sequence[int], most: int) -> list[int]:
    """At most so many of the items, evenly over the sequence, with its first and last."""
    positions = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
    return [items[position] for position in positions]


def recorded_shapes(store: ImageStore) -> Mapping[str, Any] | None:
    """What `shapes_of` recorded; None for data that are no folder or zip, or that are all square."""
    header = read_header(store.path) if store.path else None
    shapes = header["extra"].get("shapes") if header else None
    return shapes if isinstance(shapes, dict) and shapes.get("not_square") else None


def describe_fit(store: ImageStore) -> str:
    """What becoming square did to the images of a data set; "" if they were square before."""
    shapes = recorded_shapes(store)
    if shapes is None:
        return ""
    images = count(shapes["images"], "image")
    if store.preprocess.fit == "pad":
        return f"fit pad adds bars to {shapes['not_square']:,} of {images}"
    if store.preprocess.fit == "stretch":
        return f"fit stretch changes the proportions of {shapes['not_square']:,} of {images}"
    if not shapes["cropped"]:
        return f"fit crop cuts at most {100 * MUCH:.0f} % off an image"
    return (
        f"fit crop cuts more than {100 * MUCH:.0f} % off {shapes['cropped']:,} of {images}; "
        "--fit pad or --fit stretch keeps all of it"
    )


def read_originals(store: ImageStore) -> list[Original]:
    """Some images that were not square, from the tallest to the widest, as far as their files can still be read."""
    shapes = recorded_shapes(store)
    if shapes is None or store.path is None:
        return []
    positions = {
        name: (split, position)
        for split, part in store.splits.items()
        for position, name in enumerate(part.names)
    }
    originals = []
    extra = (read_header(store.path) or {"extra": {}})["extra"]
    try:
        with open_tree(Path(extra["path"]), extra.get("splits", "auto")) as tree:
            locations = {entry.name: entry.location for entry in tree.layout.entries}
            for name in shapes["examples"]:
                split, position = positions[name]
                image = read_image(tree.read(locations[name]))
                square = np.asarray(store.splits[split].images[position])
                originals.append(Original(*image.size, _whole(image, store.preprocess), square))
    except (VitreousError, KeyError):  # moved or changed since the import
        return []
    return originals


def files_of(store: ImageStore, part: Split) -> Iterator[tuple[str, bytes]]:
    """The names of a split's images with the bytes of their files, in the split's order.

    Images of a folder or zip that can still be read are the files themselves. All others, such as those of the named
    data sets, are PNG files of what was packed.

    Raises:
        VitreousError: a file of the folder or zip was removed since the import.
    """
    header = read_header(store.path) if store.path else None
    extra = header["extra"] if header else {}
    if "path" not in extra or not Path(extra["path"]).exists():
        for name, image in zip(part.names, part.images, strict=True):
            file = BytesIO()
            Image.fromarray(np.asarray(image)).save(file, "PNG")
            yield name, file.getvalue()
        return
    with open_tree(Path(extra["path"]), extra.get("splits", "auto")) as tree:
        locations = {entry.name: entry.location for entry in tree.layout.entries}
        for name in part.names:
            if name not in locations:
                raise VitreousError(
                    f"{extra['path']} no longer has the image {name}; restore it, or train anew."
                )
            yield name, tree.read(locations[name])


def _whole(image: Image.Image, settings: Preprocess) -> Image.Image:
    """All of an image in RGB, with the values and the ground that its data set was packed with."""
    side = min(LARGEST, max(image.size))
    stretched = replace(settings, size=side, fit="stretch").batch(image)[0]
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return Image.fromarray(stretched).resize(size, Image.Resampling.LANCZOS)
