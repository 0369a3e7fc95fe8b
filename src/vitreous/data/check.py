"""Checks a folder or zip of images before training: what it holds, what is wrong, and what `train` would do with it."""

from __future__ import annotations

import os
import shutil
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitreous.data.cache import data_folder
from vitreous.data.copies import Copies, Pair, find_copies
from vitreous.data.folder import Tree, existing, open_tree
from vitreous.data.identity import canonical_order, chunks
from vitreous.data.importing import Survey, choose_size, packed_name, refuse, surveyed
from vitreous.data.layout.entries import PassedOver, Problem
from vitreous.data.layout.names import natural_key
from vitreous.data.packed import packed_size
from vitreous.data.reading import ReadOptions
from vitreous.data.sentences import describe_cut
from vitreous.data.sources import grouped
from vitreous.data.splits import SplitPlan, plan_splits
from vitreous.data.store import ImageStore, RawSplit, Split
from vitreous.errors import VitreousError
from vitreous.files import human_size, path_of, write_failure
from vitreous.wording import count, printable, series, shortened

STOPS = "training stops"
# In the order in which they are shown; those of other files follow. The first six are those of `BadImage`.
REASONS = (
    "unreadable",
    "unsupported",
    "truncated",
    "empty file",
    "not an image",
    "too large",
    "unsupported format",
    "dangling link",
    "duplicate between splits with another label",
    "duplicate between splits with the same label",
    "duplicate inside a split with another label",
    "empty class",
    "class missing from a split",
    "one class only",
    STOPS,
)
UNBALANCED = 2.0  # ratio of the largest to the smallest class from which on a note is given
WIDTH = 100  # of wrapped lines
ROWS = 20  # classes named, and classes in the table
LISTED = 10  # problems of a reason, and files of a kind that is passed over


