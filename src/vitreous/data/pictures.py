"""One picture from the bytes of a file, which may come from a stranger."""

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

from vitreous.errors import VitreousError
from vitreous.preprocess import Preprocess, to_rgb

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 64_000_000
MAX_BYTES = 256 * 2**20  # of a file: 64 million pixels of plain RGB fit

# How each format's files begin, to tell a damaged picture from something that never was one.
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
_FILTERS = threading.Lock()  # of warnings, which all threads share
T = TypeVar("T")


class BadPicture(VitreousError):  # noqa: N818 (what it says is what it is)
    """A picture that cannot be used.

    `reason` is one of "unreadable", "truncated", "not a picture", "too large"; `detail` says more, or is "".
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"This picture cannot be used: {self.text}.")

    @property
    def text(self) -> str:
        """The reason and its detail, to stand behind the name of a file."""
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height, from the header alone and before any rotation; raises `BadPicture`."""
    return _open(data).size


def decode(data: bytes) -> Image.Image:
    """The picture in the bytes of a file (PNG, JPEG, WebP, BMP, GIF, TIFF or PPM), in mode RGB, 8 bit.

    The first frame of an animation; turned upright as its EXIF orientation says. How other values become RGB
    says `preprocess.to_rgb`.

    Raises `BadPicture`, also for more than 64 million pixels, which are never decoded.
    """
    return _converted(data, to_rgb)


def decode_to(settings: Preprocess, data: bytes) -> np.ndarray:
    """The same as the network's input, uint8 [S, S, 3]."""
    return _converted(data, settings.pixels)


def read_picture(source: str | PathLike[str] | bytes) -> Image.Image:
    """The picture in a file, given by its path or its bytes: upright, in the file's own mode.

    Raises `VitreousError`, which names the file.
    """
    if isinstance(source, bytes):
        return _converted(source, lambda picture: picture)
    path = Path(source).expanduser()
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadPicture("too large", f"more than {MAX_BYTES // 2**20} MiB")
        return read_picture(path.read_bytes())
    except BadPicture as bad:
        raise VitreousError(f"{path} cannot be used: {bad.text}.") from None
    except OSError as error:
        raise VitreousError(f"{path} cannot be read ({error.strerror}); check the path.") from None


def _converted(data: bytes, convert: Callable[[Image.Image], T]) -> T:
    picture = _open(data)
    try:
        picture.load()
    except Exception as error:  # on damaged bytes Pillow's readers raise nearly anything
        raise _damaged(data, error) from None
    try:
        _turn_upright(picture)
        return convert(picture)
    except Exception:
        raise BadPicture("unreadable", f"{picture.format} in colour mode {picture.mode}") from None


def _open(data: bytes) -> Image.Image:
    """Read the header only, of an allowed format and size."""
    if not data:
        raise BadPicture("truncated", "the file is empty")
    if len(data) > MAX_BYTES:
        raise BadPicture("too large", f"more than {MAX_BYTES // 2**20} MiB")
    try:
        with _quiet():
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadPicture("too large", f"more than {MAX_PIXELS // 10**6} million pixels") from None
    except Exception as error:
        raise _damaged(data, error) from None
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise BadPicture("too large", f"{width}×{height}, more than {MAX_PIXELS // 10**6} million pixels")
    return picture


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings, of odd headers and of huge pictures, off stderr."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _damaged(data: bytes, error: Exception) -> BadPicture:
    kind = next((kind for start, kind in _SIGNATURES.items() if data.startswith(start)), None)
    if kind is None or (kind == "WEBP" and data[8:12] != b"WEBP"[: max(0, len(data) - 8)]):
        return BadPicture("not a picture", f"or not one of {', '.join(FORMATS)}")
    # What stands at the end of a whole file, where the format says so.
    cut_short = {
        "PNG": b"IEND" not in data[-64:],
        "JPEG": b"\xff\xd9" not in data[-64:],
        "GIF": not data.rstrip(b"\0").endswith(b";"),
        "WEBP": len(data) < 8 + int.from_bytes(data[4:8], "little"),
        "BMP": len(data) < int.from_bytes(data[2:6], "little"),
        "TIFF": len(data) < _tiff_directory_end(data),
    }
    if cut_short.get(kind) or "truncated" in str(error).lower():
        return BadPicture("truncated", kind)
    return BadPicture("unreadable", f"damaged {kind}")


def _tiff_directory_end(data: bytes) -> int:
    """Where the table that most writers put last in a TIFF file ends."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    start = int.from_bytes(data[4:8], order)
    entries = int.from_bytes(data[start : start + 2], order)
    return start + 2 + 12 * entries + 4


def _turn_upright(picture: Image.Image) -> None:
    try:
        with _quiet():
            picture.getexif()
        ImageOps.exif_transpose(picture, in_place=True)
    except Exception:  # a picture with broken EXIF data is still a picture
        pass
