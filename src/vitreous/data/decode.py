"""Decodes one image from the bytes of a file that nobody has vetted."""

from __future__ import annotations

import ctypes
import io
import logging
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from os import PathLike
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, ImageOps, features

from vitreous import profiles
from vitreous.data import tiff
from vitreous.data.values import Facts, facts_of
from vitreous.depth import KEY, Origin, OutOfRange, j2k_header, origin_of
from vitreous.errors import VitreousError
from vitreous.preprocess import Preprocess

# Pillow's own names of the formats. HEIF comes with another package, see `_heif_is_known`.
_PLUGINS = (("AVIF", "avif"), ("JPEG2000", "jpg_2000"))
FORMATS = (
    *("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"),
    *(name for name, feature in _PLUGINS if features.check(feature)),
)
MAX_PIXELS = 64_000_000
MAX_BYTES = 256 * 2**20  # of a file: enough for 64 million pixels of plain RGB

# The first bytes of each format, to tell a damaged image from a file that never was one.
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"RIFF": "WEBP",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
    **{b"P%d" % kind: "PPM" for kind in range(1, 7)},
    b"Pf": "PPM",  # floats
    b"PF\n": "PFM",  # three floats a pixel
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",  # a bare codestream
}
# Brands of the ISO container that AVIF and HEIF share. The last one says that any HEIF reader may try.
_BRANDS = {
    "AVIF": (b"avif", b"avis"),
    "HEIF": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"),
}
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF", "HEIF")  # the other image of an MPO is a preview or another view
_MISSING = {
    "HEIF": "HEIC images need another reader; install it with pip install 'vitreous[heic]'",
    "AVIF": "AVIF images need a Pillow that was built with libavif",
    "JPEG2000": "JPEG 2000 images need a Pillow that was built with OpenJPEG",
    "PFM": "a PFM image in colour; convert it to TIFF",
}
T = TypeVar("T")
# Pillow logs an error for some files that it refuses. Without a handler, Python would print it.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def readable() -> str:
    """What can be read here, as text: it changes when a reader is installed or removed, and with it the pixels."""
    heif = ("HEIF",) if _heif_is_known() else ()
    colours = ("ICC",) if profiles.available() else ()
    return " ".join((*FORMATS, *heif, *colours))


