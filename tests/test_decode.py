"""Decoding against colours worked out by hand, from files that are partly written byte by byte."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sample_data import encoded
from vitreous.data.decode import FORMATS, BadImage, decode, image_dimensions, read_image
from vitreous.errors import VitreousError

RED, GREEN, BLUE = (200, 0, 0), (0, 150, 0), (0, 0, 90)


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG written by the standard's own rules (rows without their filter byte)."""

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


def palette(**options: Any) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    return encoded(image, **options)


def pair(mode: str, left: Any, right: Any) -> Image.Image:
    image = Image.new(mode, (2, 1), left)
    image.putpixel((1, 0), right)
    return image


def floats(*values: float) -> bytes:
    return encoded(np.array([values], dtype=np.float32), "TIFF")


def integers(*values: int) -> bytes:
    return encoded(np.array([values], dtype=np.int32), "TIFF")


WHITE, BLACK = (255, 255, 255), (0, 0, 0)
# An image of two pixels, left and right, and their colours.
PIXELS = {
    "colour": (encoded(pair("RGB", RED, GREEN)), RED, GREEN),
    "grey": (encoded(pair("L", 137, 4)), (137,) * 3, (4,) * 3),
    "black and white": (encoded(pair("1", 1, 0)), WHITE, BLACK),
    "palette": (palette(), (10, 20, 30), (200, 100, 50)),
    "palette, index 1 transparent": (palette(transparency=1), (10, 20, 30), WHITE),
    "palette, index 0 half transparent": (palette(transparency=b"\x66"), (157, 161, 165), (200, 100, 50)),
    "gif, index 0 transparent": (palette(format="GIF", transparency=0), WHITE, (200, 100, 50)),
    # 0.4 of the colour on 0.6 of white, 255 · 0.6 = 153
    "alpha": (encoded(pair("RGBA", (100, 0, 50, 102), (1, 2, 3, 0))), (193, 153, 173), WHITE),
    "grey with alpha": (encoded(pair("LA", (100, 102), (7, 255))), (193,) * 3, (7,) * 3),
    "transparent colour": (encoded(pair("RGB", RED, GREEN), transparency=RED), WHITE, GREEN),
    "transparent grey": (encoded(pair("L", 9, 8), transparency=8), (9,) * 3, WHITE),
    "lossless webp": (
        encoded(pair("RGBA", (*RED, 255), (0, 0, 0, 0)), "WEBP", lossless=True, exact=True),
        RED,
        WHITE,
    ),
    "bmp": (encoded(pair("RGB", RED, BLUE), "BMP"), RED, BLUE),
    "ppm": (b"P6 2 1 255\n\x01\x02\x03\x04\x05\x06", (1, 2, 3), (4, 5, 6)),
    # Cyan ink takes red away; black ink takes from all: 255 · (1 - 51/255) = 204
    "cmyk": (encoded(pair("CMYK", (255, 0, 0, 0), (0, 0, 255, 51)), "TIFF"), (0, 255, 255), (204, 204, 0)),
    "16-bit grey": (png(2, 1, 16, 0, b"\xab\xcd\x01\xff"), (0xAB,) * 3, (1,) * 3),
    "16-bit grey with alpha": (png(2, 1, 16, 4, b"\xab\xcd\xff\xff\x01\x02\0\0"), (0xAB,) * 3, WHITE),
    "16-bit colour": (
        png(2, 1, 16, 2, bytes.fromhex("01ff80007fff" + "ffff00ff1234")), (1, 128, 127), (255, 0, 18),
    ),
    "16-bit grey tiff": (encoded(np.array([[0x8000, 0xFFFF]], np.uint16), "TIFF"), (128,) * 3, WHITE),
    "16-bit pgm": (b"P5 2 1 65535\n\x80\x00\x01\xff", (128,) * 3, (1,) * 3),
    "32-bit grey of 16 bits": (integers(0x8000, -5), (128,) * 3, BLACK),
    "32-bit grey": (integers(2**31 - 1, 2**30), WHITE, (128,) * 3),
    "floats to 1": (floats(0.2, 1.0), (51,) * 3, WHITE),
    "floats to 255": (floats(51.0, 255.0), (51,) * 3, WHITE),
    "floats not a number": (floats(float("nan"), 1.0), BLACK, WHITE),
}  # fmt: skip


