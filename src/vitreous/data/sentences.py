"""Sentences about what was found in a folder or zip of images, the same ones in `data check` and in `train`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitreous.data.layout.entries import Layout
from vitreous.data.values import Facts
from vitreous.preprocess import cut_off
from vitreous.wording import count, percent, shortened

if TYPE_CHECKING:  # importing.py imports this module
    from vitreous.data.importing import Survey

FEW = 3  # names in a sentence
MUCH = 0.1  # share of its area: an image that loses more is counted
OFTEN = 0.1  # share of the images: if more lose that much, a sentence says so
KEEP_ALL = "`vitreous data show` draws what is cut off, and --fit pad or --fit stretch keeps all of it"


def check_command(path: Path) -> str:
    return f"`vitreous data check {shlex.quote(str(path))}`"


def notes_of(survey: Survey) -> tuple[str, ...]:
    """What was guessed, passed over, left out or cut off: the sentences that `train` says and keeps."""
    layout = survey.tree.layout
    labels = {split: part[1] for split, part in survey.splits.items()}
    bad = len(survey.problems)
    return (
        *survey.notes,
        *list_passed_over(layout),
        *list_empty_classes(layout),
        *list_missing_classes(layout.classes, labels),
        *describe_cut(survey.facts, survey.preprocess.fit),
        *count_bad_files(survey.tree.path, bad, bad + len(survey.facts)),
    )


def list_passed_over(layout: Layout) -> list[str]:
    """A sentence on the files that are not read, or none."""
    kinds = [f"{kind.text} ({shortened(kind.names, FEW)})" for kind in layout.passed_over]
    return [f"Passed over: {', '.join(kinds)}."] if kinds else []


def list_empty_classes(layout: Layout) -> list[str]:
    """A sentence on the class folders without an image, or none."""
    if not layout.empty:
        return []
    folders = count(len(layout.empty), "class folder has", "class folders have")
    verb = "is" if len(layout.empty) == 1 else "are"
    return [f"{folders} no images and {verb} left out: {shortened(layout.empty, FEW)}."]


def list_missing_classes(classes: Sequence[str], labels: Mapping[str, np.ndarray]) -> list[str]:
    """A sentence on each split for evaluation that has no image of some classes.

    Args:
        labels: int [N] of each split, positions in `classes`.
    """
    sentences = []
    for split, numbers in labels.items():
        present = set(np.unique(numbers).tolist())
        missing = [label for number, label in enumerate(classes) if number not in present]
        if split != "train" and missing:
            classes_missing = count(len(missing), "class", "classes")
            sentences.append(
                f"{split} has no images of {classes_missing}, so its accuracy says nothing about "
                f"{'it' if len(missing) == 1 else 'them'}: {shortened(missing, FEW)}."
            )
    return sentences


def count_bad_files(path: Path, bad: int, files: int) -> list[str]:
    """A sentence on the files that cannot be used and were left out, or none."""
    if not bad:
        return []
    verb = "is" if bad == 1 else "are"
    return [
        f"{bad:,} of {count(files, 'file')} cannot be used and {verb} left out ({check_command(path)} lists them)."
    ]


def cut_share(fact: Facts, fit: str) -> float:
    """The share of an image's area that `fit` cuts off."""
    left, top, right, bottom = cut_off(fact.width, fact.height, fit)
    return 1 - (right - left) * (bottom - top) / (fact.width * fact.height)


def describe_cut(facts: Sequence[Facts], fit: str, advice: str = KEEP_ALL) -> list[str]:
    """A sentence on what becoming square cuts off, if it is much of many images.

    Args:
        advice: how to keep all of it.
    """
    shares = [cut_share(fact, fit) for fact in facts]
    cut = sum(share > MUCH for share in shares)
    if cut <= OFTEN * len(shares):
        return []
    number, median = count(len(shares), "image"), percent(float(np.median(shares)))
    return [
        f"The square crop cuts more than {100 * MUCH:.0f} % off {cut:,} of {number} (the median loses {median}, the "
        f"most elongated {percent(max(shares))}); {advice}."
    ]
