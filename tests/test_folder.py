"""Folders and zips of class folders, written by each test."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import stat
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sample_data import random_image, random_png, write_files, write_zip
from vitreous.data.decode import BadImage
from vitreous.data.folder import list_folder, open_tree, read_all
from vitreous.data.importing import import_folder
from vitreous.data.layout.entries import Entry
from vitreous.data.reading import ReadOptions, read_options
from vitreous.data.store import ImageStore
from vitreous.errors import VitreousError


def pets(splits: tuple[str, ...] = ("train/", "test/")) -> dict[str, bytes]:
    """Three images of each of two classes in each split, all different, all 32 × 32."""
    names = [f"{split}{label}/{i}.png" for split in splits for label in ("cat", "dog") for i in range(3)]
    return {name: random_png(seed) for seed, name in enumerate(names)}


class Opened:
    """`import_folder` with what it said."""

    def __init__(self, path: Path, data_dir: Path, image_size: int | None = None, skip_bad: bool = False):
        self.said: list[str] = []
        self.store: ImageStore = import_folder(
            path, data_dir, read_options(image_size, skip_bad=skip_bad), self.said.append
        )


def refusal(path: Path, tmp_path: Path, **options: object) -> str:
    with pytest.raises(VitreousError) as caught:
        Opened(path, tmp_path / "data", **options)  # type: ignore[arg-type]
    assert not list((tmp_path / "data").glob("datasets/*"))  # nothing half-written is left
    return str(caught.value)


def state_of(root: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
    }


# ---- what comes out


def test_images_of_the_right_size_stay_the_same_bit_for_bit(tmp_path: Path) -> None:
    files = pets(("train/", "valid/", "test/"))
    root = write_files(tmp_path / "pets", files)
    before = state_of(root)
    store = Opened(root, tmp_path / "data").store
    assert state_of(root) == before
    assert (store.name, store.classes, store.image_size) == ("pets", ("cat", "dog"), 32)
    assert set(store.splits) == {"train", "val", "test"}
    seen = {}
    for split in store.splits.values():
        for image, label, name in zip(split.images, split.labels, split.names, strict=True):
            assert store.classes[label] == name.split("/")[1]
            seen[name] = np.array(image)
    assert seen.keys() == files.keys()
    for name, data in files.items():
        np.testing.assert_array_equal(seen[name], np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("splits", [("",), ("train/", "val/"), ("Train/", "VALIDATION/", "test/")])
def test_a_zip_is_the_same_data_set_as_its_folder(tmp_path: Path, splits: tuple[str, ...]) -> None:
    files = pets(splits)
    noise = {"__MACOSX/train/cat/._0.png": b"x", ".git/config": b"x", "README.txt": b"x"}
    litter = {f"{splits[0]}cat/{name}": b"x" for name in (".DS_Store", "Thumbs.db", "desktop.ini")}
    stores = [
        Opened(path, tmp_path / "data").store
        for path in (
            write_files(tmp_path / "pets", files | litter),
            write_zip(tmp_path / "plain.zip", files | noise),
            write_zip(tmp_path / "nested.ZIP", files, top="my pets/"),
            write_zip(tmp_path / "dotted.zip", files | litter, top="./"),
            write_zip(
                tmp_path / "littered.zip", {f"top/{name}": data for name, data in files.items()} | noise
            ),
        )
    ]
    assert len({store.fingerprint for store in stores}) == 1
    for store in stores:
        assert {split: list(part.names) for split, part in store.splits.items()} == {
            split: list(part.names) for split, part in stores[0].splits.items()
        }


def test_any_size_and_mode_becomes_square_colour(tmp_path: Path) -> None:
    root = write_files(tmp_path / "mixed", pets(("",)))
    Image.new("L", (300, 200), 77).save(root / "cat" / "grey.JPEG")
    Image.new("CMYK", (90, 120)).save(root / "dog" / "ink.tif")
    Image.new("RGBA", (50, 50)).save(root / "dog" / "clear.webp")
    store = Opened(root, tmp_path / "data", image_size=48).store
    train = store.splits["train"]
    assert train.images.shape == (9, 48, 48, 3)
    grey = train.images[list(train.names).index("cat/grey.JPEG")]
    assert np.unique(grey).tolist() == [77]


@pytest.mark.parametrize(("side", "size"), [(28, 32), (47, 32), (48, 64), (500, 64)])
def test_the_default_size_follows_the_images(tmp_path: Path, side: int, size: int) -> None:
    files = {f"{label}/{i}.png": random_png(i, side, side + 20) for label in "ab" for i in range(2)}
    opened = Opened(write_zip(tmp_path / "some.zip", files), tmp_path / "data")
    assert opened.store.image_size == size
    told = [line for line in opened.said if "--image-size" in line]
    assert len(told) == 1 and f"{size} by {size}" in told[0] and str(side) in told[0]


def test_names_of_every_kind(tmp_path: Path) -> None:
    labels = ["Frühling 雪", "a b", "#1 (x)", "it's"]
    files = {f"{label}/b ü {i}.PNG": random_png(i + 9 * n) for n, label in enumerate(labels) for i in (1, 2)}
    root = write_files(tmp_path / "meine Bilder", files)
    store = Opened(root, tmp_path / "data").store
    assert store.classes == tuple(sorted(labels))
    # A Mac writes ü as u and two dots, and does not always mark the names in its zips as UTF-8.
    path = write_zip(
        tmp_path / "mac.zip", {name.replace("ü", "u\u0308"): data for name, data in files.items()}
    )
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        marks = [info.header_offset + 7 for info in archive.infolist()]
        at = archive.start_dir
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        marks.append(at := at + 9)
    for mark in marks:
        data[mark] &= ~8
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert not any("ü" in name or "u\u0308" in name for name in archive.namelist())
    mac = Opened(path, tmp_path / "data").store
    assert (mac.fingerprint, mac.splits["train"].names) == (store.fingerprint, store.splits["train"].names)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    files = {f"{label}/{i}.png": random_png(i) for label in ("bus", "train") for i in range(2)}
    assert Opened(write_files(tmp_path / "vehicles", files), tmp_path / "data").store.classes == (
        "bus",
        "train",
    )


def test_split_folders_in_capitals_beside_others(tmp_path: Path) -> None:
    files = {"Train/a/1.png": b"", "Train/b/1.png": b"", "TEST/a/2.png": b"", "notes/read me.txt": b""}
    with open_tree(write_files(tmp_path / "pets", files)) as tree:
        assert (tree.layout.splits, tree.layout.classes) == (("train", "test"), ("a", "b"))
        assert tree.layout.passed_over[0].names == ("notes/read me.txt",)


def test_deeper_folders_belong_to_their_class(tmp_path: Path) -> None:
    files = {
        "cat/indoors/1.png": random_png(1),
        "cat/2.png": random_png(2),
        "dog/x/y/3.png": random_png(3),
    }
    store = Opened(write_files(tmp_path / "deep", files), tmp_path / "data").store
    assert store.splits["train"].labels.tolist() == [0, 0, 1]


# ---- the cache


def test_a_second_opening_reads_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (write_files(tmp_path / "pets", pets()), write_zip(tmp_path / "pets.zip", pets())):
        first = Opened(path, tmp_path / "data")
        assert any("will take" in line and "data clear" in line for line in first.said)
        with monkeypatch.context() as patch:
            patch.setattr("vitreous.data.importing.decode_to", None)
            patch.setattr("vitreous.data.importing.image_dimensions", None)
            for image_size in (None, 32):
                again = Opened(path, tmp_path / "data", image_size)
                assert again.store.path == first.store.path and not again.said
    assert len(list((tmp_path / "data" / "datasets").iterdir())) == 2


def test_sizes_are_kept_apart(tmp_path: Path) -> None:
    root = write_files(tmp_path / "pets", pets())
    sizes = [Opened(root, tmp_path / "data", size).store.image_size for size in (64, None, 32, 64)]
    assert sizes == [64, 32, 32, 64]


@pytest.mark.parametrize("as_zip", [False, True])
def test_a_changed_source_is_packed_anew(tmp_path: Path, as_zip: bool) -> None:
    def write_source(files: dict[str, bytes]) -> Path:
        if as_zip:
            return write_zip(tmp_path / "pets.zip", files)
        shutil.rmtree(tmp_path / "pets", ignore_errors=True)
        return write_files(tmp_path / "pets", files)

    files = pets()
    first = Opened(write_source(files), tmp_path / "data").store
    files["train/cat/9.png"] = random_png(99)
    second = Opened(write_source(files), tmp_path / "data").store
    assert len(second.splits["train"]) == len(first.splits["train"]) + 1
    assert second.fingerprint != first.fingerprint
    assert len(list((tmp_path / "data" / "datasets").iterdir())) == 1  # the old one is not left behind


def test_an_empty_class_folder_counts_as_changed(tmp_path: Path) -> None:
    root = write_files(tmp_path / "pets", pets())
    Opened(root, tmp_path / "data")
    (root / "train" / "eel").mkdir()
    assert any("1 class folder has no images" in line for line in Opened(root, tmp_path / "data").said)


def test_a_touched_file_counts_as_changed(tmp_path: Path) -> None:
    root = write_files(tmp_path / "pets", pets())
    Opened(root, tmp_path / "data")
    (root / "train/cat/0.png").write_bytes(random_png(1000))
    os.utime(root / "train/cat/0.png", ns=(1, 1))
    images = Opened(root, tmp_path / "data").store.splits["train"].images
    assert any(np.array_equal(image, random_image(1000)) for image in images)


def test_no_space_is_said_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_files(tmp_path / "pets", pets())
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("vitreous.files.shutil.disk_usage", lambda path: usage)
    monkeypatch.setattr("vitreous.data.importing.decode_to", None)
    assert "free some space" in refusal(root, tmp_path)


# ---- bad files


def test_every_bad_file_is_listed_and_can_be_skipped(tmp_path: Path) -> None:
    files = pets()
    whole = files["train/cat/0.png"]
    bad = {
        "train/cat/text.jpg": b"hello",
        "train/dog/cut.png": whole[: len(whole) // 2],
        "test/cat/empty.png": b"",
    }
    root = write_files(tmp_path / "pets", files | bad)
    message = refusal(root, tmp_path)
    first, *lines = message.splitlines()
    assert "3 of the 15 files" in first and "--skip-bad" in first and f"`vitreous data check {root}`" in first
    assert {line.split(":")[0].strip() for line in lines} == set(bad)
    opened = Opened(root, tmp_path / "data", skip_bad=True)
    assert any(line.startswith("3 of 15 files") for line in opened.said)
    assert (
        opened.store.fingerprint
        == Opened(write_zip(tmp_path / "good.zip", files), tmp_path / "data").store.fingerprint
    )
    # What was packed with files left out is not opened as if it were all.
    with pytest.raises(VitreousError, match="3 of the 15 files"):
        Opened(root, tmp_path / "data")
    assert any(
        line.startswith("3 of 15 files") for line in Opened(root, tmp_path / "data", skip_bad=True).said
    )


def test_a_long_list_of_bad_files_is_shortened(tmp_path: Path) -> None:
    root = write_files(tmp_path / "pets", pets() | {f"train/cat/{i}x.jpg": b"hello" for i in range(300)})
    first, *lines = refusal(root, tmp_path).splitlines()
    assert "300 of the 312 files" in first
    assert len(lines) == 11 and lines[-1] == "  … and 290 more"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_bad(tmp_path: Path) -> None:
    root = write_files(tmp_path / "pets", pets())
    (root / "train/cat/0.png").chmod(0)
    assert "train/cat/0.png: unreadable (permission denied)" in refusal(root, tmp_path)


def test_a_failing_read_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_files(tmp_path / "pets", pets())
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path == root / "train/cat/0.png":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert "train/cat/0.png: unreadable (permission denied)" in refusal(root, tmp_path)


def test_a_class_with_only_bad_images_is_refused(tmp_path: Path) -> None:
    files = pets() | {"train/eel/1.png": b"x"}
    assert "'eel'" in refusal(write_files(tmp_path / "pets", files), tmp_path, skip_bad=True)


def test_a_class_without_training_images_is_refused(tmp_path: Path) -> None:
    files = pets() | {"test/eel/1.png": random_png(5)}
    assert "'eel'" in refusal(write_files(tmp_path / "pets", files), tmp_path)


# ---- untrusted archives, and links


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "pets.zip", pets())
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("train/cat/b.png", "w") as file,
    ):
        for _ in range(257):
            file.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    unpacked = []
    read = zipfile.ZipExtFile.read

    def recording_read(self: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
        unpacked.append(self.name)
        return read(self, n)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", recording_read)
    assert "train/cat/b.png: too large" in refusal(path, tmp_path)
    assert "train/cat/0.png" in unpacked and "train/cat/b.png" not in unpacked


@pytest.mark.parametrize(
    "name", ["../cat/x.png", "/cat/x.png", "train/../../x.png", "C:/cat/x.png", "..\\cat\\x.png"]
)
def test_names_that_lead_out_of_a_zip_are_refused(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "pets.zip", pets() | {name: random_png(7)})
    assert "leads out of the archive" in refusal(path, tmp_path)


def test_an_encrypted_or_damaged_member_is_bad(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "pets.zip", pets())
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("train/cat/1.png").header_offset
    data[start + 200] ^= 0xFF  # in the compressed pixels
    first_in_directory = data.index(b"PK\x01\x02")
    data[first_in_directory + 8] |= 1  # "encrypted", of train/cat/0.png
    path.write_bytes(data)
    message = refusal(path, tmp_path)
    assert "2 of the 12 files" in message
    assert "train/cat/0.png: unreadable (encrypted)" in message
    assert "train/cat/1.png: unreadable (damaged in the zip)" in message


def test_links_are_followed_wherever_they_lead(tmp_path: Path) -> None:
    files = pets()
    pool = write_files(tmp_path / "pool", {name: data for name, data in files.items() if "/cat/" in name})
    root = write_files(
        tmp_path / "pets", {name: data for name, data in files.items() if "train/dog/" in name}
    )
    (root / "train/cat").mkdir()
    for file in (pool / "train/cat").iterdir():
        (root / "train/cat" / file.name).symlink_to(file)
    (tmp_path / "other").mkdir()
    (root / "test").symlink_to(tmp_path / "other")
    (tmp_path / "other/cat").symlink_to(pool / "test/cat")
    dogs = write_files(tmp_path / "dogs", {f"{i}.png": files[f"test/dog/{i}.png"] for i in range(3)})
    (tmp_path / "other/dog").symlink_to(Path("..") / dogs.name)
    plain = Opened(write_files(tmp_path / "plain", files), tmp_path / "data").store
    linked = Opened(root, tmp_path / "data").store
    assert linked.fingerprint == plain.fingerprint
    assert {split: part.names for split, part in linked.splits.items()} == {
        split: part.names for split, part in plain.splits.items()
    }
    # A changed target is a changed source.
    (pool / "train/cat/0.png").write_bytes(random_png(1000))
    assert Opened(root, tmp_path / "data").store.fingerprint != plain.fingerprint


def test_dangling_links_are_problems(tmp_path: Path) -> None:
    root = write_files(tmp_path / "pets", pets())
    (root / "train/cat/broken.png").symlink_to(tmp_path / "nothing.png")
    (root / "train/cat/self.png").symlink_to(root / "train/cat/self.png")
    (root / "train/cat/notes.txt").symlink_to(tmp_path / "nothing.txt")
    (root / "train/cow").symlink_to(tmp_path / "unplugged disk")
    message = refusal(root, tmp_path)
    assert "3 of the 15 files" in message
    assert f"train/cat/broken.png: dangling link (it leads to {tmp_path / 'nothing.png'}" in message
    assert "train/cat/self.png: dangling link" in message
    assert f"train/cow: dangling link (it leads to {tmp_path / 'unplugged disk'}" in message
    first = Opened(root, tmp_path / "data", skip_bad=True).store
    (tmp_path / "nothing.png").write_bytes(random_png(1001))
    second = Opened(root, tmp_path / "data", skip_bad=True).store
    assert len(second.splits["train"]) == len(first.splits["train"]) + 1


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    root = write_files(tmp_path / "pets", pets())
    (root / "train/cat/up").symlink_to(root / "train")
    (root / "again").symlink_to(root)
    pool = write_files(tmp_path / "pool", {"a/1.png": b"", "b/2.png": b""})
    (pool / "a/to b").symlink_to(pool / "b")
    (pool / "b/to a").symlink_to(pool / "a")
    with open_tree(root) as tree:
        assert len(tree.layout.entries) == 12 and tree.layout.splits == ("train", "test")
        assert tree.layout.understood == (
            "2 links lead back to folders that hold them and were not followed, such as again.",
        )
    (root / "again").unlink()
    assert list_folder(root).notes == [
        "1 link leads back to a folder that holds it and was not followed: train/cat/up."
    ]
    listing = list_folder(pool)
    assert sorted(listing.files) == ["a/1.png", "a/to b/2.png", "b/2.png", "b/to a/1.png"]


class Unreachable:
    """An entry of a folder whose names may be listed and whose entries cannot be reached."""

    def __init__(self, item: os.DirEntry[str], error: OSError):
        self.name, self.path, self.error = item.name, item.path, error

    def stat(self, follow_symlinks: bool = True) -> os.stat_result:
        raise self.error

    def is_symlink(self) -> bool:
        return False


def unreachable(monkeypatch: pytest.MonkeyPatch, name: str, error: OSError) -> None:
    """Lets every entry whose path contains `name` fail with `error`."""
    scandir = os.scandir
    monkeypatch.setattr(
        "vitreous.data.folder.os.scandir",
        lambda path: [Unreachable(i, error) if name in i.path else i for i in scandir(path)],
    )


def test_a_folder_that_can_only_be_listed_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_files(tmp_path / "pets", pets())
    unreachable(monkeypatch, "train/dog/", PermissionError(13, "Permission denied"))
    listing = list_folder(root)
    assert listing.unusable == {
        "train/dog": ("unreadable", "a folder: permission denied; correct its permissions")
    }
    assert "train/dog" not in listing.folders and not any("train/dog/" in name for name in listing.files)
    unreachable(monkeypatch, "pets/", PermissionError(13, "Permission denied"))
    with pytest.raises(VitreousError, match=r"pets cannot be read \(permission denied\)"):
        list_folder(root)


def test_a_file_that_vanishes_during_listing_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_files(tmp_path / "pets", pets())
    unreachable(monkeypatch, "dog/1.png", FileNotFoundError(2, "No such file or directory"))
    with open_tree(root) as tree:
        assert [(problem.name, problem.reason, problem.detail) for problem in tree.layout.problems] == [
            (f"{split}/dog/1.png", "unreadable", "no such file or directory") for split in ("test", "train")
        ]


def test_links_that_multiply_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitreous.data.folder.MAX_LINKS", 1000)
    root = tmp_path / "pets"
    for level in range(30):  # 2^30 paths
        (root / f"{level}").mkdir(parents=True)
        for name in ("a", "b"):
            (root / f"{level}" / name).symlink_to(root / f"{level + 1}")
    with pytest.raises(VitreousError, match="too many files or links"):
        list_folder(root)


def test_links_in_a_zip_are_never_followed(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "pets.zip", pets())
    secret = write_files(tmp_path, {"secret.png": random_png(50)}) / "secret.png"
    link = zipfile.ZipInfo("train/cat/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, str(secret))
    with open_tree(path) as tree:
        assert "train/cat/link.png" not in {entry.location for entry in tree.layout.entries}


def test_a_folder_that_may_not_be_read_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_files(tmp_path / "pets", pets())
    scan = os.scandir

    def failing(path: Path) -> object:
        if Path(path) == root / "train/cow":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", failing)
    (root / "train/cow").mkdir()
    message = refusal(root, tmp_path)
    assert "train/cow: unreadable (a folder: permission denied; correct its permissions)" in message


def test_litter_is_not_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    litter = {".git/objects/1.png": b"", "train/cat/@eaDir/0.png/x.jpg": b"", "train/cat/.DS_Store": b""}
    root = write_files(tmp_path / "pets", pets() | litter)
    path = write_zip(tmp_path / "pets.zip", pets() | litter)
    scanned = []
    scan = os.scandir

    def recording(path: Path) -> object:
        scanned.append(str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", recording)
    with open_tree(root) as of_folder, open_tree(path) as of_zip:
        assert of_folder.layout == of_zip.layout
        assert [group.text for group in of_zip.layout.passed_over] == [
            "3 files left by the system or by other programs"
        ]
    assert not [path for path in scanned if ".git" in path or "@eaDir" in path]


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="names there are Unicode")
def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for seed, folder in enumerate((b"caf\xe9", b"caf\xe8")):
        place = root / os.fsdecode(folder)
        place.mkdir(parents=True)
        for i in range(3):
            (place / os.fsdecode(b"%d\xff.png" % i)).write_bytes(random_png(10 * seed + i))
    store = Opened(root, tmp_path / "data").store
    assert store.classes == ("caf\\xe8", "caf\\xe9")
    assert store.splits["train"].labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert Opened(root, tmp_path / "data").store.splits["train"].names == store.splits["train"].names


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    root = write_files(tmp_path / "pets", pets())
    os.mkfifo(root / "train/cat/pipe.png")
    assert "pipe.png: not an image" in refusal(root, tmp_path)


# ---- refusals


def test_refusals_name_the_thing_and_the_mend(tmp_path: Path) -> None:
    one = random_png(1)
    root = write_files(tmp_path / "flowers", pets())
    cases = {
        tmp_path / "flower": f"did you mean {root}?",
        tmp_path / "elsewhere" / "flowers": "check the path",
        write_files(tmp_path / "text", {"a.txt": b"no zip"}) / "a.txt": "neither a folder nor a zip",
        write_files(tmp_path / "flat", {"1.png": one, "2.png": one}): "has no class folders",
        write_files(tmp_path / "flat2", {"train/1.png": one, "test/2.png": one}): "has no class folders",
        write_files(tmp_path / "single", {"cat/1.png": one}): "only the class 'cat'",
        write_files(tmp_path / "untrained", {"test/a/1.png": one, "val/b/2.png": one}): "no images in train/",
        write_files(tmp_path / "twice", pets(("train/", "val/", "valid/"))): "val/ and valid/",
        write_files(tmp_path / "bare", {".DS_Store": b"x"}): "contains no images",
        write_zip(tmp_path / "bare.zip", {}): "contains no images",
    }
    (tmp_path / "bare" / "cat").mkdir()
    for path, words in cases.items():
        message = refusal(path, tmp_path)
        assert words in message and str(path) in message and "\n" not in message
    assert "image size is 0" in refusal(root, tmp_path, image_size=0)


# The inputs that people have, as real files: their names, and the number of images by split.
INPUTS = {
    "A1": (
        [f"{s}/{c}/{i}.png" for s in ("Training", "Testing") for c in "ab" for i in range(3)],
        {"train": 6, "test": 6},
    ),
    "A2": (
        [f"{s}/{s}/{c}/{i}.png" for s in ("training_set", "test_set") for c in "ab" for i in range(3)],
        {"train": 6, "test": 6},
    ),
    "B1": ([f"{c}/{i}.{suffix}" for c in "ab" for i in range(3) for suffix in ("png", "txt")], {"train": 6}),
    "B2": (
        [f"{c}/{i}.png{stream}" for c in "ab" for i in range(3) for stream in ("", ":Zone.Identifier")],
        {"train": 6},
    ),
    "I1": ([*(f"pictures/{i}.png" for i in range(6)), "labels.csv"], {"train": 6}),
}


@pytest.mark.skipif(os.name != "posix", reason="names with a colon")
@pytest.mark.parametrize(("names", "counts"), INPUTS.values(), ids=INPUTS)
def test_inputs_that_people_have(tmp_path: Path, names: list[str], counts: dict[str, int]) -> None:
    files = {name: random_png(i) if name.endswith(".png") else b"a caption" for i, name in enumerate(names)}
    if "labels.csv" in files:
        rows = [f"pictures/{i}.png,{'ab'[i % 2]}\n" for i in range(6)]
        files["labels.csv"] = "".join(["file,label\n", *rows]).encode()
    root = write_files(tmp_path / "data set", files)
    zips = [
        write_zip(tmp_path / "plain.zip", files),
        write_zip(tmp_path / "wrapped.zip", files, top="data set/"),
        write_zip(tmp_path / "mac.zip", files | {"__MACOSX/a/._0.png": b"x"}),
    ]
    with open_tree(root) as tree:
        layout = tree.layout
    for path in zips:
        with open_tree(path) as tree:
            assert tree.layout.entries == layout.entries or path.name == "wrapped.zip"
            assert [entry.name for entry in tree.layout.entries] == [entry.name for entry in layout.entries]
            assert tree.layout.understood == layout.understood
    stores = [Opened(path, tmp_path / "cache").store for path in (root, *zips)]
    assert len({store.fingerprint for store in stores}) == 1
    assert {split: len(part) for split, part in stores[0].splits.items()} == counts
    assert stores[0].classes == ("a", "b")


def test_the_tree_of_a_folder_and_a_zip(tmp_path: Path) -> None:
    files = pets() | {"train/list.csv": b"", "extra/1.png": b"", "train/cat/sub/1.png": b""}
    root = write_files(tmp_path / "pets", files)
    (root / "test/eel").mkdir()
    with zipfile.ZipFile(write_zip(tmp_path / "pets.zip", files), "a") as archive:
        archive.writestr("test/eel/", "")
    for path in (root, tmp_path / "pets.zip"):
        with open_tree(path) as tree:
            assert tree.layout.splits == ("train", "test") and tree.layout.classes == ("cat", "dog")
            assert tree.layout.empty == ("test/eel",)
            passed_over = {group.kind: group.names for group in tree.layout.passed_over}
            assert passed_over == {
                ".csv": ("train/list.csv",),
                "in extra/, which is no split": ("extra/1.png",),
            }
            assert [entry.name for entry in tree.layout.entries] == sorted(
                set(files) - {"extra/1.png", "train/list.csv"},
                key=lambda name: (name.startswith("test"), name),
            )
            assert tree.read(tree.layout.entries[0].location) == files["train/cat/0.png"]


def test_a_zip_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "pets.zip", pets())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(VitreousError, match="not a complete zip"):
        import_folder(path, tmp_path / "data", ReadOptions(), lambda line: None)


@pytest.mark.parametrize("pattern", [b"a", re.compile(b"a"), 3, "("])
def test_groups_are_told_by_a_regular_expression_of_text(pattern: object) -> None:
    with pytest.raises(VitreousError, match=r"group_by is .* not a regular expression"):
        read_options(group_by=pattern)


def test_the_first_bytes_of_a_file_can_be_read_alone(tmp_path: Path) -> None:
    files = pets()
    for path in (write_files(tmp_path / "pets", files), write_zip(tmp_path / "pets.zip", files)):
        with open_tree(path) as tree:
            assert tree.read("train/cat/0.png", 20) == files["train/cat/0.png"][:20]


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_reader_that_is_installed_later_is_noticed(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = pets() | {"train/cat/9.heic": (Path(__file__).parent / "data/one.heic").read_bytes()}
    path = write_files(tmp_path / "pets", files) if form == "folder" else write_zip(tmp_path / "p.zip", files)
    with monkeypatch.context() as without:
        without.setattr("vitreous.data.decode._heif_is_known", lambda: False)
        assert len(Opened(path, tmp_path / "data", 32, skip_bad=True).store.splits["train"].labels) == 6
    assert len(Opened(path, tmp_path / "data", 32, skip_bad=True).store.splits["train"].labels) == 7
    with monkeypatch.context() as without:
        again = Opened(path, tmp_path / "data", 32, skip_bad=True)
        assert not any("will take about" in line for line in again.said)  # packed already
        without.setattr("vitreous.profiles.available", lambda: False)
        again = Opened(path, tmp_path / "data", 32, skip_bad=True)
        assert any("will take about" in line for line in again.said)


# ---- threads


@pytest.mark.parametrize(("size", "threads"), [(100, False), (100_000, True)])
def test_threads_read_files_that_are_worth_it_and_the_order_stays(size: int, threads: bool) -> None:
    entries = [Entry(f"a/{i}.png", "train", "a", str(i)) for i in range(1000)]
    seen: set[str] = set()

    def read(entry: Entry) -> bytes:
        if entry.location == "7":
            raise BadImage("truncated")
        return entry.location.encode().ljust(size)

    def work(data: bytes) -> int:
        seen.add(threading.current_thread().name)
        return int(data)

    results = list(read_all(entries, read, work))
    assert [entry for entry, _ in results] == entries
    assert [result for _, result in results if not isinstance(result, BadImage)] == [
        i for i in range(1000) if i != 7
    ]
    assert isinstance(results[7][1], BadImage)
    here = threading.current_thread().name
    assert (seen == {here}) != threads and here in seen


def test_large_results_do_not_pile_up() -> None:
    size = 3 * 2**20  # 1024 by 1024 pixels
    entries = [Entry(f"a/{i}.png", "train", "a", str(i)) for i in range(400)]
    lock, done, taken, most = threading.Lock(), 0, 0, 0

    def work(data: bytes) -> int:
        nonlocal done, most
        with lock:
            done += 1
            most = max(most, done - taken)
        return int(data)

    order = []
    for _, result in read_all(entries, lambda entry: entry.location.encode().ljust(10_000), work, size):
        with lock:
            taken += 1
        order.append(result)
        time.sleep(0.0005)  # the threads could run ahead
    assert order == list(range(400))
    assert most * size <= 1.5 * 64 * 2**20


def test_an_error_in_a_thread_ends_the_reading() -> None:
    entries = [Entry(f"a/{i}.png", "train", "a", str(i)) for i in range(400)]

    def work(data: bytes) -> int:
        if int(data) == 300:
            raise RuntimeError("a bug")
        return int(data)

    with pytest.raises(RuntimeError, match="a bug"):
        list(read_all(entries, lambda entry: entry.location.encode().ljust(10_000), work))
