"""Look at every file of a folder or zip of class folders before training, and say all that is wrong."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitreous.data.folder import SPLIT_FOLDERS, Entry, Tree, open_tree, read_all
from vitreous.data.pictures import BadPicture, decode
from vitreous.progress import track

# In the order in which they are shown; the first four are those of `BadPicture`.
REASONS = (
    "unreadable",
    "truncated",
    "not a picture",
    "too large",
    "duplicate between splits with another label",
    "duplicate between splits with the same label",
    "duplicate inside a split with another label",
    "empty class",
    "class missing from a split",
    "one class only",
)
UNBALANCED = 2.0  # largest class over smallest, from which on it is worth a note
ROWS = 60  # classes shown in a table


@dataclass(frozen=True)
class Problem:
    """Something that training would suffer from: one of `REASONS`, the file or class, and more about it."""

    reason: str
    name: str
    detail: str = ""


@dataclass(frozen=True)
class Check:
    """What `check` found.

    `counts` holds the usable pictures of each split and class; `sizes` the smallest, median and largest
    "width" and "height" in pixels as stored (empty where no picture is usable); `balance` the largest over
    the smallest class of the training split (None where one has no picture); `notes` what is worth knowing
    and does no harm.
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
        """Whether training on this would not suffer."""
        return not self.problems

    @property
    def pictures(self) -> int:
        """Usable pictures in all splits."""
        return sum(sum(classes.values()) for classes in self.counts.values())

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-able; `problems` as a list of {reason, name, detail}."""
        return {
            "path": str(self.path),
            "ok": self.ok,
            "files": self.files,
            "pictures": self.pictures,
            "splits": {
                split: {"pictures": sum(classes.values()), "classes": classes}
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
        """Everything, for a person."""
        classes = list(next(iter(self.counts.values())))
        lines = [
            f"{self.path}: {self.pictures:,} usable pictures of {_many(len(classes), 'class', 'classes')}"
        ]
        for side, (low, median, high) in self.sizes.items():
            lines.append(f"  {side}: {low:g} to {high:g} pixels, median {median:g}")
        lines += ["", *self._table(classes)]
        for reason in REASONS:
            found = [problem for problem in self.problems if problem.reason == reason]
            if found:
                lines += ["", f"{reason} ({len(found):,})"]
                lines += [f"  {one.name}" + (f"  ({one.detail})" if one.detail else "") for one in found]
        if self.notes:
            lines += ["", *(f"Note: {note}" for note in self.notes)]
        verdict = "No problems found."
        if self.problems:
            verdict = f"{_many(len(self.problems), 'problem', 'problems')} found: training would suffer."
        return "\n".join([*lines, "", verdict])

    def _table(self, classes: Sequence[str]) -> list[str]:
        """Pictures by class (rows) and split (columns); one row for all classes where they are equal."""
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


def check(path: Path) -> Check:
    """Decode every file of a folder or zip of class folders once, and collect all that is wrong with it.

    Duplicates are told by the decoded pixels. Of two equal pictures the later is named, in the order train,
    val, test; the same picture twice in a class of one split is only noted. Nothing is written.

    Raises:
        VitreousError: there is nothing at `path`, it is no zip, or it has no class folders.
    """
    with open_tree(path) as tree:
        counts = {split: dict.fromkeys(tree.classes, 0) for split in tree.splits}
        sizes: list[tuple[int, int]] = []
        same: dict[bytes, list[Entry]] = defaultdict(list)
        problems = []
        looked_at = track(read_all(tree, _look), len(tree.entries), f"Checking {tree.path.name}")
        for entry, seen in looked_at:
            if isinstance(seen, BadPicture):
                problems.append(Problem(seen.reason, entry.name, seen.detail))
                continue
            digest, size = seen
            counts[entry.split][entry.label] += 1
            sizes.append(size)
            same[digest].append(entry)

    repeated = 0
    for entries in same.values():
        for position, entry in enumerate(entries):
            found = _duplicate(entry, entries[:position])
            if isinstance(found, Problem):
                problems.append(found)
            else:
                repeated += found
    problems += _class_problems(tree, counts)
    problems.sort(key=lambda problem: (REASONS.index(problem.reason), problem.name))

    training = counts["train"].values()
    balance = max(training) / min(training) if min(training) else None
    notes = []
    if balance and balance >= UNBALANCED:
        by_size = Counter(counts["train"]).most_common()
        (largest, most), (smallest, least) = by_size[0], by_size[-1]
        notes.append(
            f"{largest} has {balance:.1f} times as many training pictures as {smallest} "
            f"({most:,} and {least:,})."
        )
    if repeated:
        notes.append(
            f"{_many(repeated, 'picture is', 'pictures are')} in the same class of the same split twice."
        )
    if tree.outside:
        notes.append(
            f"{_many(len(tree.outside), 'file lies', 'files lie')} outside the class folders "
            f"and will not be used ({', '.join(tree.outside[:3])}{', …' if len(tree.outside) > 3 else ''})."
        )
    return Check(
        path=tree.path,
        files=len(tree.entries),
        counts=counts,
        sizes={
            side: (float(min(values)), float(np.median(values)), float(max(values)))
            for side, values in zip(("width", "height"), zip(*sizes, strict=True), strict=False)
        },
        balance=balance,
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _look(data: bytes) -> tuple[bytes, tuple[int, int]]:
    picture = decode(data)
    width, height = picture.size
    return hashlib.sha256(b"%d %d " % (width, height) + picture.tobytes()).digest(), (width, height)


def _duplicate(entry: Entry, earlier: Sequence[Entry]) -> Problem | bool:
    """What is wrong with a picture equal to `earlier` ones, the worst first, or whether it is one at all."""
    for reason, other_split, other_label in (
        ("duplicate between splits with another label", True, True),
        ("duplicate inside a split with another label", False, True),
        ("duplicate between splits with the same label", True, False),
    ):
        for first in earlier:
            if (first.split != entry.split) == other_split and (first.label != entry.label) == other_label:
                return Problem(reason, entry.name, f"the same picture as {first.name}")
    return bool(earlier)


def _class_problems(tree: Tree, counts: dict[str, dict[str, int]]) -> list[Problem]:
    problems = []
    empty = set()
    for name in tree.empty:
        top, _, label = name.rpartition("/")
        empty.add((SPLIT_FOLDERS.get(top.casefold()), label))
        problems.append(Problem("empty class", name, "a folder without files"))
    for split, classes in counts.items():
        for label, count in classes.items():
            if not count and (split, label) not in empty:
                detail = f"{split} has no usable picture of it"
                problems.append(Problem("class missing from a split", label, detail))
    if len(tree.classes) == 1:
        problems.append(Problem("one class only", tree.classes[0], "at least two are needed to tell apart"))
    return problems


def _many(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"
