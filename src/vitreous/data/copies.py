"""Finds images that are copies of one another, exactly or nearly.

Near-copies come from saving an image again as JPEG, resizing, mirroring or brightening it, or moving it by a pixel.
They are found in three steps, if the images have at least 8 pixels a side (for moves 16):

1. Each image gets a descriptor: the low frequencies of its brightness (a discrete cosine transform), weighted so that
   all count about the same. A matrix product compares all descriptors. Mirroring an image only changes the sign of
   the odd horizontal frequencies, so the same product compares each image with the mirrored others too.
2. Images with similar descriptors are compared at more frequencies, moved against each other by up to a pixel, and by
   colour, contrast and brightness.
3. Images that are linked in this way form a family if they stand apart from all other images. Among look-alikes, such
   as digits or drawings, images without a common origin can be as similar as copies are elsewhere, but
   others are nearly as similar to them.

The sums are sums of integers, exact in floating point, so the result is the same on every machine and in any order of
the images.

Letters: N images, U different images in the order of their SHA-256, S height and width in pixels, R height and width
at which images are compared, K frequencies, P pairs.
"""

from __future__ import annotations

from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitreous.data.identity import CHUNK_BYTES
from vitreous.data.packed import COPIES
from vitreous.data.store import ImageStore
from vitreous.errors import VitreousError
from vitreous.files import atomic_write
from vitreous.progress import ProgressLine
from vitreous.wording import count

METHOD = 1  # raised when the same images give other copies than before
MOST_IMAGES = (
    250_000  # different images; among more, only equal ones are found: the time grows with their square
)

SMALLEST = 8  # S from which near-copies are searched for
COMPARED_SIZE = 32  # R of images that are larger
HIGH = 12  # frequencies at which pairs are compared, in half cycles per side
LOWEST, LOW = (
    3,
    8,
)  # those of descriptors: a quarter of R, which a move by a pixel hardly changes, between these two
DESCRIPTOR, VECTOR = 1000, 2000  # lengths of the vectors; their products are below 2^24, exact in float32
CANDIDATE = (
    0.72  # similarity of descriptors; a move by a pixel in both directions costs up to a quarter of it
)
SIMILAR = 0.9  # similarity of near-copies
ALIKE = 0.8  # similarity of images that are connected to the same neighbourhood
DENSE = 256  # a neighbourhood is dense if it has more than this fraction of the images (1/256)
APART = (
    4  # in a dense neighbourhood, how much farther than its members all other images must be from a family
)
NEIGHBOURS = 48  # about how many candidates an image may have
LEAST_CONTRAST = 2.0  # standard deviation in grey levels; plainer images are copies only if they are equal
MOST_GAIN, MOST_OFFSET = 1.5, 48.0  # ratio of contrasts, and difference of mean brightness in grey levels
COLOUR_CELLS = 4  # along each side, of which the mean colours are compared; of 8 pixels of R or more
COLOUR_LEVELS, COLOUR_SHARE = 10.0, 0.25  # difference of colour in levels, or as a share of the saturation
FAMILY = 32  # different images in a family that stays whole
PICTURED, PICTURE_SIDE = 12, 64  # pairs of a record whose images it holds, and their size in pixels
ROWS, COLUMNS = 512, 4096  # of a block of similarities, which fits a processor's cache

Report = Callable[[float], None]


@dataclass(frozen=True)
class Pair:
    """Two images that are copies of each other.

    Attributes:
        first, second: (split, position in it) of each; `first` comes earlier.
        exact: whether all pixels are equal.
        mirrored: whether `second` is like `first` seen in a mirror.
    """

    first: tuple[str, int]
    second: tuple[str, int]
    exact: bool
    mirrored: bool = False

    @property
    def kind(self) -> str:
        """ "equal", "near" or "mirrored"."""
        return "equal" if self.exact else "mirrored" if self.mirrored else "near"

    def across(self, first: str, second: str) -> bool:
        """Whether the pair's images are in these splits, in this order."""
        return (self.first[0], self.second[0]) == (first, second)