@dataclass(frozen=True)
class Check:
    """The result of `check`.

    Attributes:
        path: the folder or zip.
        classes: class names in the order of the labels.
        counts: number of usable images, by split and class.
        sizes: smallest, median and largest "width" and "height" in pixels, upright; empty if no image is usable.
        balance: largest over smallest class of the training split; None if a class has no training image.
        passed_over: files that are not read, by kind.
        problems: what would harm training.
        notes: what was understood, and facts worth knowing that do no harm.
        would_train: whether `train` with the same options would train, at least on a part of the images.
        verdict: a sentence that says what `train` would do.
    """

    path: Path
    classes: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    sizes: dict[str, tuple[float, float, float]]
    balance: float | None
    passed_over: tuple[PassedOver, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    would_train: bool
    verdict: str

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    @property
    def images(self) -> int:
        """Number of usable images in all splits."""
        return sum(sum(classes.values()) for classes in self.counts.values())

    def to_json(self) -> dict[str, Any]:
        """The result, JSON-able, as `docs/check.schema.json` describes it."""
        return {
            "path": str(self.path),
            "ok": self.ok,
            "would_train": self.would_train,
            "verdict": self.verdict,
            "splits": {
                split: {"pictures": sum(classes.values()), "classes": classes}
                for split, classes in self.counts.items()
            },
            "classes": list(self.classes),
            "pictures": self.images,
            "sizes": {
                side: dict(zip(("min", "median", "max"), values, strict=True))
                for side, values in self.sizes.items()
            },
            "balance": self.balance,
            "passed_over": [
                {"kind": kind.kind, "count": len(kind.names), "files": list(kind.names)}
                for kind in self.passed_over
            ],
            "problems": [asdict(problem) for problem in self.problems],
            "notes": list(self.notes),
        }

    def text(self, everything: bool = False) -> str:
        """The result, for a person to read.

        Args:
            everything: list all classes, files and problems, rather than the first ones.
        """
        lines = [printable(f"{self.path}: {self._size()}")]
        if self.classes:
            lines += ["", *_wrapped("classes: ", self.classes, len(self.classes) if everything else ROWS)]
            lines += [f"{side}: {_range(*values)}" for side, values in self.sizes.items()]
            lines += ["", *self._table(everything)]
        if self.notes:
            lines += ["", *(printable(f"Note: {note}") for note in self.notes)]
        if self.passed_over:
            lines += [""]
        for kind in self.passed_over:
            names = shortened(kind.names, len(kind.names) if everything else 3)
            lines.append(printable(f"Passed over: {kind.text} ({names})."))
        lines += self._problems(everything)
        return "\n".join([*lines, "", "\n".join(map(printable, self.verdict.split("\n")))])

    def _size(self) -> str:
        if not self.classes:
            return "nothing to train on"
        return f"{count(self.images, 'usable image')} of {count(len(self.classes), 'class', 'classes')}"

    def _table(self, everything: bool) -> list[str]:
        """Images by class (rows) and split (columns); one row for all classes if their counts are equal."""
        equal = all(len(set(counts.values())) == 1 for counts in self.counts.values())
        classes = self.classes if everything else self.classes[:ROWS]
        shown = {"each class": self.classes[0]} if equal else {printable(label): label for label in classes}
        rows = [["class", *self.counts]]
        for title, label in shown.items():
            rows.append([title, *(f"{counts[label]:,}" for counts in self.counts.values())])
        if len(self.classes) > len(shown) and not equal:
            rows.append([f"… and {len(self.classes) - len(shown):,} more", *("" for _ in self.counts)])
        rows.append(["all classes", *(f"{sum(counts.values()):,}" for counts in self.counts.values())])
        first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
        return [
            "  ".join(
                ["", row[0].ljust(first), *(cell.rjust(n) for cell, n in zip(row[1:], others, strict=True))]
            ).rstrip()
            for row in rows
        ]

    def _problems(self, everything: bool) -> list[str]:
        """Their number by reason, then the first of each reason."""
        by_reason: dict[str, list[Problem]] = {}
        for problem in self.problems:
            by_reason.setdefault(problem.reason, []).append(problem)
        if not by_reason:
            return ["", "No problems found."]
        width = len(f"{max(map(len, by_reason.values())):,}")
        lines = ["", f"{count(len(self.problems), 'problem')} found:"]
        lines += [f"  {len(problems):{width},}  {reason}" for reason, problems in by_reason.items()]
        for reason, problems in by_reason.items():
            if reason == STOPS:  # the verdict says it
                continue
            lines += ["", f"{reason}:"]
            for problem in problems if everything else problems[:LISTED]:
                lines.append(
                    printable(f"  {problem.name}" + (f"  ({problem.detail})" if problem.detail else ""))
                )
            if len(problems) > LISTED and not everything:
                lines.append(f"  … and {len(problems) - LISTED:,} more (--all lists them)")
        return lines


def check(path: Path, options: ReadOptions | None = None) -> Check:
    """Decodes each file of a folder or zip once, as `train` does, and collects all problems.

    Nothing is written but a nameless temporary file, which disappears with the process. Of two images that are copies
    of one another the later one is named, in the order train, val, test. Copies in the same class of the same split
    are only noted.

    Raises:
        VitreousError: there is nothing at `path`, or no room for the temporary file.
    """
    options = options or ReadOptions()
    path = path_of(path)
    if not path.exists():
        existing(path)  # refuses it, with a hint
    try:
        with open_tree(path, options.splits) as tree:
            size = options.image_size or choose_size(tree)[0]
            scratch = _scratch_place(tree, size)
            with (
                surveyed(tree, size, options, scratch) as survey,
                _in_canonical_order(survey, scratch.parent) as ordered,
            ):
                return _checked(ordered, options)
    except _NoRoomError:
        raise
    except VitreousError as error:  # a file that is no archive, folders or values that cannot be understood
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, PermissionError):
            raise  # of the disk
        return _refused(path, error)


class _NoRoomError(VitreousError):
    """No disk has room for the temporary file."""


def _scratch_place(tree: Tree, size: int) -> Path:
    """A path in a folder for temporary files that has room for the decoded images.

    Raises:
        _NoRoomError: none has.
    """
    needed = 2 * packed_size(len(tree.layout.entries), size)
    folders = [Path(tempfile.gettempdir()), Path("/var/tmp"), data_folder(None)]
    folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir() and os.access(folder, os.W_OK)]
    for folder in folders:
        if shutil.disk_usage(folder).free >= needed:
            return folder / "check"
    places = shortened([str(folder) for folder in folders])
    raise _NoRoomError(
        f"Checking {tree.path.name} needs {human_size(needed)} for a temporary file, which neither place has "
        f"({places}); free some space, or name another folder in the environment variable TMPDIR."
    )


@contextmanager
def _in_canonical_order(survey: Survey, folder: Path) -> Iterator[Survey]:
    """The same images in the order in which a run gets them: copies and cuts may depend on it.

    Like those of the survey, the arrays are mapped from a nameless file, in `folder`.
    """
    splits: dict[str, RawSplit] = {}
    groups: dict[str, list[str]] = {}
    start = 0
    with tempfile.TemporaryFile(dir=folder) as file:
        for split, (images, labels, names) in survey.splits.items():
            order = canonical_order(images, labels, names)
            try:
                for chunk in chunks(images, order):
                    file.write(chunk.data)
                file.flush()
            except OSError as error:
                raise write_failure(folder, error) from error
            ordered = np.memmap(file, np.uint8, "r", offset=start, shape=images.shape)
            splits[split] = (ordered, labels[order], [names[i] for i in order])
            start += images.nbytes
            if survey.groups is not None:
                groups[split] = [survey.groups[split][i] for i in order]
        yield replace(survey, splits=splits, groups=groups or None)


