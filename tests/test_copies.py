"""Copies of images: equal ones, near-copies, and images that are only alike."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from vitreous.data import copies as module
from vitreous.data.copies import FAMILY, Copies, Pair, copies_of, copies_record, find_copies
from vitreous.data.packed import open_store, pack, remove_store
from vitreous.data.store import ImageStore, in_memory
from vitreous.errors import VitreousError


def photos(number: int, size: int = 32, seed: int = 0, fall: float = 1.5) -> np.ndarray:
    """Different images with the spectrum of photographs, uint8 [number, size, size, 3]; less `fall` is more detail."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(2 * size)[:, None], np.fft.rfftfreq(2 * size)) * size
    waves = rng.normal(size=(number, 3, *frequency.shape)) + 1j * rng.normal(
        size=(number, 3, *frequency.shape)
    )
    waves = waves @ np.eye(frequency.shape[1]) / (frequency + 0.5) ** fall
    planes = np.fft.irfft2(waves)[:, :, :size, :size].transpose(0, 2, 3, 1)
    planes = planes[..., :1] + 0.4 * planes  # the channels of photographs are much alike
    planes /= planes.std(axis=(1, 2, 3), keepdims=True)
    return np.clip(120 + 45 * planes + rng.normal(scale=2, size=planes.shape), 0, 255).astype(np.uint8)


def saved(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resized(image: np.ndarray, factor: float) -> np.ndarray:
    size = len(image)
    smaller = Image.fromarray(image).resize((round(size * factor),) * 2, Image.Resampling.BICUBIC)
    return np.asarray(smaller.resize((size, size), Image.Resampling.BICUBIC))


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), "edge")
    return padded[4 - down : len(image) + 4 - down, 4 - right : len(image) + 4 - right]


def brightened(image: np.ndarray, factor: float) -> np.ndarray:
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(factor))


def jpeg(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: saved(image, quality)


def by_factor(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: resized(image, factor)


def by_pixels(down: int, right: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: moved(image, down, right)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "equal": lambda image: image,
    **{f"JPEG {quality}": jpeg(quality) for quality in (30, 50, 75, 95)},
    **{f"resized {factor}": by_factor(factor) for factor in (0.5, 0.7, 1.5)},
    **{
        f"moved {down} {right}": by_pixels(down, right)
        for down, right in itertools.product((-1, 0, 1), repeat=2)
        if down or right
    },
    "mirrored": lambda image: image[:, ::-1],
    "mirrored JPEG 50": lambda image: saved(image[:, ::-1], 50),
    "brighter": lambda image: brightened(image, 1.15),
    "darker": lambda image: brightened(image, 0.85),
}


def pairs_of(copies: Copies) -> set[tuple[tuple[str, int], tuple[str, int]]]:
    return {(pair.first, pair.second) for pair in copies.pairs}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", [24, 32, 64, 100])
def test_changed_images_are_found_among_different_ones(change: str, size: int) -> None:
    originals, others = photos(6, size), photos(60, size, seed=1)
    changed = np.stack([CHANGES[change](image) for image in originals])
    copies = find_copies({"train": np.concatenate([others, originals]), "test": changed})
    assert pairs_of(copies) == {(("train", 60 + i), ("test", i)) for i in range(6)}
    assert {pair.kind for pair in copies.pairs} == {
        "equal" if change == "equal" else "mirrored" if "mirrored" in change else "near"
    }
    assert copies.groups["train"].tolist() == list(range(66))
    assert copies.groups["test"].tolist() == list(range(60, 66))


@pytest.mark.parametrize("size", [8, 9, 16, 128])
@pytest.mark.parametrize("change", ["equal", "JPEG 95", "moved 0 1", "mirrored", "darker"])
def test_images_of_any_size_are_compared(change: str, size: int) -> None:
    if change.startswith("moved") and size < 16:
        pytest.skip("one of so few pixels is a large move")
    originals = photos(20, size)
    copies = find_copies({"train": originals, "test": np.stack([CHANGES[change](im) for im in originals])})
    assert pairs_of(copies) == {(("train", i), ("test", i)) for i in range(20)}


def test_a_move_by_two_pixels_is_found_at_64_pixels() -> None:
    originals = photos(8, 64)
    for down, right in ((0, 2), (2, 0), (-2, 2), (1, -2)):
        changed = np.stack([moved(image, down, right) for image in originals])
        found = pairs_of(find_copies({"train": originals, "test": changed}))
        assert found == {(("train", i), ("test", i)) for i in range(8)}


def test_a_move_by_half_a_pixel_of_the_comparison_is_found() -> None:
    """Images of 64 pixels are compared at 32."""
    originals = photos(30, 64, fall=0.7)
    changed = np.stack([moved(image, 1, 1) for image in originals])
    found = pairs_of(find_copies({"train": originals, "test": changed}))
    assert found == {(("train", i), ("test", i)) for i in range(30)}


def test_planted_copies_are_those_that_a_comparison_of_all_pixels_finds() -> None:
    """Every pair of 120 images by the correlation of their pixels, moved and mirrored."""
    rng = np.random.default_rng(3)
    images = photos(120)
    for target, source in rng.permutation(120)[:40].reshape(20, 2):
        images[target] = list(CHANGES.values())[target % len(CHANGES)](images[source])
    expected = set()
    for i, j in itertools.combinations(range(120), 2):
        best = 0.0
        for other in (images[j], images[j][:, ::-1]):
            for down, right in itertools.product((-1, 0, 1), repeat=2):
                inner = images[i, 1:-1, 1:-1]
                outer = other[1 + down : 31 + down, 1 + right : 31 + right]
                best = max(best, np.corrcoef(inner.ravel(), outer.ravel())[0, 1])
        if best > 0.9:
            expected.add((("all", i), ("all", j)))
    assert len(expected) == 20
    assert pairs_of(find_copies({"all": images})) == expected


def test_different_images_are_not_copies() -> None:
    for size, seed in ((8, 0), (16, 1), (32, 2), (64, 3)):
        assert find_copies({"train": photos(400, size, seed)}).pairs == ()
    noise = np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3), np.uint8)
    assert find_copies({"train": noise}).pairs == ()


