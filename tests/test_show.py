"""The mosaic of a data set: the right images in the right places, for any number of classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sample_data import encoded, random_image, random_png, write_files, write_zip
from vitreous.data.arrays import from_arrays
from vitreous.data.augment import SHARE, STREAMS, Augment, uniform
from vitreous.data.originals import shapes_of
from vitreous.data.show import default_target, show
from vitreous.data.sources import open_data
from vitreous.data.store import ImageStore
from vitreous.data.values import Facts
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


# ---- what becoming square cuts off


def striped(width: int, height: int) -> bytes:
    """An image whose central square is green; what is left of it or above it is red, the rest blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    side = min(width, height)
    along = np.arange(max(width, height))
    start = (len(along) - side) // 2
    channel = np.where(along < start, 0, np.where(along < start + side, 1, 2))
    line = np.eye(3, dtype=np.uint8)[channel] * 255
    pixels[:] = line[None] if width >= height else line[:, None]
    return encoded(pixels)


def folder_of_shapes(root: Path, shapes: Sequence[tuple[int, int]]) -> Path:
    files = {f"{label}/{i}.png": striped(*shape) for label in "ab" for i, shape in enumerate(shapes)}
    if root.suffix == ".zip":
        return write_zip(root, files)
    return write_files(root, files)


def colours(sheet: np.ndarray) -> set[tuple[int, int, int]]:
    return {(int(r), int(g), int(b)) for r, g, b in np.unique(sheet.reshape(-1, 3), axis=0)}


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
DIM_RED, DIM_BLUE = (255, 178, 178), (178, 178, 255)
CUT_LINE = (209, 36, 47)


@pytest.mark.parametrize("name", ["pets", "pets.zip"])
def test_what_is_cut_off_is_dimmed_and_what_is_kept_is_framed(tmp_path: Path, name: str) -> None:
    path = folder_of_shapes(tmp_path / name, [(200, 40), (40, 200), (40, 40), (41, 40)])
    said: list[str] = []
    store = open_data(path, tmp_path / "data", fit="crop", say=said.append)
    assert any("cuts more than 10 % off 4 of 8 images" in line and "80.0 %" in line for line in said)
    sheet = read(show(store, None, tmp_path / "mosaic.png"))
    seen = colours(sheet)
    assert {DIM_RED, DIM_BLUE, GREEN, CUT_LINE} <= seen
    assert RED not in seen and BLUE not in seen  # neither packed nor shown undimmed
    # The widest image is shown 240 by 48 pixels: a frame of 48 by 48 between two dimmed parts of 96 pixels each.
    row = max(range(len(sheet)), key=lambda y: int((sheet[y] == DIM_RED).all(-1).sum()))
    line = [tuple(pixel) for pixel in sheet[row + 10].tolist()]  # below the upper edge of the frame
    frame = [x for x in range(1, len(line)) if line[x] == CUT_LINE != line[x - 1]]
    left, right = next(pair for pair in itertools.pairwise(frame) if pair[1] - pair[0] == 46)
    assert line[left - 90 : left - 6] == [DIM_RED] * 84  # resizing blurs the edges
    assert line[left + 6 : right - 6] == [GREEN] * 34
    assert line[right + 8 : right + 92] == [DIM_BLUE] * 84
    dim = np.argwhere((sheet == DIM_RED).all(-1))
    assert dim[:, 0].min() > sheet.shape[0] - 200  # all of it at the bottom


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_the_square_is_shown_beside_its_original(tmp_path: Path, fit: str) -> None:
    path = folder_of_shapes(tmp_path / "pets", [(200, 40), (40, 40)])
    said: list[str] = []
    store = open_data(path, tmp_path / "data", fit=fit, say=said.append)
    assert not any("cuts" in line for line in said)
    sheet = read(show(store, None, tmp_path / "mosaic.png"))
    assert {RED, GREEN, BLUE} <= colours(sheet) and CUT_LINE not in colours(sheet)
    train = store.splits["train"]
    square = enlarged(train.images[list(train.names).index("a/0.png")], 3)
    at = places(packed(sheet), square)
    # a/0 and b/0 are the same image: twice among the classes and twice beside its original
    assert len(at) == 4 and len([y for _, y in at if y > sheet.shape[0] - 200]) == 2


