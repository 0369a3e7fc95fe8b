"""Decoding against colours worked out by hand, from files that are partly written byte by byte."""

from __future__ import annotations

import builtins
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from image_files import deep_png, jpeg2000_of_12_bits, png, tiff
from sample_data import encoded
from vitreous.data import decode as decoding
from vitreous.data.decode import FORMATS, BadImage, decode, decode_to, image_dimensions, read_image
from vitreous.data.values import facts_of
from vitreous.depth import KEY, PLAIN
from vitreous.errors import VitreousError
from vitreous.preprocess import Preprocess

RED, GREEN, BLUE = (200, 0, 0), (0, 150, 0), (0, 0, 90)


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
    "32-bit grey of 16 bits": (integers(0x8000, 5), (128,) * 3, BLACK),
    "32-bit grey without sign": (tiff(np.array([[0x8000, 5]], np.uint32)), (128,) * 3, BLACK),
    "16-bit grey, white is zero": (tiff(np.array([[0, 0x0F00]], np.uint16), photometric=0), WHITE, (240,) * 3),
    "8-bit grey, white is zero": (tiff(np.array([[0, 15]], np.uint8), photometric=0), WHITE, (240,) * 3),
    "floats, white is zero": (tiff(np.array([[0, 0.2]], np.float32), photometric=0), WHITE, (204,) * 3),
    "BigTIFF": (tiff(np.array([[RED, BLUE]], np.uint8), big=True), RED, BLUE),
    "TIFF of planes": (tiff(np.array([[RED, BLUE]], np.uint8), planar=2), RED, BLUE),
    "12-bit pgm": (b"P5 2 1 4095\n\x08\x00\x0f\xff", (128,) * 3, WHITE),
    "12-bit pgm as text": (b"P2 2 1 4095\n2048 4095\n", (128,) * 3, WHITE),
    "12-bit ppm": (b"P6 2 1 4095\n" + struct.pack(">6H", 0, 2048, 4095, 4095, 0, 0), (0, 128, 255), (255, 0, 0)),
    "float pfm": (b"Pf\n2 1\n-1.0\n" + struct.pack("<2f", 0.2, 1.0), (51,) * 3, WHITE),
    "floats to 1": (floats(0.2, 1.0), (51,) * 3, WHITE),
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
    "AVIF": {},
    "JPEG2000": {},
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
    assert not recwarn


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


# ---- kinds that cannot be read