def _refused(path: Path, error: VitreousError) -> Check:
    """The result for what cannot be read at all."""
    problem = Problem(STOPS, str(path), str(error))
    return Check(path, (), {}, {}, None, (), (problem,), (), False, _stop(error))


def _checked(survey: Survey, options: ReadOptions) -> Check:
    """The result for images that are in canonical order."""
    layout = survey.tree.layout
    labels = {split: numbers for split, (_, numbers, _) in survey.splits.items()}
    counts = {split: dict.fromkeys(layout.classes, 0) for split in layout.splits}
    for split, numbers in labels.items():
        amounts = np.bincount(numbers, minlength=len(layout.classes)).tolist()
        counts[split] = dict(zip(layout.classes, amounts, strict=True))
    images = {split: part[0] for split, part in survey.splits.items()}
    copies = find_copies(images, survey.tree.path.name) if images else Copies({}, {}, ())
    copy_problems, copy_notes = _copy_problems(survey, copies)
    problems = [*survey.problems, *copy_problems, *_class_problems(survey, counts)]

    plan: SplitPlan | None = None
    stop: VitreousError | None = None
    try:
        refuse(survey, replace(options, skip_bad=True))
    except VitreousError as error:
        stop = error  # its reason is among the problems already
    else:
        try:
            plan = _plan_splits(survey, options, copies)
        except VitreousError as error:
            stop = error
            problems.append(Problem(STOPS, survey.tree.path.name, str(error)))
    problems.sort(key=lambda problem: (_rank(problem.reason), natural_key(problem.name)))

    sizes = [(fact.width, fact.height) for fact in survey.facts]
    training = counts.get("train", {}).values()
    balance = max(training) / min(training) if training and min(training) else None
    return Check(
        path=survey.tree.path,
        classes=layout.classes,
        counts=counts,
        sizes={
            side: (float(min(values)), float(np.median(values)), float(max(values)))
            for side, values in zip(("width", "height"), zip(*sizes, strict=True), strict=False)
        },
        balance=balance,
        passed_over=layout.passed_over,
        problems=tuple(problems),
        notes=(
            *survey.notes,
            *describe_cut(survey.facts, survey.preprocess.fit),
            *_unbalanced(counts.get("train", {}), balance),
            *copy_notes,
            *(plan.warnings if plan else ()),
        ),
        would_train=stop is None and (options.skip_bad or not survey.problems),
        verdict=_verdict(survey, options, labels, plan, stop),
    )


def _rank(reason: str) -> tuple[int, str]:
    """The place of a reason among the others; those that are not in `REASONS` come last, by name."""
    return (REASONS.index(reason), "") if reason in REASONS else (len(REASONS), reason)


# ---- what train would do


def _plan_splits(survey: Survey, options: ReadOptions, copies: Copies) -> SplitPlan:
    """The splits that a run would train on, be validated on and be tested on, by the calls that `train` makes.

    Raises:
        VitreousError: as `train` raises it.
    """
    layout, groups = survey.tree.layout, survey.groups
    name = packed_name(survey.tree.path)
    if options.group_by is not None:
        splits = {split: Split(*part) for split, part in survey.splits.items()}
        none = (0.0, 0.0, 0.0)
        store = ImageStore(name, layout.classes, splits, none, none, "", "", survey.preprocess)
        store = grouped(store, options.group_by)
        groups = {split: list(part.groups or ()) for split, part in store.splits.items()}
    labels = {split: part[1] for split, part in survey.splits.items()}
    return plan_splits(name, layout.classes, labels, copies=copies, groups=groups)


def _verdict(
    survey: Survey,
    options: ReadOptions,
    labels: Mapping[str, np.ndarray],
    plan: SplitPlan | None,
    stop: VitreousError | None,
) -> str:
    """What `train` would do with the images; `plan` and `stop` are what it comes to once bad files are left out."""
    bad = count(len(survey.problems), "file that cannot be used", "files that cannot be used")
    if plan is None:
        assert stop is not None
        if survey.problems and not options.skip_bad:
            return f"train would stop at {bad}; with --skip-bad it would stop as well: {stop}"
        return _stop(stop)
    number = sum(len(kind.names) for kind in survey.tree.layout.passed_over)
    passed_over = [f"pass over {count(number, 'file')}"] if number else []
    use = _use(survey, labels, plan)
    if survey.problems and not options.skip_bad:
        them = "it" if len(survey.problems) == 1 else "them"
        steps = series([f"leave {them} out", *passed_over, use])
        return f"train would stop at {bad}; with --skip-bad it would {steps}."
    left_out = [f"leave out {bad}"] if survey.problems else []
    return f"train would {series([*passed_over, *left_out, use])}."


