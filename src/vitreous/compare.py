"""Runs beside each other, from the predictions that they kept: which is better, and can the images tell?

Runs that differ in the seed only are one group. The best group is compared with every other one. Nothing is predicted
anew, so no split is read.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard

import jinja2
import numpy as np

from vitreous import recipe as recipes
from vitreous.balance import is_unequal
from vitreous.errors import VitreousError, unknown
from vitreous.files import atomic_write
from vitreous.run import Run
from vitreous.statistics import (
    Difference,
    difference,
    digits_of,
    interval,
    mean_interval,
    mean_recall_difference,
)
from vitreous.wording import count, duration, printable, scientific, series, shortened

SPLITS = {"val": "validation", "test": "test"}
NO_VALUE = "–"
LEAST_NAME = 20  # columns of a terminal
MARK = "vitreous comparison"  # by which an earlier page is known, so that no other file is overwritten
POSITION = re.compile(r"(train|val|test):\d+")  # the name of an image that has none: its place in the data


# ---- reading


@dataclass(frozen=True)
class Judged:
    """A run and what it got right on one split.

    Attributes:
        name: of its folder, or more of its path where two folders have the same name.
        settings: everything that may explain a difference, by name, as text.
        seed: that of the training; None where the run does not record one.
        keys: str [N], sorted, which image it is, with its class; equal keys are the same image.
        correct: bool [N], whether it was classified correctly.
        figures: of the split, by the names of `vitreous.metrics.FIGURES`.
        summary: of the run.
        curve: rows of `metrics.csv` that hold a validation.
    """

    path: Path
    name: str
    settings: dict[str, str]
    seed: int | None
    keys: np.ndarray
    correct: np.ndarray
    figures: dict[str, float]
    summary: dict[str, Any]
    curve: list[dict[str, Any]]

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed only; often a single run."""

    label: str
    runs: list[Judged]

    @property
    def title(self) -> str:
        """The label as sentences use it."""
        return f"{self.label} ({len(self.runs)} seeds)" if len(self.runs) > 1 else self.label

    @cached_property
    def correct(self) -> np.ndarray:
        """bool [R, N]; its runs were evaluated on the same images."""
        return np.stack([run.correct for run in self.runs])

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the accuracies of its runs."""
        return float(np.std([run.accuracy for run in self.runs], ddof=1)) if len(self.runs) > 1 else None

    def mean(self, read: str) -> float | None:
        """The mean of a figure or of a number in the summary, if every run has it."""
        values = [run.figures.get(read, run.summary.get(read)) for run in self.runs]
        numbers = [v for v in values if _is_number(v)]
        return sum(numbers) / len(numbers) if len(numbers) == len(values) else None


@dataclass(frozen=True)
class Pair:
    """A group against the best one.

    Attributes:
        difference: the accuracy of `better` minus that of `other`, on the images of the comparison.
        images: how many images `better` and `other` were compared on; two equal numbers where they are paired.
        only: how many images only `better`, and only `other` got right, if each is one run and they are paired.
        keys: of the images, where they are paired.
        recalls: the difference of the means of the classes' recalls, where the classes are unequal and the images
            paired.
    """

    better: Group
    other: Group
    difference: Difference
    paired: bool
    images: tuple[int, int]
    only: tuple[int, int] | None
    keys: np.ndarray | None
    recalls: Difference | None

    @property
    def sentences(self) -> list[str]:
        """The result in words, by the mean of the classes' recalls first where that is known."""
        if self.recalls is None:
            return [self.sentence]
        return [
            f"Unequal classes counted alike (mean of recalls): {self._said(self.recalls)}",
            f"Accuracy: {self.sentence}",
        ]

    @property
    def sentence(self) -> str:
        return self._said(self.difference)

    def _said(self, found: Difference) -> str:
        better, other = self.better.title, self.other.title
        if found.value < 0:  # on the images that both have, unlike on all of each
            better, other = other, better
            found = dataclasses.replace(found, value=-found.value, low=-found.high, high=-found.low)
        value, low, high = points(found.value, found.low, found.high)
        if found.told:
            return f"{better} is better than {other} by {value} points (95 %: {low} to {high})."
        images = f"{self.images[0]:,}" if self.paired else f"{self.images[0]:,} and {self.images[1]:,}"
        exact = "" if found.low <= 0 <= found.high else f"; exact test: p = {found.p:.2g}"
        return (
            f"No difference that these {images} images can tell between {better} and {other} "
            f"({value} points, 95 %: {low} to {high}{exact})."
        )


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`: groups, best first, and the best against each of the others."""

    split: str
    groups: list[Group]
    pairs: list[Pair]
    differing: dict[str, list[str]]
    """Each setting that differs, with its value in each group."""
    left_out: list[tuple[str, str]]
    """Folders that are not compared, and why."""
    notes: list[str]
    unequal: bool
    """Whether the classes are so unequal that macro figures come first."""

    @property
    def runs(self) -> list[Judged]:
        return [run for group in self.groups for run in group.runs]

    @property
    def heading(self) -> str:
        sizes = sorted({group.correct.shape[1] for group in self.groups})
        images = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
        data = sorted({run.settings.get("data", NO_VALUE) for run in self.runs})
        return (
            f"{count(len(self.runs), 'run')} on {shortened(data, 2)}, compared on {SPLITS[self.split]} "
            f"({images} images)"
        )

    @property
    def sentences(self) -> list[str]:
        if self.pairs:
            return [sentence for pair in self.pairs for sentence in pair.sentences]
        group = self.groups[0]
        low, high = mean_interval(group.correct)
        value, low_text, high_text = percents(group.accuracy, low, high, group.correct.shape[1])
        recalls = [f"Mean of the classes' recalls, which counts unequal classes alike: {macro_text(group)}."]
        return [
            *(recalls if self.unequal else []),
            f"These runs differ in the seed only. Their mean accuracy is {value} % (95 %: {low_text} to {high_text}), "
            f"and its standard deviation over {len(group.runs)} seeds is {100 * (group.deviation or 0):.2g} points.",
        ]


def compare(paths: Iterable[Path | str], split: str | None = None) -> Comparison:
    """Compares runs by the predictions that they kept.

    Args:
        paths: run folders, or folders that hold run folders.
        split: "val" or "test"; by default "val" where all runs have it.

    Raises:
        VitreousError: fewer than two runs can be compared, their classes differ, or a run has no predictions on the
            split.
    """
    if split is not None and split not in SPLITS:
        raise unknown("split", split, SPLITS)
    read, left_out = [], []
    for path in run_folders(paths):
        try:
            if not path.is_dir():
                raise VitreousError(f"{path} is a file, not a run folder; leave it out.")
            run = Run(path)
            settings = _settings(_tables(run))
            for predictions in run.predictions.values():
                if not len(predictions.labels):
                    raise VitreousError(f"{run.path} has predictions of no image; restore its files.")
                if predictions.logits.shape[1] != len(run.evaluation["classes"]):
                    raise VitreousError(
                        f"{run.path} names other classes than it predicts; restore its files."
                    )
            read.append((run, settings, run.predictions, run.evaluation))
        except VitreousError as error:
            left_out.append((printable(str(path)), printable(str(error))))
    if len(read) < 2:
        reasons = "".join(f" {reason}" for _, reason in left_out)
        found = "one" if read else "none"
        raise VitreousError(
            f"A comparison needs two finished runs, and there is {found}; give more run folders.{reasons}"
        )
    _check_classes(read)
    split = _choose_split(split, read)
    names = _names([run.path for run, *_ in read])
    runs = [
        _judged(run, name, settings, split, predictions[split], evaluation)
        for name, (run, settings, predictions, evaluation) in zip(names, read, strict=True)
    ]
    groups = sorted(_groups(runs), key=lambda group: -group.accuracy)
    number = len(groups) * (len(groups) - 1) // 2
    unequal = any(is_unequal(np.unique(_classes_of(run.keys), return_counts=True)[1]) for run in runs)
    pairs = [_pair(groups[0], other, number, groups, unequal) for other in groups[1:]]
    notes = _notes(split, groups, pairs)
    if unequal:
        notes.append("The order of the runs, the points and p in the table are those of the accuracy.")
    return Comparison(split, groups, pairs, _differing(groups), left_out, notes, unequal)


def run_folders(paths: Iterable[Path | str]) -> list[Path]:
    """Each given folder, or the runs in it if it is none itself; every folder once, in the order given.

    Raises:
        VitreousError: a folder does not exist.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise VitreousError(f"There is no run folder {printable(str(path))}; check the path.")
        inside = [] if _is_run(path) or not path.is_dir() else list(filter(_is_run, _children(path)))
        for folder in inside or [path]:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _is_run(path: Path) -> bool:
    """Whether a folder is a run, or was one: any file that only runs have is in it."""
    try:
        return any((path / name).exists() for name in ("recipe.toml", "predictions.npz", "test_reads.json"))
    except OSError:  # a folder that may not be entered
        return False


def _children(path: Path) -> list[Path]:
    try:
        return sorted(child for child in path.iterdir() if child.is_dir())
    except OSError as error:
        raise VitreousError(
            f"{printable(str(path))} cannot be listed ({error.strerror}); give a folder that you may read."
        ) from None


Read = tuple[Run, dict[str, str], dict[str, Any], dict[str, Any]]


def _check_classes(read: Sequence[Read]) -> None:
    """Refuses runs that tell different classes apart, since their accuracies answer different questions."""
    first, *_, evaluation = read[0]
    known = set(evaluation["classes"])
    for run, *_, other in read[1:]:
        classes = set(other["classes"])
        if classes != known:
            only = sorted(known ^ classes)
            raise VitreousError(
                f"{printable(str(first.path))} tells {count(len(known), 'class', 'classes')} apart and "
                f"{printable(str(run.path))} {count(len(classes), 'class', 'classes')} "
                f"(only one of them has {printable(shortened(only))}); compare runs on the same classes."
            )


def _choose_split(split: str | None, read: Sequence[Read]) -> str:
    lacking = {
        name: [str(run.path) for run, _, predictions, _ in read if name not in predictions] for name in SPLITS
    }
    if split is None:
        complete = [name for name in SPLITS if not lacking[name]]
        if not complete:
            raise VitreousError(
                f"No split was predicted by all runs: {printable(shortened(lacking['val'], 2))} kept no predictions on "
                f"validation, and {printable(shortened(lacking['test'], 2))} none on test; leave some of them out."
            )
        return complete[0]
    if lacking[split]:
        raise VitreousError(
            f"{printable(shortened(lacking[split], 2))} kept no predictions on {SPLITS[split]}; leave that out, or "
            f"compare on {'test' if split == 'val' else 'validation'} with --split "
            f"{'test' if split == 'val' else 'val'}."
        )
    return split


def _names(paths: Sequence[Path]) -> list[str]:
    """A name for each run: its folder's, with as many folders above it as tell it from the others."""
    parts = [path.resolve().parts for path in paths]
    names = []
    for own in parts:
        length = next(
            (n for n in range(1, len(own)) if sum(other[-n:] == own[-n:] for other in parts) == 1), len(own)
        )
        names.append(printable("/".join(own[-length:])))
    return names


def _judged(
    run: Run, name: str, settings: dict[str, str], split: str, predictions: Any, evaluation: dict[str, Any]
) -> Judged:
    classes = evaluation["classes"]
    fingerprint = settings.get("fingerprint", "")
    keys = np.array(
        [
            # A place in the data says which image it is only within the same data.
            f"{classes[label]}\n{f'{fingerprint} {image}' if POSITION.fullmatch(image) else image}"
            for image, label in zip(predictions.names.tolist(), predictions.labels.tolist(), strict=True)
        ],
        dtype=np.str_,
    )
    order = np.argsort(keys, kind="stable")
    correct = predictions.logits.argmax(axis=1) == predictions.labels
    try:
        curve = (
            [row for row in run.metrics if row.get("val_acc") is not None] if run.has("metrics.csv") else []
        )
    except VitreousError:  # the curve alone is lost
        curve = []
    return Judged(
        run.path,
        name,
        settings,
        int(settings["seed"]) if settings.get("seed", "").isdecimal() else None,
        keys[order],
        correct[order],
        {key: v for key, v in evaluation.get(split, {}).get("figures", {}).items() if math.isfinite(v)},
        run.summary if run.has("summary.json") else {},
        sorted(curve, key=lambda row: row["step"]),
    )


# Facts about the machine that can change the bits of a run, without measurements.
MACHINE = ("name", "device", "threads", "precision", "backend", "attention", "compile", "capability")
# Parts of the request that other settings say already, or that do not change the training.
UNCOMPARED = ("data", "data_dir", "seed", "device", "precision", "backend", "logger", "judge")


def _settings(tables: Mapping[str, Any]) -> dict[str, str]:
    """Everything that a run records and that may explain a difference, as text by name."""
    resolved = _table(tables, "resolved")
    request, machine, versions = (_table(resolved, name) for name in ("request", "machine", "versions"))
    settings = {"data": request.get("data"), "fingerprint": str(resolved.get("fingerprint", ""))[:12] or None}
    settings |= {"image size": resolved.get("image_size"), "recipe": tables.get("name")}
    # Runs of earlier versions lack the options of the network that have come since, and had their defaults.
    if isinstance(tables.get("model"), Mapping):
        settings |= {f"model.{key}": value for key, value in recipes.model_defaults().items()}
    settings |= {
        f"{section}.{key}": value
        for section, table in tables.items()
        if section not in ("resolved", "budget") and isinstance(table, Mapping)
        for key, value in table.items()
    }
    settings |= {"budget": _budget(tables), "seed": request.get("seed")}
    settings |= {key.replace("_", " "): v for key, v in request.items() if key not in UNCOMPARED}
    if request.get("judge") == "test":
        settings["trained on"] = "training and validation"
    settings |= {f"machine.{key}": machine.get(key) for key in MACHINE}
    settings |= {f"version.{key}": versions.get(key) for key in ("vitreous", "torch")}
    return {key: printable(_plain(value)) for key, value in settings.items() if value is not None}


def _tables(run: Run) -> dict[str, Any]:
    """The tables of a run's `recipe.toml`, in which what was requested is a table; `VitreousError` if it is none."""
    if not isinstance(_table(run.resolved, "request").get("data"), str):
        raise VitreousError(
            f"{run.path / 'recipe.toml'} does not say what the run was trained on; restore it, or train anew."
        )
    return run.tables


def _table(tables: Any, name: str) -> Mapping[str, Any]:
    """The table `name` of a file that anyone may have written; empty if there is none."""
    table = tables.get(name, {}) if isinstance(tables, Mapping) else {}
    return table if isinstance(table, Mapping) else {}


def _budget(tables: Mapping[str, Any]) -> str | None:
    for unit, amount in _table(tables, "budget").items():
        if isinstance(amount, int | float):
            shown = scientific(amount, 12) if unit == "flops" else f"{amount:.12g}"
            return f"{shown} {unit[:-1] if amount == 1 and unit != 'flops' else unit}"
    return None


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.12g}"  # runs whose settings read alike are taken for equal
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return str(value)


# ---- groups and pairs


def _groups(runs: Sequence[Judged]) -> list[Group]:
    """Runs that differ in the seed only, together. A run that repeats another's seed stays alone."""
    members: dict[tuple[Any, ...], list[Judged]] = {}
    for run in runs:
        # The fingerprint says which data these are, wherever they are.
        settings = sorted(
            (name, value) for name, value in run.settings.items() if name not in ("seed", "data")
        )
        same = (run.keys.tobytes(), *settings)
        repeats = sum(run.seed == other.seed for key in members if key[1:] == same for other in members[key])
        alone = run.path if run.seed is None or "fingerprint" not in run.settings else repeats
        members.setdefault((alone, *same), []).append(run)
    groups = []
    taken = {run.name for run in runs}
    for together in members.values():
        label = together[0].name
        if len(together) > 1:
            # "default" for default-1 and default-2, and for default-seed1-001 and default-seed2-001
            names = [run.name for run in together]
            common = sum(
                1 for _ in itertools.takewhile(lambda c: len(set(c)) == 1, zip(*names, strict=False))
            )
            start = re.sub(r"[-_. /]*(seed[-_. ]*\d*)?$", "", label[:common])
            label = start if start and start not in taken else f"{label} and {len(together) - 1} more"
        taken.add(label)
        groups.append(Group(label, together))
    return groups


def _shared_keys(runs: Sequence[Judged]) -> np.ndarray:
    """The keys of the images that all runs have, each once among the images of every run."""
    shared: np.ndarray | None = None
    for run in runs:
        keys, times = np.unique(run.keys, return_counts=True)
        shared = keys[times == 1] if shared is None else np.intersect1d(shared, keys[times == 1])
    assert shared is not None
    return shared


def _on_shared(runs: Sequence[Judged], keys: np.ndarray) -> np.ndarray:
    """bool [R, N]: what each run got right on the images of these keys."""
    return np.stack(
        [
            run.correct if np.array_equal(run.keys, keys) else run.correct[np.searchsorted(run.keys, keys)]
            for run in runs
        ]
    )


def _classes_of(keys: np.ndarray) -> np.ndarray:
    """str [N]: the class of each image."""
    return np.array([key.partition("\n")[0] for key in keys.tolist()])


def _pair(better: Group, other: Group, comparisons: int, groups: Sequence[Group], unequal: bool) -> Pair:
    """Compares two of the groups, paired by images where they share most of them."""
    runs = [*better.runs, *other.runs]
    keys = runs[0].keys
    if not all(np.array_equal(run.keys, keys) for run in runs):
        keys = _shared_keys(runs)
    paired = 2 * len(keys) >= min(better.correct.shape[1], other.correct.shape[1])
    first, second = other.correct, better.correct
    if paired:
        first, second = _on_shared(other.runs, keys), _on_shared(better.runs, keys)
    found = difference(first, second, paired, comparisons, [group.correct for group in groups])
    only = None
    if paired and len(runs) == 2:
        only = int((second & ~first).sum()), int((first & ~second).sum())
    recalls = None
    if unequal and paired:
        repeated = [
            (group.correct, _classes_of(group.runs[0].keys)) for group in groups if len(group.runs) > 1
        ]
        recalls = mean_recall_difference(first, second, _classes_of(keys), comparisons, repeated)
    sizes = second.shape[1], first.shape[1]
    return Pair(better, other, found, paired, sizes, only, keys if paired else None, recalls)


def _differing(groups: Sequence[Group]) -> dict[str, list[str]]:
    names = dict.fromkeys(name for group in groups for run in group.runs for name in run.settings)
    differing = {}
    for name in names:
        values = [[run.settings.get(name, NO_VALUE) for run in group.runs] for group in groups]
        if len(set(itertools.chain(*values))) > 1:
            differing[name] = [", ".join(dict.fromkeys(of_group)) for of_group in values]
    return differing


def _notes(split: str, groups: Sequence[Group], pairs: Sequence[Pair]) -> list[str]:
    """The facts that a reader needs to judge the sentences."""
    runs = [run for group in groups for run in group.runs]
    notes = []
    if split == "val":
        notes.append("Validation is compared, since choices are made on it. Test was not read for this.")
    else:
        notes.append(
            "Test is compared, which every run had read before. Choosing a run by these figures would flatter it, so "
            "choose on validation."
        )
    sizes = {len(group.runs) for group in groups}
    if sizes == {1}:
        notes.append(
            "The intervals cover the choice of the images, not of the seed: they compare these trained networks. To "
            "compare recipes, train each with several seeds."
        )
    else:
        notes.append("The intervals cover the choice of the images and of the seeds.")
        if len(groups) > 1:
            notes.append(
                "Seeds are taken to vary the accuracy of every group alike, and their spread is pooled."
            )
    if len(pairs) > 1:
        number = len(groups) * (len(groups) - 1) // 2
        notes.append(
            f"The best was found by these figures, so each interval and p-value is widened to hold for all {number} "
            "pairs of groups together (Bonferroni)."
        )
    unpaired = [pair.other.label for pair in pairs if not pair.paired]
    if unpaired:
        notes.append(
            f"{shortened(unpaired, 3)} {'was' if len(unpaired) == 1 else 'were'} evaluated on other images than "
            f"{groups[0].label}, so the difference is also one between the images."
        )
    subset = [
        p for p in pairs if p.paired and p.images[0] != max(g.correct.shape[1] for g in (p.better, p.other))
    ]
    for pair in subset:
        notes.append(
            f"{pair.better.label} and {pair.other.label} are compared on the {pair.images[0]:,} images that both have."
        )
    if len({run.settings.get("fingerprint") for run in runs}) > 1:
        notes.append("The data are not the same, so images are matched by their names and classes.")
    if any("group by" in run.settings for run in runs):
        notes.append(
            "Images belong to groups (--group-by), and the intervals take them for independent, so they are "
            "too narrow."
        )
    return notes


# ---- numbers as text


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and abs(value) < 1e300  # neither NaN, infinite nor beyond a float


def points(value: float, low: float, high: float) -> tuple[str, ...]:
    """Differences in points, with the decimals that keep an end that is not 0 from being shown as 0."""
    ends = [abs(100 * end) for end in (low, high) if end]
    digits = next((d for d in (1, 2, 3) if not ends or min(ends) >= 0.5 * 10**-d), 3)
    return tuple(_signed(100 * number, digits) for number in (value, low, high))


def _signed(number: float, digits: int) -> str:
    text = f"{number:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def percents(value: float, low: float, high: float, images: int) -> tuple[str, ...]:
    return tuple(f"{100 * number:.{digits_of(images)}f}" for number in (value, low, high))


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def minutes(group: Group) -> str:
    seconds = group.mean("total_seconds") or group.mean("train_seconds")
    return NO_VALUE if seconds is None else duration(seconds)


def accuracy_text(group: Group) -> str:
    """As `statistics.accuracy_text`, over the seeds too: "87.5 % (86.8 to 88.1)"."""
    low, high = mean_interval(group.correct)
    shown = percents(group.accuracy, low, high, group.correct.shape[1])
    return f"{shown[0]} % ({shown[1]} to {shown[2]})"


def macro_text(group: Group) -> str:
    """The mean of the classes' recalls, over the seeds too: "84.1 %"."""
    recall = group.mean("cat_recall")
    return NO_VALUE if recall is None else f"{100 * recall:.{digits_of(group.correct.shape[1])}f} %"


def text(comparison: Comparison, width: int) -> str:
    """The comparison for a terminal of `width` columns."""
    found = {id(pair.other): pair for pair in comparison.pairs}
    rows = []
    for group in comparison.groups:
        pair = found.get(id(group))
        row = [group.title, *([macro_text(group)] if comparison.unequal else []), accuracy_text(group)]
        if pair:
            value, low, high = points(*_below(pair))
            row += [f"{value} ({low} to {high})", p_text(pair.difference.p)]
        elif comparison.pairs:
            row += ["best", ""]
        parameters = group.mean("parameters")
        rows.append([*row, NO_VALUE if parameters is None else f"{parameters:,.0f}", minutes(group)])
    headings = [
        "run",
        *(["recall (macro)"] if comparison.unequal else []),
        "accuracy (95 %)",
        *(["points to best (95 %)", "p"] if found else []),
        "parameters",
        "time",
    ]
    lines = [comparison.heading, "", *aligned(headings, rows, width, ("parameters", "time", "p"))[0]]
    for group in comparison.groups:
        if len(group.runs) > 1 and group.deviation is not None:
            seeds = ", ".join(f"{100 * run.accuracy:.2f}" for run in group.runs)
            lines.append(f"  {group.label}: {seeds} (standard deviation {100 * group.deviation:.2g})")
    lines += ["", *(line for sentence in comparison.sentences for line in textwrap.wrap(sentence, width)), ""]
    if comparison.differing:
        lines += ["What differs"]
        labels = [group.label for group in comparison.groups]
        indent = max(map(len, comparison.differing)) + 4
        for name, values in comparison.differing.items():
            holders: dict[str, list[str]] = {}
            for label, value in zip(labels, values, strict=True):
                holders.setdefault(value, []).append(label)
            said = "; ".join(f"{value} ({shortened(who, 3)})" for value, who in holders.items())
            if len(labels) == 1:
                said = values[0]
            lines += textwrap.wrap(
                f"{'  ' + name:{indent}}{said}", width, subsequent_indent=" " * indent, break_on_hyphens=False
            )
        lines.append("")
    lines += [line for note in comparison.notes for line in textwrap.wrap(note, width)]
    return "\n".join(lines)


def _below(pair: Pair) -> tuple[float, float, float]:
    """The difference as that of the other group to the best one, mostly negative: value and ends."""
    found = pair.difference
    return 0.0 - found.value, 0.0 - found.high, 0.0 - found.low


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison for other programs; accuracies and differences are fractions."""
    labels = [group.label for group in comparison.groups]
    return {
        "split": comparison.split,
        "groups": [
            {
                "label": group.label,
                "runs": [
                    {"run": str(run.path), "seed": run.seed, "accuracy": run.accuracy}
                    | {"figures": run.figures}
                    for run in group.runs
                ],
                "images": group.correct.shape[1],
                **({"macro_recall": group.mean("cat_recall")} if comparison.unequal else {}),
                "accuracy": group.accuracy,
                "interval": list(mean_interval(group.correct)),
                "deviation": group.deviation,
            }
            for group in comparison.groups
        ],
        "comparisons": [
            {
                "better": pair.better.label,
                "other": pair.other.label,
                "difference": pair.difference.value,
                "interval": [pair.difference.low, pair.difference.high],
                "p": pair.difference.p,
                "told": pair.difference.told,
                "paired": pair.paired,
                "images": list(pair.images),
                "only_better_right": pair.only and pair.only[0],
                "only_other_right": pair.only and pair.only[1],
                "covers_seeds": pair.difference.over_seeds,
                **({"macro_recall_difference": pair.recalls.value} if pair.recalls else {}),
                "sentence": pair.sentence,
            }
            for pair in comparison.pairs
        ],
        "sentences": comparison.sentences,
        "differing": {name: dict(zip(labels, v, strict=True)) for name, v in comparison.differing.items()},
        "left_out": [{"run": run, "why": why} for run, why in comparison.left_out],
        "notes": comparison.notes,
    }


def cells(text: str) -> int:
    """Columns that a terminal needs for `text`; characters of East Asia take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def _cut(text: str, room: int) -> str:
    """`text` in at most `room` columns, with … for its middle, since names often differ at both ends."""
    if cells(text) <= room:
        return text
    start, end = list(text), list[str]()
    half = (room - 1) // 2
    while cells("".join(end)) < half:
        end.insert(0, start.pop())
    while cells("".join(start)) + cells("".join(end)) > room - 1:
        start.pop()
    return "".join(start) + "…" + "".join(end)


def aligned(
    headings: Sequence[str], rows: Sequence[Sequence[str]], width: int, dropped: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """The lines of a table that fits `width` columns, and the headings that were left out for it.

    The first column is cut to no less than `LEAST_NAME`. If that is not enough, the columns `dropped` are left out, the
    first one first.
    """
    table = [list(headings), *map(list, rows)]

    def widths(first: int) -> list[int]:
        natural = [max(cells(row[i]) for row in table) for i in range(len(table[0]))]
        return [min(natural[0], first), *natural[1:]]

    out: list[str] = []
    for heading in dropped:
        if heading not in table[0]:
            continue
        if sum(widths(LEAST_NAME)) + 2 * (len(table[0]) - 1) <= width:
            break
        column = table[0].index(heading)
        table = [row[:column] + row[column + 1 :] for row in table]
        out.append(heading)
    others = sum(widths(0)) + 2 * (len(table[0]) - 1)
    room = max(LEAST_NAME, width - others)
    table = [[_cut(row[0], room), *row[1:]] for row in table]
    lines = [
        "  ".join(
            cell + " " * (size - cells(cell)) for cell, size in zip(row, widths(room), strict=True)
        ).rstrip()
        for row in table
    ]
    return lines, out


# ---- all runs of a folder


COLUMNS = (
    "name", "data", "recipe", "changes", "seed", "budget", "started", "status", "val", "test", "time", "parameters",
)  # fmt: skip
# Left out where a terminal is narrow, the first one first.
DROPPED = ("parameters", "started", "budget", "seed", "changes", "recipe", "time", "data")


def list_runs(folder: Path | str = "runs") -> list[dict[str, Any]]:
    """A record of each run in a folder, the oldest first; of a damaged run, what is wrong.

    Each has the keys of `COLUMNS`, with `time` in seconds, and `path`.

    Raises:
        VitreousError: the folder does not exist or may not be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise VitreousError(
            f"There is no folder {printable(str(folder))}; give the one that holds your runs, as in vitreous runs DIR."
        )
    paths = [folder] if _is_run(folder) else list(filter(_is_run, _children(folder)))
    records = [_record(path) for path in paths]
    return sorted(records, key=lambda record: (record["started"] or "", record["name"]))


def _record(path: Path) -> dict[str, Any]:
    run = Run(path)
    record: dict[str, Any] = dict.fromkeys(COLUMNS) | {"name": path.resolve().name, "path": str(path)}
    try:
        tables = _tables(run)
        resolved, request = tables["resolved"], tables["resolved"]["request"]
        record |= {
            "data": request["data"],
            "recipe": str(tables.get("name", "")),
            "changes": _changes(tables),
            "seed": request["seed"] if type(request.get("seed")) is int else None,
            "budget": _budget(tables),
            "started": str(resolved.get("started", "")),
        }
        if not run.has("summary.json"):
            steps = run.metrics[-1]["step"] if run.has("metrics.csv") and run.metrics else 0
            return record | {"status": f"not finished, {count(steps, 'step')}" if steps else "not finished"}
        summary = run.summary
        seconds = summary.get("total_seconds", summary.get("train_seconds"))
        read = {"val": summary.get("val_acc"), "test": summary.get("test_acc"), "time": seconds}
        read["parameters"] = summary.get("parameters")
        record |= {key: value if _is_number(value) else None for key, value in read.items()}
        record["status"] = str(summary.get("status", "finished"))
        missing = [name for name in ("bundle/config.json", "predictions.npz") if not run.has(name)]
        if missing and record["status"] == "finished":
            record["status"] = f"finished, lacks {series(missing)}"
    except VitreousError as error:
        record["status"] = f"damaged: {error}"
    except OSError as error:
        record["status"] = f"cannot be read ({error.strerror})"
    return record


def _changes(tables: Mapping[str, Any]) -> str:
    """The keys that a run's recipe has other than the named recipe, as they are typed: "depth=6 pool=mean"."""
    if tables.get("name") not in recipes.names():
        return ""
    original = recipes.load(tables["name"])
    known = original.tables()
    # Values that the dial or the data chose are no change of a person's.
    fitted = tables["resolved"].get("fitted")
    chosen = [*_table(tables["resolved"], "dial"), *(fitted if isinstance(fitted, list) else ())]
    return " ".join(
        f"{key}={_plain(value)}"
        for section, table in tables.items()
        if section in known and section != "budget" and isinstance(table, Mapping)
        for key, value in table.items()
        if key in known[section] and f"{section}.{key}" not in chosen
        if _plain(known[section][key]) != _plain(value)
    )


def runs_text(records: Sequence[Mapping[str, Any]], width: int) -> str:
    """The table of `list_runs` for a terminal of `width` columns."""
    written = {
        "started": lambda text: datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M"),
        "val": lambda share: f"{100 * share:.1f}",
        "test": lambda share: f"{100 * share:.1f}",
        "time": duration,
        "parameters": lambda number: f"{number:,}",
    }

    def cell(record: Mapping[str, Any], column: str) -> str:
        value = record[column]
        if value is None or value == "":
            return NO_VALUE
        try:
            return printable(written.get(column, str)(value))
        except (TypeError, ValueError, OverflowError):  # a damaged record
            return printable(str(value))

    rows = [[cell(record, column) for column in COLUMNS] for record in records]
    # A status may be long, so it has lines of its own.
    status = COLUMNS.index("status")
    reasons = []
    for row in rows:
        _, damaged, reason = row[status].partition("damaged: ")
        if damaged:
            row[status] = "damaged"
            reasons.append(f"{row[0]}: {reason}")
    lines, out = aligned(COLUMNS, rows, width, DROPPED)
    for text in reasons:
        lines += textwrap.wrap(text, width, break_on_hyphens=False)
    if out:
        lines += textwrap.wrap(f"Left out for the width: {series(out)}. --json has all.", width)
    return "\n".join(lines)


# ---- the page

COLOURS = 8  # of groups; further groups repeat them with dashes
MOST_SETTINGS = 200
MOST_CLASSES = 20
# One unit is one CSS pixel at the width of a phone, so labels stay legible there.
FRAME = {"width": 360, "height": 250, "left": 46, "right": 348, "top": 10, "bottom": 214}


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


def write_page(comparison: Comparison, out: Path | None = None) -> Path:
    """Writes the comparison as one self-contained HTML page, without script, and returns its path.

    Args:
        out: by default `compare.html` in the current folder.

    Raises:
        VitreousError: `out` is a folder or another file than such a page, or cannot be written.
    """
    out = Path("compare.html") if out is None else Path(out)
    shown = printable(str(out))
    if out.is_dir():
        raise VitreousError(f"{shown} is a folder; give the file to write, as in --out {shown}/compare.html.")
    try:
        if out.exists() and not (out.is_file() and MARK.encode() in _start_of(out)):
            raise VitreousError(
                f"{shown} exists and is no page of vitreous compare; give another file with --out."
            )
    except OSError as error:
        raise VitreousError(
            f"{shown} cannot be read ({error.strerror}); give another file with --out."
        ) from None
    files = resources.files("vitreous")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files.joinpath("compare.html.jinja").read_text(encoding="utf-8"))
    styles = {id(group): _style(i) for i, group in enumerate(comparison.groups)}
    html = template.render(
        mark=MARK,
        style=files.joinpath("page.css").read_text(encoding="utf-8"),
        title=" and ".join(group.label for group in comparison.groups)
        if len(comparison.groups) <= 2
        else f"{comparison.groups[0].label} and {len(comparison.groups) - 1} others",
        comparison=comparison,
        split=SPLITS[comparison.split],
        bars=_bars(comparison.groups),
        pairs=[
            {
                "other": pair.other.title,
                "style": styles[id(pair.other)],
                "text": points(*_below(pair)),
                "p": p_text(pair.difference.p),
                "told": pair.difference.told,
                "only": pair.only,
                "images": f"{pair.images[0]:,}"
                if pair.paired
                else " and ".join(f"{n:,}" for n in pair.images),
                "paired": pair.paired,
            }
            for pair in comparison.pairs
        ],
        classes=_classes(comparison.pairs[0]) if len(comparison.pairs) == 1 else [],
        most_classes=MOST_CLASSES,
        charts=_charts(comparison.groups),
        frame=FRAME,
        groups=[(group.label, styles[id(group)]) for group in comparison.groups],
        differing=list(comparison.differing.items())[:MOST_SETTINGS],
        rows=[_run_row(run, group, comparison.split) for group in comparison.groups for run in group.runs],
    )
    # A folder's name may hold bytes that are not text.
    atomic_write(out, html.encode("utf-8", errors="replace"))
    return out


def _style(number: int) -> str:
    """The CSS classes of a group: its colour, and the dashes that tell it from another group of that colour."""
    return f"g{number % COLOURS} d{min(number // COLOURS, 2)}"


def _run_row(run: Judged, group: Group, split: str) -> list[str]:
    def number(key: str, write: Any) -> str:
        value = run.figures.get(key, run.summary.get(key))
        return write(value) if _is_number(value) else NO_VALUE

    correct, images = int(run.correct.sum()), len(run.correct)
    value, low, high = percents(correct / images, *interval(correct, images), images)
    return [
        run.name,
        NO_VALUE if run.seed is None else str(run.seed),
        f"{value} % ({low} to {high})",
        number("loss", lambda x: f"{x:.4f}"),
        number("cat_recall", lambda x: f"{100 * x:.1f} %"),
        number("cat_f1", lambda x: f"{100 * x:.1f} %"),
        number(f"{split}_ece_calibrated", lambda x: f"{100 * x:.1f} %"),
        number("epochs", lambda x: f"{x:.4g}"),
        number("train_flops", scientific),
        number("total_seconds", duration),
        number("parameters", lambda x: f"{x:,.0f}"),
    ]


def _bars(groups: Sequence[Group]) -> dict[str, Any]:
    """Where each group's accuracy, interval and runs are on a common scale, in percent of its width."""
    intervals = [mean_interval(group.correct) for group in groups]
    every = [end for ends in intervals for end in ends] + [
        run.accuracy for group in groups for run in group.runs
    ]
    marks = _round_marks(100 * min(every), 100 * max(every), 5)

    def at(share: float) -> float:
        return round(100 * (100 * share - marks[0]) / (marks[-1] - marks[0]), 2)

    return {
        "marks": [(at(mark / 100), f"{mark:g}") for mark in marks],
        "groups": [
            {
                "title": group.title,
                "style": _style(i),
                "text": accuracy_text(group),
                "deviation": group.deviation and f"{100 * group.deviation:.2g}",
                "low": at(low),
                "width": round(at(high) - at(low), 2),
                "at": at(group.accuracy),
                "runs": [(at(run.accuracy), f"{run.name}: {100 * run.accuracy:.2f} %") for run in group.runs]
                if len(group.runs) > 1
                else [],
            }
            for i, (group, (low, high)) in enumerate(zip(groups, intervals, strict=True))
        ],
    }


def _classes(pair: Pair) -> list[dict[str, Any]]:
    """The accuracies of two groups on each class, the largest difference first; nothing where they are not paired.

    The intervals are those of these networks: the few images of a class in a few runs do not tell what seeds do to it.
    """
    if pair.keys is None:
        return []
    names = _classes_of(pair.keys)
    better, other = (_on_shared(group.runs, pair.keys) for group in (pair.better, pair.other))
    classes = np.unique(names)
    rows = []
    for name in classes:
        of_class = names == name
        sides = other[:, of_class], better[:, of_class]
        found = difference(*sides, paired=True, comparisons=len(classes), groups=())
        rows.append(
            {
                "name": name,
                "images": f"{of_class.sum():,}",
                "better": f"{100 * sides[1].mean():.1f}",
                "other": f"{100 * sides[0].mean():.1f}",
                "value": found.value,
                "text": points(found.value, found.low, found.high),
                "told": found.told,
            }
        )
    return sorted(rows, key=lambda row: -abs(row["value"]))


def _charts(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Curves of all runs over each other, as far as they were logged; groups are told apart by colour."""
    plans = (
        ("Validation accuracy by epoch", "val_acc", "epoch", 1.0, "epochs"),
        ("Validation accuracy by time", "val_acc", "seconds", 1 / 60, "minutes"),
        ("Validation loss by epoch", "val_loss", "epoch", 1.0, "epochs"),
    )
    charts = []
    for title, column, along, scale, unit in plans:
        curves = [
            (
                run.name,
                _style(i),
                [(row[along] * scale, row[column]) for row in run.curve if _has(row, along, column)],
            )
            for i, group in enumerate(groups)
            for run in group.runs
        ]
        curves = [curve for curve in curves if curve[2]]
        if curves:
            charts.append(_chart(title, unit, curves, percent=column == "val_acc"))
    return charts


def _has(row: Mapping[str, Any], *columns: str) -> bool:
    # Larger numbers are no measurements, and could not be drawn.
    return all(_is_number(row.get(column)) and abs(row[column]) < 1e9 for column in columns)


def _chart(
    title: str, unit: str, curves: Sequence[tuple[str, str, list[tuple[float, float]]]], percent: bool
) -> dict[str, Any]:
    factor = 100.0 if percent else 1.0
    # The steep start of the curves would flatten their ends, so values of the first quarter may leave the frame.
    late = [y * factor for *_, line in curves for x, y in line if 4 * x >= line[-1][0]]
    y_marks = _round_marks(min(late), max(late), 5)
    end = max(max(x for *_, line in curves for x, _ in line), 1e-9)

    def x_of(x: float) -> float:
        return round(FRAME["left"] + (FRAME["right"] - FRAME["left"]) * x / end, 1)

    def y_of(y: float) -> float:
        share = (y - y_marks[0]) / (y_marks[-1] - y_marks[0])
        return round(FRAME["bottom"] - (FRAME["bottom"] - FRAME["top"]) * min(max(share, -2.0), 3.0), 1)

    return {
        "title": title,
        "unit": unit,
        "x": [(x_of(mark), f"{mark:g}") for mark in _round_marks(0.0, end, 5) if mark <= end],
        "y": [(y_of(mark), f"{mark:g} %" if percent else f"{mark:g}") for mark in y_marks],
        "lines": [
            {
                "style": style,
                "points": [(x_of(x), y_of(y * factor)) for x, y in line],
                "title": f"{name}: {line[-1][1] * factor:.4g}{' %' if percent else ''} at the end",
            }
            for name, style, line in curves
        ],
    }


def _round_marks(low: float, high: float, most: int) -> list[float]:
    """Up to `most` + 1 round numbers, the first at most `low` and the last at least `high`."""
    rough = max(high - low, 1e-3 * max(abs(high), 1e-3)) / max(most - 1, 1)
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]
