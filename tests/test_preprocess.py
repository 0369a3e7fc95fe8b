"""The conversion of any image to the network's input, against pixels worked out by hand or by Pillow itself."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from image_files import deep_png, jpeg2000_of_12_bits, rgb_profile, tiff
from sample_data import encoded
from vitreous.data.decode import decode, read_image
from vitreous.data.importing import import_folder
from vitreous.data.reading import ReadOptions
from vitreous.errors import VitreousError
from vitreous.preprocess import CHOICES, Preprocess, cut_off, fit
from vitreous.request import FITS

RED = (200, 0, 0)
# Digest of the pixels that import made of the 8-bit files below before it shared this code with prediction.
PACKED = "e147a133425b9ceb729dd4f2f9731a0ba1eaff4557b25cac8adae04093f11f76"


def noise(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    high = 256 if dtype == np.uint8 else 65536
    return np.random.default_rng(seed).integers(0, high, shape, dtype=dtype)


def square(pixels: np.ndarray, size: int) -> np.ndarray:
    """The central square by numpy, resized by Pillow."""
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    cut = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    return np.asarray(Image.fromarray(cut).resize((size, size), Image.Resampling.BICUBIC))


def test_fit_passes_the_right_size_through() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    fitted = fit(decode(encoded(pixels)), 32)
    assert fitted.dtype == np.uint8 and fitted.flags.writeable
    np.testing.assert_array_equal(fitted, pixels)


@pytest.mark.parametrize("shape", [(32, 96), (96, 32), (32, 33), (35, 32)])
def test_fit_takes_the_centre(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    top, left = (shape[0] - 32) // 2, (shape[1] - 32) // 2
    np.testing.assert_array_equal(fit(Image.fromarray(pixels), 32), pixels[top : top + 32, left : left + 32])


def test_fit_antialiases() -> None:
    checkerboard = np.indices((256, 256)).sum(0) % 2 * 255
    fitted = fit(Image.fromarray(checkerboard.astype(np.uint8)).convert("RGB"), 32)
    inside = fitted[1:-1, 1:-1].astype(int)
    assert abs(inside - 127.5).max() <= 3
    # Without antialiasing a sixth of a bright stripe would be lost or doubled.
    stripe = np.zeros((60, 60, 3), np.uint8)
    stripe[:, 20:23] = 240
    assert fit(Image.fromarray(stripe), 10).mean() == pytest.approx(stripe.mean(), rel=0.05)


def test_fit_of_odd_shapes() -> None:
    assert fit(Image.new("RGB", (1, 1), RED), 16).tolist() == [[list(RED)] * 16] * 16
    assert fit(Image.new("RGB", (5000, 1), RED), 8).shape == (8, 8, 3)


@pytest.mark.parametrize("how", FITS)
def test_every_fit_passes_the_right_size_through(how: str) -> None:
    pixels = noise(32, 32, 3)
    np.testing.assert_array_equal(fit(Image.fromarray(pixels), 32, how=how, ground="black"), pixels)
    assert cut_off(32, 32, how) == (0, 0, 32, 32)


@pytest.mark.parametrize(("height", "width"), [(40, 90), (90, 40), (16, 32), (7, 5), (3, 400)])
def test_stretch_and_pad_keep_the_whole_image(height: int, width: int) -> None:
    pixels = noise(height, width, 3)
    image = Image.fromarray(pixels)
    assert cut_off(width, height, "stretch") == cut_off(width, height, "pad") == (0, 0, width, height)
    stretched = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(fit(image, 32, how="stretch"), stretched)
    inner = (max(1, round(height * 32 / max(height, width))), max(1, round(width * 32 / max(height, width))))
    top, left = (32 - inner[0]) // 2, (32 - inner[1]) // 2
    expected = np.full((32, 32, 3), 128, np.uint8)
    resized = np.asarray(image.resize(inner[::-1], Image.Resampling.BICUBIC))
    expected[top : top + inner[0], left : left + inner[1]] = resized
    np.testing.assert_array_equal(fit(image, 32, how="pad", ground="grey"), expected)


@pytest.mark.parametrize("how", FITS)
@pytest.mark.parametrize("shape", [(60, 200), (200, 60), (61, 200)])
def test_what_is_cut_off_is_what_the_network_does_not_see(how: str, shape: tuple[int, int]) -> None:
    height, width = shape
    left, top, right, bottom = cut_off(width, height, how)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    seen = fit(Image.fromarray(pixels), 32, how=how, ground="white")
    assert (seen == 255).all()  # all that is kept, and nothing else
    assert ((right - left, bottom - top) == (width, height)) == (how != "crop")


def test_the_bars_have_the_colour_of_the_ground() -> None:
    for ground, level in (("white", 255), ("grey", 128), ("black", 0)):
        padded = Preprocess(8, fit="pad", ground=ground).batch(noise(2, 8, 3))[0]
        assert (padded[:3] == level).all() and (padded[5:] == level).all()


# Each with the same image as uint8 RGB.
PIXELS = noise(11, 7, 3)
GREY = noise(11, 7)
DEEP = noise(11, 7, 3, dtype=np.uint16)
RGBA = np.dstack([PIXELS, np.where(np.indices((11, 7)).sum(0) % 2, 255, 0).astype(np.uint8)])
ONE: dict[str, tuple[Any, np.ndarray]] = {
    "colour": (PIXELS, PIXELS),
    "grey": (GREY, np.dstack([GREY] * 3)),
    "grey with a channel": (GREY[..., None], np.dstack([GREY] * 3)),
    "opacity": (RGBA, np.where(RGBA[..., 3:] == 255, PIXELS, 255).astype(np.uint8)),
    "16 bits": (DEEP, (DEEP // 256).astype(np.uint8)),
    "16 bits, grey": (DEEP[..., 0], np.dstack([DEEP[..., 0] // 256] * 3).astype(np.uint8)),
    "floats": (PIXELS.astype(np.float64) / 255, PIXELS),
    "floats between": (np.full((11, 7, 3), 0.999), np.full((11, 7, 3), 255, np.uint8)),  # 254.7
    "halves": ((PIXELS // 255).astype(np.float16), (PIXELS // 255 * 255).astype(np.uint8)),
    "bool": (GREY > 99, np.dstack([np.where(GREY > 99, 255, 0)] * 3).astype(np.uint8)),
    "PIL": (Image.fromarray(PIXELS), PIXELS),
    "PIL, grey": (Image.fromarray(GREY), np.dstack([GREY] * 3)),
    "PIL, transparent": (Image.fromarray(RGBA), np.where(RGBA[..., 3:] == 255, PIXELS, 255).astype(np.uint8)),
    "PIL, 16 bits": (Image.fromarray(DEEP[..., 0]), np.dstack([DEEP[..., 0] // 256] * 3).astype(np.uint8)),
    "bytes": (encoded(PIXELS), PIXELS),
    "tensor": (torch.from_numpy(PIXELS.copy()), PIXELS),
}


@pytest.mark.parametrize("kind", ONE)
@pytest.mark.parametrize("size", [7, 5, 16])
def test_one_image_of_any_kind(kind: str, size: int) -> None:
    image, rgb = ONE[kind]
    found = Preprocess(size).batch(image, read_image)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, square(rgb, size)[None])


def test_a_list_of_many_kinds_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(40, 30, 3)))
    images = [image for image, _ in ONE.values()] + [
        noise(3, 90),
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
    ]
    found = Preprocess(6).batch(images, read_image)
    assert found.shape == (len(images), 6, 6, 3)
    for i, (_, rgb) in enumerate(ONE.values()):
        np.testing.assert_array_equal(found[i], square(rgb, 6))
    np.testing.assert_array_equal(found[-1], square(noise(40, 30, 3), 6))
    np.testing.assert_array_equal(found[-2], found[-1])
    assert Preprocess(6).batch([]).shape == (0, 6, 6, 3)


@pytest.mark.parametrize("shape", [(5, 9, 8), (5, 9, 8, 1), (5, 9, 8, 3), (5, 9, 8, 4), (1, 9, 8), (2, 3, 8)])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_an_array_of_many_is_each_of_them(shape: tuple[int, ...], kind: Any) -> None:
    images = noise(*shape)
    found = Preprocess(8).batch(kind(images))
    np.testing.assert_array_equal(found, np.concatenate([Preprocess(8).batch(image) for image in images]))


def test_images_of_the_right_size_are_not_even_copied() -> None:
    images = noise(5, 8, 8, 3)
    assert Preprocess(8).batch(images) is images
    assert Preprocess(8).batch(images[:0]).shape == (0, 8, 8, 3)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.full((8, 8, 3), 1.5), "from 1.5 to 1.5.*not normalised"),
        (np.full((8, 8, 3), -0.1), "from -0.1"),
        (np.full((8, 8, 3), np.nan), "NaN"),
        (np.array([[0.5, np.nan]]), "NaN"),
        (tiff(np.full((8, 8), np.inf, np.float32)), "The image has no finite value; leave it out"),
        (
            Image.fromarray(np.full((8, 8), 300, np.float32)),
            "The image has float values from 300 to 300; give floats",
        ),
        (
            [PIXELS, Image.fromarray(np.full((8, 8), -1, np.int32))],
            "Image 1 has values from -1 to -1; give integers",
        ),
        (Image.fromarray(np.full((8, 8), 70_000, np.int32)), "has values from 70000 to 70000"),
        (np.zeros((8, 8, 3), np.int64), "int64.*uint8"),
        (
            np.zeros((3, 8, 8), np.uint8),
            r"first or 3 grey images.*transpose\(1, 2, 0\).*\[\.\.\., None\]",
        ),
        (np.zeros((4, 8, 8), np.uint8), "channels first or 4 grey images"),
        (torch.zeros(2, 3, 8, 8), r"channels first.*transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 8, 8, 2), np.uint8), "not supported"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), "not supported"),
        (np.zeros(8, np.uint8), "not supported"),
        (np.zeros((), np.uint8), "not supported"),
        (np.zeros((0, 8), np.uint8), "no pixels"),
        (np.zeros((2, 0, 8, 3), np.uint8), "not supported"),
        ([np.zeros((2, 8, 8, 3), np.uint8)], "of the list contains several images"),
        ([[1, 2], [3]], "Image 1|not supported"),
        (5j, "complex.*give a path"),
        (None, "NoneType.*give a path"),
        (torch.zeros(8, 8, 3, dtype=torch.bfloat16), "torch.bfloat16.*float32 from 0 to 1"),
        ([torch.zeros(8, 8, 3, dtype=torch.bfloat16)], "torch.bfloat16"),
        (torch.zeros(8, 8, 3, device="meta"), "Tensor of torch.float32.*give a path"),
        ({"image": 1}, "dict.*give a path"),
        (encoded(PIXELS)[:60], "cannot be used: truncated"),
        (Image.open(io.BytesIO(encoded(noise(99, 99, 3))[:900])), "The image cannot be used.*truncated"),
        ("nowhere.png", "nowhere.png cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_could_mean_several_things_is_refused_in_a_sentence(images: Any, words: str) -> None:
    with pytest.raises(VitreousError, match=words) as refused:
        Preprocess(8).batch(images, read_image)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("shape", [(7, 9, 8), (7, 9, 8, 3), (7, 8, 8, 3)])
def test_batches_are_the_whole_in_pieces(shape: tuple[int, ...]) -> None:
    images = noise(*shape)  # 7 in pieces of 4 leaves 3, which as an array of its own would be ambiguous
    for given in (images, list(images)):
        pieces = list(Preprocess(8).batches(given, 4))
        assert [len(piece) for piece in pieces] == [4, 3]
        np.testing.assert_array_equal(np.concatenate(pieces), Preprocess(8).batch(images))


# ---- more than 8 bits


TWELVE = (noise(9, 9, dtype=np.uint16) >> 4).astype(np.uint16)
PGM = b"P5 9 9 4095\n" + TWELVE.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "image",
    [
        TWELVE,
        TWELVE.astype(np.int32),
        np.dstack([TWELVE] * 3),
        torch.from_numpy(TWELVE.astype(np.int64)),
        Image.fromarray(TWELVE),
        Image.fromarray(TWELVE.astype(np.int32)),
        deep_png(TWELVE[..., None]),
        tiff(TWELVE, order=">"),
        PGM,
    ],
    ids=lambda image: type(image).__name__,
)
def test_a_range_of_values_holds_for_files_and_arrays(image: Any) -> None:
    found = Preprocess(9, value_range=(0, 4095)).batch(image, read_image)
    np.testing.assert_array_equal(found[0], np.dstack([TWELVE // 16] * 3))


@pytest.mark.parametrize("data", [PGM, jpeg2000_of_12_bits(TWELVE)], ids=["PGM", "JPEG 2000"])
def test_a_loaded_image_whose_file_stated_a_white_is_refused(data: bytes) -> None:
    settings = Preprocess(9)
    opened = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(settings.batch(opened), settings.batch(data, read_image))
    np.testing.assert_array_equal(
        settings.batch(opened), settings.batch(data, read_image)
    )  # now it is loaded
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    with pytest.raises(VitreousError, match="white was lost when Pillow loaded it; give its path"):
        settings.batch(loaded)


def test_a_loaded_tiff_is_read_as_before_it_was_loaded() -> None:
    values = np.array([[0, 2**31], [2**32 - 1, 2**30]], np.uint32)
    settings = Preprocess(2, value_range=(0, 2**32 - 1))
    unloaded, loaded = (Image.open(io.BytesIO(tiff(values))) for _ in range(2))
    loaded.load()
    np.testing.assert_array_equal(settings.batch(loaded), settings.batch(unloaded))
    assert settings.batch(loaded)[0, ..., 0].tolist() == [[0, 128], [255, 64]]


@pytest.mark.parametrize("image", [TWELVE.astype(np.float32), Image.fromarray(TWELVE.astype(np.float32))])
def test_floats_are_scaled_and_clipped_to_the_range(image: Any) -> None:
    found = Preprocess(9, value_range=(-100, 3000)).batch(image)[0, ..., 0]
    scaled = ((TWELVE.astype(float) + 100) / 3100 * 255).clip(0, 255)
    np.testing.assert_allclose(found, scaled, atol=0.5001)


def test_a_range_leaves_8_bits_alone() -> None:
    images = [PIXELS, GREY, GREY > 99, Image.fromarray(PIXELS), Image.fromarray(GREY), encoded(PIXELS)]
    for image in images:
        plain, ranged = (Preprocess(7, value_range=r).batch(image, read_image) for r in (None, (0.0, 4095.0)))
        np.testing.assert_array_equal(plain, ranged)


def test_white_is_the_lowest_value_where_a_file_says_so() -> None:
    settings = Preprocess(9, value_range=(0, 4095))
    found = settings.batch([tiff(TWELVE), tiff(TWELVE, photometric=0)], read_image)
    np.testing.assert_array_equal(found[1], 255 - found[0])
    with Image.open(io.BytesIO(tiff(TWELVE, photometric=0))) as opened:
        np.testing.assert_array_equal(settings.batch(opened)[0], found[1])


@pytest.mark.parametrize(
    ("value_range", "image"),
    [
        ((0, 4095), noise(9, 9) / 255),
        ((0, 4095), Image.fromarray((noise(9, 9) / 255).astype(np.float32))),
        ((0, 1.05), TWELVE),
        ((0, 1), (GREY % 200).astype(np.float32)),
        ((0, 1), Image.fromarray((GREY % 200).astype(np.float32))),
        ((0, 4095), TWELVE + np.uint16(5000)),
        ((0, 4095), Image.fromarray(TWELVE + np.uint16(5000))),
        ((0, 1.05), Image.fromarray(TWELVE)),
        ((0, 1.05), deep_png(TWELVE[..., None])),
    ],
)
def test_values_of_another_scale_are_refused(value_range: tuple[float, float], image: Any) -> None:
    with pytest.raises(VitreousError, match=r"has values from .* but black is 0 and white is .*scale"):
        Preprocess(9, value_range=value_range).batch(image, read_image)


def test_float_highlights_beyond_white_are_clipped() -> None:
    image = np.linspace(0, 1, 81, dtype=np.float32).reshape(9, 9)
    image[0] = 40
    found = Preprocess(9, value_range=(0, 1)).batch(image)[0, ..., 0]
    np.testing.assert_allclose(found, image.clip(0, 1) * 255, atol=0.5001)


def test_a_colour_profile_is_applied_after_resizing_and_before_the_bars() -> None:
    narrow = ((0.5, 0.4), (0.3, 0.5), (0.2, 0.2))
    data = encoded(np.full((4, 16, 3), (200, 40, 90), np.uint8), icc_profile=rgb_profile(narrow))
    applied = Preprocess(16, fit="pad", ground="grey").batch(data, read_image)[0]
    assert (applied[0] == 128).all()  # the bars are not of the image
    np.testing.assert_allclose(
        applied[8].astype(int), np.tile(np.asarray(decode(data))[0, :1].astype(int), (16, 1)), atol=1
    )
    assert abs(applied[8, 0].astype(int) - (200, 40, 90)).max() > 9
    ignored = Preprocess(16, fit="pad", ground="grey", profiles="ignored").batch(data, read_image)[0]
    assert (ignored[8] == (200, 40, 90)).all()


def test_without_a_reader_files_are_refused() -> None:
    with pytest.raises(VitreousError, match="give a PIL image or an array"):
        Preprocess(8).batch("a.png")


def test_a_pil_image_is_turned_upright_as_its_file_is_and_left_alone() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise(4, 9, 3), exif=exif)
    opened = Image.open(io.BytesIO(data))
    settings = Preprocess(4)
    np.testing.assert_array_equal(settings.batch(opened), settings.batch(data, read_image))
    assert opened.size == (9, 4) and opened.getexif()[0x0112] == 6
    np.testing.assert_array_equal(settings.batch(opened)[0], square(np.rot90(noise(4, 9, 3), -1), 4))


@pytest.mark.parametrize("setting", CHOICES)
def test_settings_that_are_not_implemented_are_refused(setting: str) -> None:
    options: dict[str, Any] = {setting: "squeeze"}
    with pytest.raises(VitreousError, match=f"preprocessing {setting} 'squeeze'"):
        Preprocess(8, **options)
    for size in (0, -1, 1.5, True, None):
        with pytest.raises(VitreousError, match="image size"):
            Preprocess(size)  # type: ignore[arg-type]


def test_prediction_sees_what_import_packed(tmp_path: Path) -> None:
    """The same bytes by both ways, for every kind of file that a folder may hold."""
    exif = Image.Exif()
    exif[0x0112] = 8
    files = {
        "a.png": encoded(noise(40, 60, 3)),
        "b.jpg": encoded(noise(50, 33, 3), "JPEG", exif=exif),
        "c.png": encoded(noise(40, 40)),
        "d.webp": encoded(np.dstack([noise(20, 21, 3), noise(20, 21)]), "WEBP", lossless=True),
        "e.tif": encoded(noise(20, 30, 3), "TIFF"),
        "f.gif": encoded(noise(9, 9), "GIF"),
        "g.png": encoded(noise(24, 24, 3)),
    }
    for i, (name, data) in enumerate(files.items()):
        path = tmp_path / "set" / f"class{i % 2}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    options = ReadOptions(24, fit="crop")
    store = import_folder(tmp_path / "set", tmp_path / "cache", options, lambda line: None)
    train = store.splits["train"]
    paths = [tmp_path / "set" / name for name in train.names]
    np.testing.assert_array_equal(Preprocess(24).batch(paths, read_image), train.images)
    lossless = train.images[[not name.endswith(".jpg") for name in train.names]]  # JPEG readers differ
    assert hashlib.sha256(lossless.tobytes()).hexdigest() == PACKED
