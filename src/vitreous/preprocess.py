"""Turns any image into the network's input, in the same way for import and for prediction.

Letters: N images, H height, W width, S the side of the network's input, in pixels.
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
from vitreous.request import FITS

# The implemented values of each setting. A bundle with another value is refused.
CHOICES: dict[str, tuple[Any, ...]] = {
    "fit": FITS,
    "resample": ("bicubic",),  # with antialiasing
    "ground": ("white",),  # colour behind transparent pixels
}
FILTERS = {"bicubic": Image.Resampling.BICUBIC}
# A grey image of more than 8 bits does not state its range: the first value here that it does not exceed is white.
WHITES = {"I": (2.0**16 - 1, 2.0**31 - 1), "F": (1.0, 255.0, 2.0**16 - 1)}
EVAL_BATCH = (
    500  # images per evaluation batch; fixed, since the batch size can change the last bits of a product
)
Reader = Callable[[Any], Image.Image]
ACCEPTED = "a path, the bytes of a file, a PIL image, an array, or a list of these"


@dataclass(frozen=True)
class Preprocess:
    """The settings by which any image becomes uint8 [S, S, 3]. They are part of a bundle.

    Attributes:
        size: S, in pixels.
        fit: how an image of another shape becomes square: "crop" takes the central square, "pad" adds bars of the
            ground's colour, "stretch" changes its proportions.
        resample: the filter for resizing: "bicubic".
        value_range: the values of black and white in images of more than 8 bits; None decides by their type.
        ground: the colour under transparent pixels: "white".

    Raises:
        VitreousError: a value is not implemented.
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

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Converts an upright PIL image of any mode to uint8 [S, S, 3].

        An RGB image of S × S stays the same bit for bit. Raises whatever Pillow raises for a broken image.
        """
        return fit(to_rgb(image, self.ground), self.size, self.resample, self.fit)

    def batch(self, images: Any, read: Reader | None = None) -> np.ndarray:
        """Converts one image or many to uint8 [N, S, S, 3]. Images of that size and type stay the same bit for bit.

        Args:
            images: a PIL image, which is turned upright according to its EXIF orientation; an array or tensor of one
                image [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (the last channel is opacity), or of many [N, H, W] or
                [N, H, W, 1 or 3 or 4]; or a list of single images of any sizes. Arrays are uint8, uint16, bool
                (black and white) or floats from 0 to 1.
            read: opens a path or the bytes of a file, upright. Without it, paths and bytes are refused.

        Raises:
            VitreousError: an image cannot be read, or the shape of an array is ambiguous.
        """
        return self._prepared(_many(images), read)

    def batches(self, images: Any, size: int, read: Reader | None = None) -> Iterator[np.ndarray]:
        """Like `batch`, but yields at most `size` images at a time to save memory."""
        many = _many(images)
        for start in range(0, len(many), size):
            yield self._prepared(many[start : start + size], read, start)

    def _prepared(
        self, images: Sequence[Any] | np.ndarray, read: Reader | None, first: int = 0
    ) -> np.ndarray:
        shape = (len(images), self.size, self.size, 3)
        if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape == shape:
            return images  # not copied, since it may be memory-mapped
        out = np.empty(shape, np.uint8)
        for i, image in enumerate(images):
            out[i] = self._one(image, read, f"Image {first + i}" if len(images) > 1 else "The image")
        return out

    def _one(self, image: Any, read: Reader | None, name: str) -> np.ndarray:
        if isinstance(image, str | bytes | PathLike):
            if read is None:
                raise VitreousError(
                    f"{name} is a file name or the bytes of a file; give a PIL image or an array."
                )
            image, name = read(image), name if isinstance(image, bytes) else str(image)
        elif isinstance(image, Image.Image):
            image = _upright(image)
        if isinstance(image, Image.Image):
            try:
                return self.pixels(image)
            except (
                Exception
            ) as error:  # Pillow reads the pixels only now, and on damaged bytes it raises nearly anything
                raise VitreousError(f"{name} cannot be used ({error}); repair it or leave it out.") from None
        array = _as_array(image, name)
        if _holds_many(array):
            raise VitreousError(
                f"{name} of the list contains several images (its shape is {list(array.shape)}); "
                "give a list of single images."
            )
        array = _to_uint8(array)
        if array.shape == (self.size, self.size, 3):
            return array
        return self.pixels(Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array))


# ---- values and shapes


def to_rgb(image: Image.Image, ground: str = "white") -> Image.Image:
    """Converts a PIL image of any mode to mode RGB, 8 bits per channel, with `ground` under transparent pixels.

    Grey of 16 bits keeps its high byte, as Pillow does for colour. In wider types (32-bit integers, floats), white is
    the first of 1, 255 (both for floats only), 65535 and 2³¹-1 that the image does not exceed, and negative values are
    black. Embedded colour profiles are not applied.
    """
    if image.mode.startswith("I;16"):
        high_byte = np.asarray(image) >> 8  # exact for 8-bit values widened by 257
        return Image.fromarray(high_byte.astype(np.uint8)).convert("RGB")
    if image.mode in WHITES:
        grey = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
        white = next((white for white in WHITES[image.mode] if grey.max() <= white), grey.max())
        # 16 bits are rounded down to 8, so that an image is the same from every format.
        in_bytes = np.floor(grey / 256) if white == 2.0**16 - 1 else np.rint(grey / white * 255)
        return Image.fromarray(in_bytes.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, ground), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def fit(image: Image.Image, size: int, resample: str = "bicubic", how: str = "crop") -> np.ndarray:
    """Makes an RGB image square, with antialiasing: uint8 [size, size, 3].

    "crop" takes the central square, "stretch" the whole image, "pad" the whole image with white bars beside it. An
    image of size × size stays the same bit for bit.
    """
    width, height = image.size
    if how == "pad" and width != height:
        scale = size / max(width, height)
        inner = image.resize(
            (max(1, round(width * scale)), max(1, round(height * scale))), FILTERS[resample]
        )
        square = Image.new("RGB", (size, size), "white")
        square.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
        return np.array(square)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    # Cropping first keeps the work small for a panorama.
    cuts = how == "crop" and width != height
    square = image.crop((left, top, left + side, top + side)) if cuts else image
    if square.size != (size, size):
        square = square.resize((size, size), FILTERS[resample])
    return np.array(square)  # [S, S, 3]


def _upright(image: Image.Image) -> Image.Image:
    """The image turned according to its EXIF orientation; the caller's own image does not change."""
    with suppress(Exception):  # broken EXIF data do not make an image unusable
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(image)
    return image


def _many(images: Any) -> Sequence[Any] | np.ndarray:
    """One image or many as a sequence of single images."""
    if isinstance(images, list | tuple):
        return images
    if isinstance(images, str | bytes | PathLike | Image.Image):
        return [images]
    array = _as_array(images, "The images")
    return array if _holds_many(array) else array[None]


def _as_array(image: Any, name: str) -> np.ndarray:
    try:
        # Recognises a torch tensor without importing torch.
        array = np.asarray(image.detach().cpu().numpy() if hasattr(image, "detach") else image)
    except (ValueError, TypeError, RuntimeError):  # a tensor without values, or of a type that numpy lacks
        array = np.empty((), object)
    if array.dtype.kind not in "biuf":
        kind = f"{type(image).__name__} of {image.dtype}" if hasattr(image, "dtype") else type(image).__name__
        raise VitreousError(
            f"{name} cannot be made from {kind}; give {ACCEPTED}, with arrays as uint8 or as float32 from 0 to 1."
        )
    return array


def _holds_many(array: np.ndarray) -> bool:
    """Whether an array holds many images, judged by its shape; raises `VitreousError` if that is ambiguous."""
    shape = list(array.shape)
    channels_last = array.ndim in (3, 4) and shape[-1] in (1, 3, 4)
    if 0 not in shape[1:]:
        if array.ndim == 4 and channels_last:
            return True
        if array.ndim == 2 or (array.ndim == 3 and channels_last):
            if shape[0] == 0:
                raise VitreousError(
                    f"The image has the shape {shape}, so it has no pixels; give a larger image."
                )
            return False
        if array.ndim == 3 and shape[0] not in (3, 4):
            return True
    if array.ndim == 3 and shape[0] in (3, 4):
        raise VitreousError(
            f"An array of the shape {shape} could be one image with channels first or {shape[0]} grey images; pass "
            "one image as `images.transpose(1, 2, 0)` (in torch `images.permute(1, 2, 0)`), "
            "grey images as `images[..., None]`."
        )
    if array.ndim >= 4 and shape[-3] in (3, 4):
        raise VitreousError(
            f"Images of the shape {shape} seem to have their channels first; pass them with channels last, as "
            "`images.transpose(0, 2, 3, 1)` (in torch `images.permute(0, 2, 3, 1)`)."
        )
    raise VitreousError(
        f"Images of the shape {shape} are not supported; give one as [H, W] or [H, W, 3], "
        "or many as [N, H, W] or [N, H, W, 3]."
    )


def _to_uint8(array: np.ndarray) -> np.ndarray:
    """Converts values to uint8 from 0 to 255; the shape stays the same."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)  # like a file of 16 bits
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind != "f":
        raise VitreousError(
            f"Images of the type {array.dtype} are not supported; "
            "give uint8 from 0 to 255, uint16, or floats from 0 to 1."
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise VitreousError(
            f"The float values of an image range from {low:g} to {high:g}; "
            "give floats from 0 to 1, not normalised, or uint8 from 0 to 255."
        )
    return np.rint(array * 255.0).astype(np.uint8)
