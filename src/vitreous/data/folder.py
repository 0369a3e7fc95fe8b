"""A person's own pictures: a folder, or a zip, with a folder of pictures for each class."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from vitreous.data.pictures import MAX_BYTES, BadPicture, decode_to, picture_size
from vitreous.data.store import (
    SPLIT_NAMES,
    ImageStore,
    RawSplit,
    open_store,
    pack,
    packed_size,
    read_header,
    store_path,
)
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

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# What operating systems leave in folders, besides hidden files.
LITTER = {"__macosx", "thumbs.db", "desktop.ini"}
DEFAULT_SIZES = (32, 64)
LISTED = 50  # bad files in an error; `data check` lists all
SAMPLE = 200  # pictures whose headers tell the default image size
WORKERS = min(4, os.cpu_count() or 1)
T = TypeVar("T")


# ---- what lies where


@dataclass(frozen=True)
class Entry:
    """A file in a class folder: its path below the top ("train/cat/001.png"), its split and its class."""

    name: str
    split: str
    label: str
    place: str  # its path in the folder or zip, which may have one more folder in front


@dataclass(frozen=True)
class Tree:
    """A folder or zip of class folders as found, nothing of it decoded yet.

    `entries` are in the order of the splits, then of their names; `classes` are sorted, in Unicode's
    composed form. `empty` are class folders without a file, `outside` the files that lie in no class folder.
    `read` gives the bytes of an entry, or raises `BadPicture`; threads may share it.
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
    """List a folder or zip of class folders: `CLASS/…`, or `train/CLASS/…` with `val` and `test` likewise.

    All of it may lie one folder deeper. Files in deeper folders belong to the class folder above them.
    Hidden files and what operating systems leave behind are passed over. The entries can be read while the
    context lasts.

    Raises:
        VitreousError: there is nothing at `path`, it is no zip, or it holds no class folders.
    """
    path = _existing(path)
    if path.is_dir():
        files, folders = _list_folder(path)
        yield _arrange(path, files, folders, lambda entry: _read_file(path, path / entry.place))
        return
    with open_zip(path) as archive:
        members, folders = _list_zip(archive)
        yield _arrange(path, members, folders, lambda entry: _read_member(archive, members[entry.place]))