GREY, COLOUR = np.zeros((4, 5)), np.zeros((4, 5, 3))
UNSUPPORTED = {
    "8 bands": (tiff(np.zeros((4, 5, 8), np.uint8), extra=[0] * 7), "8 bands; only grey, colour and opacity"),
    "5 bands with colour": (tiff(np.zeros((4, 5, 5), np.uint8), photometric=2, extra=[0, 0]), "5 bands"),
    "4 bands without colour": (tiff(np.zeros((4, 5, 4), np.uint8), photometric=1, extra=[0] * 3), "4 bands"),
    "64-bit floats": (tiff(GREY), "64-bit floats; convert to 32 bits"),
    "64-bit floats, big-endian": (tiff(GREY, order=">"), "64-bit floats; convert to 32 bits"),
    "16-bit floats": (tiff(GREY.astype(np.float16)), "16-bit floats; convert to 32 bits"),
    "64-bit integers": (tiff(GREY.astype(np.int64)), "64-bit integers"),
    "colour of 32-bit floats": (tiff(COLOUR.astype(np.float32)), "3 bands of 32 bits; convert to 8 bits"),
    "colour of 32-bit integers": (tiff(COLOUR.astype(np.uint32)), "3 bands of 32 bits"),
    "JPEG 2000 of 5 bands": (
        encoded(COLOUR.astype(np.uint8), "JPEG2000", no_jp2=True)
        .replace(struct.pack(">HH", 0xFF51, 47), struct.pack(">HH", 0xFF51, 53))
        .replace(struct.pack(">H", 3) + b"\7\1\1" * 3, struct.pack(">H", 5) + b"\7\1\1" * 5),
        "5 bands; only grey",
    ),
    "complex numbers": (tiff(GREY.astype(np.complex64)), "complex"),
    "signed bytes": (tiff(GREY.astype(np.int8)), "signed 8-bit integers"),
    "16-bit colour in planes": (tiff(COLOUR.astype(np.uint16), planar=2), "16-bit colour in separate planes"),
    "BigTIFF, big-endian": (tiff(np.zeros((4, 5), np.uint8), big=True, order=">"), "1 band, 8-bit integers"),
    "grey and opacity of 16 bits": (
        tiff(np.zeros((4, 5, 2), np.uint16), extra=[2]),
        "2 bands, 16-bit integers",
    ),
    "floats beyond 1": (
        tiff(np.array([[0.5, 7]], np.float32)),
        "float values from 0.5 to 7; give floats from 0",
    ),
    "negative integers": (tiff(np.array([[-5, 7]], np.int16)), "values from -5 to 7"),
    "PFM in colour": (b"PF\n5 4\n-1.0\n" + bytes(240), "a PFM image in colour"),
    "no number at all": (tiff(np.full((3, 3), np.nan, np.float32)), "no finite value"),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_kinds_that_cannot_be_read_are_named(kind: str) -> None:
    data, words = UNSUPPORTED[kind]
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.reason == "unsupported"
    assert words in caught.value.detail


def test_nothing_is_written_to_the_terminal(tmp_path: Path) -> None:
    """Neither by Pillow, which logs an error about many bands, nor by libtiff, which writes to stderr from C."""
    whole = encoded(
        np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8), "TIFF", compression="tiff_lzw"
    )
    files = [data for data, _ in UNSUPPORTED.values()] + [
        whole[:8] + bytes([i]) * 200 + whole[208:] for i in range(9)
    ]
    files.append(
        tiff(np.zeros((2, 2, 3), np.uint8)).replace(
            struct.pack("<HHI", 277, 3, 1), struct.pack("<HHI", 277, 3, 2)
        )
    )
    # Pillow reads the number of bands from a signed tag too.
    files.append(
        tiff(np.zeros((2, 2, 3), np.uint8)).replace(
            struct.pack("<HHI", 277, 3, 1) + b"\3", struct.pack("<HHI", 277, 9, 1) + b"\x85"
        )
    )
    for number, data in enumerate(files):
        (tmp_path / f"{number}.tif").write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from vitreous.data.decode import BadImage, decode\n"
        "for path in Path(sys.argv[1]).iterdir():\n"
        "    try: decode(path.read_bytes())\n"
        "    except BadImage: pass\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("", "")


# ---- what a file says about its values


@pytest.mark.parametrize(
    ("data", "white"),
    [
        (b"P5 2 1 4095\n\x0f\xff\x00\x07", 4095),
        (b"P2 2 1 1000\n1000 7\n", 1000),
        (b"P5 2 1 65535\n\x0f\xff\x00\x07", None),  # many programs write 12 bits so
        (jpeg2000_of_12_bits(np.array([[4095, 7]], np.uint16)), 4095),
        (encoded(np.array([[4095, 7]], np.uint16), "JPEG2000"), None),
        (encoded(np.array([[4095, 7]], np.uint16), "TIFF"), None),
        (tiff(np.array([[4095, 7]], np.uint32)), None),
        (png(2, 1, 16, 0, b"\x0f\xff\x00\x07"), None),
    ],
)
def test_the_values_are_those_of_the_file(data: bytes, white: int | None) -> None:
    values = facts_of(read_image(data)).values
    assert values is not None
    assert (values.kind, values.low, values.high, values.white) == ("integer", 7, white or 4095, white)


@pytest.mark.parametrize(
    "data",
    [
        deep_png(np.full((3, 4, 3), 4095, np.uint16)),
        deep_png(np.full((3, 4, 4), 4095, np.uint16)),
        deep_png(np.full((3, 4, 2), 4095, np.uint16)),
        tiff(np.full((3, 4, 3), 4095, np.uint16)),
        tiff(np.full((3, 4, 3), 4095, np.uint16), order=">"),
        b"P6 2 1 65535\n" + struct.pack(">6H", *[4095] * 6),
    ],
)
def test_colour_of_16_bits_is_known_by_its_high_byte(data: bytes) -> None:
    values = decode_to(Preprocess(8), data)[1].values
    assert values is not None
    assert (values.kind, values.low, values.high) == ("colour", values.high, values.low)
    assert values.high in (15, 16)  # Pillow rounds PPM