@pytest.mark.parametrize("kind", PIXELS)
def test_colours(kind: str) -> None:
    data, left, right = PIXELS[kind]
    image = decode(data)
    assert (image.mode, image.size) == ("RGB", (2, 1))
    np.testing.assert_allclose(
        np.asarray(image)[0].astype(int), [left, right], atol=1 if "alpha" in kind or "half" in kind else 0
    )


def test_cmyk_jpeg_as_photo_editors_write_it() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in data  # whose inks are stored inverted: 0 is full
    np.testing.assert_allclose(np.asarray(decode(data)).astype(int)[8, 8], (255, 0, 0), atol=3)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    for format, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert decode(data).getpixel((2, 2)) == RED, format


# What a camera held so stores of the upright image, by the EXIF standard's "0th row is the visual … side".
STORED = {
    1: lambda up: up,
    2: lambda up: up[:, ::-1],
    3: lambda up: up[::-1, ::-1],
    4: lambda up: up[::-1],
    5: lambda up: up.transpose(1, 0, 2),
    6: lambda up: np.rot90(up, 1),
    7: lambda up: up[::-1, ::-1].transpose(1, 0, 2),
    8: lambda up: np.rot90(up, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, format: str) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](upright))
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(stored, format, exif=exif.tobytes() if format != "TIFF" else exif, **options)
    np.testing.assert_array_equal(np.asarray(decode(data)), upright)


def test_exif_of_nonsense_leaves_the_image(recwarn: pytest.WarningsRecorder) -> None:
    data = encoded(np.full((3, 3, 3), 7, np.uint8), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(data).getpixel((1, 1)) == (7, 7, 7)
    assert not recwarn


WHOLE = {
    "PNG": {},
    "JPEG": {},
    "WEBP": {},
    "BMP": {},
    "GIF": {},
    "TIFF": {"compression": "tiff_lzw"},
    "PPM": {},
}


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files(format: str, recwarn: pytest.WarningsRecorder) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    whole = encoded(pixels, format, **WHOLE[format])
    assert decode(whole).size == image_dimensions(whole) == (20, 24)
    for cut in range(0, len(whole) - 30, 7):
        with pytest.raises(BadImage) as caught:
            decode(whole[:cut])
        assert caught.value.reason in ("empty file", "truncated", "not an image", "unreadable")
    for cut in (len(whole) // 3, len(whole) // 2):
        with pytest.raises(BadImage) as caught:
            decode(whole[:cut])
        assert caught.value.reason == "truncated"
    random = np.random.default_rng(1)
    for _ in range(100):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 8):
            damaged[place] = random.integers(256)
        try:
            assert decode(bytes(damaged)).mode == "RGB"
        except BadImage as bad:
            assert bad.reason
    assert format == "TIFF" or not recwarn  # libtiff writes to stderr of its own


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(Image.new("RGB", (16, 16)), "ICO"),  # an image, but of a format that is not on the list
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
)
def test_not_an_image(data: bytes) -> None:
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.reason == "not an image"


def test_empty_file() -> None:
    with pytest.raises(BadImage, match=r"^This image cannot be used: empty file\.$"):
        decode(b"")


@pytest.mark.parametrize("side", [8001, 10_000, 30_000])  # Pillow is silent, warns, refuses
@pytest.mark.parametrize("read", [decode, image_dimensions])
def test_huge_images_are_refused_unread(side: int, read: Callable[[bytes], Any]) -> None:
    data = png(side, side, 8, 0, b"\0" * side)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(BadImage) as caught:
            read(data)
    assert caught.value.reason == "too large"
    assert not warned


def test_the_error_is_a_sentence() -> None:
    with pytest.raises(BadImage, match=r"^This image cannot be used: truncated \(incomplete PNG\)\.$"):
        decode(encoded(np.zeros((9, 9, 3), np.uint8))[:40])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(encoded(np.zeros((9, 9, 3), np.uint8))[:40])
    (tmp_path / "words.txt").write_text("hello")
    for name, words in (
        ("cut.png", r"cut\.png cannot be used: truncated \(incomplete PNG\)"),
        ("words.txt", "words.txt cannot be used: not an image"),
        ("none.png", "none.png cannot be read.*check the path"),
        ("", r"is a folder; give the image files in it"),
    ):
        with pytest.raises(VitreousError, match=words):
            read_image(tmp_path / name)
