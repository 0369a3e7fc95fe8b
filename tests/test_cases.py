"""Folders as people have them, end to end: what `data check` says, and what a training would get."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sample_data import encoded, random_png, write_files
from vitreous import cli
from vitreous.bundle import Bundle
from vitreous.data.importing import import_folder
from vitreous.data.reading import read_options
from vitreous.data.splits import resolve_splits
from vitreous.data.store import ImageStore
from vitreous.errors import VitreousError
from vitreous.model.vit import create_model

Capture = pytest.CaptureFixture[str]
ROWS, COLUMNS = np.mgrid[0:32, 0:32] / 31


def checked(root: Path, capsys: Capture, *options: str) -> tuple[int, str]:
    """The exit status and the text of `data check`."""
    status = cli.main(["data", "check", str(root), *options])
    return status, capsys.readouterr().out


def opened(root: Path, tmp_path: Path, **options: object) -> tuple[ImageStore, list[str]]:
    """The data set of a folder, and what was said."""
    said: list[str] = []
    return import_folder(root, tmp_path / "cache", read_options(**options), said.append), said


def tree(*folders: str, count: int = 8, first: int = 0) -> dict[str, bytes]:
    names = [f"{folder}/{i:03d}.png" for folder in folders for i in range(count)]
    return {name: random_png(first + seed) for seed, name in enumerate(names)}


def sizes(store: ImageStore) -> dict[str, int]:
    return {name: len(split) for name, split in store.splits.items()}


@pytest.mark.parametrize(
    ("train", "test", "classes"),
    [
        ("Training", "Testing", "cat dog owl"),  # A1
        ("training_set/training_set", "test_set/test_set", "cat dog"),  # A2
        ("data/TRAIN", "data/Eval", "cat dog"),
        ("seg_train/seg_train", "seg_test/seg_test", "cat dog"),
    ],
)
def test_splits_under_the_names_of_public_data_sets(
    train: str, test: str, classes: str, tmp_path: Path, capsys: Capture
) -> None:
    names = classes.split()
    files = tree(*(f"{train}/{name}" for name in names))
    files |= tree(*(f"{test}/{name}" for name in names), count=4, first=500)
    root = write_files(tmp_path / "pets", files)
    status, text = checked(root, capsys)
    store, _ = opened(root, tmp_path)
    assert status == 0 and all(name in text for name in names)
    assert store.classes == tuple(names)
    assert sizes(store) == {"train": 8 * len(names), "test": 4 * len(names)}


@pytest.mark.parametrize(
    "beside", ["{}.txt", "{}.png:Zone.Identifier", "{}.xml", "._{}.png", "@eaDir/{}.png/SYNOFILE_THUMB_M.jpg"]
)
def test_files_beside_images_are_passed_over(beside: str, tmp_path: Path, capsys: Capture) -> None:  # B1, B2
    files = tree("cat", "dog", "owl")
    root = write_files(tmp_path / "pets", files | {f"cat/{beside.format(i)}": b"a caption" for i in range(8)})
    status, text = checked(root, capsys)
    store, _ = opened(root, tmp_path)
    assert (status, sizes(store)) == (0, {"train": 24})
    last = text.strip().splitlines()[-1]
    assert "train" in last and "24 images of 3 classes" in last
    assert len(text.splitlines()) < 30


def test_links_to_images_on_another_disk(tmp_path: Path, capsys: Capture) -> None:  # C1
    pool = write_files(tmp_path / "pool", tree("cat", "dog"))
    root = tmp_path / "linked"
    (root / "cat").mkdir(parents=True)
    for file in (pool / "cat").iterdir():
        (root / "cat" / file.name).symlink_to(file)
    (root / "dog").symlink_to(pool / "dog")
    status, _ = checked(root, capsys)
    assert (status, sizes(opened(root, tmp_path)[0])) == (0, {"train": 16})
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    status, text = checked(root, capsys)
    assert status == 1 and "gone.png" in text
    (root / "cat" / "gone.png").unlink()
    (root / "cat" / "round").symlink_to(root)
    status, text = checked(root, capsys)
    assert "round" in text


def deep(kind: str, root: Path) -> Path:
    """Two classes that differ in the direction of a ramp, in more than 8 bits: D1 to D3."""
    rng = np.random.default_rng(0)
    for name, ramp in (("vertical", ROWS), ("horizontal", COLUMNS)):
        (root / name).mkdir(parents=True)
        for i in range(10):
            if kind == "12 bits":
                values = ramp * 4095 * (0.5 + 0.05 * i) + rng.normal(0, 3, ramp.shape)
                image = Image.fromarray(values.clip(0, 4095).astype(np.uint16))
            elif kind == "8 bits":
                values = ramp * 255 + rng.normal(0, 1, ramp.shape)
                image = Image.fromarray(values.clip(0, 255).astype(np.uint16))
            else:
                values = (ramp * 1.02 + rng.normal(0, 0.001, ramp.shape)).clip(0, 1.05)
                image = Image.fromarray(values.astype(np.float32))
            image.save(root / name / f"{i}.{'tif' if kind == 'floats' else 'png'}")
    return root


@pytest.mark.parametrize("kind", ["12 bits", "8 bits", "floats"])
def test_more_than_8_bits_have_one_range_that_prediction_shares(
    kind: str, tmp_path: Path, capsys: Capture
) -> None:
    root = deep(kind, tmp_path / "ramps")
    status, text = checked(root, capsys)
    assert status == 0 and "more than 8 bits" in text
    store, said = opened(root, tmp_path)
    train = store.splits["train"]
    assert any("more than 8 bits" in line for line in said)
    assert train.images.max() > 230 and np.median(np.ptp(train.images.reshape(len(train), -1), axis=1)) > 120
    model = create_model("vit-xs4", num_classes=2)
    bundle = Bundle(model.eval(), store.classes, store.mean, store.std, store.preprocess)
    paths = [root / name for name in train.names]
    np.testing.assert_allclose(bundle.logits(paths), bundle.logits(np.array(train.images)), atol=1e-5)


def test_what_cannot_be_decided_is_refused_with_a_mend_that_works(tmp_path: Path) -> None:
    root = tmp_path / "masks"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(5):
            values = np.random.default_rng(i).integers(0, 6, (32, 32)).astype(np.uint16)
            Image.fromarray(values + (name == "b")).save(root / name / f"{i}.png")
    with pytest.raises(VitreousError, match=r"--value-range"):
        opened(root, tmp_path)
    store, _ = opened(root, tmp_path, value_range="0,6")
    assert store.splits["train"].images.max() == 255


def test_white_drawings_on_transparent_ground_differ(tmp_path: Path, capsys: Capture) -> None:  # E1
    root = tmp_path / "drawings"
    for label, name in enumerate(("disc", "bar")):
        (root / name).mkdir(parents=True)
        for i in range(8):
            rgba = np.full((32, 32, 4), 255, np.uint8)
            disc = 0.1 + 0.002 * i > (ROWS - 0.5) ** 2 + (COLUMNS - 0.5) ** 2
            rgba[..., 3] = 255 * (disc if label == 0 else abs(ROWS - 0.5) < 0.1 + 0.01 * i)
            Image.fromarray(rgba).save(root / name / f"{i}.png")
    store, said = opened(root, tmp_path)
    train = store.splits["train"]
    drawn = [{image.tobytes() for image in train.images[train.labels == label]} for label in (0, 1)]
    assert all(len(images) > 1 for images in drawn) and not drawn[0] & drawn[1]
    assert store.preprocess.ground != "white" and any("transparent" in line for line in said)


def test_copies_go_to_one_side_of_a_cut(tmp_path: Path, capsys: Capture) -> None:  # F1
    files: dict[str, bytes] = {}
    for label in ("cat", "dog", "owl"):
        for i in range(12):
            data = random_png(hash_of(label, i))
            files |= {f"{label}/{i:03d}{suffix}.png": data for suffix in ("", " (1)", " (2)")}
    root = write_files(tmp_path / "pets", files)
    _, text = checked(root, capsys)
    assert "copies" in text or "copy" in text
    store, _ = opened(root, tmp_path)
    splits = resolve_splits(store)
    sides = [{image.tobytes() for image in part.images} for part in (splits.train, splits.val, splits.test)]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert all(sides) and sum(map(len, (splits.train, splits.val, splits.test))) == 108


def hash_of(label: str, number: int) -> int:
    return 1000 * ["cat", "dog", "owl"].index(label) + number


def test_images_of_one_colour_train_or_get_one_sentence(tmp_path: Path, capsys: Capture) -> None:  # G1
    colours = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
    files = {
        f"{name}/{i}.png": encoded(Image.new("RGB", (32, 32), colour))
        for name, colour in colours.items()
        for i in range(8)
    }
    root = write_files(tmp_path / "colours", files)
    _status, text = checked(root, capsys)
    last = text.strip().splitlines()[-1]
    train = cli.main(
        ["train", str(root), "--steps", "2", "--out", str(tmp_path / "run"), "--data-dir", str(tmp_path)]
    )
    assert (train != 0) == ("stop" in last), (train, last)
    if train:
        assert "\n" not in capsys.readouterr().err.strip()


def test_files_of_several_images_and_formats_of_phones(tmp_path: Path, capsys: Capture) -> None:  # H1
    frames = [Image.open(io.BytesIO(random_png(seed))) for seed in range(3)]
    root = write_files(tmp_path / "pets", tree("cat", "dog", first=10))
    frames[0].save(root / "cat/stack.tif", save_all=True, append_images=frames[1:])
    frames[1].save(root / "cat/animation.gif", save_all=True, append_images=frames[:1], duration=100)
    Image.open(io.BytesIO(random_png(9, 64, 64))).save(root / "cat/photo.avif")
    status, text = checked(root, capsys)
    store, said = opened(root, tmp_path)
    assert status == 0 and sizes(store) == {"train": 19}
    for lines in (text, "\n".join(said)):
        assert "2 files hold several" in lines


def test_labels_in_a_table_beside_a_flat_folder(tmp_path: Path, capsys: Capture) -> None:  # I1
    files = {f"pictures/img{i}.png": random_png(i) for i in range(12)}
    rows = ["file,label", *(f"pictures/img{i}.png,{('cat', 'dog', 'owl')[i % 3]}" for i in range(12))]
    root = write_files(tmp_path / "flat", files | {"labels.csv": "\n".join(rows).encode()})
    store, _ = opened(root, tmp_path)
    assert store.classes == ("cat", "dog", "owl") and sizes(store) == {"train": 12}
    labels = {
        name.rpartition("/")[2]: store.classes[label]
        for name, label in zip(store.splits["train"].names, store.splits["train"].labels, strict=True)
    }
    assert labels == {f"img{i}.png": ("cat", "dog", "owl")[i % 3] for i in range(12)}


def test_classes_named_by_numbers_come_in_their_order(tmp_path: Path) -> None:
    store, _ = opened(write_files(tmp_path / "numbers", tree(*map(str, range(12)), count=3)), tmp_path)
    assert store.classes == tuple(map(str, range(12)))


def test_check_refuses_where_train_does(tmp_path: Path, capsys: Capture) -> None:
    root = write_files(tmp_path / "few", tree("a", "b", count=2))
    status, text = checked(root, capsys)
    assert status == 1
    assert cli.main(["train", str(root), "--data-dir", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    sentence = capsys.readouterr().err.removeprefix("vitreous: ").strip()
    assert sentence.rstrip(".") in text
