"""Packed data sets on disk: complete or absent, and refused with a remedy when damaged."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from sample_data import CLASSES, raw_split, toy_store
from vitreous.data import identity
from vitreous.data.packed import (
    FingerprintError,
    open_store,
    pack,
    packed_size,
    read_header,
    remove_store,
)
from vitreous.data.store import ImageStore, RawSplit
from vitreous.errors import VitreousError


def pack_at(path: Path, splits: dict[str, RawSplit], **more: object) -> ImageStore:
    return pack(path, name="toy", classes=CLASSES, splits=splits, source="a test", **more)  # type: ignore[arg-type]


@pytest.fixture
def splits() -> dict[str, RawSplit]:
    return {"train": raw_split([9, 4, 7]), "test": raw_split([3, 2, 1], seed=1)}


def test_packed_is_the_same_as_in_memory(
    tmp_path: Path, splits: dict[str, RawSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "CHUNK_BYTES", 6 * 6 * 3 * 4)  # several chunks, the last one short
    kept = toy_store(**splits)
    packed = pack_at(tmp_path / "toy", splits, extra={"state": "x"})
    for store in (packed, open_store(tmp_path / "toy")):
        assert isinstance(store.splits["train"].images, np.memmap)
        for split, part in kept.splits.items():
            np.testing.assert_array_equal(store.splits[split].images, part.images)
            np.testing.assert_array_equal(store.splits[split].labels, part.labels)
            assert store.splits[split].names == part.names
        same = ("name", "classes", "mean", "std", "fingerprint", "source", "num_classes", "image_size")
        assert all(getattr(store, key) == getattr(kept, key) for key in same)
        assert store.path == tmp_path / "toy"
    header = read_header(tmp_path / "toy")
    assert header is not None
    assert header["extra"] == {"state": "x"}
    assert header["splits"] == {"train": 20, "test": 6}
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]  # no partial folder is left


def test_torch_accepts_the_maps_without_a_warning_and_cannot_change_the_files(
    tmp_path: Path, splits: dict[str, RawSplit], recwarn: pytest.WarningsRecorder
) -> None:
    images = pack_at(tmp_path / "toy", splits).splits["train"].images
    torch.from_numpy(images)[:] = 7
    assert not recwarn.list
    assert not (open_store(tmp_path / "toy").splits["train"].images == 7).all()


def test_odd_names_survive(tmp_path: Path) -> None:
    images, labels, _ = raw_split([2, 1])
    names = ["train/ä/\udcff.png", "a\nb", '"']
    store = pack_at(tmp_path / "toy", {"train": (images, labels, names)})
    assert sorted(store.splits["train"].names) == sorted(names)


DYING = """
import os, sys
from pathlib import Path
import numpy as np
from vitreous.data.packed import pack

left = int(sys.argv[2])
def last_sync(descriptor, real=os.fsync):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
    real(descriptor)

