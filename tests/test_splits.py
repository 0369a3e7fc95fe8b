"""The splits of a run: taken from the source, or cut from its training split by class and seed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields, replace
from itertools import combinations

import numpy as np
import pytest

from sample_data import CLASSES, raw_split, shuffled, toy_store
from vitreous.data.arrays import from_arrays
from vitreous.data.splits import join_groups, plan_cut, plan_splits, resolve_splits
from vitreous.data.store import RawSplit, Split, in_memory
from vitreous.errors import VitreousError
from vitreous.recipe import DataSection


def test_three_splits_are_used_unchanged() -> None:
    store = toy_store(train=raw_split([9, 4, 7]), val=raw_split([2, 2, 2], 1), test=raw_split([1, 2, 3], 2))
    splits = resolve_splits(store)
    for split, part in store.splits.items():
        assert getattr(splits, split) is part
    assert splits.notes == ()
    assert splits.record() == {
        "seed": 42,
        "val_fraction": 0.1,
        "cut_from_train": {},
        "cut_positions": {},
        "fingerprint": store.fingerprint,
    }


def test_validation_is_cut_by_class_from_unequal_classes() -> None:
    store = toy_store(train=raw_split([200, 35, 7]), test=raw_split([4, 4, 4], 1))
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
        "toy has no validation split: 25 of 242 training images were cut for it (by class, seed 3).",
    )
    record = json.loads(json.dumps(splits.record()))
    assert record == {
        "seed": 3,
        "val_fraction": 0.1,
        "cut_from_train": {"val": list(splits.val.names)},
        "cut_positions": {"val": [source.names.index(name) for name in splits.val.names]},
        "fingerprint": store.fingerprint,
    }


def test_train_only_gives_test_and_validation() -> None:
    splits = resolve_splits(toy_store(train=raw_split([50, 20, 30])), 0.2)
    counts = [Counter(part.labels.tolist()) for part in (splits.train, splits.val, splits.test)]
    assert counts == [{0: 30, 1: 12, 2: 18}, {0: 10, 1: 4, 2: 6}, {0: 10, 1: 4, 2: 6}]
    assert len({*splits.train.names, *splits.val.names, *splits.test.names}) == 100
    assert len(splits.notes) == 2
    assert set(splits.record()["cut_from_train"]) == {"val", "test"}


def test_train_and_val_makes_val_the_test_split() -> None:
    store = toy_store(train=raw_split([50, 20, 30]), val=raw_split([2, 3, 4], 1))
    splits = resolve_splits(store)
    assert splits.test is store.splits["val"]
    assert len(splits.val) == 10
    assert splits.notes[0].startswith(
        "toy has only train and val: its val (9 images) serves as the test split"
    )
    assert len(splits.notes) == 2


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.49])
def test_no_class_of_train_is_left_empty(fraction: float) -> None:
    splits = resolve_splits(toy_store(train=raw_split([1, 2, 3])), fraction)
    assert set(splits.train.labels.tolist()) == {0, 1, 2}
    assert len(splits.train) + len(splits.val) + len(splits.test) == 6
    assert len(splits.test) >= 2
    assert len(splits.val) >= 1


def test_a_class_without_training_images_stays_out_of_the_cut() -> None:
    splits = resolve_splits(toy_store(train=raw_split([10, 0, 10]), test=raw_split([1, 1, 1])))
    assert Counter(splits.val.labels.tolist()) == {0: 1, 2: 1}


def test_the_cut_depends_on_the_seed_alone() -> None:
    raw = raw_split([50, 50, 50])
    one, same, other = (
        resolve_splits(toy_store(train=shuffled(raw, order)), seed=seed)
        for order, seed in [(0, 1), (1, 1), (0, 2)]
    )
    assert one.val.names == same.val.names
    assert one.val.names != other.val.names
    assert resolve_splits(toy_store(train=raw), seed=-1).val.names
    numpy_seed = np.int64(1)
    assert resolve_splits(toy_store(train=raw), seed=numpy_seed).val.names == one.val.names  # type: ignore[arg-type]


def test_each_class_draws_its_own_numbers() -> None:
    store = toy_store(train=raw_split([50, 50, 50]))
    names = list(store.splits["train"].names)
    cut = [names.index(name) for name in resolve_splits(store, seed=1).val.names]
    by_class = {
        tuple(position - 50 * label for position in cut if position // 50 == label) for label in range(3)
    }
    assert len(by_class) == 3


def test_the_cut_stays_the_same_in_later_versions() -> None:
    """Golden positions: the split of an old run must be found again."""
    labels = np.array([0] * 20 + [1])  # the second class has one image, so nothing of it is cut
    images = np.repeat(np.arange(21, dtype=np.uint8), 3).reshape(21, 1, 1, 3)
    store = from_arrays(images, labels)
    splits = resolve_splits(store, 0.25, seed=42)
    names = list(store.splits["train"].names)
    assert [names.index(name) for name in splits.test.names] == [1, 6, 7, 11, 12]
    assert [names.index(name) for name in splits.val.names] == [3, 4, 5, 10, 15]


def test_images_of_one_class_are_refused() -> None:
    images, _, names = raw_split([9, 4, 7])
    ones = np.ones(20, np.int64)
    for store in (
        from_arrays(images, ones - 1),
        toy_store(train=(images, ones, names), test=raw_split([3, 2, 1])),
    ):
        with pytest.raises(
            VitreousError, match=r"belong to the class '(0|bee)'; training needs at least two classes"
        ):
            resolve_splits(store)


def test_too_few_images_to_cut_from_are_refused() -> None:
    with pytest.raises(VitreousError, match="too few images to cut a test split"):
        resolve_splits(toy_store(train=raw_split([1, 1, 1])))
    with pytest.raises(VitreousError, match="too few images to cut a validation split"):
        resolve_splits(toy_store(train=raw_split([2, 2, 1])))


def test_the_range_of_val_fraction_is_that_of_a_recipe() -> None:
    train_only, tested = (
        toy_store(train=raw_split([9, 9, 9])),
        toy_store(train=raw_split([9, 9, 9]), test=raw_split([3, 3, 3])),
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


# Copies and groups -------------------------------------------------------------------------------------


def copied(times: int, originals: int = 12, seed: int = 0) -> RawSplit:
    """Random images, each of them `times` times; the label of each image is a random one of three."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (originals, 8, 8, 3), dtype=np.uint8)
    numbers = rng.permutation(np.repeat(np.arange(originals), times))
    return images[numbers], rng.integers(0, 3, len(numbers)), [f"p{i}" for i in range(len(numbers))]


