"""What identifies a data set whatever its source: canonical order, channel statistics and fingerprint.

Letters: N images, H image_size (height and width), 3 channels red, green, blue.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

CHUNK_BYTES = 1 << 24


def canonical_order(images: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Sorts images by class, then content, then name, so that the order in the source does not matter.

    Args:
        images: uint8 [N, H, H, 3], may be memory-mapped (read once, front to back).
        labels: int [N].
        names: [N]; they only order equal images of one class, so they cannot change the arrays.

    Returns:
        int64 [N], the old position of each image in the new order.
    """
    digests = [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images]
    classes = labels.tolist()
    order = sorted(range(len(classes)), key=lambda i: (classes[i], digests[i], names[i]))
    return np.array(order, dtype=np.int64)


def chunks(images: np.ndarray, order: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yields `images` (in `order`, if given) in pieces, because a large data set may not fit in memory."""
    step = max(1, CHUNK_BYTES // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), step):
        piece = slice(start, start + step)
        yield np.ascontiguousarray(images[piece] if order is None else images[order[piece]])


class ChannelStatistics:
    """Mean and standard deviation of each channel, from exact integer sums: the same bits in any order."""

    def __init__(self) -> None:
        self.count = 0
        self.sums = [0, 0, 0]
        self.squares = [0, 0, 0]

    def add(self, images: np.ndarray) -> None:
        pixels = images.reshape(-1, 3)
        self.count += len(pixels)
        for channel in range(3):
            values = pixels[:, channel].astype(np.uint16)
            self.sums[channel] += int(values.sum(dtype=np.int64))
            self.squares[channel] += int((values * values).sum(dtype=np.int64))  # 255² fits in uint16

    def mean(self) -> tuple[float, float, float]:
        r, g, b = (total / (255 * self.count) for total in self.sums)
        return r, g, b

    def std(self) -> tuple[float, float, float]:
        n = self.count
        pairs = zip(self.sums, self.squares, strict=True)
        r, g, b = (math.sqrt((n * squares - total * total) / (n * n)) for total, squares in pairs)
        return max(r, 1) / 255, max(g, 1) / 255, max(b, 1) / 255


class Fingerprint:
    """SHA-256 of the classes, shapes, labels and pixels of all splits. Sources and names do not enter it."""

    def __init__(self, classes: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
        head = {"classes": list(classes), "shapes": {split: list(shape) for split, shape in shapes.items()}}
        self.hash = hashlib.sha256(json.dumps(head, sort_keys=True).encode())

    def add(self, array: np.ndarray) -> None:
        self.hash.update(np.ascontiguousarray(array).data)

    def hexdigest(self) -> str:
        return self.hash.hexdigest()
