"""`shapes`: a built-in data set of ten coloured shapes on textured ground, drawn from a seed in about a second.

Only the form tells the class. Colour, texture, size and rotation (up to 45° to either side) are drawn alike for all
classes, each shape is placed anywhere that it fits, and all shapes have equal areas, so counting colours does not help.

Letters: N images of a block, S image_size. Arrays are computed with sums, products, quotients, roots and roundings
only. Unlike sines, these are the same to the last bit on every machine, and so is the data set.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from vitreous.data.store import ImageStore, in_memory
from vitreous.errors import VitreousError
from vitreous.files import human_size

# A shape: maps coordinates in its own frame, centred and in units of the root of its area, to the signed distance from
# its outline, negative inside.
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]

AREA = (0.14, 0.28)  # of a shape, as a share of the image
MIN_CONTRAST = 0.5  # RGB distance, each channel from 0 to 1, of a shape's colour from its ground
COLOURS = 6  # candidates for a shape's colour; the first with enough contrast is used
WAVES = 3  # whose sum is the texture of the ground
NOISE = 0.08  # peak to peak, on each pixel
LARGEST = 4e9  # bytes
BLOCK_PIXELS = 2**19  # drawn at a time, to stay in the processor's cache


def shapes(seed: int = 0, image_size: int = 32, train: int = 6000, test: int = 1000) -> ImageStore:
    """Draws the data set, in memory; the same arguments give the same bits.

    Args:
        seed: seed of all random numbers.
        image_size: height and width in pixels, at least 16.
        train, test: images in each split; the ten classes are as equal as the number allows.

    Raises:
        VitreousError: the images are too small, too few to show each class, or too large for memory.
    """
    if image_size < 16:
        raise VitreousError(
            f"Shapes cannot be recognised in images of {image_size} pixels; choose an image size of 16 or more."
        )
    if min(train, test) < len(SHAPES):
        raise VitreousError(
            f"Splits of {train} and {test} images are too small for {len(SHAPES)} classes; "
            f"give at least {len(SHAPES)} images each."
        )
    size = (train + test) * image_size**2 * 3
    if size > LARGEST:
        raise VitreousError(
            f"Shapes in images of {image_size} pixels would take {human_size(size)} of memory; "
            "choose a smaller image size."
        )
    splits = {}
    for stream, (split, count) in enumerate({"train": train, "test": test}.items()):
        labels = np.arange(count) % len(SHAPES)
        splits[split] = (
            _draw(labels, seed, stream, image_size),
            labels,
            [f"{split}:{i}" for i in range(count)],
        )
    return in_memory(
        name="shapes", classes=tuple(SHAPES), splits=splits, source=f"drawn by vitreous from the seed {seed}"
    )


def _draw(labels: np.ndarray, seed: int, stream: int, size: int) -> np.ndarray:
    """Draws an image for each of `labels` int [M]: uint8 [M, S, S, 3]."""
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    # Two counters of one key: one for the content of the images, one for the noise on them.
    draws = np.random.Philox(key=key)
    noise = np.random.Philox(key=key, counter=2**128)
    images = np.empty((len(labels), size, size, 3), dtype=np.uint8)
    block = max(1, BLOCK_PIXELS // size**2)
    words = math.ceil(size * size * 3 / 8)
    for start in range(0, len(labels), block):
        part = slice(start, start + block)
        count = len(labels[part])
        raw = draws.random_raw(count * DRAWS).reshape(count, DRAWS)
        u = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)  # in [0, 1)
        octets = noise.random_raw(count * words).astype("<u8").view(np.uint8).reshape(count, words * 8)
        grain = octets[:, : size * size * 3].reshape(count, size, size, 3).astype(np.float32)
        painted = _paint(labels[part], u, size)
        painted += (grain * np.float32(1 / 255) - np.float32(0.5)) * np.float32(NOISE)
        images[part] = np.floor(np.clip(painted, 0, 1) * np.float32(255) + np.float32(0.5))
    return images


# Which random numbers of an image `_paint` uses for what; area, rotation and position (2) come first.
BASE = slice(4, 7)
SWING = slice(7, 10)
TEXTURE = slice(10, 10 + 3 * WAVES)
COLOUR = slice(TEXTURE.stop, TEXTURE.stop + 3 * COLOURS)
DRAWS = COLOUR.stop


def _paint(labels: np.ndarray, u: np.ndarray, size: int) -> np.ndarray:
    """Draws images without noise, float32 [N, S, S, 3] in 0..1, from labels [N] and u [N, DRAWS] in [0, 1)."""
    column = u[:, :, None, None]  # u[:, i] as [N, 1, 1], to go with [N, S, S]
    pixel = np.arange(size, dtype=np.float32) + np.float32(0.5)
    y, x = pixel[None, :, None], pixel[None, None, :]

    # The shape: the part of each pixel that it covers, [N, S, S].
    length = np.sqrt(AREA[0] + (AREA[1] - AREA[0]) * column[:, 0]).astype(np.float32) * np.float32(size)
    cos, sin = _direction(column[:, 1])
    reach = np.array([REACH[name] for name in SHAPES], dtype=np.float32)[labels][:, None, None] * length
    room = np.maximum(size - 2 * reach, 0)  # the shape is entirely inside the image, if it fits
    dx = x - (size / 2 + (column[:, 2] - np.float32(0.5)) * room)
    dy = y - (size / 2 + (column[:, 3] - np.float32(0.5)) * room)
    own_x, own_y = (cos * dx + sin * dy) / length, (cos * dy - sin * dx) / length
    distance = np.empty_like(own_x)
    for label, shape in enumerate(SHAPES.values()):
        of_class = labels == label
        distance[of_class] = shape(own_x[of_class], own_y[of_class])
    cover = np.clip(np.float32(0.5) - distance * length, 0, 1)

    # The ground: a base colour plus a second colour times a sum of waves, [N, S, S].
    base = np.float32(0.15) + np.float32(0.7) * u[:, BASE]
    swing = np.float32(0.4) * (u[:, SWING] - np.float32(0.5))
    texture = np.zeros((len(labels), size, size), dtype=np.float32)
    for wave in range(WAVES):
        angle, speed, phase = (column[:, TEXTURE.start + 3 * wave + i] for i in range(3))
        cos, sin = _direction(angle)
        along = cos * x + sin * y if wave % 2 == 0 else cos * y + sin * x
        cycles = np.float32(1) + np.float32(4) * speed  # across the image
        texture += _wave(along * (cycles / np.float32(size)) + phase) * np.float32(1 / WAVES)

    # The shape's colour: the first candidate with enough contrast to both extremes of the ground and to its middle.
    candidates = u[:, COLOUR].reshape(len(labels), COLOURS, 3)
    contrast = np.full((len(labels), COLOURS), np.inf, dtype=np.float32)
    for end in (-1, 0, 1):
        r, g, b = np.moveaxis(candidates - (base + np.float32(end) * swing)[:, None], 2, 0)
        contrast = np.minimum(contrast, np.sqrt(r * r + g * g + b * b))
    enough = contrast >= MIN_CONTRAST
    choice = np.where(enough.any(1), enough.argmax(1), contrast.argmax(1))
    colour = candidates[np.arange(len(labels)), choice]

    ground = base[:, None, None] + swing[:, None, None] * texture[..., None]  # [N, S, S, 3]
    return ground + (colour[:, None, None] - ground) * cover[..., None]


def _direction(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of a random angle up to 45° to either side, from u in [0, 1), by rational arithmetic."""
    t = (u - np.float32(0.5)) * np.float32(2 * (math.sqrt(2) - 1))  # tan(angle / 2), to tan(22.5°)
    return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)


