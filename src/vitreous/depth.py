"""Images of more than 8 bits: the values of their files, and the range of values that becomes black to white.

Letters: H height, W width, in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vitreous.errors import VitreousError

SIXTEEN = 2**16 - 1  # white of 16-bit integers; Pillow also scales PGM of fewer bits to it
SLACK = 0.5 / 255  # of floats beyond black and white, half a step of 8 bits: the errors of rounding
FLOATS = (0.0, 1.0)  # black and white of floats unless a range is given
KEY = "vitreous.origin"  # of the `Origin` in the `info` of an image that this package opened
J2K_START = b"\xff\x4f\xff\x51"  # SOC and SIZ: the first markers of a JPEG 2000 codestream
J2K_HEAD = 2**20  # bytes in which a JPEG 2000 file must reach them, after metadata such as a colour profile


@dataclass(frozen=True)
class Origin:
    """What a file says about its values that a loaded PIL image no longer shows.

    Attributes:
        white: the value that the file states as white; None if it states none, or the full 16 bits, which say little
            because many programs write 12 bits as 16.
        factor: turns the values of the PIL image back into those of the file.
        inverted: the lowest value is white, as in some TIFF files.
        unsigned: 32-bit integers without a sign, which Pillow holds as signed ones.
        deep_colour: 16 bits per channel, of which Pillow keeps the high byte.
        images: number of images in the file; only the first is read.
        unused_band: a band is neither colour nor opacity, and is not read.
    """

    white: int | None = None
    factor: float = 1.0
    inverted: bool = False
    unsigned: bool = False
    deep_colour: bool = False
    images: int = 1
    unused_band: bool = False


PLAIN = Origin()


class OutOfRange(VitreousError):  # noqa: N818 (the name says what it is)
    """Values that cannot become black to white, since none is finite or they leave the range of their type.

    Attributes:
        values: the values, to follow "has".
        remedy: what to do.
    """

    def __init__(self, values: str, remedy: str) -> None:
        self.values, self.remedy = values, remedy
        super().__init__(self.sentence("The image"))

    def sentence(self, name: str) -> str:
        """The message for the image that is called `name`."""
        return f"{name} has {self.values}; {self.remedy}."


def origin_of(image: Image.Image) -> Origin:
    """Describes the values of an image; best before it is loaded, which loses what is not in its `info`.

    Raises:
        OutOfRange: it was loaded, and its format may have stated a white that is lost.
    """
    if KEY in image.info:
        return image.info[KEY]
    tags = getattr(image, "tag_v2", {})
    white_is_zero = is_deep(image) and tags.get(262) == 0  # PhotometricInterpretation
    tile = getattr(image, "tile", None)
    if not tile:
        if is_deep(image) and image.format in ("PPM", "JPEG2000") and image.mode != "F":
            raise OutOfRange("values whose white was lost when Pillow loaded it", "give its path")
        # BitsPerSample and SampleFormat, whose default is unsigned
        unsigned = image.mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,)
        return Origin(inverted=white_is_zero, unsigned=unsigned)
    codec, args = tile[0][0], tile[0][3]
    raw_mode = args if isinstance(args, str) else str(args[0]) if args else ""
    if codec in ("ppm", "ppm_plain"):
        maximum = args[-1]
        if image.mode == "I" and maximum < SIXTEEN:
            return Origin(white=maximum, factor=maximum / SIXTEEN)
        return Origin(deep_colour=image.mode == "RGB" and maximum == SIXTEEN)
    if codec == "jpeg2k":
        precision = _j2k_bits(image)
        if image.mode == "I;16" and 8 < precision < 16:
            return Origin(white=2**precision - 1, factor=2.0 ** (precision - 16))
        return Origin(deep_colour=image.mode != "I;16" and precision == 16)
    if not is_deep(image):
        return Origin(deep_colour=True) if ";16" in raw_mode else PLAIN
    return Origin(inverted=white_is_zero, unsigned=raw_mode == "I;32N")


def is_deep(image: Image.Image) -> bool:
    """Whether an image is grey of more than 8 bits. Pillow has no such mode for colour."""
    return image.mode[0] in "IF"


def values_of(image: Image.Image, origin: Origin = PLAIN) -> np.ndarray:
    """The values [H, W] of a deep image as its file holds them."""
    values = np.asarray(image)
    if origin.unsigned:
        values = values.view(np.uint32)
    if origin.factor != 1:
        values = np.rint(values * origin.factor).astype(np.uint16)
    return values


def own_range(kind: str, white: int | None = None) -> tuple[float, float]:
    """Black and white of values of a numpy `kind` ("u", "i" or "f") unless a range is given."""
    return FLOATS if kind == "f" else (0.0, float(white or SIXTEEN))


def inside(kind: str, lowest: float, highest: float, own: tuple[float, float]) -> bool:
    """Whether values of a numpy `kind` from `lowest` to `highest` are within their `own_range`, floats nearly so."""
    slack = SLACK if kind == "f" else 0.0
    return own[0] - slack <= lowest and highest <= own[1] + slack


def to_bytes(
    values: np.ndarray, value_range: tuple[float, float] | None, white: int | None = None
) -> np.ndarray:
    """Converts deep values to uint8, with `value_range` from 0 to 255; the shape stays the same.

    Values outside are clipped; NaN and infinity become 0. Integers of a whole number of bits are rounded down, as all
    programs do that keep the high byte, so that 8-bit values widened by 257 come back. Others are rounded.

    Args:
        value_range: the values of black and white; None for those of the type, see `own_range`.
        white: the value that the file states as white.

    Raises:
        OutOfRange: no value is finite; or no range is given and the values leave that of their type.
    """
    kind = values.dtype.kind
    low, high = value_range or own_range(kind, white)
    lowest, highest = finite_range(values)
    if np.isnan(lowest):
        raise OutOfRange("no finite value", "leave it out")
    if value_range is None and not inside(kind, lowest, highest, (low, high)):
        noun, wanted, hint = (
            ("float values", "floats", ", not normalised") if kind == "f" else ("values", "integers", "")
        )
        raise OutOfRange(
            f"{noun} from {number(lowest)} to {number(highest)}",
            f"give {wanted} from {number(low)} to {number(high)}{hint}, or 8 bits (0 to 255)",
        )
    bits = (int(high) + 1).bit_length() - 1
    if kind != "f" and low == 0 and high == 2**bits - 1 and 8 <= bits <= 16:
        return (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    scaled = np.nan_to_num(values.astype(np.float64), copy=False, nan=low, posinf=low, neginf=low)
    scaled -= low
    scaled *= 255 / (high - low)
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def finite_range(values: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest finite value; (NaN, NaN) if no value is finite."""
    low, high = float(values.min()), float(values.max())
    if np.isfinite(low) and np.isfinite(high):
        return low, high
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (np.nan, np.nan)


