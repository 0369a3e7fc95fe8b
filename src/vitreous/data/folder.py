"""A folder or zip with one folder of images per class."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from vitreous.data.decode import MAX_BYTES, BadImage, decode_to, image_dimensions
from vitreous.data.packed import open_store, pack, packed_size, read_header, store_path
from vitreous.data.store import SPLIT_NAMES, ImageStore, RawSplit
from vitreous.errors import VitreousError
from vitreous.files import (
    LIMITS,
    check_free_space,
    human_size,
    open_zip,
    path_of,
    read_zip_member,
    write_failure,
    zip_members,
)
from vitreous.preprocess import Preprocess
from vitreous.progress import track
from vitreous.wording import count

# Names of the split folders, in any capitals, and the split that each holds.
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# What operating systems leave in folders, besides hidden files.
LITTER = {"__macosx", "thumbs.db", "desktop.ini"}
SMALL_SIZE, LARGE_SIZE = DEFAULT_SIZES = (32, 64)
LARGE_FROM = 48  # pixels: median shorter side from which images are packed at the large default size
LISTED = 50  # bad files in an error message; `data check` lists all
SAMPLE = 200  # images whose headers decide the default image size
WORKERS = min(4, os.cpu_count() or 1)
GROUP = 16  # small images that a thread decodes at a time
T = TypeVar("T")


# ---- listing files


@dataclass(frozen=True)
class Entry:
    """A file in a class folder.

    Attributes:
        name: its path below the folder of splits or classes, such as "train/cat/001.png".
        split: "train", "val" or "test".
        label: its class name.
        location: its path in the folder or zip, which may start with one more folder than `name`.
    """

    name: str
    split: str
    label: str
    location: str


@dataclass(frozen=True)
class Tree:
    """The files of a folder or zip of class folders, before any of them is decoded.

    Attributes:
        path: the folder or zip.
        entries: in the order of the splits, then of their names.
        classes: sorted class names, in Unicode's composed form.
        empty: class folders without a file.
        outside: files that are in no class folder.
        read: returns the bytes of an entry, or raises `BadImage`; safe to call from several threads.
    """

    path: Path
    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    empty: tuple[str, ...]
    outside: tuple[str, ...]
    read: Callable[[Entry], bytes]

    @property
    def splits(self) -> tuple[str, ...]:
        present = {entry.split for entry in self.entries}
        return tuple(split for split in SPLIT_NAMES if split in present)


@contextmanager
def open_tree(path: Path) -> Iterator[Tree]:
    """Lists a folder or zip of class folders: `CLASS/…`, or `train/CLASS/…` and the same for `val` and `test`.

    All of this may be inside one more folder. Files in deeper folders belong to the class folder above them.
    Hidden files and files that operating systems leave behind are skipped. The entries can be read inside the
    `with` block.

    Raises:
        VitreousError: there is nothing at `path`, it is neither a folder nor a zip, or it has no class folders.
    """
    path = _existing(path)
    if path.is_dir():
        files, folders = _list_folder(path)
        yield _make_tree(path, files, folders, lambda entry: _read_file(path, path / entry.location))
        return
    with open_zip(path) as archive:
        members, folders = _list_zip(archive)
        yield _make_tree(path, members, folders, lambda entry: _read_member(archive, members[entry.location]))


def _existing(path: Path) -> Path:
    """Resolves `path`, which must be a folder or a zip."""
    path = path_of(path)
    if path.is_dir() or zipfile.is_zipfile(path):
        return path.resolve()
    if path.suffix.lower() == ".zip" and path.exists():
        raise VitreousError(f"{path} is not a complete zip, perhaps cut short; download or create it again.")
    if path.exists():
        raise VitreousError(f"{path} is neither a folder nor a zip; give a folder or zip of class folders.")
    try:
        siblings = [sibling.name for sibling in path.absolute().parent.iterdir()]
    except OSError:
        siblings = []
    near = get_close_matches(path.name, siblings, n=1, cutoff=0.6)
    hint = f"did you mean {path.with_name(near[0])}?" if near else "check the path."
    raise VitreousError(f"There is no folder or file {path}; {hint}")


def _visible(name: str) -> bool:
    return not any(part.startswith(".") or part.casefold() in LITTER for part in name.split("/"))


def _list_folder(root: Path) -> tuple[dict[str, os.stat_result], set[str]]:
    """Lists the files below `root`, by name, and the names of the folders."""
    files, folders = {}, set()
    pending = [""]
    while pending:
        parent = pending.pop()
        try:
            items = list(os.scandir(root / parent))
        except OSError as error:
            raise VitreousError(
                f"{root / parent} cannot be read ({error.strerror}); correct its permissions."
            ) from error
        for item in items:
            name = parent + item.name
            if not _visible(item.name):
                continue
            if item.is_symlink() and item.is_dir():
                raise VitreousError(
                    f"{item.path} is a link to a folder, and such links are not followed; "
                    "copy or move the folder itself there."
                )
            if item.is_dir(follow_symlinks=False):
                folders.add(name)
                pending.append(name + "/")
            else:
                files[name] = item.stat(follow_symlinks=False)
    return files, folders


def _read_file(root: Path, path: Path) -> bytes:
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise BadImage("unreadable", "a link that leads out of the folder")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
            raise BadImage("not an image", "not a regular file")
        if status.st_size > MAX_BYTES:
            raise BadImage("too large", human_size(status.st_size))
        return path.read_bytes()
    except OSError as error:
        raise BadImage("unreadable", (error.strerror or str(error)).lower()) from None


def _list_zip(archive: zipfile.ZipFile) -> tuple[dict[str, zipfile.ZipInfo], set[str]]:
    """Lists the files in a zip, by name, and the names of the folders."""
    # A member over the size limit is a bad file rather than a reason to refuse the archive. It is never unpacked.
    members = zip_members(archive, replace(LIMITS, member_bytes=LIMITS.total_bytes))
    files = {_member_name(info): info for info in members}
    folders = {_member_name(info).rstrip("/") for info in archive.infolist() if info.is_dir()}
    visible = {name: info for name, info in files.items() if _visible(name)}
    return visible, {name for name in folders if _visible(name)}


def _member_name(info: zipfile.ZipInfo) -> str:
    name = info.filename
    if not info.flag_bits & 0x800 and not name.isascii():
        # Python decoded it as code page 437 because it is not marked as UTF-8, but some systems omit the mark.
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/").removeprefix("./")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > MAX_BYTES:
        raise BadImage("too large", human_size(info.file_size))
    if info.flag_bits & 1:
        raise BadImage("unreadable", "encrypted")
    try:
        return read_zip_member(archive, info)
    except VitreousError:
        raise BadImage("unreadable", "damaged in the zip") from None


def _make_tree(path: Path, files: Collection[str], folders: set[str], read: Callable[[Entry], bytes]) -> Tree:
    """Derives splits and classes from names alone, so that a folder and its zip give the same data set."""
    parts = _unwrapped({name: name.split("/") for name in [*files, *folders]}, files, folders)
    split_of_top = _find_splits(path, parts, files, folders)
    class_depth = 1 if split_of_top else 0  # position of the class name in a path

    entries, empty, outside = [], set(), []
    for location, part in parts.items():
        split = split_of_top.get(part[0], "") if split_of_top else "train"
        name = _text("/".join(part))
        if location in folders:
            if split and len(part) == class_depth + 1:
                empty.add(name)
        elif split and len(part) > class_depth + 1:
            entries.append(Entry(name, split, _text(part[class_depth]), location))
        else:
            outside.append(name)
    outside += [_text(name) for name in files if name not in parts]  # next to the one wrapping folder
    empty -= {"/".join(entry.name.split("/")[: class_depth + 1]) for entry in entries}
    entries.sort(key=lambda entry: (SPLIT_NAMES.index(entry.split), entry.name))
    _refuse_unusable(path, entries, outside, split_of_top)
    return Tree(
        path=path,
        entries=tuple(entries),
        classes=tuple(sorted({entry.label for entry in entries})),
        empty=tuple(sorted(empty)),
        outside=tuple(sorted(outside)),
        read=read,
    )


def _unwrapped(
    parts: dict[str, list[str]], files: Collection[str], folders: set[str]
) -> dict[str, list[str]]:
    """The paths without a single folder that wraps all the others; names that are not inside it are dropped."""
    tops = _top_folders(parts, folders)
    nested = any(len(parts[name]) > 2 for name in files)
    if len(tops) == 1 and nested and not any(map(_is_split, tops)):
        return {name: part[1:] for name, part in parts.items() if len(part) > 1}
    return parts


def _top_folders(parts: Mapping[str, list[str]], folders: set[str]) -> set[str]:
    return {part[0] for name, part in parts.items() if len(part) > 1 or name in folders}


def _is_split(top: str) -> bool:
    return top.casefold() in SPLIT_FOLDERS


def _find_splits(
    path: Path, parts: Mapping[str, list[str]], files: Collection[str], folders: set[str]
) -> dict[str, str]:
    """Maps each split folder at the top to its split; empty if the folders at the top are classes."""
    tops = _top_folders(parts, folders)
    # `train` may be a class, of vehicles for example. Then it contains images rather than folders.
    in_train = [part for name, part in parts.items() if name in files and part[0].casefold() == "train"]
    only_splits = bool(tops) and all(map(_is_split, tops))
    if not (only_splits or any(len(part) > 2 for part in in_train)):
        return {}
    split_of_top = {top: SPLIT_FOLDERS[top.casefold()] for top in sorted(tops) if _is_split(top)}
    for split in SPLIT_NAMES:
        same = [top for top in split_of_top if split_of_top[top] == split]
        if len(same) > 1:
            raise VitreousError(
                f"{path} has both {same[0]}/ and {same[1]}/, which are the same split; keep one of them."
            )
    return split_of_top


def _refuse_unusable(
    path: Path, entries: Sequence[Entry], outside: Sequence[str], split_of_top: Collection[str]
) -> None:
    if not entries and outside:
        raise VitreousError(
            f"{path} has no class folders; put the images of each class into a folder of its own, "
            f"such as {path.name}/cat/1.jpg and {path.name}/dog/1.jpg."
        )
    if not entries:
        raise VitreousError(f"{path} contains no images; give a folder or zip of class folders.")
    if split_of_top and "train" not in {entry.split for entry in entries}:
        tops = " and ".join(f"{top}/" for top in split_of_top)
        raise VitreousError(f"{path} has {tops} but no images in train/; add training images.")


def _text(name: str) -> str:
    """A name in Unicode's composed form, since systems differ in it. Bytes that are not text are replaced."""
    return unicodedata.normalize("NFC", name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


# ---- reading each file once


def read_all(tree: Tree, work: Callable[[bytes], T]) -> Iterator[tuple[Entry, T | BadImage]]:
    """Yields each entry in order with the result of `work` on its bytes, or with its `BadImage`.

    A few threads do the work, and few results are in memory at any time.
    """

    def results_of(entries: Sequence[Entry]) -> list[T | BadImage]:
        results: list[T | BadImage] = []
        for entry in entries:
            try:
                results.append(work(tree.read(entry)))
            except BadImage as bad:
                results.append(bad)
        return results

    in_flight = GROUP * 8 * WORKERS
    with ThreadPoolExecutor(WORKERS) as pool:
        for start in range(0, len(tree.entries), in_flight):
            batch = tree.entries[start : start + in_flight]
            groups = [batch[first : first + GROUP] for first in range(0, len(batch), GROUP)]
            yield from zip(batch, chain.from_iterable(pool.map(results_of, groups)), strict=True)


# ---- import


def import_folder(
    path: Path, data_dir: Path, image_size: int | None, skip_bad: bool, say: Callable[[str], None]
) -> ImageStore:
    """Opens a folder or zip of class folders as a data set, packing it first if it is new or has changed.

    Args:
        path: the folder or zip; it is only read.
        data_dir: the folder of packed data sets.
        image_size: height and width in pixels of the packed images (see `preprocess.fit`). By default 32 if the
            median of the images' shorter sides is below 48, else 64.
        skip_bad: leave out files that cannot be used instead of stopping with a list of them.
        say: receives each message, a sentence at a time.

    Raises:
        VitreousError: bad files, fewer than two classes, a class without training images, or no disk space.
    """
    if image_size is not None and image_size < 1:
        raise VitreousError(f"The image size is {image_size}; give a number of pixels, such as 64.")
    path = _existing(path)
    state = _state(path)  # before anything is read, so that a change during the import is noticed next time
    for size in (image_size,) if image_size else DEFAULT_SIZES:
        location = _packed_location(path, data_dir, size)
        header = read_header(location)
        extra = header["extra"] if header else {}
        if extra.get("state") != state or (image_size is None and extra.get("default_size") != size):
            continue
        if extra["bad"] and not skip_bad:
            raise _bad_files(path, extra["files"], extra["bad"])
        if extra["bad"]:
            say(_left_out(path, extra["files"], extra["bad"]))
        return open_store(location)

    with open_tree(path) as tree:
        if len(tree.classes) < 2:
            raise VitreousError(
                f"{path} has only the class {tree.classes[0]!r}; add a folder of images of a second class."
            )
        shorter = _median_shorter_side(tree)
        default_size = LARGE_SIZE if shorter is None or shorter >= LARGE_FROM else SMALL_SIZE
        size = image_size or default_size
        location = _packed_location(path, data_dir, size)
        name = location.name.rpartition("-")[0]
        if image_size is None and shorter is not None:
            say(
                f"The images of {path.name} are resized to {size} by {size} pixels (the median of their shorter "
                f"sides is {shorter:g}); choose another size with --image-size."
            )
        say(
            f"{path.name} will take about {human_size(packed_size(len(tree.entries), size))} in {location} "
            f"(`vitreous data clear {location.name}` removes it)."
        )
        with _decoded(tree, size, skip_bad, say, location) as (splits, bad):
            extra = {
                "path": str(path),
                "state": state,
                "default_size": default_size,
                "files": len(tree.entries),
                "bad": bad,
            }
            return pack(
                location, name=name, classes=tree.classes, splits=splits, source=str(path), extra=extra
            )


@contextmanager
def _decoded(
    tree: Tree, size: int, skip_bad: bool, say: Callable[[str], None], location: Path
) -> Iterator[tuple[dict[str, RawSplit], list[str]]]:
    """Decodes each image of `tree` at `size` for `pack` to write at `location`; also returns the bad files.

    The arrays are mapped from a nameless file in the parent folder of `location`. This keeps memory small, and
    the file disappears however the process ends.

    Raises:
        VitreousError: bad files that are not to be skipped, a class without training images, or no disk space.
    """
    files = len(tree.entries)
    # Written twice: in the order in which the files are read, and in canonical order.
    check_free_space(location, 2 * packed_size(files, size), f"Packing {tree.path.name}")
    try:
        location.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryFile(dir=location.parent)  # noqa: SIM115 (closed by the next `with`)
    except OSError as error:
        raise write_failure(location, error) from error
    with scratch:
        splits, bad = _decode_all(tree, size, scratch)
        if bad and not skip_bad:
            raise _bad_files(tree.path, files, bad)
        if bad:
            say(_left_out(tree.path, files, bad))
        trained = {tree.classes[label] for label in splits["train"][1]} if "train" in splits else set()
        for label in tree.classes:
            if label not in trained:
                raise VitreousError(
                    f"{tree.path} has no usable training image of the class {label!r}; "
                    f"add some or remove the folders of the class ({_check_command(tree.path)} lists all problems)."
                )
        yield splits, bad


def _state(path: Path) -> str:
    """A text that changes when a file is added, removed or changed; no file is opened for it."""
    if path.is_file():
        status = path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"
    listing = hashlib.sha256()
    for name, status in sorted(_list_folder(path)[0].items()):
        line = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"
        listing.update(line.encode("utf-8", "surrogateescape"))
    return listing.hexdigest()


def _packed_location(path: Path, data_dir: Path, size: int) -> Path:
    """The folder for the images of `path` packed at `size`: a readable name and a key that makes it unique."""
    key = hashlib.sha256(f"{path}\0{size}".encode("utf-8", "surrogateescape")).hexdigest()[:8]
    name = path.name if path.is_dir() else path.stem
    readable = re.sub(r"[^\w.]+", "-", name)[:40].strip("-.") or "folder"
    return store_path(data_dir, f"{readable}-{key}")


def _median_shorter_side(tree: Tree) -> float | None:
    """The median over a sample of the training images, in pixels; None if none of the sample can be read."""
    training = [entry for entry in tree.entries if entry.split == "train"]
    sides = []
    for entry in training[:: max(1, len(training) // SAMPLE)]:
        try:
            sides.append(min(image_dimensions(tree.read(entry))))
        except BadImage:
            continue
    return float(np.median(sides)) if sides else None


def _decode_all(tree: Tree, size: int, scratch: BinaryIO) -> tuple[dict[str, RawSplit], list[str]]:
    """Decodes each image once; returns the splits, memory-mapped in `scratch`, and a line for each bad file."""
    number = {label: index for index, label in enumerate(tree.classes)}
    labels: dict[str, list[int]] = {split: [] for split in tree.splits}
    names: dict[str, list[str]] = {split: [] for split in tree.splits}
    bad = []
    settings = Preprocess(size)
    decoded = read_all(tree, lambda data: decode_to(settings, data))
    for entry, image in track(decoded, len(tree.entries), f"Reading {tree.path.name}"):
        if isinstance(image, BadImage):
            bad.append(f"{entry.name}: {image.text}")
            continue
        try:
            scratch.write(image.data)  # [S, S, 3]; a memory map would kill the process when the disk is full
        except OSError as error:
            raise write_failure(tree.path, error) from error
        labels[entry.split].append(number[entry.label])
        names[entry.split].append(entry.name)
    scratch.flush()
    splits: dict[str, RawSplit] = {}
    start = 0
    for split in tree.splits:  # the order of the entries
        if names[split]:
            shape = (len(names[split]), size, size, 3)
            images = np.memmap(scratch, np.uint8, "r", offset=start, shape=shape)
            splits[split] = (images, np.array(labels[split], dtype=np.int64), names[split])
            start += images.nbytes
    return splits, bad


def _bad_files(path: Path, files: int, bad: list[str]) -> VitreousError:
    more = [f"… and {len(bad) - LISTED:,} more"] if len(bad) > LISTED else []
    return VitreousError(
        f"{len(bad):,} of the {count(files, 'file')} in {path} cannot be used; repair or remove them, or leave "
        f"them out with --skip-bad ({_check_command(path)} lists all problems):\n"
        + "\n".join(f"  {line}" for line in [*bad[:LISTED], *more])
    )


def _left_out(path: Path, files: int, bad: list[str]) -> str:
    return (
        f"{len(bad):,} of {count(files, 'file')} cannot be used and are left out "
        f"({_check_command(path)} lists them)."
    )


def _check_command(path: Path) -> str:
    return f"`vitreous data check {shlex.quote(str(path))}`"
