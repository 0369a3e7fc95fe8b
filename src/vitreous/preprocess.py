"""Turns any image into the network's input, in the same way for import and for prediction.

Letters: N images, H height, W width, S the side of the network's input, in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vitreous import profiles
from vitreous.depth import (
    KEY,
    PLAIN,
    Origin,
    OutOfRange,
    finite_range,
    is_deep,
    number,
    origin_of,
    to_bytes,
    unlike,
    values_of,
)
from vitreous.errors import VitreousError, unknown
from vitreous.request import FITS

# The implemented values of each setting. A bundle with another value is refused.
CHOICES: dict[str, tuple[Any, ...]] = {
    "fit": FITS,
    "resample": ("bicubic",),  # with antialiasing
    "ground": ("white", "grey", "black"),  # colour behind transparent pixels
    "profiles": ("applied", "ignored"),  # embedded colour profiles
}
FILTERS = {"bicubic": Image.Resampling.BICUBIC}
EVAL_BATCH = (
    500  # images per evaluation batch; fixed, since the batch size can change the last bits of a product
)
Reader = Callable[[Any], Image.Image]
Colours = Callable[[Image.Image], Image.Image]  # converts an RGB image to another of the same size
ACCEPTED = "a path, the bytes of a file, a PIL image, an array, or a list of these"


@dataclass(frozen=True)
class Preprocess:
    """The settings by which any image becomes uint8 [S, S, 3]. They are part of a bundle.

    Attributes:
        size: S, in pixels.
        fit: how an image of another shape becomes square: "crop" takes the central square, "pad" adds bars of the
            ground's colour, "stretch" changes its proportions.
        resample: the filter for resizing: "bicubic".
        value_range: the values of black and white in images of more than 8 bits. None means those that the file
            states, else 0 and 65535 for integers, and 0 and 1 for floats; an image with other values is refused.
        ground: the colour under transparent pixels and of the bars of `pad`: "white", "grey" or "black".
        profiles: whether embedded colour profiles are "applied", so that colours look as in a browser, or "ignored".
            Images of more than 8 bits are read without their profiles.

    Raises:
        VitreousError: a value is not implemented.
    """

    size: int
    fit: str = "crop"
    resample: str = "bicubic"
    value_range: tuple[float, float] | None = None
    ground: str = "white"
    profiles: str = "applied"

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise VitreousError(f"The image size is {self.size!r}; give a number of pixels, such as 64.")
        for setting, implemented in CHOICES.items():
            value = getattr(self, setting)
            if value not in implemented:
                raise unknown(f"preprocessing {setting}", str(value), map(str, implemented))
        if self.value_range is not None:
            object.__setattr__(self, "value_range", _checked_range(self.value_range))

    def pixels(self, image: Image.Image, origin: Origin = PLAIN) -> np.ndarray:
        """Converts an upright PIL image of any mode to uint8 [S, S, 3].

        An RGB image of S × S without a profile stays the same bit for bit.

        Args:
            origin: what its file says about its values, see `origin_of`.

        Raises:
            OutOfRange: it has more than 8 bits, and values that need a `value_range`.
            Exception: whatever Pillow raises for a broken image.
        """
        rgb, colours = self.rgb(image, origin)
        return fit(rgb, self.size, self.resample, self.fit, self.ground, colours)

    def rgb(self, image: Image.Image, origin: Origin = PLAIN) -> tuple[Image.Image, Colours | None]:
        """Converts an upright PIL image of any mode to mode RGB, at its own size.

        Returns:
            The image, and the conversion of its colours to sRGB if that is still to be done. Done after resizing, it
            takes less time.
        """
        profile = image.info.get("icc_profile") if self.profiles == "applied" else None
        if profile is None or is_deep(image):
            return to_rgb(image, self.ground, self.value_range, origin), None
        if not profiles.available():
            raise VitreousError(
                "An image has a colour profile, which this build of Pillow cannot apply; "
                "install Pillow from PyPI (`pip install --force-reinstall Pillow`)."
            )
        image, colours = profiles.to_srgb(image, profile)
        return to_rgb(image, self.ground), colours

    def batch(self, images: Any, read: Reader | None = None) -> np.ndarray:
        """Converts one image or many to uint8 [N, S, S, 3]. Images of that size and type stay the same bit for bit.

        Args:
            images: a PIL image, which is turned upright according to its EXIF orientation; an array or tensor of one
                image [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (the last channel is opacity), or of many [N, H, W] or
                [N, H, W, 1 or 3 or 4]; or a list of single images of any sizes. Arrays are uint8, bool (black and
                white), or uint16 or floats within `value_range`; with such a range, other integers too.
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
        try:
            if isinstance(image, Image.Image):
                return self._from_pil(image, name)
            return self.from_array(_as_array(image, name), name, predicts=True)
        except OutOfRange as error:
            raise VitreousError(error.sentence(name)) from None

    def _from_pil(self, image: Image.Image, name: str) -> np.ndarray:
        origin = origin_of(image)
        if is_deep(image):
            image.info[KEY] = origin  # the image may be given again, loaded
        try:
            image = upright(image)
            if is_deep(image):
                self._refuse_another_scale(values_of(image, origin), name, predicts=True)
            return self.pixels(image, origin)
        except VitreousError:
            raise
        # Pillow reads the pixels only now, and on damaged bytes it raises nearly anything.
        except Exception as error:
            raise VitreousError(f"{name} cannot be used ({error}); repair it or leave it out.") from None

    def from_array(self, array: np.ndarray, name: str = "The image", *, predicts: bool = False) -> np.ndarray:
        """Converts an array of one image, as `batch` takes it, to uint8 [S, S, 3].

        Args:
            name: what messages call it.
            predicts: refuses an image that is wholly above white. In a data set for training there may be some, and
                images wholly below black are common where a range is narrow, as air in a scan.

        Raises:
            VitreousError: it holds several images, or its values do not fit the range.
        """
        if _holds_many(array):
            raise VitreousError(
                f"{name} of the list contains several images (its shape is {list(array.shape)}); "
                "give a list of single images."
            )
        if array.dtype.kind != "b" and array.dtype != np.uint8:
            self._refuse_another_scale(array, name, predicts)
        array = _to_uint8(array, self.value_range)
        if array.shape == (self.size, self.size, 3):
            return array
        return self.pixels(Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array))

    def _refuse_another_scale(self, values: np.ndarray, name: str, predicts: bool) -> None:
        if self.value_range is None or not values.size:
            return
        lowest, highest = finite_range(values)
        if unlike(values, self.value_range) or (predicts and lowest > self.value_range[1]):
            low, high = number(lowest), number(highest)
            black, white = map(number, self.value_range)
            raise VitreousError(
                f"{name} has values from {low} to {high}, but black is {black} and white is {white}; "
                "give its values on that scale, or uint8 from 0 to 255."
            )


