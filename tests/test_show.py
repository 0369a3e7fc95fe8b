"""The mosaic of a data set: the right images in the right places, for any number of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitreous.data.arrays import from_arrays
from vitreous.data.augment import SHARE, STREAMS, Augment, uniform
from vitreous.data.show import show
from vitreous.data.store import ImageStore
from vitreous.errors import VitreousError


def make_store(count: int, num_classes: int, size: int = 8) -> ImageStore:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return from_arrays(images, np.arange(count) % num_classes, [f"class {i}" for i in range(num_classes)])


def places(sheet: np.ndarray, tile: np.ndarray) -> list[tuple[int, int]]:
    """(x, y) of every exact copy of a tile in a sheet; both as `packed`."""
    height, width = tile.shape
    found = sheet[: 1 - height, : 1 - width] == tile[0, 0]
    found &= sheet[height - 1 :, width - 1 :] == tile[-1, -1]
    corners = np.argwhere(found).tolist()
    return [(x, y) for y, x in corners if np.array_equal(sheet[y : y + height, x : x + width], tile)]


def packed(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 -> [H, W], a number for each colour."""
    return image.astype(np.uint32) @ np.array([1, 256, 65536], dtype=np.uint32)


def enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    return packed(image).repeat(scale, 0).repeat(scale, 1)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image)


def test_each_line_holds_images_of_a_class_and_then_the_same_augmented(tmp_path: Path) -> None:
    store = make_store(80, 8)
    augment = Augment(flip="alternating", seed=3)
    assert show(store, augment, tmp_path / "mosaic.png") == tmp_path / "mosaic.png"
    sheet = packed(read(tmp_path / "mosaic.png"))
    train = store.splits["train"]
    lines = []
    for label in range(8):
        index = np.flatnonzero(train.labels == label)[:4]
        plain = [places(sheet, enlarged(train.images[i], 12)) for i in index]
        mirrored = [places(sheet, enlarged(train.images[i][:, ::-1], 12)) for i in index]
        for i, a, b in zip(index.tolist(), plain, mirrored, strict=True):
            # Unchanged, and three epochs of which the first and the third show the same side.
            sides = augment(torch.from_numpy(train.images[[i]]), torch.tensor([i]), 0)
            starts_plain = np.array_equal(
                (sides[0] * 255).round().permute(1, 2, 0).numpy(), train.images[i].astype(np.float32)
            )
            assert (len(a), len(b)) == ((3, 1) if starts_plain else (2, 2))
            assert len({y for _, y in a + b}) == 1
        firsts = [min(found) for found in plain]
        assert firsts == sorted(firsts) and len({y for _, y in firsts}) == 1
        lines.append(firsts[0][1])
    assert lines == sorted(set(lines))


def test_images_are_shown_mixed_if_training_mixes_them(tmp_path: Path) -> None:
    """With one black and one white class, any grey must be a mixture."""
    images = np.repeat(np.array([0, 255], np.uint8), 50 * 8 * 8 * 3).reshape(100, 8, 8, 3)
    store = from_arrays(images, np.repeat([0, 1], 50), ["black", "white"])
    seed = 5
    sheet = read(show(store, Augment(mixup=1.0, seed=seed), tmp_path / "mixed.png"))
    tile, across = 96, 4
    width = sheet.shape[1]
    greys = []
    for epoch in range(3):
        left = width - (3 - epoch) * (across * 100 - 4 + 20)
        for line in range(8):
            y = 96 + (line % 4) * 100 + (line // 4) * (4 * 100 + 8)
            for column in range(across):
                corner = sheet[y : y + tile, left + column * 100 : left + column * 100 + tile]
                assert len(np.unique(corner)) == 1
                greys.append(int(corner[0, 0, 0]))
    index = torch.cat([torch.arange(16), torch.arange(50, 66)])
    kept = torch.cat([uniform(seed, epoch, index, STREAMS)[:, SHARE] for epoch in range(3)])
    white = torch.tensor(([False] * 16 + [True] * 16) * 3)
    expected = 255 * torch.where(white, kept, 1 - kept)
    assert np.abs(np.array(greys) - expected.numpy()).max() <= 0.51


def test_without_augmentation_it_shows_more_images(tmp_path: Path) -> None:
    store = make_store(96, 8)
    sheet = packed(read(show(store, None, tmp_path / "mosaic.png")))
    assert all(len(places(sheet, enlarged(image, 12))) == 1 for image in store.splits["train"].images)


@pytest.mark.parametrize(("classes", "count"), [(1, 3), (2, 50), (20, 100), (100, 150), (300, 300)])
def test_any_number_of_classes_makes_a_sheet_of_sensible_size(
    tmp_path: Path, classes: int, count: int
) -> None:
    sheet = read(show(make_store(count, classes), Augment(crop=2), tmp_path / "mosaic.png"))
    height, width, _ = sheet.shape
    assert 300 < width < 2200 and 200 < height < 2300
    # The border is empty, so nothing is cut off.
    for border in (sheet[:8], sheet[-8:], sheet[:, :8], sheet[:, -8:]):
        assert (border == 255).all()


@pytest.mark.parametrize("size", [1, 28, 97, 224])
def test_any_image_size(tmp_path: Path, size: int) -> None:
    store = make_store(10, 2, size)
    sheet = packed(read(show(store, Augment(), tmp_path / "mosaic.png")))
    assert sheet.shape[1] < 2200
    if size <= 96:  # larger images are shrunk
        assert places(sheet, enlarged(store.splits["train"].images[0], 96 // size))


def test_a_class_without_training_images_and_long_or_foreign_names(tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8, 3), np.uint8)
    names = ["x" * 300, "naïve Ωμέγα ж\nover two lines\t\0", "empty"]
    store = from_arrays(images, [0, 1, 1], names)
    sheet = read(show(store, Augment(), tmp_path / "mosaic.png"))
    assert sheet.shape[1] < 2200


def test_a_path_that_cannot_be_written_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VitreousError, match="mosaic"):
        show(make_store(4, 2), None, tmp_path / "file" / "mosaic.png")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    for place in (tmp_path, Path("/"), Path()):
        with pytest.raises(VitreousError, match="is a folder; give the name of the PNG file"):
            show(make_store(4, 2), None, place)
