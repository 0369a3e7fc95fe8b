"""Checks each file of a folder or zip of class folders before training, and lists all problems."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitreous.data.copies import find_copies
from vitreous.data.folder import Tree, open_tree
from vitreous.data.importing import choose_size, surveyed
from vitreous.data.layout import SPLIT_FOLDERS, Entry, Problem
from vitreous.data.reading import ReadOptions
from vitreous.wording import count

# In the order in which they are shown. The first six are those of `BadImage`.
REASONS = (
    "unreadable",
    "unsupported",
    "truncated",
    "empty file",
    "not an image",
    "too large",
    "duplicate between splits with another label",
    "duplicate between splits with the same label",
    "duplicate inside a split with another label",
    "empty class",
    "class missing from a split",
    "one class only",
)
UNBALANCED = 2.0  # ratio of the largest to the smallest class from which on a note is given
ROWS = 60  # classes shown in a table


@dataclass(frozen=True)
class Check:
    """The result of `check`.

    Attributes:
        path: the folder or zip.
        files: number of files in class folders.
        counts: number of usable images, by split and class.
        sizes: smallest, median and largest "width" and "height" in pixels as stored; empty if no image is usable.
        balance: largest over smallest class of the training split; None if a class has no training image.
        problems: what would harm training.
        notes: facts worth knowing that do no harm.
    """

    path: Path
    files: int
    counts: dict[str, dict[str, int]]
    sizes: dict[str, tuple[float, float, float]]
    balance: float | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    @property
    def images(self) -> int:
        """Number of usable images in all splits."""
        return sum(sum(classes.values()) for classes in self.counts.values())

    def to_json(self) -> dict[str, Any]:
        """The result, JSON-able, with `problems` as a list of {reason, name, detail}."""
        return {
            "path": str(self.path),
            "ok": self.ok,
            "files": self.files,
            "images": self.images,
            "splits": {
                split: {"images": sum(classes.values()), "classes": classes}
                for split, classes in self.counts.items()
            },
            "sizes": {
                side: dict(zip(("min", "median", "max"), values, strict=True))
                for side, values in self.sizes.items()
            },
            "balance": self.balance,
            "problems": [asdict(problem) for problem in self.problems],
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """The result, for a person to read."""
        classes = list(next(iter(self.counts.values())))
        usable, labels = count(self.images, "usable image"), count(len(classes), "class", "classes")
        lines = [f"{self.path}: {usable} of {labels}"]
        for side, (low, median, high) in self.sizes.items():
            lines.append(f"  {side}: {low:g} to {high:g} pixels, median {median:g}")
        lines += ["", *self._table(classes)]
        for reason in REASONS:
            problems = [problem for problem in self.problems if problem.reason == reason]
            if problems:
                lines += ["", f"{reason} ({len(problems):,})"]
                lines += [
                    f"  {problem.name}" + (f"  ({problem.detail})" if problem.detail else "")
                    for problem in problems
                ]
        if self.notes:
            lines += ["", *(f"Note: {note}" for note in self.notes)]
        verdict = "No problems found."
        if self.problems:
            verdict = f"{count(len(self.problems), 'problem')} found; fix them before training."
        return "\n".join([*lines, "", verdict])

    def _table(self, classes: Sequence[str]) -> list[str]:
        """Images by class (rows) and split (columns); one row for all classes if their counts are equal."""
        equal = all(len(set(counts.values())) == 1 for counts in self.counts.values())
        shown = {"each class": classes[0]} if equal else {label: label for label in classes[:ROWS]}
        rows = [["class", *self.counts]]
        for title, label in shown.items():
            rows.append([title, *(f"{counts[label]:,}" for counts in self.counts.values())])
        rows.append(["all classes", *(f"{sum(counts.values()):,}" for counts in self.counts.values())])
        first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = [
            "  ".join(
                [row[0].ljust(first), *(cell.rjust(n) for cell, n in zip(row[1:], others, strict=True))]
            )
            for row in rows
        ]
        if len(classes) > len(shown) > 1:
            lines.insert(-1, f"… and {len(classes) - len(shown):,} more classes (--json lists all)")
        return [f"  {line}" for line in lines]


def check(path: Path, options: ReadOptions | None = None) -> Check:
    """Decodes each file of a folder or zip of class folders once, and collects all problems. Writes nothing.

    Images are duplicates if their decoded pixels are equal. Of two equal images the later one is named, in the order
    train, val, test. Duplicates in the same class of the same split are only noted.

    Raises:
        VitreousError: there is nothing at `path`, it is neither a folder nor a zip, or it has no class folders.
    """
    options = options or ReadOptions()
    with open_tree(path, options.splits) as tree:
        size, _ = choose_size(tree, options)
        with surveyed(tree, size, options, Path(tempfile.gettempdir()) / "check") as survey:
            counts = {split: dict.fromkeys(tree.layout.classes, 0) for split in tree.layout.splits}
            for split, (_, labels, _) in survey.splits.items():
                for label in labels.tolist():
                    counts[split][tree.layout.classes[label]] += 1
            problems = list(survey.problems)
            copies = find_copies({split: images for split, (images, _, _) in survey.splits.items()})
            sizes = [(fact.width, fact.height) for fact in survey.facts]
            entries_of: dict[int, list[Entry]] = defaultdict(list)
            by_name = {entry.name: entry for entry in tree.layout.entries}
            for split, numbers in copies.groups.items():
                for name, number in zip(survey.splits[split][2], numbers.tolist(), strict=True):
                    entries_of[number].append(by_name[name])

    repeated = 0
    for entries in entries_of.values():
        for position, entry in enumerate(entries[1:], 1):
            problem = _harmful_duplicate(entry, entries[:position])
            if problem:
                problems.append(problem)
            else:
                repeated += 1
    problems += _class_problems(tree, counts)
    problems.sort(key=lambda problem: (REASONS.index(problem.reason), problem.name))

    training = counts["train"].values()
    balance = max(training) / min(training) if min(training) else None
    return Check(
        path=tree.path,
        files=len(tree.layout.entries),
        counts=counts,
        sizes={
            side: (float(min(values)), float(np.median(values)), float(max(values)))
            for side, values in zip(("width", "height"), zip(*sizes, strict=True), strict=False)
        },
        balance=balance,
        problems=tuple(problems),
        notes=tuple(_notes(tree, counts["train"], balance, repeated)),
    )


def _harmful_duplicate(entry: Entry, earlier: Sequence[Entry]) -> Problem | None:
    """The worst problem of an image that equals `earlier` ones, or None if all are in its own split and class."""
    for reason, other_split, other_label in (
        ("duplicate between splits with another label", True, True),
        ("duplicate inside a split with another label", False, True),
        ("duplicate between splits with the same label", True, False),
    ):
        for first in earlier:
            if (first.split != entry.split) == other_split and (first.label != entry.label) == other_label:
                return Problem(reason, entry.name, f"the same image as {first.name}")
    return None


def _class_problems(tree: Tree, counts: dict[str, dict[str, int]]) -> list[Problem]:
    problems = []
    empty = set()
    for name in tree.layout.empty:
        top, _, label = name.rpartition("/")
        empty.add((SPLIT_FOLDERS.get(top.casefold()), label))
        problems.append(Problem("empty class", name, "a folder without files"))
    for split, classes in counts.items():
        for label, usable in classes.items():
            if not usable and (split, label) not in empty:
                detail = f"{split} has no usable image of it"
                problems.append(Problem("class missing from a split", label, detail))
    if len(tree.layout.classes) == 1:
        problems.append(
            Problem("one class only", tree.layout.classes[0], "training needs at least two classes")
        )
    return problems


def _notes(tree: Tree, training: dict[str, int], balance: float | None, repeated: int) -> list[str]:
    """Sentences about unequal classes, repeated images and files outside the class folders."""
    notes = []
    if balance and balance >= UNBALANCED:
        by_size = Counter(training).most_common()
        (largest, most), (smallest, least) = by_size[0], by_size[-1]
        notes.append(
            f"{largest} has {balance:.1f} times as many training images as {smallest} ({most:,} and {least:,})."
        )
    if repeated:
        subject = count(repeated, "image repeats", "images repeat")
        notes.append(f"{subject} another image of the same class and split.")
    for passed_over in tree.layout.passed_over:
        outside = passed_over.names
        subject = count(len(outside), "file is", "files are")
        examples = ", ".join(outside[:3]) + (", …" if len(outside) > 3 else "")
        notes.append(f"{subject} outside the class folders and will not be used ({examples}).")
    return notes