def _stop(error: VitreousError) -> str:
    return f"train would stop: {error}"


def _use(survey: Survey, labels: Mapping[str, np.ndarray], plan: SplitPlan) -> str:
    """The images and splits of a run: "use 2,503 images of 6 classes: 2,003 to train on, …"."""
    sizes = {
        split: len(plan.positions[split]) if split in plan.positions else len(labels[source])
        for split, source in plan.sources.items()
    }
    if len(plan.cut) == 2:
        origin = {"test": " (both cut from training)"}
    else:
        origin = dict.fromkeys(plan.cut, " (cut from training)")
    if plan.sources["test"] == "val":
        origin["test"] = " (its val split)"
    total = count(sum(map(len, labels.values())), "image")
    classes = count(len(survey.tree.layout.classes), "class", "classes")
    return (
        f"use {total} of {classes}: {sizes['train']:,} to train on, "
        f"{sizes['val']:,} to validate{origin.get('val', '')} and {sizes['test']:,} to test{origin.get('test', '')}"
    )


# ---- problems and notes


def _copy_problems(survey: Survey, copies: Copies) -> tuple[list[Problem], list[str]]:
    """A problem for each copy that is in another split or has another label, and a note on the others."""
    problems, same, nearly = [], 0, 0
    for pair in copies.pairs:
        (split, i), (other_split, j) = pair.first, pair.second
        _, labels, names = survey.splits[split]
        _, other_labels, other_names = survey.splits[other_split]
        reason = _copy_reason(pair, bool(labels[i] == other_labels[j]))
        if reason:
            how = {"equal": "the same image as", "mirrored": "nearly the mirror image of"}.get(
                pair.kind, "nearly the same image as"
            )
            problems.append(Problem(reason, other_names[j], f"{how} {names[i]}"))
        else:
            same += 1
            nearly += not pair.exact
    notes = []
    if same:
        adverb, near = (
            ("nearly ", "") if nearly == same else ("", f", {nearly:,} of them nearly" if nearly else "")
        )
        subject = count(same, f"image {adverb}repeats", f"images {adverb}repeat")
        notes.append(f"{subject} another image of the same class and split{near}.")
    if not copies.near:
        notes.append("There are too many images to look for near-copies; only equal images were looked for.")
    return problems, notes


def _copy_reason(pair: Pair, same_label: bool) -> str:
    if pair.first[0] != pair.second[0]:
        return f"duplicate between splits with {'the same' if same_label else 'another'} label"
    return "" if same_label else "duplicate inside a split with another label"


def _class_problems(survey: Survey, counts: Mapping[str, Mapping[str, int]]) -> list[Problem]:
    layout = survey.tree.layout
    problems = [Problem("empty class", folder.name, folder.detail) for folder in layout.empty_classes]
    empty = {(folder.split, folder.label) for folder in layout.empty_classes}
    for split, classes in counts.items():
        for label, usable in classes.items():
            if not usable and (split, label) not in empty:
                detail = f"{split} has no usable image of it"
                problems.append(Problem("class missing from a split", label, detail))
    if len(layout.classes) == 1:
        problems.append(Problem("one class only", layout.classes[0], "training needs at least two classes"))
    return problems


def _unbalanced(training: Mapping[str, int], balance: float | None) -> list[str]:
    if balance is None or balance < UNBALANCED:
        return []
    by_size = Counter(training).most_common()
    (largest, most), (smallest, least) = by_size[0], by_size[-1]
    return [
        f"{largest} has {balance:.1f} times as many training images as {smallest} ({most:,} and {least:,})."
    ]


# ---- lines of text


def _range(low: float, median: float, high: float) -> str:
    if low == high:
        return f"{low:g} pixels"
    return f"{low:g} to {high:g} pixels, median {median:g}"


def _wrapped(title: str, names: Sequence[str], most: int) -> list[str]:
    """The title and the first names, in lines that break between names only."""
    shown = ", ".join(printable(name).replace(" ", "\0") for name in names[:most])
    if len(names) > most:
        shown += f" … and {len(names) - most:,} more (--all names them)".replace(" ", "\0")
    lines = textwrap.wrap(
        title + shown,
        WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in lines]
