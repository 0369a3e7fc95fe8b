"""Image files written byte by byte, by the rules of their formats, for what Pillow cannot write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from sample_data import encoded

SRGB_XY = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))  # chromaticities of red, green and blue
P3_XY = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
D65_XY, D50 = (0.3127, 0.3290), np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG of the given rows, without their filter bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    stride = len(rows) // height
    filtered = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(filtered))
        + chunk(b"IEND", b"")
    )


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel from uint16 [H, W, C], with C = 1 grey, 2 grey and opacity, 3 RGB or 4 RGBA."""
    height, width, channels = pixels.shape
    return png(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], pixels.astype(">u2").tobytes())


def tiff(*pages: np.ndarray, order: Literal["<", ">"] = "<", big: bool = False, **tags: Any) -> bytes:
    """An uncompressed TIFF or BigTIFF of arrays [H, W] or [H, W, C] of any type.

    Args:
        order: "<" little-endian or ">" big-endian.
        tags: photometric, extra (a list), subfile (of the pages behind the first), kind (SampleFormat), planar.
    """
    offset_code, count_code, inline = ("Q", "Q", 8) if big else ("I", "H", 4)
    mark = b"II" if order == "<" else b"MM"
    out = bytearray(
        mark + struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, 16) if big else (42, 8)))
    )
    for index, page in enumerate(pages):
        height, width = page.shape[:2]
        bands = page.shape[2] if page.ndim == 3 else 1
        separate = tags.get("planar") == 2
        planes = [page[..., band] for band in range(bands)] if separate else [page]
        strips = [plane.astype(page.dtype.newbyteorder(order)).tobytes() for plane in planes]
        kind = tags.get("kind", {"u": 1, "i": 2, "f": 3, "c": 6}[page.dtype.kind])
        entries = {
            254: ("I", [tags.get("subfile", 0) if index else 0]),
            256: ("I", [width]),
            257: ("I", [height]),
            258: ("H", [page.dtype.itemsize * 8] * bands),
            259: ("H", [1]),
            262: ("H", [tags.get("photometric", 2 if bands in (3, 4) else 1)]),
            277: ("H", [bands]),
            278: ("I", [height]),
            284: ("H", [tags.get("planar", 1)]),
            339: ("H", [kind] * bands),
        }
        if "extra" in tags:
            entries[338] = ("H", tags["extra"])
        start = len(out)
        size = struct.calcsize("=" + count_code) + (len(entries) + 2) * (20 if big else 12) + inline
        # Behind the directory: values that do not fit into it, then the pixels.
        outside = bytearray()
        pixels_at = (
            start + size + sum(len(v) * struct.calcsize(c) for c, v in entries.values()) + 16 * len(strips)
        )
        places = [pixels_at + sum(map(len, strips[:i])) for i in range(len(strips))]
        entries |= {273: ("I", places), 279: ("I", [len(strip) for strip in strips])}
        directory = struct.pack(order + count_code, len(entries))
        for tag, (code, values) in sorted(entries.items()):
            packed = struct.pack(f"{order}{len(values)}{code}", *values)
            if len(packed) > inline:
                place = start + size + len(outside)
                outside += packed
                packed = struct.pack(order + offset_code, place)
            directory += struct.pack(order + "HH" + offset_code, tag, {"H": 3, "I": 4}[code], len(values))
            directory += packed.ljust(inline, b"\0")
        end = pixels_at + sum(map(len, strips))
        directory += struct.pack(order + offset_code, end if index + 1 < len(pages) else 0)
        out += (directory + outside).ljust(pixels_at - start, b"\0") + b"".join(strips)
    return bytes(out)


