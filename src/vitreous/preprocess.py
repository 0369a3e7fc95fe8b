"""The one way from any image to the network's input, the same for import and for prediction.

Letters: N images, H height, W width, S the side that the network takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vitreous.errors import VitreousError, unknown

# Each setting with the values that are implemented; a bundle that asks for another is refused.
CHOICES: dict[str, tuple[Any, ...]] = {
    "fit": ("crop",),  # the central square, then resized
    "resample": ("bicubic",),  # with antialiasing
    "value_range": (None,),  # by the type of the values, see `to_rgb`
    "ground": ("white",),  # what shows through a transparent pixel
}
FILTERS = {"bicubic": Image.Resampling.BICUBIC}
# A grey image of more than 8 bits does not say its range: white is the first value here that is not exceeded.
WHITES = {"I": (2.0**16 - 1, 2.0**31 - 1), "F": (1.0, 255.0, 2.0**16 - 1)}
EVAL_BATCH = 500  # images at once in evaluation; fixed, since a batch's size can change a product's last bits
Reader = Callable[[Any], Image.Image]
ACCEPTED = "a path, the bytes of a file, a PIL image, an array, or a list of these"


@dataclass(frozen=True)
class Preprocess:
    """How any image becomes uint8 [S, S, 3]; the settings are part of a bundle.

    Attributes:
        size: S, in pixels.
        fit: how another shape becomes a square: "crop" takes the central one.
        resample: the filter that resizes: "bicubic".
        value_range: what is black and white in images of more than 8 bits; None decides by their type.
        ground: the colour under transparent pixels: "white".

    Raises:
        VitreousError: a value that is not implemented.
    """

    size: int
    fit: str = "crop"
    resample: str = "bicubic"
    value_range: tuple[float, float] | None = None
    ground: str = "white"

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise VitreousError(f"The image size is {self.size!r}; give a number of pixels, such as 64.")
        for setting, implemented in CHOICES.items():
            value = getattr(self, setting)
            if value not in implemented:
                raise unknown(f"preprocessing {setting}", str(value), map(str, implemented))

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """A PIL image, upright and in any mode, as uint8 [S, S, 3].

        An RGB image of S × S passes through bit for bit. Raises whatever Pillow does for a broken image.
        """
        return fit(to_rgb(picture, self.ground), self.size, self.resample)

    def batch(self, images: Any, read: Reader | None = None) -> np.ndarray:
        """One image or many as uint8 [N, S, S, 3]; those of the right size and type pass through bit for bit.

        Args:
            images: a PIL image, turned upright as its EXIF orientation says; an array or tensor of one image
                [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (the last channel is opacity), or of many [N, H, W] or
                [N, H, W, 1 or 3 or 4]; or a list of single ones, of any sizes. Arrays hold uint8, uint16, bool
                (black and white) or floats from 0 to 1.
            read: opens a path or the bytes of a file, upright; without it they are refused.

        Raises:
            VitreousError: an image that cannot be read, or an array that could mean several things.
        """
        return self._prepared(_many(images), read)

    def batches(self, images: Any, size: int, read: Reader | None = None) -> Iterator[np.ndarray]:
        """The same in batches of at most `size` images, so that not all have to be in memory at once."""
        many = _many(images)
        for start in range(0, len(many), size):
            yield self._prepared(many[start : start + size], read, start)

    def _prepared(
        self, images: Sequence[Any] | np.ndarray, read: Reader | None, first: int = 0
    ) -> np.ndarray:
        shape = (len(images), self.size, self.size, 3)
        if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape == shape:
            return images  # as it is, memory-mapped perhaps
        out = np.empty(shape, np.uint8)
        for i, image in enumerate(images):
            out[i] = self._one(image, read, f"Image {first + i}" if len(images) > 1 else "The image")
        return out

    def _one(self, image: Any, read: Reader | None, name: str) -> np.ndarray:
        if isinstance(image, str | bytes | PathLike):
            if read is None:
                raise VitreousError(f"{name} is a file, and only PIL images and arrays are taken here.")
            image, name = read(image), name if isinstance(image, bytes) else str(image)
        elif isinstance(image, Image.Image):
            image = _upright(image)
        if isinstance(image, Image.Image):
            try:
                return self.pixels(image)
            except Exception as error:  # on damaged bytes, which load only now, Pillow raises nearly anything
                raise VitreousError(f"{name} cannot be used ({error}); mend it or leave it out.") from None
        array = _as_array(image, name)
        if _holds_many(array):
            raise VitreousError(
                f"{name} of the list holds several, {list(array.shape)}; give each on its own."
            )
        array = _to_uint8(array)
        if array.shape == (self.size, self.size, 3):
            return array
        return self.pixels(Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array))


# ---- values and shapes


def to_rgb(picture: Image.Image, ground: str = "white") -> Image.Image:
    """A PIL image of any mode in mode RGB, 8 bit; transparency is laid on `ground`.

    Grey of 16 bits keeps its high byte, as Pillow keeps that of colour. In wider types (32-bit integers, floats)
    white is the first of 1, 255 (both for floats only), 65535 and 2³¹-1 that the image does not exceed, and negative
    values are black. Embedded colour profiles are not applied.
    """
    if picture.mode.startswith("I;16"):
        high_byte = np.asarray(picture) >> 8  # exact for 8-bit values widened by 257
        return Image.fromarray(high_byte.astype(np.uint8)).convert("RGB")
    if picture.mode in WHITES:
        grey = np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=0.0, neginf=0.0)
        white = next((white for white in WHITES[picture.mode] if grey.max() <= white), grey.max())
        # Rounded down where 16 bits become 8, so that the same picture is the same from every format.
        eighth = np.floor(grey / 256) if white == 2.0**16 - 1 else np.rint(grey / white * 255)
        return Image.fromarray(eighth.clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def fit(picture: Image.Image, size: int, resample: str = "bicubic") -> np.ndarray:
    """The central square of an RGB image, resized with antialiasing: uint8 [size, size, 3].

    An image that is already size × size passes through bit for bit.
    """
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    # Cutting first keeps the work small for a panorama, whose long side resizing would have to keep.
    square = picture.crop((left, top, left + side, top + side)) if width != height else picture
    if side != size:
        square = square.resize((size, size), FILTERS[resample])
    return np.array(square)  # [S, S, 3]


def _upright(picture: Image.Image) -> Image.Image:
    """The image as it is to be looked at; the caller's own is left alone."""
    with suppress(Exception):  # an image with broken EXIF data is still an image
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(picture)
    return picture


def _many(images: Any) -> Sequence[Any] | np.ndarray:
    """One image or many as a sequence of single ones."""
    if isinstance(images, list | tuple):
        return images
    if isinstance(images, str | bytes | PathLike | Image.Image):
        return [images]
    array = _as_array(images, "The images")
    return array if _holds_many(array) else array[None]


def _as_array(image: Any, name: str) -> np.ndarray:
    try:
        # A torch tensor is known without importing torch.
        array = np.asarray(image.detach().cpu().numpy() if hasattr(image, "detach") else image)
    except (ValueError, TypeError, RuntimeError):  # a tensor of a type that numpy lacks, or without values
        array = np.empty((), object)
    if array.dtype.kind not in "biuf":
        kind = f"{type(image).__name__} of {image.dtype}" if hasattr(image, "dtype") else type(image).__name__
        raise VitreousError(
            f"{name} cannot be made of {kind}; give {ACCEPTED}, arrays as uint8 or as float32 from 0 to 1."
        )
    return array


def _holds_many(array: np.ndarray) -> bool:
    """Whether an array is of many images, told by its shape; raises where it could mean several things."""
    shape = list(array.shape)
    channels_last = array.ndim in (3, 4) and shape[-1] in (1, 3, 4)
    if 0 not in shape[1:]:
        if array.ndim == 4 and channels_last:
            return True
        if array.ndim == 2 or (array.ndim == 3 and channels_last):
            if shape[0] == 0:
                raise VitreousError(f"The image has the shape {shape}; it holds no pixel.")
            return False
        if array.ndim == 3 and shape[0] not in (3, 4):
            return True
    if array.ndim >= 3 and shape[-3] in (3, 4):
        axes = "1, 2, 0" if array.ndim == 3 else "0, 2, 3, 1"
        grey = ", or three or four grey images as [N, H, W, 1]" if array.ndim == 3 else ""
        raise VitreousError(
            f"Images of the shape {shape} look as if their channels came first; "
            f"give channels last (`images.transpose({axes})` in numpy){grey}."
        )
    raise VitreousError(
        f"Images of the shape {shape} are not understood; give one as [H, W] or [H, W, 3], "
        "or many as [N, H, W] or [N, H, W, 3]."
    )


def _to_uint8(array: np.ndarray) -> np.ndarray:
    """Values in 0..255, uint8, of the same shape."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)  # as a file of 16 bits
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind != "f":
        raise VitreousError(
            f"Images of the type {array.dtype} are not understood; "
            "give uint8 from 0 to 255, uint16, or floats from 0 to 1."
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise VitreousError(
            f"The values of an image of floats reach from {low:g} to {high:g}; "
            "give floats from 0 to 1 that are not normalised, or uint8 from 0 to 255."
        )
    return np.rint(array * 255.0).astype(np.uint8)