# ---- values and shapes


def to_rgb(
    image: Image.Image,
    ground: str = "white",
    value_range: tuple[float, float] | None = None,
    origin: Origin = PLAIN,
) -> Image.Image:
    """Converts a PIL image of any mode to mode RGB, 8 bits per channel.

    Args:
        ground: the colour under transparent pixels.
        value_range: the values of black and white in an image of more than 8 bits, as in `Preprocess`.
        origin: what its file says about its values.

    Raises:
        OutOfRange: it has more than 8 bits, and values that need a `value_range`.
    """
    if is_deep(image):
        grey = to_bytes(values_of(image, origin), value_range, origin.white)
        return Image.fromarray(255 - grey if origin.inverted else grey).convert("RGB")
    if image.has_transparency_data:
        image = profiles.with_opacity(image)
        return Image.alpha_composite(Image.new("RGBA", image.size, ground), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def fit(
    image: Image.Image,
    size: int,
    resample: str = "bicubic",
    how: str = "crop",
    ground: str = "white",
    colours: Colours | None = None,
) -> np.ndarray:
    """Resizes an RGB image to a square, with antialiasing: uint8 [size, size, 3].

    An image of size × size stays the same bit for bit.

    Args:
        how: one of `request.FITS`. "crop" takes the central square. "pad" keeps the whole image and its proportions,
            centred between bars. "stretch" resizes the whole image.
        ground: the colour of the bars.
        colours: converts the colours of the resized image, before the bars.
    """
    width, height = image.size
    box = cut_off(width, height, how)
    # Cropping first keeps the work small for a panorama.
    inner = image.crop(box) if box != (0, 0, width, height) else image
    target = (size, size)
    if how == "pad":
        longer = max(width, height)
        target = (max(1, round(width * size / longer)), max(1, round(height * size / longer)))
    if inner.size != target:
        inner = inner.resize(target, FILTERS[resample])
    if colours is not None:
        inner = colours(inner)
    if target != (size, size):
        square = Image.new("RGB", (size, size), ground)
        square.paste(inner, ((size - target[0]) // 2, (size - target[1]) // 2))
        inner = square
    return np.array(inner)  # [S, S, 3]


def cut_off(width: int, height: int, how: str) -> tuple[int, int, int, int]:
    """The part of an image that `fit` keeps: left, top, right and bottom, in pixels of the original."""
    if how != "crop":
        return 0, 0, width, height
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _checked_range(value: object) -> tuple[float, float]:
    """(low, high), also from the list that JSON makes of it."""
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(v) in (int, float) for v in value):
        with suppress(OverflowError):  # an int in JSON may be larger than a float
            low, high = map(float, value)
            if low < high and math.isfinite(low) and math.isfinite(high):
                return low, high
    raise VitreousError(
        f"The value range is {value!r:.60}; give the values of black and white, such as (0, 4095)."
    )


def upright(image: Image.Image) -> Image.Image:
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


def _to_uint8(array: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    """Converts values to uint8 from 0 to 255; the shape stays the same."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if value_range is None and array.dtype.kind != "f" and array.dtype != np.uint16:
        raise VitreousError(
            f"Images of the type {array.dtype} are not supported; "
            "give uint8 from 0 to 255, uint16, or floats from 0 to 1."
        )
    if value_range is None and np.isnan(array).any():
        raise VitreousError("An image has values that are not a number (NaN); give floats from 0 to 1.")
    return to_bytes(array, value_range)