def test_ordinary_images_have_no_facts_but_their_size() -> None:
    for format in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"):
        facts = decode_to(Preprocess(8), encoded(np.zeros((5, 7, 3), np.uint8), format))[1]
        assert facts == type(facts)(7, 5), format


# ---- several images in a file


def test_several_images_in_a_file_are_counted() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    for format in ("GIF", "TIFF", "PNG", "WEBP", "AVIF", "MPO"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        pixels, facts = decode_to(Preprocess(4), data)
        np.testing.assert_allclose(pixels[1, 1].astype(int), RED, atol=8, err_msg=format)
        # The second image of an MPO is a preview or the other eye's view.
        assert facts.images == (1 if format == "MPO" else 3), format
        assert facts_of(read_image(data)).images == facts.images


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_reduced_copies_in_a_tiff_are_not_counted(order: Any, big: bool) -> None:
    page = np.zeros((4, 4, 3), np.uint8)
    for options, images in (({}, 3), ({"subfile": 1}, 1), ({"subfile": 4}, 1), ({"subfile": 2}, 3)):
        data = tiff(page, page, page, order=order, big=big, **options)
        assert decode_to(Preprocess(4), data)[1].images == images


def test_integers_without_sign_are_not_negative() -> None:
    values = facts_of(read_image(tiff(np.array([[4_000_000_000, 7]], np.uint32)))).values
    assert values is not None and (values.low, values.high) == (7, 4_000_000_000)


def test_images_in_a_tiff_are_counted_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitreous.data.tiff.MAX_IMAGES", 2)
    page = np.zeros((4, 4, 3), np.uint8)
    assert decode_to(Preprocess(4), tiff(page, page, page))[1].images == 2


def test_a_ring_of_tiff_directories_ends() -> None:
    page = tiff(np.zeros((4, 4, 3), np.uint8))
    entries = struct.unpack_from("<H", page, 8)[0]
    place = 10 + 12 * entries
    assert decode_to(Preprocess(4), page[:place] + struct.pack("<I", 8) + page[place + 4 :])[1].images == 1


def test_bands_that_are_not_read_are_known() -> None:
    pixels = np.full((3, 4, 4), 9, np.uint8)
    pixels[..., 3] = 0  # infrared, say, and no opacity
    found, facts = decode_to(Preprocess(4), tiff(pixels, photometric=2, extra=[0]))
    assert facts.unused_band and not facts.transparent
    assert (found == 9).all()


# ---- formats of phones and archives


GRADIENT = np.stack(np.broadcast_arrays(*np.ogrid[0:192:4, 0:256:4], 128), axis=-1).astype(
    np.uint8
)  # [48, 64, 3]
HEIC = {
    name: (Path(__file__).parent / "data" / f"{name}.heic").read_bytes() for name in ("one", "two", "turned")
}


@pytest.mark.parametrize(
    ("format", "options"), [("AVIF", {"quality": 95}), ("JPEG2000", {}), ("JPEG2000", {"no_jp2": True})]
)
def test_avif_and_jpeg_2000(format: str, options: dict[str, Any]) -> None:
    data = encoded(GRADIENT, format, **options)
    assert image_dimensions(data) == (64, 48)
    np.testing.assert_allclose(np.asarray(decode(data)).astype(int), GRADIENT, atol=8)


def test_heic() -> None:
    pytest.importorskip("pi_heif")
    assert image_dimensions(HEIC["one"]) == (64, 48)
    np.testing.assert_allclose(np.asarray(decode(HEIC["one"])).astype(int), GRADIENT, atol=8)
    assert decode_to(Preprocess(8), HEIC["one"])[1].images == 1
    assert decode_to(Preprocess(8), HEIC["two"])[1].images == 2
    turned = np.asarray(decode(HEIC["turned"])).astype(int)
    np.testing.assert_allclose(turned, np.rot90(GRADIENT, -1), atol=8)


def test_heic_without_its_reader_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "pi_heif":
            raise ImportError
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(BadImage, match=r"unsupported.*pip install 'vitreous\[heic\]'"):
        decode(HEIC["one"])


@pytest.mark.parametrize("format", ["AVIF", "JPEG2000"])
def test_a_format_that_pillow_was_built_without_is_named(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "FORMATS", ("PNG",))
    with pytest.raises(BadImage, match=r"unsupported.*Pillow that was built with"):
        decode(encoded(GRADIENT, format))


def test_a_film_is_not_an_image() -> None:
    for brand in (b"mp42", b"isom", b"qt  "):
        with pytest.raises(BadImage, match="not an image"):
            decode(struct.pack(">I", 16) + b"ftyp" + brand + b"\0" * 400)


def test_damaged_heic_files() -> None:
    pytest.importorskip("pi_heif")
    data = HEIC["one"]
    for cut in range(1, len(data) - 30, 7):
        with pytest.raises(BadImage) as caught:
            decode(data[:cut])
        assert caught.value.reason in ("truncated", "not an image", "unreadable")
        assert caught.value.reason == "truncated" or cut < 600
    random = np.random.default_rng(1)
    for _ in range(100):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 8):
            damaged[place] = random.integers(256)
        try:
            assert decode(bytes(damaged)).mode == "RGB"
        except BadImage as bad:
            assert bad.reason


