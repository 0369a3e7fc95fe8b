"""Image files as they turn up in practice and trip readers up: 200 and more, the same ones each time.

A kind says what is special about a file. Kinds in `PLAIN` hold upright files of 8 bits without transparency and without
a colour profile, which every reader should read alike.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, features

from vitreous.export import Picture

SEED = 17
# Kinds of square images, and those of other shapes.
SQUARE = ("PNG", "JPEG 4:2:0", "JPEG 4:4:4", "progressive JPEG", "grey", "odd sizes")
NOT_SQUARE = ("not square", "extreme proportions", "12 megapixels")
PLAIN = (*SQUARE, *NOT_SQUARE)
ORIENTATION = 0x0112  # EXIF tag
PHOTO = (240, 240)
Size = tuple[int, int]

# x and y of red, green and blue, and the exponent of the curve.
PROFILES = {
    "Display P3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), 2.2),
    "Adobe RGB": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), 2.2),
    "ProPhoto": ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), 1.8),
    "sRGB with gamma 1.8": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), 1.8),
}


def pictures(size: int) -> Iterator[Picture]:
    """The files, for a model with inputs of `size` × `size` pixels. Names say what is in each of them."""
    generator = np.random.default_rng(SEED)
    for number, (kind, detail, content) in enumerate(_files(generator, size)):
        yield Picture(f"{number:03d} {kind}, {detail}", kind, content)


def nature(content: bytes) -> str:
    """What is special about a file of a person's data, to follow the name of its split; "" for a plain square one."""
    try:
        image = Image.open(BytesIO(content))
        plain = (
            image.mode in ("RGB", "L")
            and image.format in ("PNG", "JPEG")
            and image.getexif().get(ORIENTATION, 1) == 1
            and not {"icc_profile", "transparency"} & image.info.keys()
        )
    except Exception:  # Pillow raises nearly anything, and what it cannot open is not plain
        plain = False
    if not plain:
        return ", unusual files"
    return "" if image.width == image.height else ", not square"


