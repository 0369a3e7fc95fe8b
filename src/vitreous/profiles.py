"""Embedded ICC colour profiles: converts the colours of an image to sRGB, as a browser does."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, features

CACHED = 32  # transforms in memory; all images of one camera or program share one
SAME = 2  # levels: a profile that moves no colour further than this is sRGB


def available() -> bool:
    """Whether this Pillow can apply profiles. All wheels on PyPI can."""
    return bool(features.check("littlecms2"))


@lru_cache(CACHED)  # may be computed twice when threads meet, which does no harm
def transform(profile: bytes, mode: str) -> Any:
    """The `ImageCmsTransform` from images of `mode` ("RGB", "CMYK" or "L") to sRGB in mode RGB.

    Returns None if the colours stay as they are: the profile is damaged, describes another space, or is sRGB itself.
    """
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        found = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "RGB":
            levels = np.linspace(0, 255, 9).round().astype(np.uint8)
            probe = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
            moved = np.asarray(found.apply(Image.fromarray(probe))).astype(int) - probe
            return found if abs(moved).max() > SAME else None
        found.apply(Image.new(mode, (1, 1)))
        return found
    except (
        Exception
    ):  # littlecms refuses damaged bytes and profiles of another space with errors of several types
        return None


def to_srgb(
    image: Image.Image, profile: bytes
) -> tuple[Image.Image, Callable[[Image.Image], Image.Image] | None]:
    """Converts the colours of an image to sRGB, or gives the conversion where it can wait until after resizing.

    Grey, CMYK and transparent images are converted at once. An opaque image in RGB or with a palette is returned as it
    is, with its conversion if it needs one.
    """
    if image.mode == "CMYK":
        found = transform(profile, "CMYK")
        return (image if found is None else found.apply(image)), None
    grey = image.mode in ("1", "L", "LA", "La")
    if not grey and image.mode not in ("RGB", "RGBA", "RGBa", "P", "PA"):
        return image, None
    found = transform(profile, "L" if grey else "RGB")
    if found is None:
        return image, None
    if image.has_transparency_data:
        layers = with_opacity(image)
        colours = found.apply(layers.convert("L" if grey else "RGB"))
        colours.putalpha(layers.getchannel("A"))
        return colours, None
    return (found.apply(image.convert("L")), None) if grey else (image, found.apply)


def with_opacity(image: Image.Image) -> Image.Image:
    """An image with any kind of transparency in mode RGBA."""
    if image.mode == "La":  # premultiplied, which Pillow converts to LA alone
        image = image.convert("LA")
    return image if image.mode == "RGBA" else image.convert("RGBA")