def contents(part: Split) -> set[bytes]:
    return {np.asarray(image).tobytes() for image in part.images}


def test_copies_stay_on_one_side_of_every_cut_whatever_their_labels() -> None:
    for seed in range(20):
        splits = resolve_splits(toy_store(train=copied(3, seed=seed)), 0.2, seed)
        parts = [contents(part) for part in (splits.train, splits.val, splits.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 12
        assert len(splits.train) + len(splits.val) + len(splits.test) == 36
        assert all(parts)
        assert (
            "24 of 36 training images are copies or near-copies of others; copies stay together."
            in splits.notes
        )


def plan(
    labels: np.ndarray,
    groups: np.ndarray,
    fraction: float,
    seed: int = 0,
    cut: tuple[str, ...] = ("test", "val"),
) -> dict[str, np.ndarray]:
    return plan_cut(labels, int(labels.max()) + 1, groups, cut, fraction, seed)


@pytest.mark.parametrize("seed", range(30))
def test_any_groups_are_cut_as_described(seed: int) -> None:
    rng = np.random.default_rng(seed)
    total = int(rng.integers(20, 400))
    groups = rng.integers(0, rng.integers(3, total), total)
    pure = seed % 2 == 0
    labels = groups % 3 if pure else rng.integers(0, 3, total)
    fraction = float(rng.choice([0.05, 0.1, 0.3, 0.49]))
    positions = plan(labels, groups, fraction, seed)
    assert sorted(np.concatenate(list(positions.values())).tolist()) == list(range(total))
    for one, other in combinations(positions, 2):
        assert not set(groups[positions[one]]) & set(groups[positions[other]])
    assert set(labels[positions["train"]]) == set(labels)  # no class is lost
    if not pure:
        return
    for label in range(3):
        members = labels == label
        sizes = Counter(groups[members].tolist()).values()
        share = max(1, int(members.sum() * fraction + 0.5))
        for split in ("test", "val"):
            cut_size = int(members[positions[split]].sum())
            # No group that stays in train would bring the split closer to its share.
            left = Counter(groups[positions["train"]][members[positions["train"]]].tolist())
            if len(left) > 1:
                assert cut_size > 0
                assert cut_size <= share or cut_size - share < max(sizes)
                assert all(abs(cut_size + size - share) >= abs(cut_size - share) for size in left.values())


def test_groups_of_one_are_cut_as_images_alone() -> None:
    """The rule for images alone, written out: the smallest numbers of each class's stream."""
    rng = np.random.default_rng(0)
    for seed, fraction in ((0, 0.1), (7, 0.25), (-3, 0.49)):
        labels = rng.integers(0, 4, 300)
        positions = plan(labels, np.arange(300), fraction, seed)
        for label in range(4):
            members = np.flatnonzero(labels == label)
            stream = np.random.Philox(key=np.array([seed % 2**64, label], dtype=np.uint64))
            order = members[np.argsort(stream.random_raw(len(members)), kind="stable")]
            size = int(len(members) * fraction + 0.5)
            expected = {"test": order[:size], "val": order[size : 2 * size], "train": order[2 * size :]}
            for split, part in expected.items():
                found = positions[split][labels[positions[split]] == label]
                np.testing.assert_array_equal(found, np.sort(part))


def test_a_group_moves_with_its_smallest_number() -> None:
    """Only the copies of images near the end of the cut change sides; all others stay where they were."""
    labels = np.zeros(1000, np.int64)
    labels[500:] = 1
    groups = np.arange(1000)
    groups[[10, 20, 30]] = 10
    alone, grouped = (plan(labels, numbers, 0.1, cut=("val",)) for numbers in (np.arange(1000), groups))
    moved = set(alone["val"].tolist()) ^ set(grouped["val"].tolist())
    assert len(moved) <= 6
    np.testing.assert_array_equal(alone["val"][alone["val"] >= 500], grouped["val"][grouped["val"] >= 500])


def test_a_group_is_ordered_by_the_images_of_its_own_class() -> None:
    """The single image of class 1 in a group of class 0 has the smallest number of all, which does not count."""
    for seed in range(20):
        labels = np.repeat([0, 1], 100)
        streams = [
            np.random.Philox(key=np.array([seed, label], dtype=np.uint64)).random_raw(100) for label in (0, 1)
        ]
        order = [np.argsort(stream) for stream in streams]
        last, foreign = order[0][-2:], 100 + order[1][0]
        if streams[1].min() > streams[0].min():
            continue
        groups = np.arange(200)
        groups[[*last, foreign]] = 500
        positions = plan(labels, groups, 0.1, seed, cut=("val",))
        assert set(last) < set(positions["train"].tolist())
        return
    raise AssertionError("no seed served")


def test_groups_larger_than_the_share_are_taken_only_where_nothing_else_is() -> None:
    labels = np.repeat([0, 0, 0, 1, 1], [10, 10, 10, 1, 29])
    groups = np.repeat(np.arange(5), [10, 10, 10, 1, 29])
    positions = plan(labels, groups, 0.1, cut=("val",))
    assert Counter(labels[positions["val"]].tolist()) == {0: 10, 1: 1}


def test_images_are_joined_through_copies_and_groups() -> None:
    joined = join_groups(
        {"train": 6, "test": 3},
        {"train": np.array([0, 1, 2, 3, 0, 5]), "test": np.array([6, 1, 8])},
        {"train": ["a", "b", "", "", "b", "c"], "test": ["", "", "c"]},
    )
    assert joined["train"].tolist() == [0, 0, 2, 3, 0, 5]
    assert joined["test"].tolist() == [6, 0, 5]
    rng = np.random.default_rng(0)
    for _ in range(20):  # against a search of the graph
        numbers, texts = rng.integers(0, 30, 40), [str(i) for i in rng.integers(0, 30, 40)]
        found = join_groups({"train": 40}, {"train": numbers}, {"train": texts})["train"]
        for start in range(40):
            reached = {start}
            while True:
                more = {
                    i for i in range(40) for j in reached if numbers[i] == numbers[j] or texts[i] == texts[j]
                }
                if more <= reached:
                    break
                reached |= more
            assert set(np.flatnonzero(found == found[start]).tolist()) == reached


def test_groups_of_a_source_stay_in_one_split() -> None:
    images, labels, names = raw_split([40, 40, 40], size=8)
    patients = [f"patient {i % 4 + 4 * label}" for i, label in enumerate(labels.tolist())]
    store = in_memory(
        name="toy",
        classes=CLASSES,
        splits={"train": (images, labels, names)},
        source="a test",
        groups={"train": patients},
    )
    splits = resolve_splits(store, 0.2)
    parts = [set(part.groups or ()) for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, parts)) == 12
    assert "The training images belong to 12 groups, which stay together." in splits.notes


def test_copies_and_groups_across_given_splits_are_said() -> None:
    train, test = raw_split([9, 9, 9], size=8), raw_split([3, 3, 3], 1, size=8)
    test[0][:2] = train[0][:2]
    store = in_memory(
        name="toy",
        classes=CLASSES,
        splits={"train": train, "test": test},
        source="a test",
        groups={"train": ["a"] * 27, "test": [*("a" * 5), *("b" * 4)]},
    )
    splits = resolve_splits(
        replace(store, splits={k: replace(v, groups=None) for k, v in store.splits.items()})
    )
    assert splits.test is not None
    assert splits.warnings == (
        "2 of 9 test images are copies or near-copies of training images of toy (the report lists them), so test "
        "accuracy flatters the model.",
    )
    both = plan_splits(
        store.name,
        CLASSES,
        {split: part.labels for split, part in store.splits.items()} | {"val": np.array([0])},
        groups={split: list(part.groups or ()) for split, part in store.splits.items()} | {"val": ["a"]},
    )
    assert both.warnings == (
        "5 of 9 test images belong to groups that training images of toy belong to as well, so test accuracy flatters "
        "the model.",
        "1 of 1 validation image belongs to groups that training images of toy belong to as well, so validation "
        "accuracy flatters the model.",
    )


def test_too_few_different_images_are_refused_with_the_reason() -> None:
    labels = np.repeat(np.arange(3), 8)
    colours = np.repeat(labels * 80, 8 * 8 * 3).reshape(24, 8, 8, 3).astype(np.uint8)
    store = toy_store(train=(colours, labels, [f"p{i}" for i in range(24)]))
    with pytest.raises(
        VitreousError,
        match=r"too few different images to cut a test split: 21 of its 24 training images are copies .* give at least "
        "three different images of one class",
    ):
        resolve_splits(store)
    images, labels, names = raw_split([8, 8, 8], size=8)
    grouped = in_memory(
        name="toy",
        classes=CLASSES,
        splits={"train": (images, labels, names)},
        source="a test",
        groups={"train": [f"patient {label}" for label in labels]},
    )
    with pytest.raises(
        VitreousError,
        match=r"too few groups to cut a test split: .* 3 groups, .* --group-by, or the column group of",
    ):
        resolve_splits(grouped)


# Records of runs ---------------------------------------------------------------------------------------


def test_the_cut_of_a_run_is_found_again_by_its_record() -> None:
    store = toy_store(train=copied(3, 20))
    splits = resolve_splits(store, 0.2, 5)
    record = json.loads(json.dumps(splits.record()))
    again = resolve_splits(store, 0.2, 5, recorded=record)
    for part in ("train", "val", "test"):
        assert getattr(again, part).names == getattr(splits, part).names
    assert again.record() == splits.record()

    # Whatever this version would cut: the record decides, and names do not matter.
    record["cut_positions"] = {"val": [3, 1], "test": [7]}
    renamed = store.splits["train"].subset(np.arange(60))
    renamed = replace(renamed, names=[f"other/{name}" for name in renamed.names])
    other = resolve_splits(replace(store, splits={"train": renamed}), 0.2, 5, recorded=record)
    assert list(other.val.names) == [renamed.names[1], renamed.names[3]]
    assert list(other.test.names) == [renamed.names[7]]
    assert len(other.train) == 57


def test_a_run_from_before_copies_were_kept_together_keeps_its_cut() -> None:
    labels = np.array([0] * 20 + [1])
    images = np.repeat(np.arange(21, dtype=np.uint8), 8 * 8 * 3).reshape(21, 8, 8, 3)
    images[5:12] = images[4]
    store = from_arrays(images, labels)
    names = list(store.splits["train"].names)
    old = resolve_splits(store, 0.25, 42, recorded={"seed": 42, "val_fraction": 0.25, "cut_from_train": {}})
    assert [names.index(name) for name in old.test.names] == [1, 6, 7, 11, 12]  # as in the golden test above
    assert [names.index(name) for name in old.val.names] == [3, 4, 5, 10, 15]
    assert old.test.names != resolve_splits(store, 0.25, 42).test.names


@pytest.mark.parametrize(
    "positions",
    [
        {},
        {"val": [1]},
        {"val": [1], "test": [1]},
        {"val": [1], "test": [60]},
        {"val": [1], "test": [-1]},
        {"val": [], "test": [2]},
        {"val": ["x"], "test": [2]},
        {"val": [10**30], "test": [2]},
        {"val": list(range(1, 60)), "test": [0]},
        [1, 2],
        None,
    ],
)
def test_a_damaged_record_is_refused(positions: object) -> None:
    store = toy_store(train=copied(3, 20))
    with pytest.raises(VitreousError, match=r"split\.json does not fit its data"):
        resolve_splits(store, recorded={"cut_positions": positions})


def test_the_record_of_other_data_is_refused() -> None:
    record = resolve_splits(toy_store(train=copied(3, 20))).record()
    with pytest.raises(VitreousError, match="no longer holds the images of this run"):
        resolve_splits(toy_store(train=copied(3, 21)), recorded=record)
