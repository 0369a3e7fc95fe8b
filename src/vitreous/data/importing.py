"""Reads a folder or zip of images into a packed data set. `check` reads it in the same way and only reports."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vitreous.data.decode import BadImage, decode_to, image_dimensions, readable
from vitreous.data.folder import Listing, Tree, existing, list_folder, open_tree, read_all
from vitreous.data.layout import Entry, Problem
from vitreous.data.originals import shapes_of
from vitreous.data.packed import open_store, pack, packed_size, read_header, store_path
from vitreous.data.reading import ReadOptions
from vitreous.data.sentences import check_command, notes_of
from vitreous.data.store import ImageStore, RawSplit
from vitreous.data.values import Facts, refuse_other_values, settle
from vitreous.errors import VitreousError
from vitreous.files import check_free_space, human_size, write_failure
from vitreous.preprocess import Preprocess
from vitreous.progress import track
from vitreous.wording import count

SMALL_SIZE, LARGE_SIZE = DEFAULT_SIZES = (32, 64)
LARGE_FROM = 48  # pixels: median shorter side from which images are packed at the large default size
SAMPLE = 200  # images whose headers decide the default image size
LISTED = 10  # bad files in an error message; `data check --all` lists all
READER = 1  # raised when the same files give other pixels, classes or splits than before


@dataclass(frozen=True)
class Survey:
    """All images of a folder or zip, decoded and understood, but not yet packed.

    Attributes:
        tree: what lies there.
        preprocess: the settings by which the images were converted.
        splits: images (memory-mapped), labels and names of each split that has images.
        groups: the group of each image, in the order of `splits`; None if no table of labels gives groups.
        problems: the files that cannot be used.
        facts: of each usable image.
        notes: sentences about what was guessed or passed over.
    """

    tree: Tree
    preprocess: Preprocess
    splits: dict[str, RawSplit]
    groups: dict[str, list[str]] | None
    problems: tuple[Problem, ...]
    facts: tuple[Facts, ...]
    notes: tuple[str, ...]


def import_folder(path: Path, data_dir: Path, options: ReadOptions, say: Callable[[str], None]) -> ImageStore:
    """Opens a folder or zip of images as a data set, packing it first if it is new or has changed.

    Without an image size, images are packed at 32 pixels if the median of their shorter sides is below 48, else at 64.

    Args:
        path: the folder or zip; it is only read.
        data_dir: the folder of packed data sets.
        say: receives each message, a sentence at a time.

    Raises:
        VitreousError: bad files, fewer than two classes, a class without training images, or no disk space.
    """
    path = existing(path)
    # Before anything is read, so that a change during the import is noticed next time.
    listing = list_folder(path) if path.is_dir() else None
    state = _state(path, listing)
    for size in (options.image_size,) if options.image_size else DEFAULT_SIZES:
        location = _packed_location(path, data_dir, size, options)
        header = read_header(location)
        extra = header["extra"] if header else {}
        if extra.get("state") != state or (extra["bad"] and not options.skip_bad):
            continue
        if options.image_size is None and extra["default_size"] != size:
            continue
        store = open_store(location)
        for note in store.notes:
            say(note)
        return store

    with open_tree(path, options.splits, listing) as tree:
        default_size, reason = choose_size(tree)
        size = options.image_size or default_size
        location = _packed_location(path, data_dir, size, options)
        if reason and options.image_size is None:
            say(reason)
        say(
            f"{path.name} will take about {human_size(packed_size(len(tree.layout.entries), size))} in {location} "
            f"(`vitreous data clear {location.name}` removes it)."
        )
        with surveyed(tree, size, options, location) as survey:
            refuse(survey, options)
            notes = notes_of(survey)
            for note in notes:
                say(note)
            return pack(
                location,
                name=packed_name(path),
                classes=tree.layout.classes,
                splits=survey.splits,
                groups=survey.groups,
                source=str(path),
                preprocess=survey.preprocess,
                notes=notes,
                extra={
                    "path": str(path),
                    "state": state,
                    "default_size": default_size,
                    "bad": len(survey.problems),
                    "splits": options.splits,
                    "shapes": shapes_of(
                        [name for _, _, names in survey.splits.values() for name in names], survey.facts
                    ),
                },
            )


def choose_size(tree: Tree) -> tuple[int, str]:
    """The side of the packed images in pixels where nobody asks for one, and a sentence about it."""
    shorter = _median_shorter_side(tree)
    if shorter is None:
        return LARGE_SIZE, ""
    size = LARGE_SIZE if shorter >= LARGE_FROM else SMALL_SIZE
    return size, (
        f"The images of {tree.path.name} are resized to {size} by {size} pixels (the median of their shorter "
        f"sides is {shorter:g}); choose another size with --image-size."
    )


def refuse(survey: Survey, options: ReadOptions) -> None:
    """Raises `VitreousError` if the images of a folder cannot be trained on as they are."""
    path, classes = survey.tree.path, survey.tree.layout.classes
    if survey.problems and not options.skip_bad:
        raise _bad_files(survey)
    if len(classes) < 2:
        raise VitreousError(
            f"{path} has only the class {classes[0]!r}; add a folder of images of a second class."
        )
    trained = set(survey.splits["train"][1].tolist()) if "train" in survey.splits else set()
    for number, label in enumerate(classes):
        if number not in trained:
            raise VitreousError(
                f"{path} has no usable training image of the class {label!r}; "
                f"add some or remove the folders of the class ({check_command(path)} lists all problems)."
            )


@contextmanager
def surveyed(tree: Tree, size: int, options: ReadOptions, location: Path) -> Iterator[Survey]:
    """Decodes each image of `tree` at `size`.

    The arrays are mapped from a nameless file in the parent folder of `location`. This keeps memory small, and
    the file disappears however the process ends.

    Raises:
        VitreousError: no disk space, or settings that hold for the whole data set cannot be decided.
    """
    entries = tree.layout.entries
    # Written twice: in the order in which the files are read, and in canonical order.
    check_free_space(location, 2 * packed_size(len(entries), size), f"Packing {tree.path.name}")
    try:
        location.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryFile(dir=location.parent)  # noqa: SIM115 (closed by the next `with`)
    except OSError as error:
        raise write_failure(location, error) from error
    with scratch:
        yield _survey(
            tree,
            options.settings or Preprocess(size, options.fit, value_range=options.value_range),
            options,
            scratch,
        )


def _survey(tree: Tree, first: Preprocess, options: ReadOptions, scratch: BinaryIO) -> Survey:
    layout = tree.layout
    usable: list[Entry] = []
    facts: list[Facts] = []
    problems = list(layout.problems)
    image_bytes = first.size * first.size * 3

    def write(
        pixels: np.ndarray,
    ) -> None:  # [S, S, 3]; a memory map would kill the process when the disk is full
        try:
            scratch.write(pixels.data)
        except OSError as error:
            raise write_failure(tree.path, error) from error

    def read(entry: Entry) -> bytes:
        return tree.read(entry.location)

    decoded = read_all(layout.entries, read, partial(decode_to, first), image_bytes)
    for entry, result in track(decoded, len(layout.entries), f"Reading {tree.path.name}"):
        if isinstance(result, BadImage):
            problems.append(Problem(result.reason, entry.name, result.detail))
            continue
        pixels, fact = result
        write(pixels)
        usable.append(entry)
        facts.append(fact)

    final, notes = first, tuple[str, ...]()
    if options.settings is None:
        final, notes = settle(first, facts, options.value_range)
    else:
        refuse_other_values(first, facts)
    again = [i for i, fact in enumerate(facts) if fact.depends(first, final)]
    changed = read_all([usable[i] for i in again], read, partial(decode_to, final), image_bytes)
    for i, (entry, result) in zip(again, track(changed, len(again), "Converting"), strict=True):
        if isinstance(result, BadImage):  # it could be read a moment ago
            raise VitreousError(
                f"{entry.location} changed while it was read; try again when nothing writes there."
            )
        scratch.seek(i * image_bytes)
        write(result[0])
    scratch.flush()

    number = {label: index for index, label in enumerate(layout.classes)}
    splits: dict[str, RawSplit] = {}
    groups: dict[str, list[str]] = {}
    start = 0
    for split in layout.splits:  # the order of the entries
        members = [entry for entry in usable if entry.split == split]
        if members:
            shape = (len(members), final.size, final.size, 3)
            images = np.memmap(scratch, np.uint8, "r", offset=start, shape=shape)
            labels = np.array([number[entry.label] for entry in members], dtype=np.int64)
            splits[split] = (images, labels, [entry.name for entry in members])
            groups[split] = [entry.group for entry in members]
            start += images.nbytes
    return Survey(
        tree=tree,
        preprocess=final,
        splits=splits,
        groups=groups if any(map(any, groups.values())) else None,
        problems=tuple(problems),
        facts=tuple(facts),
        notes=(*layout.understood, *notes),
    )


def _state(path: Path, listing: Listing | None) -> str:
    """A text that changes when a file or folder is added, removed or changed, or when another format can be read.

    No file is opened for it.
    """
    if listing is None:
        status = path.stat()
        return f"{status.st_size} {status.st_mtime_ns} {readable()}"
    state = hashlib.sha256(readable().encode())
    files = [f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n" for name, status in listing.files.items()]
    for line in (*sorted(files), *sorted(listing.folders)):
        state.update(line.encode("utf-8", "surrogateescape"))
    return state.hexdigest()


def _packed_location(path: Path, data_dir: Path, size: int, options: ReadOptions) -> Path:
    """The folder for the images of `path` packed with `options`: a readable name and a key that makes it unique."""
    chosen = options.settings or (size, options.fit, options.value_range)
    settings = (READER, chosen, options.splits)
    key = hashlib.sha256(f"{path}\0{settings}".encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return store_path(data_dir, f"{packed_name(path)}-{key}")


def packed_name(path: Path) -> str:
    """What the data set of a folder or zip is called."""
    name = path.name if path.is_dir() else path.stem
    return re.sub(r"[^\w.]+", "-", name)[:40].strip("-.") or "folder"


def _median_shorter_side(tree: Tree) -> float | None:
    """The median over a sample of the training images, in pixels; None if none of the sample can be read."""
    training = [entry for entry in tree.layout.entries if entry.split == "train"]
    sides = []
    for entry in training[:: max(1, len(training) // SAMPLE)]:
        try:
            sides.append(min(image_dimensions(tree.read(entry.location))))
        except BadImage:
            continue
    return float(np.median(sides)) if sides else None


def _bad_files(survey: Survey) -> VitreousError:
    path, bad = survey.tree.path, survey.problems
    lines = [
        f"  {problem.name}: {problem.reason}" + (f" ({problem.detail})" if problem.detail else "")
        for problem in bad
    ]
    more = [f"  … and {len(lines) - LISTED:,} more"] if len(lines) > LISTED else []
    files = count(len(survey.facts) + len(bad), "file")
    return VitreousError(
        f"{len(bad):,} of the {files} in {path} cannot be used; repair or remove them, or leave "
        f"them out with --skip-bad ({check_command(path)} lists all problems):\n"
        + "\n".join([*lines[:LISTED], *more])
    )