def test_images_that_are_alike_are_not_copies() -> None:
    """Variations of a few drawings, all as similar as copies are among photographs, with one real copy."""
    rng = np.random.default_rng(0)
    drawings = photos(4).astype(np.float64)
    variations = photos(800, seed=1).astype(np.float64) - 120
    images = drawings[rng.integers(0, 4, 800)] + 0.22 * variations
    images = np.clip(images, 0, 255).astype(np.uint8)
    assert np.corrcoef(images[:200].reshape(200, -1)).min(axis=0).max() < 0.9  # several drawings,
    assert (
        np.sort(np.corrcoef(images[:200].reshape(200, -1)))[:, -20].min() > 0.9
    )  # each with many look-alikes
    assert find_copies({"train": images}).pairs == ()
    with_copy = np.concatenate([images, saved(images[5], 95)[None]])
    assert pairs_of(find_copies({"train": with_copy})) == {(("train", 5), ("train", 800))}


def test_plain_images_are_copies_only_if_they_are_equal() -> None:
    rng = np.random.default_rng(0)
    colours = np.repeat(np.arange(0, 240, 4), 32 * 32 * 3).reshape(60, 32, 32, 3).astype(np.uint8)
    assert find_copies({"train": colours}).pairs == ()
    grainy = colours + rng.integers(0, 3, colours.shape, np.uint8)
    assert find_copies({"train": grainy}).pairs == ()
    shade = (
        4 * np.cos(np.linspace(0, 1.5, 32))[:, None, None] * np.ones(32)[:, None]
    )  # of the lens, in all of them
    assert find_copies({"train": np.rint(colours + shade).astype(np.uint8)}).pairs == ()
    copies = find_copies({"train": colours, "test": colours[7:8]})
    assert copies.pairs == (Pair(("train", 7), ("test", 0), True),)


def test_images_of_other_colours_are_not_copies() -> None:
    images = photos(5)
    assert find_copies({"train": np.concatenate([images, images[..., ::-1]])}).pairs == ()