os.fsync = last_sync
labels = np.arange(6) % 2
images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
split = (images, labels, list("abcdef"))
pack(Path(sys.argv[1]), name="toy", classes=["a", "b"], splits={"train": split}, source="")
"""


@pytest.mark.parametrize("syncs", [0, 1, 3])  # killed in the labels, the images, the header
def test_a_process_killed_while_packing_leaves_no_data_set(
    tmp_path: Path, splits: dict[str, RawSplit], syncs: int
) -> None:
    path = tmp_path / "toy"
    assert subprocess.run([sys.executable, "-c", DYING, str(path), str(syncs)], check=False).returncode == 9
    assert list(tmp_path.iterdir())  # it was killed in the middle
    assert read_header(path) is None
    with pytest.raises(VitreousError, match="contains no packed data set; import it again"):
        open_store(path)
    assert len(pack_at(path, splits).splits["train"]) == 20


def test_a_full_disk_is_reported_and_leaves_nothing(
    tmp_path: Path, splits: dict[str, RawSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(VitreousError, match=rf"holds {tmp_path / 'toy'} is full; free some space there"):
        pack_at(tmp_path / "toy", splits)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_reported_before_anything_is_written(
    tmp_path: Path, splits: dict[str, RawSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(VitreousError, match=r"Packing toy needs 3.8 kB at .*, where 1 bytes are free"):
        pack_at(tmp_path / "new" / "toy", splits)
    assert not (tmp_path / "new").exists()


def test_the_estimated_size_is_close_to_that_on_disk(tmp_path: Path) -> None:
    path = pack_at(tmp_path / "toy", {"train": raw_split([300, 100, 100], size=32)}).path
    assert path is not None
    size = sum(file.stat().st_size for file in path.iterdir())
    assert 0.98 * size < packed_size(500, 32) < 1.05 * size


@pytest.mark.parametrize("file", ["train_images.npy", "test_labels.npy", "train_names.json"])
@pytest.mark.parametrize("harm", ["cut", "absent"])
def test_a_damaged_cache_is_refused_with_the_command_that_removes_it(
    tmp_path: Path, splits: dict[str, RawSplit], file: str, harm: str
) -> None:
    path = pack_at(tmp_path / "toy", splits).path
    assert path is not None
    if harm == "cut":
        (path / file).write_bytes((path / file).read_bytes()[:-1])
    else:
        (path / file).unlink()
    with pytest.raises(VitreousError, match=rf"{file}.*vitreous data clear {path}` and import it again"):
        open_store(path)
    assert remove_store(path) > 0


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"splits": {"train": 5}},
        {"files": {}, "mean": None},
        {"std": [0.2, 0.0, 0.2]},
        {"mean": [0.5, 0.5]},
        {"std": ["a", "b", "c"]},
        {"mean": [0.5, 0.5, float("nan")]},
        {"classes": ["ant", "bee"]},
        {"classes": [1, 2, 3]},
        {"name": None},
        {"splits": {}},
    ],
)
def test_a_header_that_contradicts_the_files_is_refused(
    tmp_path: Path, splits: dict[str, RawSplit], change: dict[str, object]
) -> None:
    path = pack_at(tmp_path / "toy", splits).path
    assert path is not None
    header = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps(header | change))
    with pytest.raises(VitreousError, match="data clear"):
        open_store(path)


def test_files_that_contradict_the_header_are_refused(tmp_path: Path, splits: dict[str, RawSplit]) -> None:
    """Each keeps its size, so only its content differs."""
    path = tmp_path / "toy"
    pack_at(path, splits)
    for file, old, new in (
        ("train_labels.npy", (2).to_bytes(8, "little"), (3).to_bytes(8, "little")),
        ("train_labels.npy", (2).to_bytes(8, "little"), (-3).to_bytes(8, "little", signed=True)),
        ("train_labels.npy", b"'<i8'", b"'<f8'"),
        ("train_images.npy", b"'|u1'", b"'|i1'"),
        ("train_images.npy", b"(20, 6, 6, 3)", b"(20, 6, 6, 3 "),
        ("train_names.json", b'"p10"', b"10.01"),
    ):
        content = (path / file).read_bytes()
        assert old in content
        (path / file).write_bytes(content.replace(old, new, 1))
        with pytest.raises(VitreousError, match=r"is damaged .*import it again"):
            open_store(path)
        (path / file).write_bytes(content)
    open_store(path)
    header = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps(header | {"extra": None}))
    assert read_header(path)["extra"] == {}  # type: ignore[index]


def test_the_expected_fingerprint_is_required(tmp_path: Path, splits: dict[str, RawSplit]) -> None:
    with pytest.raises(FingerprintError):
        pack_at(tmp_path / "toy", splits, expected="0" * 64)
    assert list(tmp_path.iterdir()) == []
    found = pack_at(tmp_path / "toy", splits).fingerprint
    assert pack_at(tmp_path / "again", splits, expected=found).fingerprint == found


def test_an_equal_data_set_stays_and_a_different_one_is_replaced(
    tmp_path: Path, splits: dict[str, RawSplit]
) -> None:
    path = tmp_path / "toy"
    pack_at(path, splits)
    inode = path.stat().st_ino
    pack_at(path, splits)
    assert path.stat().st_ino == inode
    images, labels, names = splits["train"]
    old = open_store(path)
    kept = old.splits["train"].images.copy()
    new = pack_at(path, splits | {"train": (images[::-1] ^ 1, labels, names)})
    assert new.fingerprint != old.fingerprint
    np.testing.assert_array_equal(old.splits["train"].images, kept)  # whoever has it open keeps it
    assert [child.name for child in tmp_path.iterdir()] == ["toy"]


def test_an_unrelated_folder_is_never_replaced(tmp_path: Path, splits: dict[str, RawSplit]) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "mine").write_text("mine")
    with pytest.raises(VitreousError, match="toy could not be written"):
        pack_at(tmp_path / "toy", splits)
    assert (tmp_path / "toy" / "mine").read_text() == "mine"
    assert [child.name for child in tmp_path.iterdir()] == ["toy"]


def test_imports_at_the_same_time_all_end_well(tmp_path: Path, splits: dict[str, RawSplit]) -> None:
    found: list[ImageStore] = []
    threads = [
        threading.Thread(target=lambda: found.append(pack_at(tmp_path / "toy", splits))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert [child.name for child in tmp_path.iterdir()] == ["toy"]
    assert len({store.fingerprint for store in found}) == 1


def test_the_loser_of_a_race_uses_the_data_set_of_the_winner(
    tmp_path: Path, splits: dict[str, RawSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def overtaken(partial: Path, path: Path) -> Path:
        shutil.copytree(partial, path)  # another process finishes just before
        return rename(partial, path)

    monkeypatch.setattr(Path, "rename", overtaken)
    assert len(pack_at(tmp_path / "toy", splits).splits["train"]) == 20
    assert [child.name for child in tmp_path.iterdir()] == ["toy"]


def test_remove_store_touches_only_what_pack_wrote(tmp_path: Path, splits: dict[str, RawSplit]) -> None:
    path = pack_at(tmp_path / "toy", splits).path
    assert path is not None
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "store.json").write_text('{"format": "something else"}')
    assert remove_store(tmp_path / "link") == 0
    assert remove_store(tmp_path / "other") == 0
    assert remove_store(tmp_path / "absent") == 0
    size = sum(file.stat().st_size for file in path.iterdir())
    assert remove_store(path) == size
    assert sorted(child.name for child in tmp_path.iterdir()) == ["link", "other"]


def test_opening_reads_no_images(tmp_path: Path) -> None:
    path = pack_at(tmp_path / "toy", {"train": raw_split([1000, 500, 500], size=64)}).path  # 25 MB
    assert path is not None
    tracemalloc.start()
    images = open_store(path).splits["train"].images
    allocated = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert allocated < images.nbytes / 10