@dataclass(frozen=True)
class Copies:
    """The copies in a data set.

    Attributes:
        groups: by split, int64 [N]: images with equal numbers, in any split, are copies of one another. The number
            is the position of the group's first image among those of all splits.
        equal: the same for images whose pixels are equal.
        pairs: for each image that has earlier copies, the image and one of them: in another split if possible, in
            train rather than val, equal rather than similar, then the most similar one.
        near: whether near-copies were searched for, or only equal images.
    """

    groups: dict[str, np.ndarray]
    equal: dict[str, np.ndarray]
    pairs: tuple[Pair, ...]
    near: bool = True


def copies_of(store: ImageStore) -> Copies:
    """The copies in a data set. Those of a packed data set are kept in a file beside its arrays."""
    cache = store.path / COPIES if store.path else None
    sizes = {name: len(split) for name, split in store.splits.items()}
    known = _read(cache, store.fingerprint, sizes) if cache else _IN_MEMORY.get(store.fingerprint)
    if known is None:
        known = find_copies({name: split.images for name, split in store.splits.items()}, store.name)
        if cache:
            with suppress(VitreousError):  # a cache that cannot be written, as of another user
                _write(cache, store.fingerprint, known)
        else:
            _IN_MEMORY.clear()
            _IN_MEMORY[store.fingerprint] = known
    return known


_IN_MEMORY: dict[str, Copies] = {}  # of the latest data set without a folder, by its fingerprint


def find_copies(images: Mapping[str, np.ndarray], name: str = "the images") -> Copies:
    """Finds the copies among the images of all splits.

    In families of more than `FAMILY` different images, which may change gradually from one end to the other, as the
    frames of a video do, each group is one image with those that are its own copies.

    Args:
        images: by split, uint8 [N, S, S, 3]; may be memory-mapped. They are read in pieces.
        name: what the images are called in the progress line, which is shown if this takes long.
    """
    parts = _Parts(list(images.values()))
    line = ProgressLine(quiet_seconds=2.0)

    def report(share: float) -> None:
        if line.due():
            line.show(share, (f"Looking for copies in {name}: {count(parts.total, 'image')}",))

    try:
        equal = _equal_images(parts)
        near = len(equal) <= MOST_IMAGES
        links = _links(parts, np.array([members[0] for members in equal], np.int64), report) if near else []
    finally:
        line.close()
    return _result(list(images), parts, equal, links, near)