def frames(number: int) -> np.ndarray:
    """A window that slides over one large image, half a pixel from frame to frame."""
    scene = Image.fromarray(photos(1, number // 2 + 40)[0])
    moves = [(1, 0, i / 2, 0, 1, 4) for i in range(number)]
    return np.stack(
        [
            np.asarray(scene.transform((32, 32), Image.Transform.AFFINE, move, Image.Resampling.BICUBIC))
            for move in moves
        ]
    )


def test_gradual_change_does_not_make_one_group() -> None:
    video = frames(500)
    copies = find_copies({"train": np.concatenate([video, photos(300, seed=5)])})
    sizes = np.unique(copies.groups["train"], return_counts=True)[1]
    assert sizes.max() <= 12
    for pair in copies.pairs:
        assert abs(pair.first[1] - pair.second[1]) <= 4  # frames that are two pixels apart at most


def test_many_versions_of_an_image_are_one_group() -> None:
    originals = photos(40)
    versions = [CHANGES[f"JPEG {quality}"](image) for image in originals for quality in (30, 50, 75, 95)]
    copies = find_copies({"train": np.stack(versions)})
    assert copies.groups["train"].tolist() == [4 * (i // 4) for i in range(160)]
    fifty = np.stack([brightened(originals[0], 0.9 + i / 250) for i in range(50)])
    groups = find_copies({"train": np.concatenate([originals[1:], fifty])}).groups["train"]
    assert len(np.unique(groups[39:])) == 1
    assert len(fifty) > FAMILY


def test_the_order_of_the_images_does_not_matter() -> None:
    images = np.concatenate([photos(150), frames(60)])
    for i in range(0, 60, 3):
        images[i] = list(CHANGES.values())[i % len(CHANGES)](images[i + 1])

    def groups(order: np.ndarray, cut: int) -> set[frozenset[int]]:
        found = find_copies({"train": images[order[:cut]], "test": images[order[cut:]]}).groups
        numbers = np.concatenate([found["train"], found["test"]])
        return {frozenset(order[numbers == number].tolist()) for number in np.unique(numbers)}

    rng = np.random.default_rng(0)
    expected = groups(np.arange(210), 210 - 20)
    assert sum(len(group) > 1 for group in expected) > 20
    for _ in range(3):
        assert groups(rng.permutation(210), 70) == expected


def test_pairs_prefer_other_splits_then_train_then_equal_images() -> None:
    a, b, c, d = photos(4)
    near = saved(a, 75)
    copies = find_copies(
        {
            "train": np.stack([a, b, near, b]),
            "val": np.stack([a, c, saved(d, 75)]),
            "test": np.stack([c, near, saved(b, 90), d, d]),
        }
    )
    assert copies.pairs == (
        Pair(("train", 0), ("train", 2), False),
        Pair(("train", 1), ("train", 3), True),
        Pair(("train", 0), ("val", 0), True),
        Pair(("val", 1), ("test", 0), True),
        Pair(("train", 2), ("test", 1), True),
        Pair(("train", 1), ("test", 2), False),
        Pair(("val", 2), ("test", 3), False),
        Pair(("val", 2), ("test", 4), False),
    )
    assert copies.groups["test"].tolist() == [5, 0, 1, 6, 6]


def test_similarities_are_those_of_plain_arithmetic() -> None:
    """Candidates against all pairs; areas and cosines against their definitions."""
    images = photos(70, 40)
    traits = module._traits(module._Parts([images]), np.arange(70))
    even, odd = traits.even, traits.odd
    horizon = np.full(70, 0.3, np.float32)
    horizon[:5] = 0.5
    plain, mirrored = even @ even.T + odd @ odd.T, even @ even.T - odd @ odd.T
    expected = [
        [i, j]
        for i, j in itertools.combinations(range(70), 2)
        if max(plain[i, j], mirrored[i, j]) >= 1e6 * np.float32(max(horizon[i], horizon[j]))
    ]
    candidates = module._candidates(even, odd, horizon, lambda share: None)
    assert candidates.tolist() == expected
    assert len(expected) > 20
    flipped = module._traits(module._Parts([images[:, :, ::-1].copy()]), np.arange(70))
    np.testing.assert_allclose(flipped.odd, -odd, atol=1)
    np.testing.assert_allclose(flipped.even, even, atol=1)

    planes = np.random.default_rng(0).integers(0, 65280, (2, 40, 40)).astype(np.float64)
    fine = planes.repeat(32, axis=1).repeat(32, axis=2).reshape(2, 32, 40, 32, 40).mean(axis=(2, 4))
    np.testing.assert_allclose(module._average(planes, 32), fine, atol=0.51)
    grey = module._brightness(images).mean(axis=(1, 2)) / 256
    np.testing.assert_allclose(grey, (images @ [0.299, 0.587, 0.114]).mean(axis=(1, 2)), atol=0.2)
    spread = traits.contrast / (images @ [0.299, 0.587, 0.114]).std(axis=(1, 2))
    assert (spread < 1).all()  # of the low frequencies, which hold most of it
    assert (spread > 0.7).all()


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.concatenate([photos(300), photos(300)[::7, :, ::-1]])
    expected = find_copies({"train": images})
    assert len(expected.pairs) == 43
    monkeypatch.setattr(module, "ROWS", 37)
    monkeypatch.setattr(module, "COLUMNS", 101)
    monkeypatch.setattr(module, "CHUNK_BYTES", 40_000)
    assert find_copies({"train": images}).pairs == expected.pairs


def test_of_too_many_images_only_equal_ones_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    images = photos(12)
    images[3], images[4] = images[0], images[1, :, ::-1]
    monkeypatch.setattr(module, "MOST_IMAGES", 10)
    copies = find_copies({"train": images})
    assert (copies.pairs, copies.near) == ((Pair(("train", 0), ("train", 3), True),), False)


# Stores ------------------------------------------------------------------------------------------------


def planted(path: Path | None = None) -> ImageStore:
    """Three classes of eight training and four test images. Test 0 to 2 are copies, one with another label."""
    train, test = photos(24), photos(12, seed=1)
    test[0], test[4], test[8] = train[0], saved(train[8], 75), train[1, :, ::-1]
    splits = {
        "train": (train, np.arange(24) // 8, [f"train/{i}.png" for i in range(24)]),
        "test": (test, np.arange(12) // 4, [f"test/{i}.png" for i in range(12)]),
    }
    facts = {"name": "planted", "classes": ("ant", "bee", "cat"), "splits": splits, "source": "a test"}
    return in_memory(**facts) if path is None else pack(path, **facts)  # type: ignore[arg-type]


def names_of(store: ImageStore, copies: Copies) -> set[tuple[str, str, str]]:
    names = {split: part.names for split, part in store.splits.items()}
    return {
        (names[pair.first[0]][pair.first[1]], names[pair.second[0]][pair.second[1]], pair.kind)
        for pair in copies.pairs
    }


EXPECTED = {
    ("train/0.png", "test/0.png", "equal"),
    ("train/8.png", "test/4.png", "near"),
    ("train/1.png", "test/8.png", "mirrored"),
}


def refuse(*args: object, **kwargs: object) -> Copies:
    raise AssertionError("copies were searched for again")


def test_copies_are_kept_beside_the_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "planted"
    store = planted(path)
    first = copies_of(store)
    assert names_of(store, first) == EXPECTED
    again = open_store(path)
    monkeypatch.setattr(module, "find_copies", refuse)
    known = copies_of(again)
    assert (known.pairs, known.near) == (first.pairs, True)
    for split, numbers in first.groups.items():
        np.testing.assert_array_equal(known.groups[split], numbers)
    (path / ".copies.npz.0123abcd.tmp").write_bytes(b"of a killed process")
    assert remove_store(path) > 0
    assert not path.exists()


def test_a_file_of_copies_that_does_not_fit_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "planted"
    store = planted(path)
    copies_of(store)
    cache = path / "copies.npz"
    content = cache.read_bytes()
    arrays = dict(np.load(cache))
    damaged: list[bytes] = [b"", b"no zip", content[:-40], content[: len(content) // 2]]

    def changed(**changes: np.ndarray) -> bytes:
        file = io.BytesIO()
        np.savez(file, **(arrays | changes))
        return file.getvalue()

    pairs = arrays["pairs"].copy()
    pairs[0, 1] = 24
    damaged += [
        changed(groups_test=arrays["groups_test"][:-1]),
        changed(groups_train=arrays["groups_train"] + 100),
        changed(groups_train=arrays["groups_train"].astype(np.float64)),
        changed(pairs=pairs),
        changed(pairs=arrays["pairs"] - 1),
        changed(pairs=arrays["pairs"] + 5),
        changed(pairs=np.array([{}], dtype=object)),  # would need pickle
        changed(identity=np.array("of other images")),
    ]
    for bad in damaged:
        cache.write_bytes(bad)
        assert names_of(store, copies_of(store)) == EXPECTED
        assert dict(np.load(cache)).keys() == arrays.keys()  # written again
        assert np.load(cache)["identity"] == arrays["identity"]
    monkeypatch.setattr(module, "METHOD", module.METHOD + 1)
    copies_of(store)
    assert np.load(cache)["identity"] != arrays["identity"]


def test_copies_are_found_where_they_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise VitreousError("The disk is full.")

    store = planted(tmp_path / "planted")
    monkeypatch.setattr(module, "atomic_write", full)
    assert names_of(store, copies_of(store)) == EXPECTED


def test_copies_of_arrays_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    store = planted()
    assert names_of(store, copies_of(store)) == EXPECTED
    monkeypatch.setattr(module, "find_copies", refuse)
    copies_of(planted())  # the same images
    with pytest.raises(AssertionError, match="searched for again"):
        copies_of(
            in_memory(
                name="other",
                classes=("a", "b"),
                splits={"train": (photos(4), np.arange(4) % 2, list("abcd"))},
                source="a test",
            )
        )


def test_the_record_of_a_run_names_leaks_and_conflicts() -> None:
    store = planted()
    record = copies_record(store, {"train": "train", "val": "train", "test": "test"})
    assert record is not None
    assert json.loads(json.dumps(record)) == record
    assert record["images"] == {"test": 12}
    assert {(leak["copy_of"], leak["name"], leak["kind"]) for leak in record["leaks"]} == EXPECTED
    assert {leak["split"] for leak in record["leaks"]} == {"test"}
    (conflict,) = record["conflicts"]
    assert (conflict["name"], conflict["label"], conflict["copy_label"]) == ("test/8.png", "cat", "ant")
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))) for image in conflict["images"]]
    np.testing.assert_array_equal(pictures[0], pictures[1][:, ::-1])

    alone = {"name": "alone", "classes": ("a", "b"), "source": "a test"}
    plain = in_memory(splits={"train": (photos(4), np.arange(4) % 2, list("abcd"))}, **alone)  # type: ignore[arg-type]
    assert copies_record(plain, dict.fromkeys(("train", "val", "test"), "train")) is None


def test_a_long_record_has_only_some_images() -> None:
    many = photos(40)
    store = in_memory(
        name="many",
        classes=("a", "b"),
        splits={split: (many, np.arange(40) % 2, [f"{i}" for i in range(40)]) for split in ("train", "test")},
        source="a test",
    )
    record = copies_record(store, {"train": "train", "val": "train", "test": "test"})
    assert record is not None
    assert len(record["leaks"]) == 40
    assert sum("images" in leak for leak in record["leaks"]) == 12


def test_candidates_without_a_close_one_are_compared_too() -> None:
    """Images above 32 pixels whose low frequencies agree and nothing else: none is close enough for half a pixel."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(60, 190, 64)[None, :, None, None]
    waves = rng.normal(0, 60, (12, 16, 16, 1)).repeat(4, axis=1).repeat(4, axis=2)
    images = (ramp + waves).clip(0, 255).astype(np.uint8).repeat(3, axis=3)
    assert not find_copies({"train": images}).pairs