class BadImage(VitreousError):  # noqa: N818 (the name says what it is)
    """An image that cannot be used.

    Attributes:
        reason: "unreadable", "unsupported", "truncated", "empty file", "not an image" or "too large".
        detail: more about it, or "".
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"This image cannot be used: {self.text}.")

    @property
    def text(self) -> str:
        """The reason and its detail, to follow the name of a file."""
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


def image_dimensions(data: bytes) -> tuple[int, int]:
    """Width and height, from the header alone and before any rotation; raises `BadImage`."""
    with _QUIET:
        return _open(data).size


def decode(data: bytes) -> Image.Image:
    """Decodes the bytes of a file to mode RGB, 8 bits per channel.

    Formats: PNG, JPEG, WebP, BMP, GIF, TIFF, PPM, AVIF and JPEG 2000 where Pillow has them, and HEIC where its reader
    is installed. Takes the first image of a file and turns it upright according to its EXIF orientation. Other modes
    become RGB as `Preprocess` does it without a `value_range`.

    Raises:
        BadImage: the image is damaged, of a kind that cannot be read, or has more than 64 million pixels, which are
            never decoded.
    """

    def convert(image: Image.Image, origin: Origin) -> Image.Image:
        rgb, colours = Preprocess(1).rgb(image, origin)
        return colours(rgb) if colours else rgb

    return _converted(data, convert)


def decode_to(settings: Preprocess, data: bytes) -> tuple[np.ndarray, Facts]:
    """Decodes the bytes of a file to the network's input size.

    Returns:
        uint8 [S, S, 3], and what the image contributes to the choices for its data set. An image of more than 8 bits
        is black if its values need a `value_range` and `settings` has none: `Facts.depends` then says that it must be
        decoded again.

    Raises:
        BadImage: the image is damaged, of a kind that cannot be read, or has more than 64 million pixels, which are
            never decoded.
    """
    return _converted(data, partial(pixels_and_facts, settings))


def pixels_and_facts(settings: Preprocess, image: Image.Image, origin: Origin) -> tuple[np.ndarray, Facts]:
    """What `decode_to` returns, for a loaded, upright image.

    Raises:
        OutOfRange: none of its values is finite.
        Exception: whatever Pillow raises for a broken image.
    """
    if settings.profiles == "applied" and not profiles.available():
        settings = replace(settings, profiles="ignored")  # `settle` chooses the same, and says so
    facts = facts_of(image, origin)
    try:
        return settings.pixels(image, origin), facts
    except OutOfRange:
        return np.zeros((settings.size, settings.size, 3), np.uint8), facts


def read_image(source: str | PathLike[str] | bytes) -> Image.Image:
    """Reads an image from a path or from the bytes of a file: upright, in the file's own mode.

    Its `info` holds its `Origin`, for `Preprocess`.

    Raises:
        VitreousError: it cannot be read; the message names the file.
    """
    if isinstance(source, bytes):
        return _converted(source, lambda image, origin: image)
    path = Path(source).expanduser()
    if path.is_dir():
        raise VitreousError(
            f"{path} is a folder; give the image files in it, such as `sorted(Path({str(path)!r}).glob('*.jpg'))`."
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadImage("too large", f"more than {MAX_BYTES // 2**20} MiB")
        return read_image(path.read_bytes())
    except BadImage as bad:
        raise VitreousError(f"{path} cannot be used: {bad.text}.") from None
    except OSError as error:
        raise VitreousError(f"{path} cannot be read ({error.strerror}); check the path.") from None


def _converted(data: bytes, convert: Callable[[Image.Image, Origin], T]) -> T:
    with _QUIET:
        image = _open(data)
        origin = image.info[KEY]
        try:
            image.load()
        except Exception as error:  # on damaged bytes Pillow's readers raise nearly anything
            raise _damaged(data, error) from None
        _refuse_large(image)  # a HEIC file can hold more than its header says
        _turn_upright(image)
    try:
        return convert(image, origin)
    except OutOfRange as error:
        raise BadImage("unsupported", f"{error.values}; {error.remedy}") from None
    except Exception:
        raise BadImage("unreadable", f"{image.format} in colour mode {image.mode}") from None


def _open(data: bytes) -> Image.Image:
    """Reads the header of an image, with its `Origin` in its `info`; refuses all formats and sizes not allowed."""
    if not data:
        raise BadImage("empty file")
    if len(data) > MAX_BYTES:
        raise BadImage("too large", f"more than {MAX_BYTES // 2**20} MiB")
    kind = _format_of(data)
    if kind is None:
        raise BadImage("not an image", f"supported formats: {', '.join(FORMATS)}, HEIC")
    if kind not in FORMATS and not (kind == "HEIF" and _heif_is_known()):
        raise BadImage("unsupported", _MISSING[kind])
    tags = None
    if kind == "TIFF":
        _silence_libtiff()
        tags = tiff.read_tags(data)
        if tags and (detail := tiff.unreadable_kind(tags)):
            raise BadImage("unsupported", detail)
    if kind == "JPEG2000" and (bands := j2k_header(data)[0]) > 4:
        raise BadImage("unsupported", f"{bands} bands; {tiff.EXPLAINED}")
    try:
        image = _header(data, kind)
        origin = origin_of(image)
    except Image.DecompressionBombError:
        raise BadImage("too large", f"more than {MAX_PIXELS // 10**6} million pixels") from None
    except Exception as error:
        bad = _damaged(data, error)
        if tags and bad.reason == "unreadable":
            bad = BadImage("unsupported", tiff.described(tags))
        raise bad from None
    _refuse_large(image)
    images = tags.images if tags else 1
    if kind in _ANIMATED:
        with suppress(Exception):  # damaged behind the first image
            images = getattr(image, "n_frames", 1)
    unused_band = tags is not None and 0 in tags.extra
    if images > 1 or unused_band:
        origin = replace(origin, images=images, unused_band=unused_band)
    image.info[KEY] = origin
    return image


def _header(data: bytes, kind: str) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=(kind,))


def _refuse_large(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage("too large", f"{width}×{height}, more than {MAX_PIXELS // 10**6} million pixels")


class _Quiet:
    """Keeps Pillow's warnings about odd headers and huge images off stderr, in as many threads as are inside.

    All threads share the warning filters, so the first to enter changes them and the last to leave restores them.
    """

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.simplefilter("ignore")
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.filters.__exit__(None, None, None)


_QUIET = _Quiet()


@cache
def _silence_libtiff() -> None:
    """Stops libtiff from writing its errors to stderr, where Pillow leaves that on. Its return values say the same."""
    with suppress(OSError, AttributeError):  # Windows wheels hide the function
        set_handler = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


def _heif_is_known() -> bool:
    """Whether Pillow can read HEIF, by a package that is registered on first use."""
    if "HEIF" not in Image.OPEN:
        try:
            import pi_heif
        except ImportError:
            return False
        pi_heif.register_heif_opener()
    return True


def _format_of(data: bytes) -> str | None:
    """The format by the first bytes, or None if no format that can be read starts so."""
    if data[4:8] == b"ftyp":
        size = int.from_bytes(data[:4], "big")
        brands = {data[8:12], *(data[place : place + 4] for place in range(16, min(size, 512), 4))}
        return next((kind for kind, known in _BRANDS.items() if brands & set(known)), None)
    kind = next((kind for start, kind in _SIGNATURES.items() if data.startswith(start)), None)
    if kind == "WEBP" and data[8:12] != b"WEBP"[: max(0, len(data) - 8)]:
        return None
    return kind


def _damaged(data: bytes, error: Exception) -> BadImage:
    """The reason why Pillow failed with `error` on `data`, whose format is known."""
    kind = _format_of(data)
    # Each format's own mark of a complete file, where it has one.
    cut_short = {
        "PNG": b"IEND" not in data[-64:],
        "JPEG": b"\xff\xd9" not in data[-64:],
        "JPEG2000": b"\xff\xd9" not in data[-64:],
        "GIF": not data.rstrip(b"\0").endswith(b";"),
        "WEBP": len(data) < 8 + int.from_bytes(data[4:8], "little"),
        "BMP": len(data) < int.from_bytes(data[2:6], "little"),
        "TIFF": len(data) < _tiff_directory_end(data),
        "AVIF": len(data) < _boxes_end(data),
        "HEIF": len(data) < _boxes_end(data),
    }
    if cut_short.get(str(kind)) or "truncated" in str(error).lower():
        return BadImage("truncated", f"incomplete {kind}")
    return BadImage("unreadable", f"damaged {kind}")


def _boxes_end(data: bytes) -> int:
    """The end of the last box of an ISO container, which is beyond the file if that is cut."""
    place = 0
    while place < len(data):
        size, header = int.from_bytes(data[place : place + 4], "big"), 8
        if size == 1:  # the size follows in 64 bits
            size, header = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        if size == 0:  # up to the end of the file
            break
        place += max(size, header)
    return place


def _tiff_directory_end(data: bytes) -> int:
    """The end of the table that most writers put last in a TIFF file."""
    if 43 in data[2:4]:
        return 0  # BigTIFF, which has no table that writers put last
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    start = int.from_bytes(data[4:8], order)
    entries = int.from_bytes(data[start : start + 2], order)
    return start + 2 + 12 * entries + 4


def _turn_upright(image: Image.Image) -> None:
    """Turns a loaded image according to its EXIF orientation."""
    if image.info.keys() == {KEY}:
        return  # no metadata, no orientation; looking for it would take as long as decoding a small image
    with suppress(Exception):  # broken EXIF data do not make the image unusable
        ImageOps.exif_transpose(image, in_place=True)
