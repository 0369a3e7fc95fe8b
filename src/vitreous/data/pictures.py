"""One picture: from the bytes of a file to 8-bit RGB of the size that a model sees."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from vitreous.errors import VitreousError

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
# The range of a grey picture of more than 8 bits is not written in it: white is the first that holds it.
_WHITES = {"I": (2.0**16 - 1, 2.0**31 - 1), "F": (1.0, 255.0, 2.0**16 - 1)}
_FILTERS = threading.Lock()  # of warnings, which all threads share


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

    The first frame of an animation; turned upright as its EXIF orientation says. Transparency is laid on
    white. Grey of 16 bits keeps its high byte, as colour of 16 bits does; of wider types (32-bit integers,
    floats) the range is taken to be the first of 0..1, 0..255 (both for floats only), 0..65535 and 0..2³¹-1
    that holds the picture, and negative values are black. Embedded colour profiles are not applied.

    Raises `BadPicture`, also for more than 64 million pixels, which are never decoded.
    """
    picture = _open(data)
    try:
        picture.load()
    except Exception as error:  # on damaged bytes Pillow's readers raise nearly anything
        raise _damaged(data, error) from None
    try:
        _turn_upright(picture)
        return _to_rgb(picture)
    except Exception:
        raise BadPicture("unreadable", f"{picture.format} in colour mode {picture.mode}") from None


def fit(picture: Image.Image, size: int) -> np.ndarray:
    """The central square of an RGB picture, resized with antialiasing (bicubic): uint8 [size, size, 3].

    A picture that is already size × size passes through bit for bit.
    """
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    # Cutting first keeps the work small for a panorama, whose long side resizing would have to keep.
    square = picture.crop((left, top, left + side, top + side)) if width != height else picture
    if side != size:
        square = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.array(square)  # [S, S, 3]


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


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        high_byte = np.asarray(picture) >> 8  # exact for 8-bit values widened by 257
        return Image.fromarray(high_byte.astype(np.uint8)).convert("RGB")
    if picture.mode in _WHITES:
        grey = np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=0.0, neginf=0.0)
        white = next((white for white in _WHITES[picture.mode] if grey.max() <= white), grey.max())
        # Rounded down where 16 bits become 8, so that the same picture is the same from every format.
        eighth = np.floor(grey / 256) if white == 2.0**16 - 1 else np.rint(grey / white * 255)
        return Image.fromarray(eighth.clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")
