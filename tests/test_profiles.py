"""Embedded colour profiles, against colours computed from chromaticities and curves."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from image_files import (
    D65_XY,
    P3_XY,
    SRGB_XY,
    cmyk_profile,
    gamma,
    grey_profile,
    lab_to_srgb,
    levels,
    linear,
    primaries,
    profile,
    rgb_profile,
)
from sample_data import encoded
from vitreous import profiles
from vitreous.data.decode import decode, decode_to, read_image
from vitreous.data.values import settle
from vitreous.errors import VitreousError
from vitreous.preprocess import Preprocess

P3 = rgb_profile(P3_XY)
ADOBE_XY = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)


def from_space(pixels: np.ndarray, xy: Any, decoded: Any = linear) -> np.ndarray:
    """sRGB levels of RGB pixels of another space with the same white."""
    matrix = np.linalg.solve(primaries(SRGB_XY), primaries(xy))
    return levels(decoded(pixels) @ matrix.T)


def test_the_reference_knows_the_matrices_of_the_standards() -> None:
    np.testing.assert_allclose(primaries(SRGB_XY)[0], [0.4124, 0.3576, 0.1805], atol=1e-3)
    np.testing.assert_allclose(primaries(P3_XY)[0], [0.4866, 0.2657, 0.1982], atol=1e-3)
    assert D65_XY == (0.3127, 0.3290)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_display_p3(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    found = np.asarray(decode(encoded(PIXELS, format, icc_profile=P3, **options))).astype(float)
    np.testing.assert_allclose(found, from_space(PIXELS, P3_XY), atol=1.5)
    assert abs(found - PIXELS).max() > 50


@pytest.mark.parametrize("format", ["JPEG", "AVIF"])
def test_display_p3_of_photographs(format: str) -> None:
    pixels = np.full((32, 32, 3), (230, 60, 40), np.uint8)
    found = np.asarray(decode(encoded(pixels, format, icc_profile=P3, quality=95))).astype(float)
    np.testing.assert_allclose(found[16, 16], from_space(pixels, P3_XY)[16, 16], atol=4)


def test_adobe_rgb_of_its_own_curve() -> None:
    found = np.asarray(decode(encoded(PIXELS, icc_profile=rgb_profile(ADOBE_XY, gamma(2.2))))).astype(float)
    expected = from_space(PIXELS, ADOBE_XY, lambda pixels: (pixels / 255) ** 2.2)
    bright = (PIXELS > 24).all(-1)  # littlecms is a few levels off in the darkest colours
    np.testing.assert_allclose(found[bright], expected[bright], atol=2.5)


@pytest.mark.parametrize(
    "data", [rgb_profile(SRGB_XY), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()]
)
def test_srgb_is_known_and_changes_nothing(data: bytes) -> None:
    assert profiles.transform(data, "RGB") is None
    np.testing.assert_array_equal(np.asarray(decode(encoded(PIXELS, icc_profile=data))), PIXELS)


def test_a_profile_is_read_once_for_all_images() -> None:
    profiles.transform.cache_clear()
    data = encoded(PIXELS, icc_profile=P3)
    for _ in range(5):
        decode(data)
    assert profiles.transform.cache_info().misses == 1


@pytest.mark.parametrize(
    "data",
    [
        b"no profile",
        P3[:200],
        P3[:128] + b"\xff" * 200,
        grey_profile(2.2),  # of another space than the pixels
        profile(b"RGB ", {}),
        profile(b"RGB ", {}, kind=b"link"),
    ],
    ids=["text", "cut", "garbage", "grey", "empty", "link"],
)
def test_damaged_and_foreign_profiles_are_ignored(data: bytes) -> None:
    np.testing.assert_array_equal(np.asarray(decode(encoded(PIXELS, icc_profile=data))), PIXELS)


@pytest.mark.parametrize("exponent", [1.8, 2.2])
def test_grey(exponent: float) -> None:
    ramp = np.arange(256, dtype=np.uint8)[None]
    found = np.asarray(decode(encoded(ramp, icc_profile=grey_profile(exponent)))).astype(float)
    np.testing.assert_allclose(found[0, :, 0], levels((ramp[0] / 255) ** exponent), atol=2)
    assert (np.ptp(found, axis=-1) == 0).all()
    np.testing.assert_array_equal(np.asarray(decode(encoded(ramp, icc_profile=P3)))[0, :, 0], ramp[0])


def test_cmyk() -> None:
    corners = np.zeros((2, 2, 2, 2, 3))
    for c, m, y, k in np.ndindex(2, 2, 2, 2):
        corners[c, m, y, k] = (
            max(0, 100 - 40 * c - 50 * m - 10 * y - 90 * k),
            60 * m - 35 * c,
            80 * y - 45 * c,
        )
    image = Image.new("CMYK", (4, 1))
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0)]
    for x, ink in enumerate(inks):
        image.putpixel((x, 0), ink)
    data = encoded(image, "TIFF", icc_profile=cmyk_profile(corners))
    found = np.asarray(decode(data))[0].astype(float)
    expected = [lab_to_srgb(corners[tuple(np.array(ink) // 255)]) for ink in inks]
    np.testing.assert_allclose(found, expected, atol=4)  # littlecms interpolates in 16 bits of Lab
    plain = np.asarray(decode(encoded(image, "TIFF")))
    np.testing.assert_array_equal(np.asarray(decode(encoded(image, "TIFF", icc_profile=P3))), plain)


def test_colours_change_before_the_ground_shows_through() -> None:
    rgba = np.dstack([PIXELS, np.where(PIXELS[..., :1] > 99, 255, 0).astype(np.uint8)])
    found = np.asarray(decode(encoded(rgba, icc_profile=P3))).astype(float)
    opaque = rgba[..., 3] == 255
    assert (found[~opaque] == 255).all()
    np.testing.assert_allclose(found[opaque], from_space(PIXELS, P3_XY)[opaque], atol=1.5)
    grey = np.dstack([PIXELS[..., 0], rgba[..., 3]])
    found = np.asarray(decode(encoded(Image.fromarray(grey, "LA"), icc_profile=grey_profile(1.8)))).astype(
        float
    )
    assert (found[~opaque] == 255).all()
    np.testing.assert_allclose(found[opaque][:, 0], levels((PIXELS[opaque][:, 0] / 255) ** 1.8), atol=2)


def test_palettes() -> None:
    image = Image.fromarray(PIXELS).quantize(16)
    expected = from_space(np.asarray(image.convert("RGB")), P3_XY)
    found = np.asarray(decode(encoded(image, icc_profile=P3))).astype(float)
    np.testing.assert_allclose(found, expected, atol=1.5)


def test_more_than_8_bits_are_read_without_their_profile() -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (4, 4), dtype=np.uint16)
    data = encoded(Image.fromarray(values), icc_profile=grey_profile(1.8))
    np.testing.assert_array_equal(np.asarray(decode(data))[..., 0], values >> 8)
    settings = Preprocess(4, value_range=(0, 32767))
    np.testing.assert_array_equal(settings.batch(data, read_image)[0, ..., 0], (values >> 7).clip(0, 255))


def test_threads_agree() -> None:
    files = [encoded(PIXELS, icc_profile=rgb_profile(P3_XY, gamma(1.5 + i % 9 / 10))) for i in range(90)]
    alone = [decode(data).tobytes() for data in files[:9]]
    profiles.transform.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decode(data).tobytes(), files))
    assert together == alone * 10


def test_a_pillow_without_littlecms_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "available", lambda: False)
    first = Preprocess(20)
    data = encoded(PIXELS[:20], icc_profile=P3)
    pixels, facts = decode_to(first, data)
    np.testing.assert_array_equal(pixels, PIXELS[:20])
    final, sentences = settle(first, [facts, decode_to(first, encoded(PIXELS))[1]], None)
    assert final.profiles == "ignored" and not facts.depends(first, final)
    assert sentences[0].startswith("1 image has a colour profile, which this build of Pillow cannot apply")
    np.testing.assert_array_equal(final.batch(data, read_image)[0], pixels)
    with pytest.raises(VitreousError, match=r"colour profile.*pip install"):
        first.batch(data, read_image)


def test_an_image_that_pillow_converted_is_not_converted_twice() -> None:
    with Image.open(io.BytesIO(encoded(PIXELS, icc_profile=P3))) as image:
        srgb = ImageCms.profileToProfile(
            image, ImageCms.ImageCmsProfile(io.BytesIO(P3)), ImageCms.createProfile("sRGB")
        )
    assert srgb is not None
    np.testing.assert_array_equal(Preprocess(20).batch(srgb)[0], Preprocess(20).batch(np.asarray(srgb))[0])