def test_very_long_images_can_be_drawn(tmp_path: Path) -> None:
    path = folder_of_shapes(tmp_path / "pets", [(9000, 3), (1, 700), (2, 1)])
    store = open_data(path, tmp_path / "data", fit="crop", image_size=32, say=lambda line: None)
    assert CUT_LINE in colours(read(show(store, None, tmp_path / "mosaic.png")))


def test_square_images_have_no_strip(tmp_path: Path) -> None:
    store = open_data(
        folder_of_shapes(tmp_path / "pets", [(40, 40), (44, 44)]), tmp_path / "data", say=lambda line: None
    )
    heights = [
        read(show(data, None, tmp_path / "mosaic.png")).shape[0] for data in (store, make_store(4, 2, 32))
    ]
    assert heights[0] == heights[1]


def test_a_source_that_has_gone_costs_only_the_strip(tmp_path: Path) -> None:
    path = folder_of_shapes(tmp_path / "pets", [(200, 40), (40, 40)])
    store = open_data(path, tmp_path / "data", fit="crop", say=lambda line: None)
    with_strip = read(show(store, None, tmp_path / "mosaic.png"))
    path.rename(tmp_path / "elsewhere")
    without = read(show(store, None, tmp_path / "mosaic.png"))
    assert without.shape[0] < with_strip.shape[0] and CUT_LINE not in colours(without)


def test_the_examples_are_of_many_shapes() -> None:
    shapes = [(200, 40)] * 50 + [(30, 31), (40, 40), (10, 400), (500, 20)]
    facts = [Facts(*shape) for shape in shapes]
    record = shapes_of([f"{i}" for i in range(len(shapes))], facts)
    assert (record["images"], record["not_square"], record["cropped"]) == (54, 53, 52)
    examples = [shapes[int(name)] for name in record["examples"]]
    assert len(set(record["examples"])) == 8
    assert examples[0] == (10, 400) and examples[-1] == (500, 20)
    assert {(200, 40), (30, 31)} < set(examples) and (40, 40) not in examples
    ratios = [width / height for width, height in examples]
    assert ratios == sorted(ratios)
    many = shapes_of([f"{i}" for i in range(100)], [Facts(10 + i, 60) for i in range(100)])["examples"]
    assert len(many) == 8 and {many[0], many[-1]} == {"0", "99"}
    assert shapes_of(["a"], [Facts(5, 5)])["examples"] == [] and shapes_of([], [])["not_square"] == 0


# ---- names of the file


def test_a_picture_of_the_user_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_target("pets") == Path("pets.png")
    photo = random_png(1)
    Path("pets.png").write_bytes(photo)
    Path("pets-2.png").write_bytes(b"no image at all")
    target = default_target("pets")
    assert target == Path("pets-3.png")
    show(make_store(4, 2), None, target)
    assert Path("pets.png").read_bytes() == photo and Path("pets-2.png").read_bytes() == b"no image at all"
    assert default_target("pets") == target  # its own may be replaced
    Path("dogs.png").symlink_to("pets-3.png")
    assert default_target("dogs") == Path("dogs-2.png")


def test_only_a_png_is_replaced(tmp_path: Path) -> None:
    for name, content in (("a.png", b"text"), ("b", encoded(random_image(1), "JPEG"))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VitreousError, match="exists and is not a PNG, so it is not replaced"):
            show(make_store(4, 2), None, tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    with pytest.raises(VitreousError, match=r"c\.jpg would be a PNG; give a name that ends in \.png"):
        show(make_store(4, 2), None, tmp_path / "c.jpg")
    (tmp_path / "d.png").write_bytes(random_png(1))
    assert read(show(make_store(4, 2), None, tmp_path / "d.png")).shape[0] > 200
