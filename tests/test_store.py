from __future__ import annotations

import errno
import json
import shutil
import threading
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitreous.data import store as store_module
from vitreous.data.augment import normalize, to_float
from vitreous.data.store import (
    FingerprintError,
    ImageStore,
    RawSplit,
    canonical_order,
    from_arrays,
    in_memory,
    open_store,
    pack,
    packed_size,
    read_header,
    remove_store,
    resolve_splits,
)
from vitreous.errors import VitreousError
from vitreous.recipe import DataSection

CLASSES = ("ant", "bee", "cat")


def raw_split(per_class: list[int], seed: int = 0, size: int = 6) -> RawSplit:
    """Random pictures, `per_class` of each class, in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(per_class)), per_class))
    images = rng.integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8)
    return images, labels, [f"p{i}" for i in range(len(labels))]


def shuffled(split: RawSplit, seed: int) -> RawSplit:
    images, labels, names = split
    order = np.random.default_rng(seed).permutation(len(labels))
    return images[order], labels[order], [names[i] for i in order]


def pack_at(path: Path, splits: dict[str, RawSplit], **more: object) -> ImageStore:
    return pack(path, name="toy", classes=CLASSES, splits=splits, source="a test", **more)  # type: ignore[arg-type]


@pytest.fixture
def splits() -> dict[str, RawSplit]:
    return {"train": raw_split([9, 4, 7]), "test": raw_split([3, 2, 1], seed=1)}


# ---- canonical order, statistics, fingerprint


def test_order_is_by_class_and_each_picture_keeps_label_and_name(splits: dict[str, RawSplit]) -> None:
    images, labels, names = splits["train"]
    found = in_memory(name="toy", classes=CLASSES, splits=splits, source="").splits["train"]
    assert found.labels.tolist() == sorted(labels.tolist())
    assert found.labels.dtype == np.int64

    def by_name(*arrays: Any) -> dict[str, tuple[bytes, int]]:
        return {name: (image.tobytes(), label) for image, label, name in zip(*arrays, strict=True)}

    assert by_name(found.images, found.labels, found.names) == by_name(images, labels, names)


def test_the_order_of_the_source_does_not_matter(splits: dict[str, RawSplit]) -> None:
    images, labels, _ = splits["train"]
    images[1], labels[1] = images[0], labels[0]  # equal pictures: their names decide
    stores = [
        in_memory(
            name="toy",
            classes=CLASSES,
            splits={split: shuffled(raw, seed) for split, raw in splits.items()},
            source="",
        )
        for seed in (1, 2)
    ]
    for split in splits:
        one, other = (store.splits[split] for store in stores)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert one.names == other.names
    assert stores[0].fingerprint == stores[1].fingerprint
    assert (stores[0].mean, stores[0].std) == (stores[1].mean, stores[1].std)


def test_canonical_order_of_nothing_is_an_index() -> None:
    assert canonical_order(np.zeros((0, 2, 2, 3), np.uint8), np.zeros(0, np.int64), []).dtype == np.int64


def test_fingerprint_depends_on_pixels_labels_classes_and_splits_and_on_nothing_else(
    splits: dict[str, RawSplit],
) -> None:
    def fingerprint(classes: tuple[str, ...] = CLASSES, **changed: RawSplit) -> str:
        return in_memory(name="n", classes=classes, splits=splits | changed, source="s").fingerprint

    images, labels, names = splits["test"]
    pixel, label = images.copy(), labels.copy()
    pixel[0, 0, 0, 0] ^= 1
    label[0] = (label[0] + 1) % 3
    different = [
        fingerprint(),
        fingerprint(test=(pixel, labels, names)),
        fingerprint(test=(images, label, names)),
        fingerprint(("ant", "bee", "dog")),
        fingerprint(val=splits["test"]),
    ]
    assert len(set(different)) == len(different)
    assert fingerprint(test=(images, labels, ["other"] * len(labels))) == different[0]
    again = in_memory(name="other", classes=CLASSES, splits=splits, source="elsewhere")
    assert again.fingerprint == different[0]


def test_mean_and_std_are_the_training_split_s_in_units_of_one(splits: dict[str, RawSplit]) -> None:
    store = in_memory(name="toy", classes=CLASSES, splits=splits, source="")
    pixels = splits["train"][0].reshape(-1, 3) / 255.0
    np.testing.assert_allclose(store.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(store.std, pixels.std(axis=0), rtol=1e-12)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (17, 128, 254)])
def test_a_channel_that_is_the_same_everywhere_can_be_normalised(
    tmp_path: Path, colour: tuple[int, ...]
) -> None:
    images, labels, names = raw_split([9, 4, 7])
    images[..., 0] = colour[0]
    dark = np.zeros_like(images) + np.array(colour, np.uint8)
    for train in (images, dark):
        store = pack_at(tmp_path / "packed", {"train": (train, labels, names)})
        x = normalize(to_float(torch.from_numpy(store.splits["train"].images)), store.mean, store.std)
        assert x.isfinite().all() and x[:, 0].abs().max() < 1e-4
        other = normalize(to_float(torch.from_numpy(255 - train)), store.mean, store.std)
        assert other.abs().max() <= 256  # what is met later stays in bounds


def test_importers_mistakes_are_ours(splits: dict[str, RawSplit]) -> None:
    images, labels, names = splits["train"]
    for wrong in [
        {"test": splits["test"]},
        {"train": splits["train"], "extra": splits["test"]},
        {"train": (images.astype(np.float32), labels, names)},
        {"train": (images[:, :5], labels, names)},
        {"train": (images, labels[1:], names)},
        {"train": (images, labels + 1, names)},
        {"train": (images[:0], labels[:0], [])},
    ]:
        with pytest.raises(ValueError):
            in_memory(name="toy", classes=CLASSES, splits=wrong, source="")


# ---- on disk


def test_packed_is_the_same_as_in_memory(tmp_path: Path, splits: dict[str, RawSplit], monkeypatch) -> None:
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 6 * 6 * 3 * 4)  # several pieces, the last one short
    kept = in_memory(name="toy", classes=CLASSES, splits=splits, source="a test")
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
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]  # no partial folder


def test_torch_takes_the_maps_without_a_warning_and_cannot_change_the_files(
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


def test_a_half_written_cache_is_never_taken_for_whole(
    tmp_path: Path, splits: dict[str, RawSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_put_in_place", killed)
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # killed outright: nothing tidied
        with pytest.raises(KeyboardInterrupt):
            pack_at(tmp_path / "toy", splits)
    assert len(list(tmp_path.iterdir())) == 1
    assert read_header(tmp_path / "toy") is None
    with pytest.raises(VitreousError, match="holds no packed data set; import it again"):
        open_store(tmp_path / "toy")
    assert len(pack_at(tmp_path / "toy", splits).splits["train"]) == 20


def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    tmp_path: Path, splits: dict[str, RawSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(VitreousError, match=rf"holds {tmp_path / 'toy'} is full; free some space there"):
        pack_at(tmp_path / "toy", splits)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_said_before_anything_is_written(
    tmp_path: Path, splits: dict[str, RawSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(VitreousError, match=r"Packing toy needs 3.8 kB at .*, where 1 bytes are free"):
        pack_at(tmp_path / "new" / "toy", splits)
    assert not (tmp_path / "new").exists()
    assert packed_size(26, 6) == 26 * (6 * 6 * 3 + 40)


@pytest.mark.parametrize("file", ["train_images.npy", "test_labels.npy", "train_names.json"])
@pytest.mark.parametrize("harm", ["cut", "absent"])
def test_a_damaged_cache_is_refused_with_the_way_to_remove_it(
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
def test_a_header_that_lies_is_refused(
    tmp_path: Path, splits: dict[str, RawSplit], change: dict[str, object]
) -> None:
    path = pack_at(tmp_path / "toy", splits).path
    assert path is not None
    header = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps(header | change))
    with pytest.raises(VitreousError, match="data clear"):
        open_store(path)


def test_files_that_lie_are_refused(tmp_path: Path, splits: dict[str, RawSplit]) -> None:
    """Each is as long as it was, so that only what is in it tells."""
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


def test_an_equal_data_set_stays_and_another_is_replaced(tmp_path: Path, splits: dict[str, RawSplit]) -> None:
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
    np.testing.assert_array_equal(old.splits["train"].images, kept)  # who has it open keeps it
    assert [child.name for child in tmp_path.iterdir()] == ["toy"]


def test_a_folder_of_someone_else_s_is_never_replaced(tmp_path: Path, splits: dict[str, RawSplit]) -> None:
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


def test_the_loser_of_a_race_uses_the_winner_s(
    tmp_path: Path, splits: dict[str, RawSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def overtaken(partial: Path, path: Path) -> Path:
        shutil.copytree(partial, path)  # another process is done just before
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


def test_opening_the_size_of_cifar10_is_quick(tmp_path: Path) -> None:
    labels = np.arange(60_000) % 3
    images = np.zeros((60_000, 1, 1, 3), np.uint8)  # the pixels are only mapped, so their number is no matter
    path = pack_at(tmp_path / "toy", {"train": (images, labels, [f"train:{i}" for i in range(60_000)])}).path
    assert path is not None
    start = time.perf_counter()
    open_store(path)
    assert time.perf_counter() - start < 0.2


# ---- arrays


def test_from_arrays_takes_numpy_torch_and_grey() -> None:
    images, labels, _ = raw_split([5, 4, 3])
    store = from_arrays(images, labels, classes=["x", "y", "z"], test=(images[:4], labels[:4]), name="mine")
    assert (store.name, store.classes, store.path, store.image_size) == ("mine", ("x", "y", "z"), None, 6)
    names = store.splits["train"].names
    for image, name in zip(store.splits["train"].images, names, strict=True):
        np.testing.assert_array_equal(image, images[int(name.removeprefix("array:"))])
    assert len(store.splits["test"]) == 4
    tensors = from_arrays(torch.from_numpy(images), torch.from_numpy(labels), classes=["x", "y", "z"])
    assert tensors.classes == store.classes
    np.testing.assert_array_equal(tensors.splits["train"].images, store.splits["train"].images)
    grey = from_arrays(images[..., 0], labels.tolist())
    assert grey.classes == ("0", "1", "2")
    assert (grey.splits["train"].images == grey.splits["train"].images[..., :1]).all()


def test_from_arrays_keeps_the_meaning_of_labels_past_ten() -> None:
    images, labels, _ = raw_split([1] * 12)
    store = from_arrays(images, labels)
    assert store.classes[10] == "10"
    assert store.splits["train"].labels.tolist() == list(range(12))


def test_from_arrays_says_what_is_wrong() -> None:
    images, labels, _ = raw_split([5, 4, 3])
    wrong = [
        ((images / 255.0, labels), r"are float64; give uint8"),
        ((torch.from_numpy(images) / 255.0, labels), r"are float32; give uint8"),
        ((images.transpose(0, 3, 1, 2), labels), r"channels last \(`images.transpose\(0, 2, 3, 1\)`\)"),
        ((images[:, :4], labels), r"\(12, 4, 6, 3\); give square ones"),
        ((images[:0], labels[:0]), r"\(0, 6, 6, 3\)"),
        (([images[0], images[1][:3]], labels[:2]), "as one array"),
        ((images, labels[:3]), r"one integer for each of the 12 images"),
        ((images, labels + 0.5), r"labels are float64"),
        ((images, labels - 1), r"reach from -1 to 1"),
        ((images, labels, ["a", "b"]), r"reach from 0 to 2; give positions from 0 to 1"),
        ((images, labels * 2), r"none is 1; number the classes from 0 without gaps"),
        (
            (images, labels * 10**9),
            r"reach to 2000000000, but none is 1; number the classes from 0 without gaps",
        ),
        ((images, labels + 1), r"reach to 3, but none is 0; .* `open_data\(\(images, labels\), classes="),
        ((images, labels.astype(np.uint64) + np.uint64(2**63)), r"give positions from 0"),
        ((images, np.array(["a"] * 12)), r"labels are <U1"),
        ((torch.from_numpy(images).bfloat16(), labels), r"cannot be read as one array"),
        ((images.astype(object), labels), r"are object; give uint8"),
        ((images, labels, "abc"), r"class names are 'abc'; give a list"),
        ((images, labels, 3), r"class names are 3; give a list"),
        ((images, labels, ["a", "b", 3]), r"class name 3 is no text"),
        ((images, labels, ["a", "b", "\udcff"]), r"is no text"),
        ((images, labels, ["a", "b", ""]), r"class name '' is no text"),
        ((images, labels, ["a", "b", "a"]), r"Two classes have the name 'a'"),
        ((images, labels, None, (images[:, :4, :4], labels)), r"another size"),
    ]
    for arguments, text in wrong:
        with pytest.raises(VitreousError, match=text):
            from_arrays(*arguments)


# ---- splits


def toy(**splits: RawSplit) -> ImageStore:
    return in_memory(name="toy", classes=CLASSES, splits=splits, source="")


def test_all_three_splits_are_used_as_they_are() -> None:
    store = toy(train=raw_split([9, 4, 7]), val=raw_split([2, 2, 2], 1), test=raw_split([1, 2, 3], 2))
    splits = resolve_splits(store)
    for split, part in store.splits.items():
        assert getattr(splits, split) is part
    assert splits.notes == ()
    assert splits.record() == {"seed": 42, "val_fraction": 0.1, "cut_from_train": {}}


def test_validation_is_cut_by_class_from_unequal_classes() -> None:
    store = toy(train=raw_split([200, 35, 7]), test=raw_split([4, 4, 4], 1))
    splits = resolve_splits(store, 0.1, seed=3)
    assert Counter(splits.val.labels.tolist()) == {0: 20, 1: 4, 2: 1}
    assert Counter(splits.train.labels.tolist()) == {0: 180, 1: 31, 2: 6}
    assert splits.test is store.splits["test"]
    assert not set(splits.train.names) & set(splits.val.names)
    source = store.splits["train"]
    for part in (splits.train, splits.val):
        places = [source.names.index(name) for name in part.names]
        assert places == sorted(places)  # still in canonical order
        np.testing.assert_array_equal(part.images, source.images[places])
        np.testing.assert_array_equal(part.labels, source.labels[places])
    assert splits.notes == (
        "toy has no validation split: 25 of 242 training pictures were cut for it (by class, seed 3).",
    )
    record = json.loads(json.dumps(splits.record()))
    assert record == {"seed": 3, "val_fraction": 0.1, "cut_from_train": {"val": list(splits.val.names)}}


def test_train_only_gives_test_and_validation() -> None:
    splits = resolve_splits(toy(train=raw_split([50, 20, 30])), 0.2)
    counts = [Counter(part.labels.tolist()) for part in (splits.train, splits.val, splits.test)]
    assert counts == [{0: 30, 1: 12, 2: 18}, {0: 10, 1: 4, 2: 6}, {0: 10, 1: 4, 2: 6}]
    assert len({*splits.train.names, *splits.val.names, *splits.test.names}) == 100
    assert len(splits.notes) == 2
    assert set(splits.record()["cut_from_train"]) == {"val", "test"}


def test_train_and_val_makes_val_the_test_split() -> None:
    store = toy(train=raw_split([50, 20, 30]), val=raw_split([2, 3, 4], 1))
    splits = resolve_splits(store)
    assert splits.test is store.splits["val"]
    assert len(splits.val) == 10
    assert splits.notes[0].startswith("toy has train and val only: its val (9 pictures) is the test split")
    assert len(splits.notes) == 2


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.49])
def test_no_class_of_train_is_left_empty(fraction: float) -> None:
    splits = resolve_splits(toy(train=raw_split([1, 2, 3])), fraction)
    assert set(splits.train.labels.tolist()) == {0, 1, 2}
    assert len(splits.train) + len(splits.val) + len(splits.test) == 6
    assert len(splits.test) >= 2
    assert len(splits.val) >= 1


def test_a_class_without_training_pictures_is_left_alone() -> None:
    splits = resolve_splits(toy(train=raw_split([10, 0, 10]), test=raw_split([1, 1, 1])))
    assert Counter(splits.val.labels.tolist()) == {0: 1, 2: 1}


def test_the_cut_depends_on_the_seed_alone() -> None:
    raw = raw_split([50, 50, 50])
    one, same, other = (
        resolve_splits(toy(train=shuffled(raw, order)), seed=seed) for order, seed in [(0, 1), (1, 1), (0, 2)]
    )
    assert one.val.names == same.val.names
    assert one.val.names != other.val.names
    places = [[i % 50 for i in np.flatnonzero(np.isin(toy(train=raw).splits["train"].names, one.val.names))]]
    assert places[0][:5] != places[0][5:10] != places[0][10:]  # each class draws its own numbers
    assert resolve_splits(toy(train=raw), seed=-1).val.names
    assert resolve_splits(toy(train=shuffled(raw, 0)), seed=np.int64(1)).val.names == one.val.names  # type: ignore[arg-type]


def test_the_stream_of_the_cut_is_fixed() -> None:
    """A run's split is found again by later versions: these positions may never change."""
    labels = np.array([0] * 20 + [1])  # of the second class there is only one, so nothing of it is cut
    images = np.repeat(np.arange(21, dtype=np.uint8), 3).reshape(21, 1, 1, 3)
    store = from_arrays(images, labels)
    val = resolve_splits(store, 0.25, seed=42).val
    numbers = np.random.Philox(key=[42, 0]).random_raw(20)
    ranked = sorted(range(20), key=lambda position: numbers[position])
    names = store.splits["train"].names
    assert val.names == [names[position] for position in sorted(ranked[5:10])]  # the first five are for test


