"""Makes data sets of Python objects: arrays, lists of images or paths, and datasets of other packages.

Letters: N images, S their side after conversion, in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vitreous.data.decode import BadImage
from vitreous.data.importing import LARGE_FROM, LARGE_SIZE, LISTED, SAMPLE, SMALL_SIZE
from vitreous.data.labels import Labels, resolve_labels
from vitreous.data.objects import ArrayPart, Part, Source, part_of, sample, understand
from vitreous.data.packed import packed_size
from vitreous.data.reading import ReadOptions
from vitreous.data.sentences import describe_cut
from vitreous.data.splits import TITLES
from vitreous.data.store import ImageStore, in_memory
from vitreous.data.values import Facts, refuse_other_values, settle
from vitreous.errors import VitreousError, unknown
from vitreous.files import human_size
from vitreous.preprocess import Preprocess
from vitreous.progress import track
from vitreous.wording import count, shortened


def from_arrays(
    images: Any,
    labels: Any,
    classes: Sequence[str] | None = None,
    test: tuple[Any, Any] | None = None,
    name: str = "arrays",
) -> ImageStore:
    """Makes a data set of images and labels in any form that `open_data` takes as `(images, labels)`.

    Args:
        images: such as uint8 [N, H, H, 3].
        labels: [N], class names or positions in `classes`.
        classes: class names. Without them, each class is called by its number.
        test: (images, labels) of a test split. Without it, a run cuts its test split from `images`.
        name: what the data set is called.

    Raises:
        VitreousError: a shape, a type, a label or a class name is not as described.
    """
    parts = {"train": part_of((images, labels), "" if test is None else "train")}
    if test is not None:
        parts["test"] = part_of(test, "test")
    return _read(Source(name, parts), ReadOptions(), classes)


def from_objects(
    source: Any, options: ReadOptions, classes: Sequence[str] | None = None, *, only: str | None = None
) -> ImageStore:
    """Makes a data set of a Python object, see `open_data`.

    Args:
        classes: class names. Labels that are names are matched to them, and other labels are positions in them.
        only: the split that is needed. A source without training images then gives this split alone, as "train".

    Raises:
        VitreousError: the object is no data set, or its images or labels cannot be used.
    """
    understood = understand(source)
    if "train" not in understood.parts:
        if only is None:
            raise VitreousError(
                f"There are only {' and '.join(TITLES[split] for split in understood.parts)} images; "
                'give training images too, as {"train": …}.'
            )
        if len(understood.parts) > 1 and only not in understood.parts:
            raise unknown(f"split of {understood.name}", only, understood.parts)
        part = understood.parts.get(only) or next(iter(understood.parts.values()))
        understood = replace(understood, parts={"train": part})
    return _read(understood, options, classes, complete=only is None)


def _read(
    source: Source, options: ReadOptions, classes: Sequence[str] | None, *, complete: bool = True
) -> ImageStore:
    """Converts the images of all parts, and puts them into one data set.

    Args:
        complete: whether each class must have training images.
    """
    size, reason = _choose_size(source, options)
    first = options.settings or Preprocess(size, options.fit, value_range=options.value_range)
    for part in source.parts.values():
        if isinstance(part, ArrayPart):
            part.check(first.value_range)
    converted = {split: _converted(part, first) for split, part in source.parts.items()}
    for part in source.parts.values():
        if not isinstance(part, ArrayPart):
            part.check(first.value_range)
    problems = [
        (part.names[position], bad)
        for split, part in source.parts.items()
        for position, bad in converted[split].problems.items()
    ]
    if problems and not options.skip_bad:
        raise _bad_images(problems, sum(map(len, source.parts.values())))

    final, notes = first, tuple[str, ...]()
    facts = [fact for images in converted.values() for fact in images.facts.values()]
    if options.settings is None:
        final, notes = settle(first, facts, options.value_range)
        for split, part in source.parts.items():
            converted[split].convert_again(part, first, final)
    else:
        refuse_other_values(first, facts)

    splits, raw_labels = {}, dict[str, Labels]()
    for split, part in source.parts.items():
        kept = converted[split].kept
        if not len(kept):
            raise VitreousError(
                f"{part.wording.subject} cannot be used, none of them; give at least one that can."
            )
        raw_labels[split] = part.read_labels(TITLES[split] if len(source.parts) > 1 else "", kept)
        images = converted[split].images
        splits[split] = (images if len(kept) == len(images) else images[kept], [part.names[i] for i in kept])
    numbers, known = resolve_labels(raw_labels, classes)
    if complete:
        _refuse_untrained(numbers, known)
    left_out = (
        (
            f"{count(len(problems), 'image')} cannot be used and {'is' if len(problems) == 1 else 'are'} left out "
            f"({shortened([name for name, _ in problems])}).",
        )
        if problems
        else ()
    )
    cut = describe_cut(facts, final.fit, 'fit="pad" or fit="stretch" keeps all of it')
    part_notes = [note for part in source.parts.values() for note in part.notes]
    return in_memory(
        name=source.name,
        classes=known,
        splits={split: (images, numbers[split], names) for split, (images, names) in splits.items()},
        source=source.name,
        preprocess=final,
        notes=tuple(
            dict.fromkeys(
                (
                    *filter(None, [reason]),
                    *source.notes,
                    *part_notes,
                    *map(_in_python, notes),
                    *cut,
                    *left_out,
                )
            )
        ),
    )


class _Converted:
    """The converted images of a part.

    Attributes:
        images: uint8 [N, S, S, 3]; those that cannot be used are not filled.
        facts: of each usable image that was converted, by position.
        problems: by position.
        kept: int64 [M], the positions of usable images.
    """

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.facts: dict[int, Facts] = {}
        self.problems: dict[int, BadImage] = {}

    @property
    def kept(self) -> np.ndarray:
        return np.array([i for i in range(len(self.images)) if i not in self.problems], dtype=np.int64)

    def convert_again(self, part: Part, first: Preprocess, final: Preprocess) -> None:
        """Converts the images that depend on the settings which changed from `first` to `final`."""
        again = [position for position, fact in self.facts.items() if fact.depends(first, final)]
        for position, result in zip(
            again, track(part.convert(final, again), len(again), "Converting"), strict=True
        ):
            if isinstance(result, BadImage):  # it could be read a moment ago
                raise VitreousError(
                    f"{part.names[position]} changed while it was read; try again when nothing changes it."
                )
            self.images[position] = result[0]


def _converted(part: Part, settings: Preprocess) -> _Converted:
    size = settings.size
    if (
        isinstance(part, ArrayPart)
        and part.array.dtype == np.uint8
        and part.array.shape[1:] == (size, size, 3)
    ):
        return _Converted(part.array)  # bit for bit
    try:
        converted = _Converted(np.empty((len(part), size, size, 3), np.uint8))
    except MemoryError:
        needed = human_size(packed_size(len(part), size))
        raise VitreousError(
            f"{part.wording.subject} would take {needed} of memory at {size} by {size} pixels; choose a smaller "
            "image_size."
        ) from None
    results = part.convert(settings, range(len(part)))
    subject = f"Reading {part.wording.subject[0].lower()}{part.wording.subject[1:]}"
    for position, result in enumerate(track(results, len(part), subject)):
        if isinstance(result, BadImage):
            converted.problems[position] = result
        else:
            converted.images[position], converted.facts[position] = result
    return converted


def _choose_size(source: Source, options: ReadOptions) -> tuple[int, str]:
    """The side of the converted images in pixels, and a sentence about it if it was chosen from their sizes."""
    if options.image_size is not None:
        return options.image_size, ""
    if options.settings is not None:
        return options.settings.size, ""
    part = source.parts["train"]
    if square := part.square():
        others = [
            part.wording.subject for part in source.parts.values() if part.square() not in (None, square)
        ]
        return square, (
            f"{' and '.join(others)} are resized to {square} by {square} pixels, the size of the training images."
            if others
            else ""
        )
    dimensions = list(part.dimensions(sample(len(part), SAMPLE)))
    if not dimensions:
        return LARGE_SIZE, ""
    width, height = dimensions[0]
    if part.keeps_size and width == height <= LARGE_SIZE and set(dimensions) == {(width, height)}:
        return width, ""
    shorter = float(np.median([min(pair) for pair in dimensions]))
    size = LARGE_SIZE if shorter >= LARGE_FROM else SMALL_SIZE
    if set(dimensions) == {(size, size)}:
        return size, ""
    return size, (
        f"The images are resized to {size} by {size} pixels (the median of their shorter sides is {shorter:g}); "
        "choose another size with image_size=."
    )


def _in_python(sentence: str) -> str:
    """A sentence that names an option of the command line, with the argument of Python instead."""
    return re.sub(r"--([a-z-]+)", lambda match: f"{match[1].replace('-', '_')}=", sentence)


def _bad_images(problems: Sequence[tuple[str, BadImage]], total: int) -> VitreousError:
    lines = [f"  {name}: {bad.text}" for name, bad in problems[:LISTED]]
    if len(problems) > LISTED:
        lines.append(f"  … and {len(problems) - LISTED:,} more")
    return VitreousError(
        f"{len(problems):,} of the {count(total, 'image')} cannot be used; repair or remove them, or leave them out "
        "with skip_bad=True:\n" + "\n".join(lines)
    )


def _refuse_untrained(numbers: dict[str, np.ndarray], classes: Sequence[str]) -> None:
    """Raises `VitreousError` if a class has images in another split, but none to train on."""
    trained = set(numbers["train"].tolist())
    for split, labels in numbers.items():
        untrained = sorted(set(labels.tolist()) - trained)
        if untrained:
            raise VitreousError(
                f"The {TITLES[split]} images have the class {classes[untrained[0]]!r}, but no training image has it; "
                f"add some, or leave it out of the {TITLES[split]} images."
            )