def _wave(phase: np.ndarray) -> np.ndarray:
    """A smooth wave of period 1 between -1 and 1."""
    zigzag = np.abs(phase - np.floor(phase) - np.float32(0.5)) * 4 - 1
    return zigzag * (np.float32(1.5) - np.float32(0.5) * zigzag * zigzag)


# ---- the shapes


def _polygon(*corners: tuple[float, float]) -> tuple[Distance, float]:
    """The polygon with these corners, centred and scaled to area 1, and the distance of its farthest corner."""
    edges = list(zip(corners, corners[1:] + corners[:1], strict=True))
    cross = [ax * by - bx * ay for (ax, ay), (bx, by) in edges]
    area = sum(cross) / 2
    centre_x = sum((a[0] + b[0]) * c for (a, b), c in zip(edges, cross, strict=True)) / (6 * area)
    centre_y = sum((a[1] + b[1]) * c for (a, b), c in zip(edges, cross, strict=True)) / (6 * area)
    scale = math.sqrt(abs(area))
    corners = tuple(((x - centre_x) / scale, (y - centre_y) / scale) for x, y in corners)

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        nearest = np.full_like(x, np.inf)  # squared distance from the outline
        inside = np.zeros(x.shape, dtype=bool)
        for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
            ex, ey = np.float32(bx - ax), np.float32(by - ay)
            px, py = x - np.float32(ax), y - np.float32(ay)
            along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
            nx, ny = px - along * ex, py - along * ey
            np.minimum(nearest, nx * nx + ny * ny, out=nearest)
            # A point is inside if a ray from it crosses the outline an odd number of times.
            crosses = (py < 0) != (py < ey)
            inside ^= crosses & ((px * ey < py * ex) == (ey > 0))
        return np.where(inside, -np.sqrt(nearest), np.sqrt(nearest))

    return distance, max(math.hypot(*corner) for corner in corners)