def _existing(path: Path) -> Path:
    """`path`, resolved, if it is a folder or a zip."""
    path = path_of(path)
    if path.is_dir() or zipfile.is_zipfile(path):
        return path.resolve()
    if path.suffix.lower() == ".zip" and path.exists():
        raise VitreousError(f"{path} is no whole zip, cut short perhaps; fetch or make it again.")
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
    """The files below `root` by their names, and the folders."""
    files, folders = {}, set()
    pending = [""]
    while pending:
        parent = pending.pop()
        try:
            found = list(os.scandir(root / parent))
        except OSError as error:
            raise VitreousError(
                f"{root / parent} cannot be read ({error.strerror}); mend its permissions."
            ) from error
        for item in found:
            name = parent + item.name
            if not _visible(item.name):
                continue
            if item.is_symlink() and item.is_dir():
                raise VitreousError(
                    f"{item.path} is a link to another folder, and such links are not followed; "
                    "put the folder itself there."
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
            raise BadPicture("unreadable", "a link that leads out of the folder")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise BadPicture("not a picture", "not a regular file")
        if status.st_size > MAX_BYTES:
            raise BadPicture("too large", human_size(status.st_size))
        return path.read_bytes()
    except OSError as error:
        raise BadPicture("unreadable", (error.strerror or str(error)).lower()) from None


def _list_zip(archive: zipfile.ZipFile) -> tuple[dict[str, zipfile.ZipInfo], set[str]]:
    """The files in a zip by their names, and the folders that it names."""
    # A member over the limit of size is a bad file, not a reason to refuse the archive: it is never unpacked.
    members = zip_members(archive, replace(LIMITS, member_bytes=LIMITS.total_bytes))
    files = {_member_name(info): info for info in members}
    folders = {_member_name(info).rstrip("/") for info in archive.infolist() if info.is_dir()}
    visible = {name: info for name, info in files.items() if _visible(name)}
    return visible, {name for name in folders if _visible(name)}


def _member_name(info: zipfile.ZipInfo) -> str:
    name = info.filename
    if not info.flag_bits & 0x800 and not name.isascii():
        # Read as code page 437, for it is not marked as UTF-8; but some systems forget the mark.
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/").removeprefix("./")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > MAX_BYTES:
        raise BadPicture("too large", human_size(info.file_size))
    if info.flag_bits & 1:
        raise BadPicture("unreadable", "encrypted")
    try:
        return read_zip_member(archive, info)
    except VitreousError:
        raise BadPicture("unreadable", "damaged in the zip") from None


def _arrange(path: Path, files: Collection[str], folders: set[str], read: Callable[[Entry], bytes]) -> Tree:
    """Tell splits and classes from names alone, so that a folder and its zip are the same."""
    parts = {name: name.split("/") for name in [*files, *folders]}
    tops = {part[0] for name, part in parts.items() if len(part) > 1 or name in folders}
    nested = any(len(parts[name]) > 2 for name in files)
    if len(tops) == 1 and nested and not tops & _split_tops(tops):
        parts = {name: part[1:] for name, part in parts.items() if len(part) > 1}
        tops = {part[0] for name, part in parts.items() if len(part) > 1 or name in folders}

    # `train` may also be the name of a class, of vehicles say: then it holds pictures and not folders.
    of_train = [part for name, part in parts.items() if name in files and part[0].casefold() == "train"]
    has_splits = any(len(part) > 2 for part in of_train) or (bool(tops) and tops == _split_tops(tops))
    depth = 1 if has_splits else 0  # of the class's name in a path
    split_tops = sorted(_split_tops(tops)) if has_splits else []
    for split in SPLIT_NAMES:
        same = [top for top in split_tops if SPLIT_FOLDERS[top.casefold()] == split]
        if len(same) > 1:
            raise VitreousError(
                f"{path} has both {same[0]}/ and {same[1]}/, which mean the same; leave one of them."
            )

    entries, empty, outside = [], set(), []
    for place, part in parts.items():
        split = SPLIT_FOLDERS.get(part[0].casefold(), "") if has_splits else "train"
        name = _text("/".join(part))
        if place in folders:
            if split and len(part) == depth + 1:
                empty.add(name)
        elif split and len(part) > depth + 1:
            entries.append(Entry(name, split, _text(part[depth]), place))
        else:
            outside.append(name)
    outside += [_text(name) for name in files if name not in parts]  # beside the one folder at the top
    empty -= {"/".join(entry.name.split("/")[: depth + 1]) for entry in entries}
    entries.sort(key=lambda entry: (SPLIT_NAMES.index(entry.split), entry.name))

    if not entries and outside:
        raise VitreousError(
            f"{path} has no class folders; put the pictures of each class into a folder of its own, "
            f"such as {path.name}/cat/1.jpg and {path.name}/dog/1.jpg."
        )
    if not entries:
        raise VitreousError(f"{path} holds no pictures; give a folder or zip of class folders.")
    if has_splits and "train" not in {entry.split for entry in entries}:
        raise VitreousError(
            f"{path} has {' and '.join(f'{top}/' for top in split_tops)} but no pictures in train/; add them."
        )
    return Tree(
        path=path,
        entries=tuple(entries),
        classes=tuple(sorted({entry.label for entry in entries})),
        empty=tuple(sorted(empty)),
        outside=tuple(sorted(outside)),
        read=read,
    )


def _text(name: str) -> str:
    """A name in Unicode's composed form, as systems differ in it; bytes that are no text are replaced."""
    return unicodedata.normalize("NFC", name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def _split_tops(tops: set[str]) -> set[str]:
    return {top for top in tops if top.casefold() in SPLIT_FOLDERS}


# ---- reading every picture once


def read_all(tree: Tree, work: Callable[[bytes], T]) -> Iterator[tuple[Entry, T | BadPicture]]:
    """`work` done by a few threads on the bytes of each entry, in order; for a bad one its error instead."""

    def results(entries: Sequence[Entry]) -> list[T | BadPicture]:
        done: list[T | BadPicture] = []
        for entry in entries:
            try:
                done.append(work(tree.read(entry)))
            except BadPicture as bad:
                done.append(bad)
        return done

    # A thread takes several small pictures at once; few results wait in memory at any time.
    some, many = 16, 16 * 8 * WORKERS
    with ThreadPoolExecutor(WORKERS) as pool:
        for start in range(0, len(tree.entries), many):
            batch = tree.entries[start : start + many]
            groups = [batch[first : first + some] for first in range(0, len(batch), some)]
            yield from zip(batch, chain.from_iterable(pool.map(results, groups)), strict=True)


# ---- import


def import_folder(
    path: Path, data_dir: Path, image_size: int | None, skip_bad: bool, say: Callable[[str], None]
) -> ImageStore:
    """Open a folder or zip of class folders as a data set, packing it first where it is new or has changed.

    Args:
        path: the folder or zip; only read.
        data_dir: where packed data sets lie.
        image_size: height and width that the pictures are brought to (see `preprocess.fit`); by default 32
            where the median of their shorter sides is under 48, else 64.
        skip_bad: leave out files that cannot be used instead of stopping with a list of them.
        say: receives what is to be told, a sentence at a time.

    Raises:
        VitreousError: bad files, fewer than two classes, a class that is not in the training split, no space.
    """
    if image_size is not None and image_size < 1:
        raise VitreousError(f"The image size is {image_size}; give a number of pixels, such as 64.")
    path = _existing(path)
    state = _state(path)  # before anything is read: what changes meanwhile is packed anew next time
    for size in (image_size,) if image_size else DEFAULT_SIZES:
        place = _place(path, data_dir, size)
        header = read_header(place)
        extra = header["extra"] if header else {}
        if extra.get("state") != state or (image_size is None and extra.get("default_size") != size):
            continue
        if extra["bad"] and not skip_bad:
            raise _bad_files(path, extra["files"], extra["bad"])
        if extra["bad"]:
            say(_left_out(path, extra["files"], extra["bad"]))
        return open_store(place)

    with open_tree(path) as tree:
        if len(tree.classes) < 2:
            raise VitreousError(
                f"{path} has only the class {tree.classes[0]!r}; at least two are needed to tell apart."
            )
        shorter = _median_shorter_side(tree)
        default_size = DEFAULT_SIZES[shorter is None or shorter >= 48]
        size = image_size or default_size
        place = _place(path, data_dir, size)
        name = place.name.rpartition("-")[0]
        if image_size is None and shorter is not None:
            say(
                f"The pictures of {path.name} become {size} by {size} (the median of their shorter sides is "
                f"{shorter:g}); --image-size chooses another size."
            )
        say(
            f"{path.name} will take about {human_size(packed_size(len(tree.entries), size))} in {place} "
            f"(`vitreous data clear {place.name}` removes it)."
        )
        with decoded(tree, size, skip_bad, say, place) as (splits, bad):
            extra = {
                "path": str(path),
                "state": state,
                "default_size": default_size,
                "files": len(tree.entries),
                "bad": bad,
            }
            return pack(place, name=name, classes=tree.classes, splits=splits, source=str(path), extra=extra)


@contextmanager
def decoded(
    tree: Tree, size: int, skip_bad: bool, say: Callable[[str], None], place: Path
) -> Iterator[tuple[dict[str, RawSplit], list[str]]]:
    """Every picture of `tree` at `size`, for `store.pack` to write at `place`; and the bad files left out.

    The arrays are mapped from a file without a name in the folder of `place`: memory stays small, and
    however the process ends, nothing of it is left.

    Raises:
        VitreousError: bad files that are not to be skipped, a class without a training picture, no space.
    """
    files = len(tree.entries)
    # Once as read, and once more in canonical order.
    check_free_space(place, 2 * packed_size(files, size), f"Packing {tree.path.name}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryFile(dir=place.parent)  # noqa: SIM115 (closed by the next `with`)
    except OSError as error:
        raise write_failure(place, error) from error
    with scratch:
        splits, bad = _decode(tree, size, scratch)
        if bad and not skip_bad:
            raise _bad_files(tree.path, files, bad)
        if bad:
            say(_left_out(tree.path, files, bad))
        trained = {tree.classes[label] for label in splits["train"][1]} if "train" in splits else set()
        for label in tree.classes:
            if label not in trained:
                raise VitreousError(
                    f"{tree.path} has no usable training picture of the class {label!r}; "
                    "add some, or remove the class's folders."
                )
        yield splits, bad


def _state(path: Path) -> str:
    """What changes when a file is added, taken away or changed, told without opening any."""
    if path.is_file():
        status = path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"
    listing = hashlib.sha256()
    for name, status in sorted(_list_folder(path)[0].items()):
        line = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"
        listing.update(line.encode("utf-8", "surrogateescape"))
    return listing.hexdigest()


def _place(path: Path, data_dir: Path, size: int) -> Path:
    """Where the pictures of `path` lie when packed at `size`: a readable name, and a key to keep it apart."""
    key = hashlib.sha256(f"{path}\0{size}".encode("utf-8", "surrogateescape")).hexdigest()[:8]
    name = path.name if path.is_dir() else path.stem
    readable = re.sub(r"[^\w.]+", "-", name)[:40].strip("-.") or "folder"
    return store_path(data_dir, f"{readable}-{key}")


def _median_shorter_side(tree: Tree) -> float | None:
    """Of a sample spread over the training pictures; None where none of it can be read."""
    training = [entry for entry in tree.entries if entry.split == "train"]
    sides = []
    for entry in training[:: max(1, len(training) // SAMPLE)]:
        try:
            sides.append(min(picture_size(tree.read(entry))))
        except BadPicture:
            continue
    return float(np.median(sides)) if sides else None


def _decode(tree: Tree, size: int, scratch: BinaryIO) -> tuple[dict[str, RawSplit], list[str]]:
    """Decode every picture once; returns the splits, memory-mapped in `scratch`, and what is bad."""
    number = {label: index for index, label in enumerate(tree.classes)}
    labels: dict[str, list[int]] = {split: [] for split in tree.splits}
    names: dict[str, list[str]] = {split: [] for split in tree.splits}
    bad = []
    settings = Preprocess(size)
    pictures = read_all(tree, lambda data: decode_to(settings, data))
    for entry, picture in track(pictures, len(tree.entries), f"Reading {tree.path.name}"):
        if isinstance(picture, BadPicture):
            bad.append(f"{entry.name}: {picture.text}")
            continue
        try:
            scratch.write(picture.data)  # [S, S, 3]; by plain writes, as a full disk under a map kills
        except OSError as error:
            raise write_failure(tree.path, error) from error
        labels[entry.split].append(number[entry.label])
        names[entry.split].append(entry.name)
    scratch.flush()
    splits: dict[str, RawSplit] = {}
    start = 0
    for split in tree.splits:  # the order of the entries
        count = len(names[split])
        if count:
            shape = (count, size, size, 3)
            images = np.memmap(scratch, np.uint8, "r", offset=start, shape=shape)
            splits[split] = (images, np.array(labels[split], dtype=np.int64), names[split])
            start += images.nbytes
    return splits, bad


def _bad_files(path: Path, files: int, bad: list[str]) -> VitreousError:
    more = [f"… and {len(bad) - LISTED:,} more"] if len(bad) > LISTED else []
    return VitreousError(
        f"{len(bad):,} of the {files:,} files in {path} cannot be used; mend or remove them, "
        "or leave them out with --skip-bad:\n" + "\n".join(f"  {line}" for line in [*bad[:LISTED], *more])
    )


def _left_out(path: Path, files: int, bad: list[str]) -> str:
    return (
        f"{len(bad):,} of {files:,} files cannot be used and are left out "
        f"(`vitreous data check {path}` lists them)."
    )
