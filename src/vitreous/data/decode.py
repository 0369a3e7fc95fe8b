"""Decodes one image from the bytes of a file that nobody has vetted."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, ImageOps

from vitreous.data.values import Facts
from vitreous.errors import VitreousError
from vitreous.preprocess import Preprocess, to_rgb

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
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
    **{b"P%d" % kind: "PPM" for kind in range(1, 7)},
}
_FILTERS = threading.Lock()  # guards the warning filters, which all threads share
T = TypeVar("T")


class BadImage(VitreousError):  # noqa: N818 (the name says what it is)
    """An image that cannot be used.

    Attributes:
        reason: "unreadable", "truncated", "empty file", "not an image" or "too large".
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
    return _open(data).size


def decode(data: bytes) -> Image.Image:
    """Decodes the bytes of a file (PNG, JPEG, WebP, BMP, GIF, TIFF or PPM) to mode RGB, 8 bits per channel.

    Takes the first frame of an animation and turns the image upright according to its EXIF orientation.
    `preprocess.to_rgb` defines how other modes become RGB.

    Raises:
        BadImage: the image is damaged or has more than 64 million pixels, which are never decoded.
    """
    return _converted(data, to_rgb)


def decode_to(settings: Preprocess, data: bytes) -> tuple[np.ndarray, Facts]:
    """Decodes the bytes of a file to the network's input size.

    Returns:
        uint8 [S, S, 3], and what the image contributes to the choices for its data set.

    Raises:
        BadImage: the image is damaged or has more than 64 million pixels, which are never decoded.
    """
    return _converted(data, lambda image: (settings.pixels(image), Facts(*image.size)))


def read_image(source: str | PathLike[str] | bytes) -> Image.Image:
    """Reads an image from a path or from the bytes of a file: upright, in the file's own mode.

    Raises:
        VitreousError: it cannot be read; the message names the file.
    """
    if isinstance(source, bytes):
        return _converted(source, lambda image: image)
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


def _converted(data: bytes, convert: Callable[[Image.Image], T]) -> T:
    image = _open(data)
    try:
        image.load()
    except Exception as error:  # on damaged bytes Pillow's readers raise nearly anything
        raise _damaged(data, error) from None
    try:
        _turn_upright(image)
        return convert(image)
    except Exception:
        raise BadImage("unreadable", f"{image.format} in colour mode {image.mode}") from None


def _open(data: bytes) -> Image.Image:
    """Reads the header of an image, and refuses other formats and sizes than the allowed ones."""
    if not data:
        raise BadImage("empty file")
    if len(data) > MAX_BYTES:
        raise BadImage("too large", f"more than {MAX_BYTES // 2**20} MiB")
    try:
        with _no_warnings():
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadImage("too large", f"more than {MAX_PIXELS // 10**6} million pixels") from None
    except Exception as error:
        raise _damaged(data, error) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage("too large", f"{width}×{height}, more than {MAX_PIXELS // 10**6} million pixels")
    return image


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Keeps Pillow's warnings about odd headers and huge images off stderr."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _damaged(data: bytes, error: Exception) -> BadImage:
    """The reason why Pillow failed with `error` on `data`."""
    kind = next((kind for start, kind in _SIGNATURES.items() if data.startswith(start)), None)
    if kind is None or (kind == "WEBP" and data[8:12] != b"WEBP"[: max(0, len(data) - 8)]):
        return BadImage("not an image", f"supported formats: {', '.join(FORMATS)}")
    # Each format's own mark of a complete file, where it has one.
    cut_short = {
        "PNG": b"IEND" not in data[-64:],
        "JPEG": b"\xff\xd9" not in data[-64:],
        "GIF": not data.rstrip(b"\0").endswith(b";"),
        "WEBP": len(data) < 8 + int.from_bytes(data[4:8], "little"),
        "BMP": len(data) < int.from_bytes(data[2:6], "little"),
        "TIFF": len(data) < _tiff_directory_end(data),
    }
    if cut_short.get(kind) or "truncated" in str(error).lower():
        return BadImage("truncated", f"incomplete {kind}")
    return BadImage("unreadable", f"damaged {kind}")


def _tiff_directory_end(data: bytes) -> int:
    """The end of the table that most writers put last in a TIFF file."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    start = int.from_bytes(data[4:8], order)
    entries = int.from_bytes(data[start : start + 2], order)
    return start + 2 + 12 * entries + 4


def _turn_upright(image: Image.Image) -> None:
    try:
        with _no_warnings():
            image.getexif()
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # broken EXIF data do not make the image unusable
        pass