def scene(generator: np.random.Generator, width: int, height: int) -> Image.Image:
    """An image in RGB with smooth colours, a few shapes with sharp edges, and a little noise."""
    coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    for _ in range(3):
        x, y = generator.uniform(0, width), generator.uniform(0, height)
        radius = generator.uniform(0.05, 0.3) * min(width, height)
        left, right = max(0, int(x - radius)), min(width, int(x + radius) + 1)
        top, bottom = max(0, int(y - radius)), min(height, int(y + radius) + 1)
        columns, rows = np.arange(left, right)[None, :], np.arange(top, bottom)[:, None]
        inside = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
        pixels[top:bottom, left:right][inside] = generator.integers(0, 256, 3)
    noise = generator.integers(-6, 7, (min(height, 512), min(width, 512), 1), dtype=np.int16)
    pixels += np.tile(noise, (-(-height // 512), -(-width // 512), 1))[:height, :width]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _files(generator: np.random.Generator, size: int) -> Iterator[tuple[str, str, bytes]]:
    """(kind, detail, content) of each file."""

    def new(shape: Size = PHOTO) -> Image.Image:
        return scene(generator, *shape)

    def opacity(shape: Size = PHOTO) -> Image.Image:
        return scene(generator, *shape).convert("L")

    sides = (size, 2 * size, 3 * size + 1, 97, 128, 200, 224, 256, 301, 512)
    for side in sides:
        shape = (side, side)
        yield "PNG", f"{side} pixels", _save(new(shape), "PNG")
        yield "JPEG 4:2:0", f"{side} pixels", _save(new(shape), "JPEG", quality=75, subsampling=2)
        yield "JPEG 4:4:4", f"{side} pixels", _save(new(shape), "JPEG", quality=90, subsampling=0)
        yield (
            "progressive JPEG",
            f"{side} pixels",
            _save(new(shape), "JPEG", quality=60 + side % 35, progressive=True),
        )
    for side in (size, 100, 255, 400):
        yield "grey", f"PNG of {side} pixels", _save(new((side, side)).convert("L"), "PNG")
        yield "grey", f"JPEG of {side} pixels", _save(new((side, side)).convert("L"), "JPEG")
    for side in (1, 2, 3, 5, 7, 8, 9, 15, 17, max(1, size - 1), size + 1):
        yield "odd sizes", f"PNG of {side} pixels", _save(new((side, side)), "PNG")
        yield "odd sizes", f"JPEG of {side} pixels", _save(new((side, side)), "JPEG", quality=95)
    for shape in ((1, 2), (2, 1), (3, 5), (31, 33), (33, 31), (100, 75), (75, 100), (320, 241), (199, 300)):
        yield "not square", f"PNG of {shape[0]} by {shape[1]}", _save(new(shape), "PNG")
        yield "not square", f"JPEG of {shape[0]} by {shape[1]}", _save(new(shape), "JPEG")
    for shape in ((1, 300), (300, 1), (2, 701), (701, 2), (20, 1000), (1000, 20), (1601, 40), (40, 1601)):
        yield "extreme proportions", f"{shape[0]} by {shape[1]}", _save(new(shape), "PNG")
    yield "12 megapixels", "JPEG", _save(new((4000, 3000)), "JPEG", quality=85)
    yield "12 megapixels", "upright JPEG", _save(new((3024, 4032)), "JPEG", quality=90, subsampling=0)
    yield "12 megapixels", "PNG", _save(new((4096, 2930)), "PNG", compress_level=1)
    for turn in range(1, 9):
        for kind, shape in (("JPEG", (240, 160)), ("PNG", (150, 200)), ("WEBP", (128, 128))):
            yield "EXIF orientation", f"{kind} {turn}", _save(new(shape), kind, exif=_exif(turn))
    for shape in ((64, 64), (121, 80), (80, 121), (256, 256)):
        faded = new(shape)
        faded.putalpha(opacity(shape))
        yield "RGB with opacity", f"PNG of {shape[0]} by {shape[1]}", _save(faded, "PNG")
        yield "RGB with opacity", f"WebP of {shape[0]} by {shape[1]}", _save(faded, "WEBP", lossless=True)
        yield "grey with opacity", f"{shape[0]} by {shape[1]}", _save(faded.convert("LA"), "PNG")
        yield (
            "transparent colour",
            f"{shape[0]} by {shape[1]}",
            _save(new(shape).convert("P", colors=64).convert("RGB"), "PNG", transparency=(10, 20, 30)),
        )
    for colours in (2, 5, 16, 200, 256):
        palette = new().quantize(colours)
        opacities = bytes(int(v) for v in generator.integers(0, 256, colours))
        yield "palette", f"PNG of {colours} colours", _save(palette, "PNG")
        yield "palette", f"GIF of {colours} colours", _save(palette, "GIF")
        yield (
            "transparent palette",
            f"PNG of {colours} colours",
            _save(palette, "PNG", transparency=opacities),
        )
        yield "transparent palette", f"GIF of {colours} colours", _save(palette, "GIF", transparency=0)
    for side in (32, 101, 240):
        shape = (side, side)
        yield "black and white", f"{side} pixels", _save(new(shape).convert("1"), "PNG")
        yield "CMYK", f"JPEG of {side} pixels", _save(new(shape).convert("CMYK"), "JPEG", quality=90)
        yield "CMYK", f"TIFF of {side} pixels", _save(new(shape).convert("CMYK"), "TIFF")
        deep = generator.integers(0, 2**16, (5, 5)).astype(np.float32)
        levels = np.asarray(Image.fromarray(deep).resize(shape, Image.Resampling.BICUBIC)).clip(0, 65535)
        grey = levels.astype(np.uint16)
        yield "16 bits", f"grey PNG of {side} pixels", _save(Image.fromarray(grey), "PNG")
        yield "16 bits", f"grey TIFF of {side} pixels", _save(Image.fromarray(grey), "TIFF")
        colour = np.stack([grey, grey[::-1], grey[:, ::-1]], axis=2)
        yield "16 bits", f"RGB PNG of {side} pixels", _deep_png(colour)
    for name, (red, green, blue, exponent) in PROFILES.items():
        profile = _profile((red, green, blue), exponent)
        for kind, shape in (("JPEG", PHOTO), ("PNG", (96, 96)), ("WEBP", (180, 130)), ("PNG", (1, 1))):
            yield "colour profile", f"{name} in {kind}", _save(new(shape), kind, icc_profile=profile)
    for exponent in (1.0, 1.8):
        grey_profile = _profile(None, exponent)
        for kind in ("JPEG", "PNG"):
            picture = new().convert("L")
            yield (
                "colour profile",
                f"grey of {exponent} in {kind}",
                _save(picture, kind, icc_profile=grey_profile),
            )
    for side in (33, 150, 256):
        shape = (side, side)
        yield "JPEG 4:2:2", f"{side} pixels", _save(new(shape), "JPEG", subsampling=1)
        yield "WebP", f"{side} pixels", _save(new(shape), "WEBP", quality=80)
        yield "WebP", f"lossless, {side} pixels", _save(new(shape), "WEBP", lossless=True)
        yield "BMP", f"{side} pixels", _save(new(shape), "BMP")
        yield "TIFF", f"{side} pixels", _save(new(shape), "TIFF")
        yield "TIFF", f"LZW, {side} pixels", _save(new(shape), "TIFF", compression="tiff_lzw")
        yield "PPM", f"{side} pixels", _save(new(shape), "PPM")
        frames = [new(shape).quantize(64) for _ in range(3)]
        yield (
            "animation",
            f"GIF of {side} pixels",
            _save(frames[0], "GIF", append_images=frames[1:], save_all=True),
        )
        moving = [new(shape) for _ in range(2)]
        yield (
            "animation",
            f"PNG of {side} pixels",
            _save(moving[0], "PNG", append_images=moving[1:], save_all=True),
        )
        if features.check("avif"):
            yield "AVIF", f"{side} pixels", _save(new(shape), "AVIF")
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        content = _save(new(), kind)
        yield "damaged", f"{kind} of half its bytes", content[: len(content) // 2]


def _save(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _exif(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    return exif


def _deep_png(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel from uint16 [H, W, 3], which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2"))
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _profile(primaries: tuple[tuple[float, float], ...] | None, exponent: float) -> bytes:
    """A colour profile (ICC.1:2022) with a curve of this exponent: of RGB with these primaries, or of grey."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(exponent * 256))
    d50 = np.array([0.9642, 1.0, 0.8249])
    tags = {b"wtpt": _xyz(d50)}
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        # Scaled so that the three add up to the white of profiles, D50: close enough to the named spaces.
        columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
        for name, column in zip((b"r", b"g", b"b"), (columns * np.linalg.solve(columns, d50)).T, strict=True):
            tags |= {name + b"XYZ": _xyz(column), name + b"TRC": curve}
    place = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        table += tag + struct.pack(">II", place + len(body), len(data))
        body += data.ljust(-(-len(data) // 4) * 4, b"\0")
    space = b"GRAY" if primaries is None else b"RGB "
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x", place + len(body), 0x02400000, b"mntr", space, b"XYZ ", b"acsp"
    )
    return (header + _xyz(d50)[8:]).ljust(128, b"\0") + table + body


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(value) * 65536) for value in values))