def jpeg2000_of_12_bits(values: np.ndarray) -> bytes:
    """A lossless JPEG 2000 codestream of uint16 [H, W] below 4096 that states 12 bits.

    Made from one of 16 bits: coders shift values to be centred at zero, by 2**15 there and by 2**11 here.
    """
    data = bytearray(
        encoded(Image.fromarray((values + 2**15 - 2**11).astype(np.uint16)), "JPEG2000", no_jp2=True)
    )
    precision = data.index(b"\xff\x51") + 2 + 38  # Ssiz of the first component
    assert data[precision] == 15
    data[precision] = 11
    return bytes(data)


# ---- colour profiles


def primaries(xy: Sequence[tuple[float, float]], white: tuple[float, float] = D65_XY) -> np.ndarray:
    """The matrix [3, 3] from linear RGB to XYZ, from chromaticities (as in SMPTE RP 177)."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in xy]).T
    target = np.array([white[0] / white[1], 1, (1 - white[0] - white[1]) / white[1]])
    return columns * np.linalg.solve(columns, target)


def to_d50(matrix: np.ndarray) -> np.ndarray:
    """A matrix to XYZ of white D65 as one to XYZ of white D50, by Bradford adaptation."""
    scale = (BRADFORD @ D50) / (BRADFORD @ matrix.sum(1))
    return np.linalg.inv(BRADFORD) @ np.diag(scale) @ BRADFORD @ matrix


def linear(levels: np.ndarray) -> np.ndarray:
    """Linear light from sRGB levels 0 to 255."""
    x = np.asarray(levels) / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def levels(light: np.ndarray) -> np.ndarray:
    """sRGB levels 0 to 255 from linear light."""
    x = np.clip(light, 0, 1)
    return 255 * np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)


def profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """An ICC profile of version 4 with these tags (the standard's section 7)."""
    tags = {b"wtpt": xyz(*D50), **tags}
    place = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data = data.ljust(-len(data) % 4 + len(data), b"\0")
        table += name + struct.pack(">II", place + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s12x4s", 0, b"\0" * 4, 0x04200000, kind, space, pcs, b"acsp")
    header = header.ljust(68, b"\0") + xyz(*D50)[8:]
    header = struct.pack(">I", place + len(body)) + header[4:]
    return header.ljust(128, b"\0") + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def gamma(value: float) -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HHi", 0, 0, round(value * 65536))


SRGB_CURVE = b"para\0\0\0\0" + struct.pack(
    ">HH5i", 3, 0, *(round(v * 65536) for v in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
)


def rgb_profile(xy: Sequence[tuple[float, float]], curve: bytes = SRGB_CURVE) -> bytes:
    """A profile of RGB with these chromaticities of red, green and blue and the white of D65."""
    columns = to_d50(primaries(xy)).T
    colorants = {
        name + b"XYZ": xyz(*column) for name, column in zip((b"r", b"g", b"b"), columns, strict=True)
    }
    return profile(b"RGB ", {**colorants, **{name + b"TRC": curve for name in (b"r", b"g", b"b")}})


def grey_profile(exponent: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": gamma(exponent)})


def cmyk_profile(corners: np.ndarray) -> bytes:
    """A profile of CMYK from the Lab colours [2, 2, 2, 2, 3] of full and no ink (a table of type lut8)."""
    identity = bytes(range(256))
    encoded_lab = np.rint(corners * [2.55, 1, 1] + [0, 128, 128]).astype(np.uint8)
    head = b"mft1\0\0\0\0" + struct.pack(">BBBx9i", 4, 3, 2, *(65536 * int(i % 4 == 0) for i in range(9)))
    table = head + identity * 4 + encoded_lab.tobytes() + identity * 3
    return profile(b"CMYK", {b"A2B0": table}, pcs=b"Lab ", kind=b"prtr")


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """sRGB levels of Lab colours of white D50."""
    l_star, a, b = np.asarray(lab, dtype=float)
    f = np.array([(l_star + 16) / 116 + a / 500, (l_star + 16) / 116, (l_star + 16) / 116 - b / 200])
    values = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * D50
    return levels(np.linalg.solve(to_d50(primaries(SRGB_XY)), values))