# Reading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parts:
    """The images of all splits under one numbering."""

    arrays: list[np.ndarray]
    starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", np.cumsum([0, *map(len, self.arrays)]).tolist())

    @property
    def total(self) -> int:
        return self.starts[-1]

    def place(self, number: int) -> tuple[int, int]:
        """The split and the position in it of an image."""
        split = int(np.searchsorted(self.starts, number, side="right")) - 1
        return split, number - self.starts[split]

    def pieces(self, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The images with these numbers, int64 [P], piece by piece: (positions in `numbers`, images)."""
        size = self.arrays[0].shape[1]
        step = max(1, CHUNK_BYTES // 4 // (size * size * 3))
        order = np.argsort(numbers, kind="stable")  # files are read from front to back
        for start in range(0, len(numbers), step):
            positions = order[start : start + step]
            images = np.empty((len(positions), size, size, 3), np.uint8)
            for array, first in zip(self.arrays, self.starts, strict=False):
                inside = (numbers[positions] >= first) & (numbers[positions] < first + len(array))
                images[inside] = array[numbers[positions[inside]] - first]
            yield positions, images


def _equal_images(parts: _Parts) -> list[list[int]]:
    """The numbers of equal images, for each different image, in the order of their SHA-256."""
    members: dict[bytes, list[int]] = defaultdict(list)
    for positions, images in parts.pieces(np.arange(parts.total)):
        for number, image in zip(positions.tolist(), images, strict=True):
            members[sha256(image.data).digest()].append(number)
    return [members[digest] for digest in sorted(members)]


# Comparing --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Link:
    """Two near-copies, as positions in [U], with `first` < `second`."""

    first: int
    second: int
    similarity: float
    mirrored: bool


def _links(parts: _Parts, numbers: np.ndarray, report: Report) -> list[_Link]:
    """The pairs of near-copies among different images, int64 [U]."""
    if parts.arrays[0].shape[1] < SMALLEST:
        return []
    traits = _traits(parts, numbers)
    visible = np.flatnonzero(traits.contrast >= LEAST_CONTRAST)
    if len(visible) < 2:
        return []
    even, odd = traits.even[visible], traits.odd[visible]
    horizon = _horizon(even, odd)
    pairs = visible[_candidates(even, odd, horizon, report)]
    similarity, mirrored = _compare(parts, numbers, pairs)
    similarity[~_same_colours(traits, pairs, mirrored)] = 0
    crowded = np.zeros(len(numbers), np.float32)
    crowded[visible] = np.where(horizon > CANDIDATE, horizon, 0)
    accepted = _standing_apart(pairs, similarity, crowded)
    return [
        _Link(first, second, score, flipped)
        for (first, second), score, flipped in zip(
            pairs[accepted].tolist(), similarity[accepted].tolist(), mirrored[accepted].tolist(), strict=True
        )
    ]


def _brightness(images: np.ndarray) -> np.ndarray:
    """256 times the grey level, float64 [P, S, S], whole numbers."""
    grey = images[..., 0] * 77.0
    grey += images[..., 1] * 150.0
    grey += images[..., 2] * 29.0
    return grey


def _average(planes: np.ndarray, size: int) -> np.ndarray:
    """Planes [P, S, S] of whole numbers averaged over areas, to whole numbers [P, size, size]."""
    side = planes.shape[1]
    new, old = np.arange(size)[:, None], np.arange(side)
    overlap = np.minimum((new + 1) * side, (old + 1) * size) - np.maximum(new * side, old * size)
    areas = np.maximum(overlap, 0).astype(np.float64)
    return np.rint(areas @ planes @ areas.T / side**2)


def _compared(images: np.ndarray) -> np.ndarray:
    """Brightness at the size at which images are compared, [P, R, R]."""
    grey = _brightness(images)
    return grey if grey.shape[1] <= COMPARED_SIZE else _average(grey, COMPARED_SIZE)


def _cosines(side: int, frequencies: int) -> np.ndarray:
    """The matrix of a discrete cosine transform, 1024 times an orthogonal one's up to a factor; whole numbers."""
    k = np.arange(frequencies)[:, None]
    waves = np.cos(np.pi * k * (np.arange(side) + 0.5) / side) * np.where(k == 0, np.sqrt(0.5), 1)
    return np.rint(1024 * waves)


def _frequencies(highest: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of the frequencies [y, x] are used, their weights [K], and whether they are odd along x, bool [K].

    In photographs the amplitude falls as 1 / frequency, which the weights make up for.
    """
    along = np.arange(min(highest, side))
    radius = np.hypot(along[:, None], along)
    used = (radius > 0) & (radius <= highest)
    return used, np.rint(2 * radius[used]), np.nonzero(used)[1] % 2 == 1


def _scaled(vectors: np.ndarray, length: int) -> np.ndarray:
    """Vectors [..., K] of whole numbers at the same length, rounded to whole numbers."""
    norms = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return np.rint(vectors * (length / np.maximum(norms, 1)))


@dataclass(frozen=True)
class _Traits:
    """What is known of each image [U]: a descriptor, split by parity, and a few plain properties.

    `even` and `odd` float32 [U, K]; `contrast` (standard deviation) and `mean` in grey levels [U]; `colour` [U, C,
    C, 2], red and blue minus brightness in C by C cells, in levels.
    """

    even: np.ndarray
    odd: np.ndarray
    contrast: np.ndarray
    mean: np.ndarray
    colour: np.ndarray


def _traits(parts: _Parts, numbers: np.ndarray) -> _Traits:
    side = min(COMPARED_SIZE, parts.arrays[0].shape[1])
    used, weights, odd = _frequencies(max(LOWEST, min(LOW, side // 4)), side)
    cosines = _cosines(side, len(used))
    descriptors = np.empty((len(numbers), len(odd)), np.float32)
    contrast, mean = np.empty((2, len(numbers)), np.float32)
    cells = max(1, min(COLOUR_CELLS, side // 8))
    colour = np.empty((len(numbers), cells, cells, 2), np.float32)
    for positions, images in parts.pieces(numbers):
        grey = _compared(images)
        coefficients = np.rint(cosines @ grey @ cosines.T / 2**24)[:, used]
        descriptors[positions] = _scaled(coefficients * weights, DESCRIPTOR)
        contrast[positions] = np.sqrt((coefficients**2).sum(axis=1)) / (8 * side**2)
        mean[positions] = grey.mean(axis=(1, 2)) / 256
        plane = _average(_brightness(images), cells)
        for i, channel in enumerate((0, 2)):
            colour[positions, :, :, i] = _average(images[..., channel] * 256.0, cells) - plane
    return _Traits(
        np.ascontiguousarray(descriptors[:, ~odd]),
        np.ascontiguousarray(descriptors[:, odd]),
        contrast,
        mean,
        colour / 256,
    )


def _products(
    even: np.ndarray, odd: np.ndarray, even_columns: np.ndarray, odd_columns: np.ndarray
) -> np.ndarray:
    """Similarities of descriptors [U, K] and transposed ones [K, U], the better of as it is and mirrored."""
    similarity = even @ even_columns
    difference = odd @ odd_columns
    similarity += np.abs(difference, out=difference)
    return similarity


def _horizon(even: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """The similarity above which each image's neighbours are looked at, float32 [U].

    It is `CANDIDATE`, and higher for an image in a crowd, as a sample of the others shows.
    """
    total = len(even)
    least = np.float32(CANDIDATE * DESCRIPTOR**2)
    horizon = np.full(total, least)
    if total <= 4 * NEIGHBOURS:
        return horizon / DESCRIPTOR**2
    sample = max(total // 16, min(total, 256))  # the first by SHA-256, as good as any
    rank = max(1, round(NEIGHBOURS * sample / total)) + 1  # an image may be in the sample itself
    even_columns, odd_columns = even[:sample].T.copy(), odd[:sample].T.copy()
    for start in range(0, total, ROWS):
        rows = slice(start, start + ROWS)
        similarity = _products(even[rows], odd[rows], even_columns, odd_columns)
        crowded = np.flatnonzero((similarity >= least).sum(axis=1) > rank)
        nearest = np.partition(similarity[crowded], sample - rank, axis=1)[:, sample - rank]
        horizon[start + crowded] = np.maximum(nearest, least)
    return horizon / DESCRIPTOR**2


def _candidates(even: np.ndarray, odd: np.ndarray, horizon: np.ndarray, report: Report) -> np.ndarray:
    """The pairs (i, j) with i < j that lie within the horizon of both, int64 [P, 2], in order."""
    total = len(even)
    least = np.rint(horizon * DESCRIPTOR**2).astype(np.float32)
    crowded = bool((least != least[0]).any())
    even_columns, odd_columns = even.T.copy(), odd.T.copy()
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, total, ROWS):
        rows = slice(start, start + ROWS)
        for first_column in range(start // COLUMNS * COLUMNS, total, COLUMNS):
            columns = slice(first_column, first_column + COLUMNS)
            similarity = _products(even[rows], odd[rows], even_columns[:, columns], odd_columns[:, columns])
            if crowded:
                near = similarity >= least[rows, None]
                near &= similarity >= least[columns]
                at = np.flatnonzero(near)
            else:
                at = np.flatnonzero(similarity >= least[0])
            i, j = np.divmod(at, similarity.shape[1])
            pairs = np.stack([i + start, j + first_column], axis=1)
            found.append(pairs[pairs[:, 0] < pairs[:, 1]])
        report(1 - (1 - min(start + ROWS, total) / total) ** 2)
    pairs = np.concatenate(found)
    return pairs[np.lexsort(pairs.T[::-1])]


def _compare(parts: _Parts, numbers: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The similarity of each pair, and whether it is higher with one of them mirrored; both [P].

    One image without its border of a pixel (of R) is compared with the nine places that it may have in the other.
    Between the pixels of a smaller copy of an image there are four times as many places.
    """
    involved, where = np.unique(pairs, return_inverse=True)
    where = where.reshape(pairs.shape)
    size = parts.arrays[0].shape[1]
    side = min(COMPARED_SIZE, size) - 2
    used, weights, odd = _frequencies(HIGH, side)
    cosines = _cosines(side, len(used))
    vectors = np.empty((len(involved), 9, len(odd)), np.int16)
    for positions, images in parts.pieces(numbers[involved]):
        grey = _compared(images)
        rows = [cosines @ grey[:, top : top + side] for top in range(3)]
        for place in range(9):
            top, left = divmod(place, 3)
            coefficients = np.rint(rows[top][:, :, left : left + side] @ cosines.T / 2**24)[:, used]
            vectors[positions, place] = _scaled(coefficients * weights, VECTOR)
    similarity, mirrored = np.empty(len(pairs), np.float32), np.empty(len(pairs), bool)
    signs = np.where(odd, -1, 1).astype(np.float32)
    for start in range(0, len(pairs), 4096):
        piece = slice(start, start + 4096)
        first, second = (vectors[where[piece, side]].astype(np.float32) for side in (0, 1))
        plain, flipped = _best_place(first, second), _best_place(first, second * signs)
        if size > COMPARED_SIZE:
            close = np.flatnonzero(np.maximum(plain, flipped) >= SIMILAR - 0.15)
            first, second = _between(first[close]), _between(second[close])
            plain[close] = np.maximum(plain[close], _best_place(first, second))
            flipped[close] = np.maximum(flipped[close], _best_place(first, second * signs))
        similarity[piece], mirrored[piece] = np.maximum(plain, flipped), flipped > plain
    return similarity, mirrored


def _best_place(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The highest similarity of the middle place of one image with any place of the other, float32 [P]."""
    middle = first.shape[1] // 2
    products = [
        (places @ other[:, middle, :, None])[..., 0].max(axis=1)
        for places, other in ((first, second), (second, first))
    ]
    return np.maximum(*products) / np.float32(VECTOR**2)


def _between(vectors: np.ndarray) -> np.ndarray:
    """Vectors [P, 9, K] at places a pixel apart, as [P, 25, K] at places half a pixel apart."""
    places = vectors.reshape(-1, 3, 3, vectors.shape[2])
    for axis in (1, 2):
        shape = list(places.shape)
        shape[axis] = 5
        denser = np.empty(shape, np.float32)
        even, odd = [slice(None)] * 4, [slice(None)] * 4
        even[axis], odd[axis] = slice(0, None, 2), slice(1, None, 2)
        denser[tuple(even)] = places
        denser[tuple(odd)] = np.take(places, [0, 1], axis) + np.take(places, [1, 2], axis)
        places = denser
    return _scaled(places.reshape(len(vectors), 25, vectors.shape[2]).astype(np.float64), VECTOR).astype(
        np.float32
    )


def _same_colours(traits: _Traits, pairs: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Whether the images of each pair are alike in brightness, contrast and colour, bool [P]."""
    first, second = pairs.T
    contrast = traits.contrast
    alike = np.abs(traits.mean[first] - traits.mean[second]) <= MOST_OFFSET
    alike &= contrast[first] <= MOST_GAIN * contrast[second]
    alike &= contrast[second] <= MOST_GAIN * contrast[first]
    for start in range(0, len(pairs), 1 << 16):
        piece = slice(start, start + (1 << 16))
        one, other = traits.colour[first[piece]], traits.colour[second[piece]]
        other = np.where(mirrored[piece, None, None, None], other[:, :, ::-1], other)
        difference, saturation, other_saturation = (
            np.sqrt((colour**2).mean(axis=(1, 2, 3))) for colour in (one - other, one, other)
        )
        limit = np.maximum(COLOUR_LEVELS, COLOUR_SHARE * np.maximum(saturation, other_saturation))
        alike[piece] &= difference <= limit
    return alike


# Families ---------------------------------------------------------------------------------------------


@dataclass
class _Cluster:
    """Images that are connected by similarities down to the present one.

    Attributes:
        images: positions in [U].
        spread: the distance (1 - similarity) that connects them.
        sight: the distance up to which all their neighbours are known.
        links: the positions of near-copies among the pairs.
        accepted: those of them that stand apart.
    """

    images: list[int]
    spread: float = 0.0
    sight: float = 1.0
    links: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)


def _standing_apart(pairs: np.ndarray, similarity: np.ndarray, crowded: np.ndarray) -> np.ndarray:
    """The positions of the pairs whose images are near-copies of each other, int64.

    Pairs are connected from the most similar one on (single linkage). When a cluster of similar images is about to
    be connected with others, its pairs are accepted if the distance to those is `APART` times the distance inside.
    In a small neighbourhood all pairs of similar images are accepted, however far the others are.

    Args:
        crowded: the similarity up to which the neighbours of each image are unknown, float [U], 0 if all are known.
    """
    order = np.flatnonzero(similarity >= 1 - APART * (1 - SIMILAR))
    order = order[np.lexsort((order, -similarity[order]))]
    most = max(1, len(crowded) // DENSE)
    root_of: dict[int, int] = {}
    clusters: dict[int, _Cluster] = {}

    def root(image: int) -> int:
        while root_of[image] != image:
            root_of[image] = root_of[root_of[image]]
            image = root_of[image]
        return image

    def close(cluster: _Cluster, distance: float) -> None:
        """Decides about a cluster whose nearest other image is at `distance`."""
        distance = min(distance, cluster.sight)
        stands_apart = cluster.spread <= 1 - SIMILAR and distance >= APART * cluster.spread
        if stands_apart or (cluster.spread <= 1 - ALIKE < distance and len(cluster.images) <= most):
            cluster.accepted = list(cluster.links)

    for pair, (first, second), score in zip(
        order.tolist(), pairs[order].tolist(), similarity[order].tolist(), strict=True
    ):
        distance = 1 - score
        for image in (first, second):
            if image not in root_of:
                root_of[image] = image
                clusters[image] = _Cluster([image], sight=1 - float(crowded[image]))
        large, small = root(first), root(second)
        if large != small:
            if len(clusters[large].images) < len(clusters[small].images):
                large, small = small, large
            joined, other = clusters[large], clusters.pop(small)
            root_of[small] = large
            for cluster in (joined, other):
                close(cluster, distance)
            joined.images += other.images
            joined.links += other.links
            joined.accepted += other.accepted
            joined.spread, joined.sight = distance, min(joined.sight, other.sight)
        if score >= SIMILAR:
            clusters[large].links.append(pair)
    for cluster in clusters.values():
        close(cluster, 1.0)
    return np.array(sorted({pair for cluster in clusters.values() for pair in cluster.accepted}), np.int64)


def _families(total: int, links: list[_Link]) -> list[list[int]]:
    """Groups of near-copies, as positions in [U]."""
    neighbours: dict[int, list[int]] = defaultdict(list)
    for link in links:
        neighbours[link.first].append(link.second)
        neighbours[link.second].append(link.first)
    families, done = [], np.zeros(total, bool)
    for start in sorted(neighbours):
        if done[start]:
            continue
        family = [start]
        done[start] = True
        for image in family:
            fresh = [other for other in neighbours[image] if not done[other]]
            done[fresh] = True
            family += dict.fromkeys(fresh)
        if len(family) <= FAMILY:
            families.append(family)
            continue
        left = set(family)
        for image in sorted(family, key=lambda image: (-len(neighbours[image]), image)):
            if image in left:
                near = [image, *(other for other in neighbours[image] if other in left)]
                families.append(near)
                left.difference_update(near)
    return families


def _result(
    names: list[str], parts: _Parts, equal: list[list[int]], links: list[_Link], near: bool
) -> Copies:
    """Groups and pairs by split, from equal images, [U] lists of numbers, and links between different ones."""
    numbers = np.arange(parts.total)
    for members in equal:
        numbers[members] = members[0]
    equal_groups = dict(zip(names, np.split(numbers.copy(), parts.starts[1:-1]), strict=True))
    for family in _families(len(equal), links):
        members = [number for image in family for number in equal[image]]
        numbers[members] = min(members)
    groups = dict(zip(names, np.split(numbers, parts.starts[1:-1]), strict=True))

    relatives: dict[int, list[tuple[int, float, bool]]] = defaultdict(list)
    for link in links:
        relatives[link.first].append((link.second, link.similarity, link.mirrored))
        relatives[link.second].append((link.first, link.similarity, link.mirrored))
    first_ones: dict[int, list[int]] = {}  # the first of equal images in each split

    def firsts(image: int) -> list[int]:
        if image not in first_ones:
            by_split: dict[int, int] = {}
            for number in equal[image]:
                by_split.setdefault(parts.place(number)[0], number)
            first_ones[image] = list(by_split.values())
        return first_ones[image]

    pairs = []
    for image, members in enumerate(equal):
        if len(members) == 1 and image not in relatives:
            continue
        for number in members:
            split, position = parts.place(number)
            choices = [
                (*_preference(parts.place(other)[0], split), score, other, mirrored)
                for relative, score, mirrored in [(image, 2.0, False), *relatives[image]]
                for other in firsts(relative)
                if other < number
            ]
            if choices:
                _, _, score, other, mirrored = min(choices, key=lambda c: (c[0], c[1], -c[2], c[3]))
                other_split, other_position = parts.place(other)
                pair = Pair(
                    (names[other_split], other_position), (names[split], position), score == 2, mirrored
                )
                pairs.append((number, pair))
    ordered = tuple(pair for _, pair in sorted(pairs, key=lambda entry: entry[0]))
    return Copies(groups, equal_groups, ordered, near)


def _preference(other: int, own: int) -> tuple[bool, int]:
    """Sorts the splits of relatives: other splits first, train before val."""
    return other == own, other


# Record -----------------------------------------------------------------------------------------------


def copies_record(store: ImageStore, sources: Mapping[str, str]) -> dict[str, Any] | None:
    """The content of a run's `copies.json`: the copies that matter for its figures. None if there are none.

    Its `leaks` are the images of val and test, as the source gives them, that have copies in the source's training
    split. Its `conflicts` are copies with different labels. The first `PICTURED` of each have their `images`, the
    image and the one that it is a copy of, as PNG in base64. `images` has the size of each split in question.

    Args:
        sources: the source's split that each of "val" and "test" is, or "train" if it was cut from that.
    """
    copies = copies_of(store)
    leaks, conflicts = [], []
    for pair in copies.pairs:
        labels = [int(store.splits[split].labels[position]) for split, position in (pair.first, pair.second)]
        for split in ("val", "test"):
            if sources[split] != "train" and pair.across("train", sources[split]):
                leaks.append((split, pair, labels))
        if labels[0] != labels[1]:
            conflicts.append((pair.second[0], pair, labels))
    if not leaks and not conflicts:
        return None
    return {
        "near": copies.near,
        "images": {
            split: len(store.splits[source]) for split, source in sources.items() if source != "train"
        },
        "leaks": [_described(store, *entry, pictured=i < PICTURED) for i, entry in enumerate(leaks)],
        "conflicts": [_described(store, *entry, pictured=i < PICTURED) for i, entry in enumerate(conflicts)],
    }


def _described(
    store: ImageStore, split: str, pair: Pair, labels: list[int], pictured: bool
) -> dict[str, Any]:
    (first_split, first), (second_split, second) = pair.first, pair.second
    entry: dict[str, Any] = {
        "split": split,
        "name": store.splits[second_split].names[second],
        "label": store.classes[labels[1]],
        "copy_of": store.splits[first_split].names[first],
        "copy_split": first_split,
        "copy_label": store.classes[labels[0]],
        "kind": pair.kind,
    }
    if pictured:
        entry["images"] = [
            _png(np.asarray(store.splits[name].images[position]))
            for name, position in (pair.second, pair.first)
        ]
    return entry


def _png(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    content = BytesIO()
    image.save(content, "PNG")
    return b64encode(content.getvalue()).decode()


# Cache ------------------------------------------------------------------------------------------------


def _write(path: Path, fingerprint: str, copies: Copies) -> None:
    """Keeps the copies of the data set with this fingerprint in the file `path`, which holds plain arrays only."""
    names = list(copies.groups)
    pairs = np.array(
        [
            (names.index(pair.first[0]), pair.first[1], names.index(pair.second[0]), pair.second[1], *flags)
            for pair in copies.pairs
            for flags in [(pair.exact, pair.mirrored)]
        ],
        np.int64,
    ).reshape(-1, 6)
    content = BytesIO()
    np.savez_compressed(
        content,
        allow_pickle=False,
        identity=np.array(_identity(fingerprint)),
        near=np.array(copies.near),
        pairs=pairs,
        **{f"groups_{name}": numbers for name, numbers in copies.groups.items()},
        **{f"equal_{name}": numbers for name, numbers in copies.equal.items()},
    )
    atomic_write(path, content.getvalue())


def _read(path: Path, fingerprint: str, sizes: Mapping[str, int]) -> Copies | None:
    """The copies that `_write` kept, or None if there are none, or they are damaged or of other images."""
    try:
        with np.load(path, allow_pickle=False) as content:
            if str(content["identity"]) != _identity(fingerprint):
                return None
            groups = {name: content[f"groups_{name}"] for name in sizes}
            equal = {name: content[f"equal_{name}"] for name in sizes}
            rows, near = content["pairs"], bool(content["near"])
        total = sum(sizes.values())
        for name, numbers in (*groups.items(), *equal.items()):
            if numbers.dtype != np.int64 or numbers.shape != (sizes[name],):
                return None
            if not (numbers.min() >= 0 and numbers.max() < total):
                return None
        names, ends = list(sizes), np.array(list(sizes.values()))
        if rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] != 6 or (rows < 0).any():
            return None
        if (rows[:, 1] >= ends[rows[:, 0]]).any() or (rows[:, 3] >= ends[rows[:, 2]]).any():
            return None
    except Exception:  # on damaged bytes numpy raises nearly anything, and the copies can be found again
        return None
    pairs = (
        Pair((names[a], i), (names[b], j), bool(exact), bool(mirrored))
        for a, i, b, j, exact, mirrored in rows.tolist()
    )
    return Copies(groups, equal, tuple(pairs), near)


def _identity(fingerprint: str) -> str:
    return f"vitreous copies, method {METHOD}, {fingerprint}"