def test_pictures_of_one_class_are_not_trained_on() -> None:
    images, _, names = raw_split([9, 4, 7])
    ones = np.ones(20, np.int64)
    for store in (from_arrays(images, ones - 1), toy(train=(images, ones, names), test=raw_split([3, 2, 1]))):
        with pytest.raises(
            VitreousError, match=r"are of the class '(0|bee)'; training needs at least two classes"
        ):
            resolve_splits(store)


def test_too_little_to_cut_is_a_sentence() -> None:
    with pytest.raises(VitreousError, match="too few pictures to cut a test split"):
        resolve_splits(toy(train=raw_split([1, 1, 1])))
    with pytest.raises(VitreousError, match="too few pictures to cut a val split"):
        resolve_splits(toy(train=raw_split([2, 2, 1])))


def test_the_range_of_val_fraction_is_that_of_a_recipe() -> None:
    train_only, tested = (
        toy(train=raw_split([9, 9, 9])),
        toy(train=raw_split([9, 9, 9]), test=raw_split([3, 3, 3])),
    )
    for fraction in (0, 0.51, -0.1, 1.5, float("nan"), "0.1", None, True):
        with pytest.raises(VitreousError, match=r"give more than 0 and at most 0\.5"):
            resolve_splits(tested, fraction)  # type: ignore[arg-type]
    (setting,) = (field for field in fields(DataSection) if field.name == "val_fraction")
    low, high = setting.metadata["low"], setting.metadata["high"]
    assert (low, high) == (0.001, 0.5)
    assert len(resolve_splits(tested, low).val) == 3
    assert len(resolve_splits(tested, high).val) == 15  # 5 of each 9
    with pytest.raises(VitreousError, match=r"val_fraction 0.5 .* leaves none to train on"):
        resolve_splits(train_only, high)
    with pytest.raises(VitreousError, match="seed of the split is 'x'"):
        resolve_splits(tested, seed="x")  # type: ignore[arg-type]