def unlike(values: np.ndarray, value_range: tuple[float, float]) -> bool:
    """Whether values clearly have another unit than `value_range`, as floats from 0 to 1 beside thousands."""
    if not another_unit(values.dtype.kind, *finite_range(values), value_range):
        return False
    if values.dtype.kind != "f":
        return True
    low, high = value_range
    finite = values[np.isfinite(values)]
    if high >= 2:
        return bool((finite % 1 > 0).any())
    # Highlights of floats may exceed white by far, but not most of what is brighter than black.
    return bool(np.median(finite[finite > low]) >= 2)


def another_unit(kind: str, lowest: float, highest: float, value_range: tuple[float, float]) -> bool:
    """Whether values of a numpy `kind` from `lowest` to `highest` seem to have another unit than `value_range`."""
    low, high = value_range
    if high < 2 <= highest:
        return True
    return kind == "f" and low >= 0 and high >= 255 and lowest >= 0 and highest <= 1


def beside(lowest: float, highest: float, value_range: tuple[float, float]) -> bool:
    """Whether all values from `lowest` to `highest` are below black, or all above white."""
    return highest < value_range[0] or lowest > value_range[1]


def number(value: float) -> str:
    """A value for a sentence: "4095", "1.05", "-3.40282e+38"."""
    return str(int(value)) if abs(value) < 1e12 and value == int(value) else f"{value:g}"


def j2k_header(data: bytes) -> tuple[int, int]:
    """The number of channels of a JPEG 2000 file and the bits of the first; zeros if it has no such header."""
    start = data.find(J2K_START, 0, J2K_HEAD)
    # Behind the two markers: length, capabilities, 8 sizes and offsets (38 bytes), number of channels, bits - 1.
    channels = data[start + 40 : start + 42]
    bits = data[start + 42 : start + 43]
    return (int.from_bytes(channels, "big"), (bits[0] & 0x7F) + 1) if start >= 0 and bits else (0, 0)


def _j2k_bits(image: Any) -> int:
    """Bits of the first channel of a JPEG 2000 image that was not loaded."""
    place = image.fp.tell()
    image.fp.seek(0)
    head = image.fp.read(J2K_HEAD)
    image.fp.seek(place)
    return j2k_header(head)[1]
