"""Settings that follow from all files of a data set: the range of values and the ground under transparency."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from image_files import deep_png, rgb_profile, tiff
from sample_data import encoded, random_png, write_files
from vitreous.bundle import Bundle, load_bundle, save_bundle
from vitreous.data import decode as decoding
from vitreous.data.decode import decode_to, read_image
from vitreous.data.importing import import_folder
from vitreous.data.packed import HEADER, open_store
from vitreous.data.reading import ReadOptions, read_options
from vitreous.data.store import ImageStore
from vitreous.data.values import GROUNDS, Facts, Values, refuse_other_values, settle
from vitreous.errors import VitreousError
from vitreous.model.vit import create_model
from vitreous.preprocess import CHOICES, Preprocess
from vitreous.request import FITS

ROWS, COLUMNS = np.mgrid[0:32, 0:32] / 31
MEND = r"--value-range LOW,HIGH \(in Python value_range=\(LOW, HIGH\)\)"


def noise(low: float, high: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, (16, 16))


def grey(values: np.ndarray, dtype: Any = np.uint16) -> bytes:
    return tiff(np.asarray(values).astype(dtype))


def settled(
    *files: bytes, value_range: tuple[float, float] | None = None, **settings: Any
) -> tuple[Preprocess, tuple[str, ...], np.ndarray]:
    """The settings of a data set, what is said, and the images [N, 16, 16, 3] as an import makes them."""
    first = Preprocess(16, **settings)
    pixels, facts = map(list, zip(*(decode_to(first, data) for data in files), strict=True))
    final, said = settle(first, facts, value_range)
    for i, data in enumerate(files):
        again = decode_to(final, data)[0]
        if facts[i].depends(first, final):
            pixels[i] = again
        np.testing.assert_array_equal(pixels[i], again)  # `depends` names all that change
    np.testing.assert_array_equal(final.batch(list(files), read_image), pixels)
    return final, said, np.array(pixels)


# ---- integers


@pytest.mark.parametrize(
    ("highest", "bits"), [(200, 8), (256, 10), (1023, 10), (1024, 12), (4095, 12), (16383, 14)]
)
def test_integers_take_the_fewest_bits_that_hold_them_all(highest: int, bits: int) -> None:
    images = [noise(0, highest * share, seed).astype(np.uint16) for seed, share in enumerate((1, 0.5, 0.7))]
    images[0][0, 0] = highest
    final, said, pixels = settled(*map(grey, images))
    assert final.value_range == (0, 2**bits - 1)
    assert said == (
        f"3 images have more than 8 bits; their values 0 to {2**bits - 1} ({bits} bits) become black to white "
        "(--value-range changes this).",
    )
    np.testing.assert_array_equal(pixels[..., 0], np.stack(images) >> (bits - 8))


def test_16_bits_keep_their_high_byte_and_are_converted_once() -> None:
    image = noise(0, 65535).astype(np.uint16)
    final, _, pixels = settled(
        grey(image), deep_png(image[..., None]), grey(image, np.int32), grey(image, np.uint32)
    )
    assert final.value_range == (0, 65535)
    assert (pixels[..., 0] == image >> 8).all()
    first = Preprocess(16)
    assert not decode_to(first, grey(image))[1].depends(first, final)


def test_8_bit_images_beside_them_stay_as_they_are() -> None:
    plain = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    final, said, pixels = settled(grey(noise(0, 4095)), encoded(plain), random_png(3))
    assert said[1] == "The 2 other images have 8 bits and keep their values from 0 to 255."
    np.testing.assert_array_equal(pixels[1], plain)
    facts = decode_to(Preprocess(16), encoded(plain))[1]
    assert not facts.depends(Preprocess(16), final)


def test_integers_that_fit_no_camera_are_refused() -> None:
    for files in (
        [grey(noise(0, 70_000), np.int32)],
        [grey(noise(-1024, 3000), np.int16)],
        [grey(noise(0, 4e9), np.uint32)],
        [grey(noise(0, 4095)), grey(noise(0, 70_000), np.uint32)],
    ):
        with pytest.raises(VitreousError, match="more than 8 bits, with integers from .*; give.*" + MEND):
            settled(*files)


def test_a_scan_in_hounsfield_units_is_read_with_a_range() -> None:
    scan = noise(-1024, 3000).astype(np.int16)
    _, said, pixels = settled(grey(scan, np.int16), value_range=(-160, 240))
    assert said == ("1 image has more than 8 bits; their values -160 to 240 become black to white.",)
    expected = ((scan.astype(float) + 160) / 400 * 255).clip(0, 255)
    np.testing.assert_allclose(pixels[0, ..., 0], expected, atol=0.5001)


# ---- what cannot be decided


@pytest.mark.parametrize(
    "images",
    [
        [noise(0, 4095, seed) for seed in range(9)]
        + [np.where(ROWS[:16, :16] > 0.4, 65535, 9)],  # one bright image
        [
            np.where(np.arange(256).reshape(16, 16) == 7, 65535, noise(0, 4000, seed)) for seed in range(5)
        ],  # hot pixel
        [np.random.default_rng(seed).integers(0, 6, (16, 16)) for seed in range(5)],  # masks
        [noise(100, 110, seed) for seed in range(5)],
    ],
    ids=["outlier", "hot pixel", "masks", "low contrast"],
)
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_ranges_that_would_make_most_images_one_grey_are_refused(
    images: list[np.ndarray], dtype: Any
) -> None:
    if dtype == np.float32:
        images = [image / 7 - 1 for image in images]
        if np.ptp(images) < 30:  # lowest to highest value is a good range for floats
            return
    files = [grey(image, dtype) for image in images]
    with pytest.raises(VitreousError, match="most of them would be nearly one grey.*" + MEND) as refused:
        settled(*files)
    # The mend works, with the values that the sentence names.
    low, high = (
        float(word.rstrip(";")) for word in str(refused.value).split("lie between ")[1].split()[0:3:2]
    )
    final, _, pixels = settled(*files, value_range=(low, high))
    assert final.value_range == (low, high)
    assert np.ptp(pixels[0]) > 200


def test_images_of_one_value_each_are_told_apart() -> None:
    final, _, pixels = settled(*(grey(np.full((16, 16), value)) for value in (500, 2000, 4000)))
    assert final.value_range == (0, 4095)
    assert [int(image[0, 0, 0]) for image in pixels] == [31, 125, 250]


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_images_that_all_have_one_value_are_refused(dtype: Any) -> None:
    with pytest.raises(VitreousError, match="every pixel of them has the value 7; leave these images out"):
        settled(*[grey(np.full((16, 16), 7), dtype)] * 3)


def test_integers_and_floats_together_are_refused_unless_a_range_is_given() -> None:
    files = [grey(noise(0, 4095)), grey(noise(0, 4095), np.float32), grey(noise(0, 9), np.float32)]
    with pytest.raises(
        VitreousError, match="1 are integers and 2 are floats.*convert them to one type.*" + MEND
    ):
        settled(*files)
    assert settled(*files, value_range=(0, 4095))[2][1].max() > 200


def test_a_range_beside_all_values_is_refused() -> None:
    for value_range in ((5000, 6000), (-10, 0), (0, 1e9)):
        with pytest.raises(
            VitreousError, match=r"all one grey with the value range.*--value-range 0,40\d\d\.$"
        ):
            settled(grey(np.round(noise(0, 4095) * (noise(0, 1) > 0.1))), value_range=value_range)


def test_a_range_without_deep_images_is_kept_and_said_to_change_nothing() -> None:
    final, said, _ = settled(random_png(1, 16, 16), value_range=(0, 4095))
    assert final.value_range == (0, 4095)
    assert said == ("No grey image has more than 8 bits, so --value-range changes nothing.",)


# ---- floats


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, (0, 1)), (0.2, 0.9, (0, 1)), (0, 1.05, None), (-1, 1, None), (0, 250, None), (270, 310, None)],
)
def test_floats_lie_between_0_and_1_or_their_lowest_and_highest_value(
    low: float, high: float, expected: tuple[float, float] | None
) -> None:
    images = [noise(low, high, seed).astype(np.float32) for seed in range(3)]
    final, said, pixels = settled(*(grey(image, np.float32) for image in images))
    black, white = expected or (float(np.min(images)), float(np.max(images)))
    assert final.value_range == (black, white)
    assert "(" not in said[0].split("become")[0]
    scaled = (np.stack(images).astype(float) - black) / (white - black) * 255
    np.testing.assert_allclose(pixels[..., 0], scaled, atol=0.5001)


def test_values_that_are_no_numbers_become_black_and_are_said() -> None:
    images = [noise(-5, 300, seed).astype(np.float32) for seed in range(3)]
    images[1][0], images[1][1] = np.nan, np.inf
    images[1][2, 0] = -np.inf
    _, said, pixels = settled(*(grey(image, np.float32) for image in images))
    assert said[1] == "1 image holds values that are not finite; they become black."
    assert not pixels[1, :2].any() and not pixels[1, 2, 0].any()
    assert (pixels[1, 3:] > 0).any()


def test_a_mark_of_missing_values_is_an_outlier() -> None:
    images = [noise(0, 300, seed).astype(np.float32) for seed in range(3)]
    images[1][0, 0] = -3.4e38
    with pytest.raises(VitreousError, match=r"from -3.4e\+38 to 29\d.*nearly one grey"):
        settled(*(grey(image, np.float32) for image in images))


# ---- files that state white


def pgm(values: np.ndarray, white: int) -> bytes:
    return b"P5 16 16 %d\n" % white + values.astype(">u2").tobytes()


def test_a_stated_white_holds_although_no_value_reaches_it() -> None:
    images = [noise(0, 900, seed).astype(np.uint16) for seed in range(2)]
    final, said, pixels = settled(*(pgm(image, 4095) for image in images))
    assert final.value_range == (0, 4095) and "0 to 4095 (12 bits)" in said[0]
    np.testing.assert_array_equal(pixels[..., 0], np.stack(images) >> 4)


def test_files_with_a_white_of_their_own_are_each_read_by_it() -> None:
    image = noise(0, 1000).astype(np.uint16)
    final, said, pixels = settled(pgm(image, 1000), pgm(image, 4095))
    assert final.value_range is None
    assert "state values of white from 1000 to 4095, and each is read by its own" in said[0]
    np.testing.assert_allclose(pixels[0, ..., 0], image / 1000 * 255, atol=0.5001)
    np.testing.assert_array_equal(pixels[1, ..., 0], image >> 4)
    final, _, pixels = settled(pgm(image, 1000), pgm(image, 4095), value_range=(0, 1023))
    np.testing.assert_array_equal(pixels[..., 0], [image >> 2] * 2)


def test_a_stated_white_beside_values_that_go_further_is_refused() -> None:
    files = pgm(noise(0, 1000), 1000), grey(noise(0, 4095))
    with pytest.raises(VitreousError, match="some files state 1000 as white.*reach 40.*" + MEND):
        settled(*files)
    assert settled(*files, value_range=(0, 4095))[0].value_range == (0, 4095)
    assert settled(pgm(noise(0, 4000), 4095), grey(noise(0, 4095)))[0].value_range == (0, 4095)


# ---- colour


def test_colour_that_the_high_byte_would_make_black_is_refused() -> None:
    dark = [deep_png(np.dstack([noise(0, 4095, seed)] * 3).astype(np.uint16)) for seed in range(3)]
    with pytest.raises(
        VitreousError, match=r"3 images have 16 bits per channel.*convert them to 8 bits per channel"
    ):
        settled(*dark, random_png(1))
    with pytest.raises(VitreousError, match="16 bits per channel"):
        settled(*dark, value_range=(0, 4095))
    assert settled(*dark, value_range=(0, 65535))[2].max() == 15  # the owner says that they are that dark
    bright = deep_png(np.dstack([noise(0, 65535)] * 3).astype(np.uint16))
    final, said, pixels = settled(*dark, bright)
    assert final.value_range is None and not said and pixels[3].max() > 250


# ---- ground


def drawing(colour: tuple[int, int, int], seed: int = 0, width: int = 3) -> bytes:
    """Lines of one colour on transparent ground."""
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    ends = np.random.default_rng(seed).integers(2, 30, 8).tolist()
    ImageDraw.Draw(image).line(list(zip(ends[::2], ends[1::2], strict=True)), (*colour, 255), width)
    return encoded(image)


@pytest.mark.parametrize(
    ("colours", "ground"),
    [
        ([(255, 255, 255)], "black"),
        ([(250, 252, 255)], "black"),
        ([(0, 0, 0)], "white"),
        ([(0, 0, 0), (128, 128, 128)], "white"),
        ([(255, 255, 255), (0, 0, 0)], "grey"),
        ([(255, 255, 255), (128, 128, 128)], "black"),
        ([(255, 255, 0)], "white"),
        ([(200, 30, 30), (30, 200, 30)], "white"),
    ],
)
def test_the_ground_shows_what_is_drawn(colours: list[tuple[int, int, int]], ground: str) -> None:
    files = [drawing(colour, seed) for seed in range(6) for colour in colours]
    final, said, pixels = settled(*files)
    assert final.ground == ground
    reason = "" if ground == "white" else ", since white would hide what is drawn on some"
    assert said == (
        f"{len(files)} images have transparent pixels; the ground under them is {ground}{reason}.",
    )
    assert min(np.ptp(image) for image in pixels) > 60


def test_a_few_white_drawings_among_many_do_not_change_the_ground() -> None:
    files = [drawing((0, 0, 200), seed) for seed in range(97)] + [drawing((255, 255, 255), 7)] * 3
    assert settled(*files)[0].ground == "white"


def test_a_cut_out_photograph_of_white_things_stays_on_white() -> None:
    """Its inside shows on any ground."""
    rng = np.random.default_rng(0)
    rgba = np.full((32, 32, 4), 255, np.uint8)
    rgba[8:24, 8:24, :3] = rng.integers(0, 256, (16, 16, 3))
    rgba[0, 0, 3] = 0
    assert settled(encoded(rgba))[0].ground == "white"


def test_opaque_images_say_nothing_about_the_ground() -> None:
    opaque = np.full((16, 16, 4), 255, np.uint8)
    opaque[4:9] = 0, 0, 0, 255
    final, said, _ = settled(encoded(opaque), random_png(1))
    assert final.ground == "white" and not said


def test_images_without_anything_to_see_are_said() -> None:
    nothing = np.zeros((16, 16, 4), np.uint8)
    final, said, _ = settled(encoded(nothing), drawing((255, 255, 255)))
    assert final.ground == "black"
    assert said[1] == "1 image is wholly transparent and shows nothing but the ground."
    assert settled(encoded(nothing))[0].ground == "white"


@pytest.mark.parametrize("mode", ["LA", "P", "L", "RGB"])
def test_every_kind_of_transparency_counts(mode: str) -> None:
    mask = abs(ROWS[:16, :16] - 0.25) < 0.1
    if mode == "LA":
        data = encoded(
            Image.fromarray(np.dstack([np.full((16, 16), 255), 255 * mask]).astype(np.uint8), "LA")
        )
    elif mode == "P":
        image = Image.fromarray(mask.astype(np.uint8), "P")
        image.putpalette([9, 9, 9, 255, 255, 255])
        data = encoded(image, transparency=0)
    else:
        white = 255 * mask.astype(np.uint8)
        image = Image.fromarray(white if mode == "L" else np.dstack([white] * 3))
        data = encoded(image, transparency=0 if mode == "L" else (0, 0, 0))
    final, _, pixels = settled(data)
    assert final.ground == "black"
    np.testing.assert_array_equal(pixels[0, ..., 0], 255 * mask)


def test_padding_follows_the_ground() -> None:
    wide = encoded(np.full((8, 16, 3), 200, np.uint8))
    final, _, pixels = settled(drawing((255, 255, 255)), wide, fit="pad")
    assert final.ground == "black" and not pixels[1, 0].any()
    first = Preprocess(16, fit="pad")
    assert decode_to(first, wide)[1].depends(first, final)
    assert not decode_to(first, random_png(1))[1].depends(first, final)


def test_all_grounds_are_weighed() -> None:
    assert tuple(GROUNDS) == CHOICES["ground"]
    for name, level in GROUNDS.items():
        assert Image.new("RGB", (1, 1), name).getpixel((0, 0)) == (level,) * 3


# ---- other sentences


def test_several_images_in_a_file_and_unused_bands_are_said() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    stack = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    bands = tiff(
        np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8), photometric=2, extra=[0]
    )
    assert settled(stack, bands, random_png(1))[1] == (
        "1 file holds several images; the first of each is used.",
        "1 file has a band that is neither colour nor opacity; it is not used.",
    )


def test_the_facts_of_ordinary_images_take_little_memory() -> None:
    assert not hasattr(Facts(1, 1), "__dict__") and not hasattr(Values("float", 0, 1, 0, 1), "__dict__")


# ---- images for a network that is trained


@pytest.mark.parametrize(
    ("value_range", "data", "words"),
    [
        (
            None,
            grey(noise(0, 70_000), np.uint32),
            "integers from .* trained to read integers from 0 to 65535",
        ),
        (None, grey(noise(-3, 1), np.float32), "floats from .* trained to read floats from 0 to 1"),
        ((0, 4095), grey(noise(0, 1), np.float32), "floats from .* trained to read values from 0 to 4095"),
        ((0, 4095), grey(noise(5000, 6000)), "integers from 5.* trained to read values from 0 to 4095"),
        ((0, 1.05), grey(noise(0, 4095)), "integers from .* trained to read values from 0 to 1.05"),
        ((-5, 1), grey(noise(0, 255)), "integers from .* trained to read values from -5 to 1"),
        (None, deep_png(np.full((9, 9, 3), 4095, np.uint16)), "16 bits per channel of colour"),
    ],
)
def test_values_that_a_network_does_not_know_are_refused(
    value_range: tuple[float, float] | None, data: bytes, words: str
) -> None:
    settings = Preprocess(16, value_range=value_range)
    facts = [decode_to(settings, data)[1], decode_to(settings, random_png(1))[1]]
    with pytest.raises(VitreousError, match=words):
        refuse_other_values(settings, facts)


def test_other_data_of_a_trained_network_are_read_by_its_settings(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": twelve_bits(i, ROWS) for name in "ab" for i in range(3)}
    root = write_files(tmp_path / "set", files)
    settings = Preprocess(16, value_range=(0, 8191), ground="grey", fit="crop")
    store = import_folder(root, tmp_path, ReadOptions(settings=settings), lambda line: None)
    assert store.preprocess == settings and 70 < store.splits["train"].images.max() < 80
    write_files(root, {"b/4.tif": grey(noise(0, 1), np.float32)})
    with pytest.raises(VitreousError, match="trained to read values from 0 to 8191"):
        import_folder(root, tmp_path, ReadOptions(settings=settings), lambda line: None)


# ---- from files to a bundle


def twelve_bits(i: int, ramp: np.ndarray) -> bytes:
    values = (ramp * 4095 * (0.5 + 0.05 * i)).clip(0, 4095).astype(np.uint16)
    return encoded(Image.fromarray(values))


FOLDERS = {
    "12 bits": lambda i, ramp: {"png": twelve_bits(i, ramp)},
    "8 bits in 16": lambda i, ramp: {"png": encoded(Image.fromarray((ramp * 255).astype(np.uint16)))},
    "floats": lambda i, ramp: {"tif": grey(ramp * (1 + i / 200), np.float32)},
    "big-endian": lambda i, ramp: {"tif": tiff((ramp * 1000).astype(np.uint16), order=">")},
    "pgm": lambda i, ramp: {"pgm": b"P5 32 32 1023\n" + (ramp * 900).astype(">u2").tobytes()},
    "beside 8 bits": lambda i, ramp: {"png": twelve_bits(i, ramp), "bmp": random_png(i)},
    "drawings": lambda i, ramp: {"png": drawing((255, 255, 255), i + int(ramp[0, 1] > 0))},
    "profiles": lambda i, ramp: {
        "png": encoded(
            np.dstack([ramp * 255, ramp[::-1] * 200, ramp * 9]).astype(np.uint8),
            icc_profile=rgb_profile(((0.6, 0.35), (0.25, 0.65), (0.2, 0.1))),
        )
    },
    "wide": lambda i, ramp: {
        "png": random_png(i, 20, 48),
        "tif": grey(np.tile(ramp, 3) * (5 + i), np.float32),
    },
}


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("kind", FOLDERS)
def test_a_bundle_predicts_from_the_pixels_that_were_imported(kind: str, fit: str, tmp_path: Path) -> None:
    files = {
        f"{name}/{i}.{suffix}": data
        for name, ramp in (("vertical", ROWS), ("horizontal", COLUMNS))
        for i in range(10)
        for suffix, data in FOLDERS[kind](i, ramp).items()
    }
    root = write_files(tmp_path / "set", files)
    said: list[str] = []
    store: ImageStore = import_folder(root, tmp_path / "cache", read_options(16, fit=fit), said.append)
    train = store.splits["train"]
    assert all(np.ptp(image) > 50 for image in train.images)
    again: list[str] = []
    assert (
        import_folder(root, tmp_path / "cache", read_options(16, fit=fit), again.append).preprocess
        == store.preprocess
    )
    assert set(again) <= set(said)
    bundle = Bundle(
        create_model("vit-xs4", num_classes=2, image_size=16),
        store.classes,
        store.mean,
        store.std,
        store.preprocess,
    )
    save_bundle(bundle, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle").preprocess
    assert loaded == store.preprocess
    paths = [root / name for name in train.names]
    np.testing.assert_array_equal(loaded.batch(paths, read_image), train.images)
    np.testing.assert_array_equal(
        loaded.batch([path.read_bytes() for path in paths], read_image), train.images
    )
    opened = [Image.open(io.BytesIO(path.read_bytes())) for path in paths]
    np.testing.assert_array_equal(loaded.batch(opened), train.images)


def test_data_packed_before_profiles_were_applied_say_so(tmp_path: Path) -> None:
    root = write_files(
        tmp_path / "set", {f"{name}/{i}.png": random_png(i) for name in "ab" for i in range(3)}
    )
    store = import_folder(root, tmp_path, read_options(32), lambda line: None)
    assert store.path is not None and store.preprocess.profiles == "applied"
    header = json.loads((store.path / HEADER).read_text("utf-8"))
    del header["preprocess"]["profiles"]
    (store.path / HEADER).write_text(json.dumps(header), encoding="utf-8")
    assert open_store(store.path).preprocess == replace(store.preprocess, profiles="ignored")


def test_an_ordinary_data_set_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = decoding._converted

    def counted(data: bytes, convert: Any) -> Any:
        calls.append(len(data))
        return real(data, convert)

    monkeypatch.setattr(decoding, "_converted", counted)
    for kind, times in (("a", 1), ("12 bits", 2), ("given range", 1)):
        files = {
            f"{name}/{i}.png": random_png(i + 10 * len(name)) if kind == "a" else twelve_bits(i, ROWS)
            for name in ("x", "yy")
            for i in range(5)
        }
        calls.clear()
        root = write_files(tmp_path / kind, files)
        given = (0, 4095) if kind == "given range" else None
        import_folder(root, tmp_path / "cache", read_options(32, value_range=given), lambda line: None)
        assert len(calls) == 10 * times