def _disc(radius: float, at: float = 0.0) -> Distance:
    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        dx = x - np.float32(at)
        return np.sqrt(dx * dx + y * y) - np.float32(radius)

    return distance


def _minus(whole: Distance, hole: Distance) -> Distance:
    return lambda x, y: np.maximum(whole(x, y), -hole(x, y))


def _circle() -> tuple[Distance, float]:
    radius = math.sqrt(1 / math.pi)
    return _disc(radius), radius


def _ring() -> tuple[Distance, float]:
    radius = math.sqrt(1 / (math.pi * (1 - 0.55**2)))
    return _minus(_disc(radius), _disc(0.55 * radius)), radius


def _crescent() -> tuple[Distance, float]:
    # A disc of radius 1 without a disc of radius b at distance d. Their intersection has a closed form.
    b, d = 0.85, 0.5
    lens = math.acos((d * d + 1 - b * b) / (2 * d)) + b * b * math.acos((d * d + b * b - 1) / (2 * d * b))
    lens -= 0.5 * math.sqrt((-d + 1 + b) * (d + 1 - b) * (d - 1 + b) * (d + 1 + b))
    radius = math.sqrt(1 / (math.pi - lens))
    return _minus(_disc(radius), _disc(b * radius, at=d * radius)), radius


def _star() -> tuple[Distance, float]:
    tips = [(1.0 if i % 2 == 0 else 0.42, math.pi * i / 5) for i in range(10)]  # the first points up
    return _polygon(*((r * math.sin(angle), -r * math.cos(angle)) for r, angle in tips))


_WITH_REACH: dict[str, tuple[Distance, float]] = {
    "arrow": _polygon((0, -1), (3, -1), (3, -3), (6, 0), (3, 3), (3, 1), (0, 1)),
    "bar": _polygon((0, 0), (3, 0), (3, 1), (0, 1)),
    "circle": _circle(),
    "corner": _polygon((0, 0), (5, 0), (5, 2), (2, 2), (2, 5), (0, 5)),
    "crescent": _crescent(),
    "cross": _polygon(
        *((1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1)),
        *((-1, -1), (-1, -3), (1, -3), (1, -1), (3, -1), (3, 1)),
    ),
    "ring": _ring(),
    "square": _polygon((0, 0), (1, 0), (1, 1), (0, 1)),
    "star": _star(),
    "triangle": _polygon((0, 0), (1, 0), (0.5, -math.sqrt(3) / 2)),
}
SHAPES: dict[str, Distance] = {name: distance for name, (distance, _) in _WITH_REACH.items()}
# The distance of a shape's farthest point from its centre, in units of the root of its area.
REACH: dict[str, float] = {name: reach for name, (_, reach) in _WITH_REACH.items()}
