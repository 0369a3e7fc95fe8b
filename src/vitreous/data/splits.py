"""The training, validation and test split of a run, cut from what a data set has.

Letters: N images, S images that are cut or remain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from vitreous.data.copies import MOST_IMAGES, Copies, copies_of
from vitreous.data.store import ImageStore, Split
from vitreous.errors import VitreousError
from vitreous.wording import count, shortened

TITLES = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class SplitPlan:
    """Which images make the splits of a run.

    Attributes:
        sources: for "train", "val" and "test", the split of the source that the images come from.
        positions: for each split that is cut, and for the training images that remain, int64 [S], the positions in
            the source's training split, ascending. Empty if nothing is cut.
        cut: those of "test" and "val" that are cut from training images.
        notes: what was cut from what, as sentences.
        warnings: what makes the figures of the run too good, as sentences.
    """

    sources: dict[str, str]
    positions: dict[str, np.ndarray]
    cut: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """The splits of a run: `train` to train on, `val` to choose on, `test` to be judged on.

    `plan` says what was cut from what, `fingerprint` is that of the data set.
    """

    train: Split
    val: Split
    test: Split
    plan: SplitPlan
    seed: int
    val_fraction: float
    fingerprint: str

    @property
    def cut(self) -> tuple[str, ...]:
        """Those of "test" and "val" that were cut from the source's training split."""
        return self.plan.cut

    @property
    def notes(self) -> tuple[str, ...]:
        """What was cut from what, as sentences."""
        return self.plan.notes

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the figures of the run too good, as sentences."""
        return self.plan.warnings

    def record(self) -> dict[str, Any]:
        """The content of a run's `split.json`: seed, fraction, which images were cut, and the data set's fingerprint.

        `cut_from_train` has their names and `cut_positions` their positions in the source's training split, in
        canonical order. Positions identify images even if a source gives them other names, as a zip does.
        """
        return {
            "seed": self.seed,
            "val_fraction": self.val_fraction,
            "cut_from_train": {split: list(getattr(self, split).names) for split in self.cut},
            "cut_positions": {split: self.plan.positions[split].tolist() for split in self.cut},
            "fingerprint": self.fingerprint,
        }

    def with_val_trained_on(self) -> Splits:
        """The same splits with the validation images added to `train`. They can no longer judge the model."""
        images, labels = (
            np.concatenate([getattr(self.train, part), getattr(self.val, part)])
            for part in ("images", "labels")
        )
        train = Split(images, labels, [*self.train.names, *self.val.names])
        return replace(self, train=train)


def resolve_splits(
    store: ImageStore,
    val_fraction: float = 0.1,
    seed: int = 42,
    *,
    recorded: Mapping[str, Any] | None = None,
) -> Splits:
    """The training, validation and test split of a run.

    A split that the source lacks is cut from its training split, as `plan_splits` says. Copies of an image, and
    images of one group, are never separated by a cut. The images that are cut and those that remain are copied into
    memory. If a source has only train and val, its val serves as the test split.

    Args:
        store: the data set.
        val_fraction: above 0 and at most 0.5; below 0.5 if both val and test are cut.
        seed: any int.
        recorded: the `split.json` of an earlier run on the same data, whose images are cut again. A record without
            positions is from a version that cut each image on its own, and so is this cut then.

    Raises:
        VitreousError: the fraction is out of range, there are too few images to cut from, the training images
            belong to fewer than two classes, or the record does not fit the data.
    """
    labels = {split: np.asarray(part.labels) for split, part in store.splits.items()}
    expected = store.fingerprint if recorded is None else recorded.get("fingerprint", store.fingerprint)
    if store.fingerprint != expected:
        raise VitreousError(
            f"{store.source} no longer holds the images of this run (its fingerprint is {store.fingerprint[:12]}, the "
            f"run's {str(expected)[:12]}); restore them, or train anew."
        )
    if recorded is None:
        named_groups = {split: part.groups for split, part in store.splits.items()}
        plan = plan_splits(
            store.name,
            store.classes,
            labels,
            val_fraction,
            seed,
            copies=copies_of(store),
            groups=named_groups if all(g is not None for g in named_groups.values()) else None,  # type: ignore[arg-type]
        )
    else:
        plan = _with_recorded(
            plan_splits(store.name, store.classes, labels, val_fraction, seed), recorded, labels
        )
    train, val, test = (
        store.splits["train"].subset(plan.positions[split])
        if split in plan.positions
        else store.splits[plan.sources[split]]
        for split in ("train", "val", "test")
    )
    return Splits(train, val, test, plan, seed, val_fraction, store.fingerprint)


def _with_recorded(
    plan: SplitPlan, recorded: Mapping[str, Any], labels: Mapping[str, np.ndarray]
) -> SplitPlan:
    """The plan with the positions that the `split.json` of a run has recorded, if it has any."""
    if "cut_positions" not in recorded:
        return plan
    total = len(labels["train"])
    try:
        cut = {split: np.array(recorded["cut_positions"][split], dtype=np.int64) for split in plan.cut}
        taken = np.concatenate([np.empty(0, np.int64), *cut.values()])
        if len(np.unique(taken)) != len(taken) or not np.isin(taken, np.arange(total)).all():
            raise ValueError("its positions are not those of different images")
        if any(len(positions) == 0 for positions in cut.values()) or (cut and len(taken) >= total):
            raise ValueError("a split of it is empty")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise VitreousError(
            f"The run's split.json does not fit its data ({error}); restore it, or train anew."
        ) from None
    positions = {split: np.sort(part) for split, part in cut.items()}
    if cut:
        positions["train"] = np.setdiff1d(np.arange(total), taken)
    notes = tuple(
        f"The {TITLES[split]} split is that of the run: {len(part):,} of {total:,} training images."
        for split, part in cut.items()
    )
    return replace(plan, positions=positions, notes=notes)


def plan_splits(
    name: str,
    classes: Sequence[str],
    labels: Mapping[str, np.ndarray],
    val_fraction: float = 0.1,
    seed: int = 42,
    *,
    copies: Copies | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> SplitPlan:
    """Decides which images make the splits of a run, from labels and groups alone.

    Args:
        name: what the data set is called in messages.
        classes: class names.
        labels: int [N] of each split of the source, which always has "train". The cut depends on the order of the
            training images, which for training is canonical (`identity.canonical_order`).
        val_fraction, seed: as for `resolve_splits`.
        copies: the copies in the data set, in the same order; None treats each image as the only one of its kind.
        groups: [N] of each split of the source; images with the same text stay in one split.

    Raises:
        VitreousError: as for `resolve_splits`.
    """
    if not isinstance(val_fraction, int | float | np.floating) or not 0 < val_fraction <= 0.5:
        raise VitreousError(
            f"val_fraction is {val_fraction!r}; give more than 0 and at most 0.5, such as 0.1."
        )
    if not isinstance(seed, int | np.integer):
        raise VitreousError(f"The seed of the split is {seed!r}; give a whole number.")
    present = np.unique(labels["train"])
    if len(present) < 2:
        raise VitreousError(
            f"All training images of {name} belong to the class {classes[present[0]]!r}; "
            "training needs at least two classes."
        )
    sources = {split: split for split in labels}
    notes = []
    if "val" in sources and "test" not in sources:
        sources["test"] = sources.pop("val")
        notes.append(
            f"{name} has only train and val: its val ({count(len(labels['val']), 'image')}) serves as the "
            "test split, read once at the end."
        )
    cut = tuple(split for split in ("test", "val") if split not in sources)
    if len(cut) * val_fraction >= 1:
        raise VitreousError(
            f"{name} has neither a validation nor a test split, and cutting val_fraction {val_fraction:g} of "
            "its training images for each leaves none to train on; give less, such as 0.1."
        )
    positions: dict[str, np.ndarray] = {}
    near_warnings: list[str] = []
    if cut:
        total = len(labels["train"])
        sizes = {split: len(part) for split, part in labels.items()}

        def cut_with(numbers: Mapping[str, np.ndarray] | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            together = join_groups(sizes, numbers, groups)["train"]
            return together, plan_cut(labels["train"], len(classes), together, cut, val_fraction, int(seed))

        together, positions = cut_with(copies.groups if copies else None)
        if copies and (uniform := _missing_classes(labels["train"], positions, cut)):
            # Images that are all nearly alike, as of one part on a conveyor, are not copies in the sense of a leak.
            separable, with_near = cut_with(_without_near(copies, labels, uniform))
            if len(_missing_classes(labels["train"], with_near, cut)) < len(uniform):
                together, positions = separable, with_near
                names = shortened([classes[label] for label in sorted(uniform)])
                near_warnings.append(
                    f"Nearly all training images of {names} are near-copies of one another. Splits can be cut only if "
                    "near-copies are separated, so the figures may flatter the model there; --group-by keeps "
                    "together what belongs together."
                )
        for split in cut:
            if len(positions[split]) == 0:
                raise _too_few(name, split, labels["train"], together, copies, groups)
            notes.append(
                f"{name} has no {TITLES[split]} split: "
                f"{len(positions[split]):,} of {total:,} training images were cut for it (by class, seed {seed})."
            )
        notes += _kept_together(total, copies, groups)
    if copies and not copies.near:
        notes.append(
            f"{name} has more than {MOST_IMAGES:,} different images, so only equal images count as copies."
        )
    sources |= dict.fromkeys(cut, "train")
    warnings = (*near_warnings, *_warnings(name, sources, labels, copies, groups))
    return SplitPlan(sources, positions, cut, tuple(notes), warnings)


def _missing_classes(
    labels: np.ndarray, positions: Mapping[str, np.ndarray], cut: Sequence[str]
) -> frozenset[int]:
    """The classes of at least three images of which a cut split has none."""
    large = np.flatnonzero(np.bincount(labels) >= 3)
    present = set.intersection(*(set(labels[positions[split]].tolist()) for split in cut))
    return frozenset(large.tolist()) - present


def _without_near(
    copies: Copies, labels: Mapping[str, np.ndarray], classes: frozenset[int]
) -> dict[str, np.ndarray]:
    """The groups of copies, of which images of some classes join only if their pixels are equal."""
    return {
        split: np.where(np.isin(labels[split], list(classes)), copies.equal[split], numbers)
        for split, numbers in copies.groups.items()
    }


def join_groups(
    sizes: Mapping[str, int],
    numbers: Mapping[str, np.ndarray] | None = None,
    texts: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, np.ndarray]:
    """Numbers the images of all splits so that images which belong together have the same number.

    Args:
        sizes: N of each split.
        numbers: int [N] of each split, such as `Copies.groups`; equal numbers belong together.
        texts: [N] of each split, such as `Split.groups`; equal texts belong together, and "" stands alone.

    Returns:
        by split, int64 [N]: the position, over all splits, of the first image of the group.
    """
    total = sum(sizes.values())
    joined = np.arange(total)
    partitions = []
    if numbers is not None:
        flat = np.concatenate([np.asarray(numbers[split], dtype=np.int64) for split in sizes])
        partitions.append(np.unique(flat, return_inverse=True)[1].reshape(-1))
    if texts is not None:
        first: dict[str, int] = {}
        flat_texts = [text for split in sizes for text in texts[split]]
        partitions.append(
            np.array([first.setdefault(text, i) if text else i for i, text in enumerate(flat_texts)])
        )
    while True:  # the smallest number spreads through each group of each partition, until nothing changes
        before = joined
        for members in partitions:
            smallest = np.full(total, total)
            np.minimum.at(smallest, members, joined)
            joined = smallest[members]
        if np.array_equal(joined, before):
            ends = np.cumsum(list(sizes.values()))[:-1]
            return dict(zip(sizes, np.split(joined, ends), strict=True))


def plan_cut(
    labels: np.ndarray,
    num_classes: int,
    groups: np.ndarray,
    cut: tuple[str, ...],
    fraction: float,
    seed: int,
) -> dict[str, np.ndarray]:
    """Cuts splits from the training images by class, without separating the images of a group.

    Each image draws a number from the Philox stream of key (seed, class). A group belongs to the class of most of
    its images, and its number is the smallest of theirs. In the order of these numbers, groups are taken until the
    split has `fraction` of the class's images. A group is left out if the number of images would be further from that
    with it. At least one group of a class is taken, the smallest one if none fits, and a group is never taken if
    train would lose the last image of a class. So a class of one image or group is only trained on. With
    every image in a group of its own, the images with the smallest numbers are cut.

    Args:
        labels: int [N].
        groups: int [N]; images with equal numbers stay together.
        cut: the splits to cut, of the same size each.

    Returns:
        int64 [S] of "train" and each split in `cut`, ascending.
    """
    draws = np.empty(len(labels), np.uint64)
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        # Raw bits rather than a Generator's shuffle, which may change between versions of numpy.
        stream = np.random.Philox(key=np.array([seed % 2**64, label], dtype=np.uint64))
        draws[members] = stream.random_raw(len(members))

    group_of = np.unique(groups, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(group_of)
    by_group = np.split(np.argsort(group_of, kind="stable"), np.cumsum(sizes)[:-1])
    # The images of each (group, class), the most frequent class of a group first.
    pairs, amounts = np.unique(group_of * num_classes + labels, return_counts=True)
    order = np.lexsort((pairs % num_classes, -amounts, pairs // num_classes))
    homes = pairs[order][np.unique(pairs[order] // num_classes, return_index=True)[1]] % num_classes
    numbers = np.full(len(sizes), np.iinfo(np.uint64).max)
    at_home = homes[group_of] == labels
    np.minimum.at(numbers, group_of[at_home], draws[at_home])
    remaining = np.bincount(labels, minlength=num_classes)  # images of each class that are still in train

    def takes_last(group: int) -> bool:
        """Whether a class would have no training image left without the group."""
        members = labels[by_group[group]]
        if len(members) == 1:
            return bool(remaining[members[0]] == 1)
        return bool((np.bincount(members, minlength=num_classes) >= remaining)[members].any())

    taken: dict[str, list[int]] = {split: [] for split in cut}
    for label in range(num_classes):
        candidates = np.flatnonzero(homes == label)
        candidates = candidates[np.argsort(numbers[candidates], kind="stable")]
        share = max(1, math.floor(int(sizes[candidates].sum()) * fraction + 0.5))
        left = candidates.tolist()
        for split in cut:
            chosen: list[int] = []
            cut_size = 0
            for group in left:
                if cut_size >= share:
                    break
                if abs(cut_size + sizes[group] - share) < share - cut_size and not takes_last(group):
                    chosen.append(group)
                    cut_size += int(sizes[group])
                    remaining -= np.bincount(labels[by_group[group]], minlength=num_classes)
            if not chosen and len(left) > 1:
                by_size = sorted(left, key=lambda group: sizes[group])
                chosen = list(islice((group for group in by_size if not takes_last(group)), 1))
                for group in chosen:
                    remaining -= np.bincount(labels[by_group[group]], minlength=num_classes)
            taken[split] += chosen
            excluded = set(chosen)
            left = [group for group in left if group not in excluded]

    split_of = np.zeros(len(sizes), np.int64)
    for number, split in enumerate(cut, 1):
        split_of[taken[split]] = number
    return {
        split: np.flatnonzero(split_of[group_of] == number) for number, split in enumerate(("train", *cut))
    }


def _kept_together(
    total: int, copies: Copies | None, groups: Mapping[str, Sequence[str]] | None
) -> list[str]:
    """Sentences about the training images that a cut does not separate."""
    notes = []
    repeats = total - len(np.unique(copies.groups["train"])) if copies else 0
    if repeats:
        verb = "is a copy or near-copy" if repeats == 1 else "are copies or near-copies"
        notes.append(f"{repeats:,} of {total:,} training images {verb} of others; copies stay together.")
    if groups:
        number = len(set(groups["train"]) - {""})
        notes.append(f"The training images belong to {count(number, 'group')}, which stay together.")
    return notes


def _too_few(
    name: str,
    split: str,
    labels: np.ndarray,
    together: np.ndarray,
    copies: Copies | None,
    groups: Mapping[str, Sequence[str]] | None,
) -> VitreousError:
    """The error for a data set of which no `split` can be cut, with the reason."""
    title, number = TITLES[split], len(np.unique(together))
    if number == len(labels) or np.bincount(labels).max() < 3:
        return VitreousError(
            f"{name} has too few images to cut a {title} split; give at least three images of one class."
        )
    named = len(set(groups["train"])) if groups else 0
    if named and (copies is None or number == named):
        return VitreousError(
            f"{name} has too few groups to cut a {title} split: its {len(labels):,} training images belong to "
            f"{count(number, 'group')}, which stay together; give at least three groups of one class, or leave out "
            "--group-by, or the column group of labels.csv."
        )
    return VitreousError(
        f"{name} has too few different images to cut a {title} split: {len(labels) - number:,} of its "
        f"{len(labels):,} training images are copies or near-copies of others, which stay together; give at least "
        "three different images of one class."
    )


def _warnings(
    name: str,
    sources: Mapping[str, str],
    labels: Mapping[str, np.ndarray],
    copies: Copies | None,
    groups: Mapping[str, Sequence[str]] | None,
) -> list[str]:
    """Sentences about images of given splits that training sees in another form."""
    warnings = []
    for split in ("test", "val"):
        source = sources[split]
        if source == "train":
            continue
        title, total = TITLES[split], len(labels[source])
        consequence = f"so {title} accuracy flatters the model"
        seen = {pair.second for pair in copies.pairs if pair.across("train", source)} if copies else ()
        if seen:
            verb = "image is a copy or near-copy" if len(seen) == 1 else "images are copies or near-copies"
            warnings.append(
                f"{len(seen):,} of {total:,} {title} {verb} of training images of {name} (the report lists them), "
                f"{consequence}."
            )
        if groups:
            trained = set(groups["train"]) - {""}
            shared = sum(group in trained for group in groups[source])
            if shared:
                verb = "image belongs" if shared == 1 else "images belong"
                warnings.append(
                    f"{shared:,} of {total:,} {title} {verb} to groups that training images of {name} belong to as "
                    f"well, {consequence}."
                )
    return warnings
