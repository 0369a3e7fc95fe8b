"""Reads the tags of a TIFF file from its bytes, to say why Pillow cannot read it and how many images it holds."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAX_IMAGES = 10_000  # directories that are followed in one file
MAX_VALUES = 64  # values of a tag that are read
SIZES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # struct codes of the unsigned types
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # SampleFormat
SUBFILE = 254  # NewSubfileType, the first tag
KINDS = {UNSIGNED: "integers", SIGNED: "signed integers", FLOAT: "floats", 5: "complex", 6: "complex"}
EXPLAINED = "only grey, colour and opacity can be read"


@dataclass(frozen=True)
class Tags:
    """The tags of the first image of a file that say what its values are.

    Attributes:
        bits: of each band.
        kinds: SampleFormat of each band.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 Lab.
        planar: 1 for values side by side, 2 for bands one after the other.
        extra: the meaning of the bands beyond the colour: 0 unspecified, 1 and 2 opacity.
        images: number of images in the file, without reduced copies and masks.
    """

    bits: tuple[int, ...]
    kinds: tuple[int, ...]
    photometric: int
    planar: int
    extra: tuple[int, ...]
    images: int


def read_tags(data: bytes) -> Tags | None:
    """The tags of a TIFF or BigTIFF file; None if it has no readable directory."""
    directories = list(_directories(data))
    if not directories:
        return None
    first = directories[0]
    bands = max(1, first.get(277, (1,))[0])
    bits = first.get(258, (1,))
    kinds = first.get(339, (UNSIGNED,))
    return Tags(
        bits=_for_each(bits, bands),
        kinds=_for_each(kinds, bands),
        photometric=first.get(262, (1,))[0],
        planar=first.get(284, (1,))[0],
        extra=first.get(338, ()),
        # NewSubfileType: bit 0 a reduced copy of another image, bit 2 a mask of one.
        images=max(1, sum(not directory.get(SUBFILE, (0,))[0] & 5 for directory in directories)),
    )


def unreadable_kind(tags: Tags) -> str:
    """Why the values of an image would be misread or cannot be read, or "" if nothing speaks against it."""
    bands, bits, kind = len(tags.bits), max(tags.bits), tags.kinds[0]
    if bands > 4:
        return f"{bands} bands; {EXPLAINED}"
    if len(set(tags.bits)) > 1 or len(set(tags.kinds)) > 1:
        return "bands of different types; convert them to 8 bits"
    if kind in (5, 6):
        return "complex numbers; convert them to 32-bit floats"
    if kind == FLOAT and bits != 32:
        return f"{bits}-bit floats; convert to 32 bits"
    if kind == SIGNED and bits == 8:
        return "signed 8-bit integers; convert to unsigned"
    if bits > 32:
        return f"{bits}-bit integers; convert to 16 bits"
    if bands > 1 and bits == 32:
        return f"{bands} bands of 32 bits; convert to 8 bits"
    if bands > 1 and tags.planar == 2 and bits > 8:
        return f"{bits}-bit colour in separate planes; convert to 8 bits"
    return ""


def described(tags: Tags) -> str:
    """The kind of an image, for one that Pillow cannot read although its file seems to be whole."""
    bands = "1 band" if len(tags.bits) == 1 else f"{len(tags.bits)} bands"
    kind = KINDS.get(tags.kinds[0], "values of an unknown type")
    return (
        f"a TIFF of {bands}, {tags.bits[0]}-bit {kind}, photometric {tags.photometric}; convert to 8-bit PNG"
    )


def _for_each(values: tuple[int, ...], bands: int) -> tuple[int, ...]:
    """One value for each band: writers may give a single value for all of them."""
    bands = min(bands, MAX_VALUES)
    return values[:bands] if len(values) >= bands else values[:1] * bands


def _directories(data: bytes) -> Iterator[dict[int, tuple[int, ...]]]:
    """The unsigned tags of each image; stops at what lies outside the file or was seen before."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        return
    big = 43 in (data[2], data[3])
    offset_code, count_code, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    inline = struct.calcsize(offset_code)
    seen: set[int] = set()
    try:
        (offset,) = struct.unpack_from(order + offset_code, data, 8 if big else 4)
        while offset and offset not in seen and len(seen) < MAX_IMAGES:
            seen.add(offset)
            (entries,) = struct.unpack_from(order + count_code, data, offset)
            start = offset + struct.calcsize(count_code)
            (following,) = struct.unpack_from(order + offset_code, data, start + entries * entry)
            tags = {}
            for place in range(start, start + entries * entry, entry):
                tag, kind = struct.unpack_from(order + "HH", data, place)
                if (
                    len(seen) > 1 and tag > SUBFILE
                ):  # of the others, only their kind matters; tags are in order
                    break
                (values,) = struct.unpack_from(order + offset_code, data, place + 4)
                if kind in SIZES and values:
                    code = f"{order}{min(values, MAX_VALUES)}{SIZES[kind]}"
                    at = place + 4 + inline
                    if values * struct.calcsize("=" + SIZES[kind]) > inline:
                        (at,) = struct.unpack_from(order + offset_code, data, at)
                    if at + struct.calcsize(code) <= len(data):
                        tags[tag] = struct.unpack_from(code, data, at)
            yield tags
            offset = following
    except (struct.error, OverflowError, IndexError):  # outside the file
        return