@pytest.mark.parametrize("format", ["AVIF", "JPEG2000", "J2K", "HEIC"])
def test_huge_images_of_every_new_format_are_refused(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if format == "HEIC":
        pytest.importorskip("pi_heif")
    data = {
        "HEIC": HEIC["one"],
        "J2K": encoded(GRADIENT, "JPEG2000", no_jp2=True),
    }.get(format) or encoded(GRADIENT, format)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 64 * 48 - 1)
    monkeypatch.setattr(Image.Image, "load", None)
    for read in (decode, image_dimensions):
        with pytest.raises(BadImage, match="too large"):
            read(data)


def test_an_image_that_grows_while_it_is_decoded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A HEIC file can state one size in its header and another in its picture."""

    class Growing(Image.Image):
        def load(self) -> None:
            self._size = (8001, 8000)

    image = Growing()
    image.info = {KEY: PLAIN}
    monkeypatch.setattr(decoding, "_open", lambda data: image)
    with pytest.raises(BadImage, match="too large"):
        decode(b"")


def test_a_jpeg_2000_that_hides_its_size_is_not_decoded() -> None:
    """The box says 64 by 48; the codestream inside says 100,000 by 100,000."""
    data = encoded(GRADIENT, "JPEG2000")
    place = data.index(b"\xff\x51") + 6
    with pytest.raises(BadImage, match=r"unreadable|truncated"):
        decode(data[:place] + struct.pack(">II", 100_000, 100_000) + data[place + 8 :])


def test_the_first_image_survives_damage_behind_it() -> None:
    frames = [Image.new("P", (4, 4), colour) for colour in range(3)]
    for frame in frames:
        frame.putpalette([200, 0, 0, 0, 150, 0, 0, 0, 90])
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    whole = np.asarray(decode(data))
    for cut in range(len(data) - 12, len(data)):
        np.testing.assert_array_equal(np.asarray(decode(data[:cut])), whole)


def test_metadata_decide_whether_an_image_is_turned() -> None:
    """An image without any is not searched for an orientation; one with any is."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = decoding._open(encoded(pixels))
    assert opened.info.keys() == {KEY}
    for format in ("PNG", "WEBP", "JPEG2000", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        np.testing.assert_array_equal(np.asarray(decode(encoded(pixels, format, **options))), pixels)
    np.testing.assert_array_equal(np.asarray(decode(encoded(pixels, exif=exif))), np.rot90(pixels, -1))
    assert decode(encoded(pixels, "JPEG", exif=exif)).size == (2, 3)
    turned = np.asarray(decode(encoded(GRADIENT, "AVIF", exif=exif, quality=95))).astype(int)
    np.testing.assert_allclose(turned, np.rot90(GRADIENT, -1), atol=8)
