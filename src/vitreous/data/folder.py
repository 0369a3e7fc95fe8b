"""Lists the files of a folder or zip, and reads them."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import TypeVar

from vitreous.data.decode import MAX_BYTES, BadImage
from vitreous.data.layout import Entry, Layout, read_layout, visible
from vitreous.errors import VitreousError
from vitreous.files import LIMITS, human_size, open_zip, path_of, read_zip_member, zip_members

WORKERS = min(4, os.cpu_count() or 1)
GROUP = 16  # small images that a thread decodes at a time
T = TypeVar("T")


@dataclass(frozen=True)
class Tree:
    """The files of a folder or zip, and how they are understood.

    Attributes:
        path: the folder or zip.
        layout: the images with their splits and classes.
        read: returns the bytes of a file by its location, or raises `BadImage`; safe to call from several threads.
    """

    path: Path
    layout: Layout
    read: Callable[[str], bytes]


@contextmanager
def open_tree(path: Path, splits: str = "auto") -> Iterator[Tree]:
    """Lists a folder or zip of images and understands it, see `layout`. It can be read inside the `with` block.

    Args:
        splits: see `ReadOptions`.

    Raises:
        VitreousError: there is nothing at `path`, it is neither a folder nor a zip, or it cannot be understood.
    """
    path = existing(path)
    if path.is_dir():

        def read(location: str) -> bytes:
            return _read_file(path, path / location)

        files, folders = list_folder(path)
        yield Tree(path, read_layout(path, files, folders, read, splits), read)
        return
    with open_zip(path) as archive:
        members, folders = _list_zip(archive)

        def read_member(location: str) -> bytes:
            return _read_member(archive, members[location])

        yield Tree(path, read_layout(path, members, folders, read_member, splits), read_member)


def existing(path: Path) -> Path:
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


def list_folder(root: Path) -> tuple[dict[str, os.stat_result], set[str]]:
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
            if not visible(item.name):
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
    return {name: info for name, info in files.items() if visible(name)}, {
        name for name in folders if visible(name)
    }


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


def read_all(
    entries: Sequence[Entry], read: Callable[[str], bytes], work: Callable[[bytes], T]
) -> Iterator[tuple[Entry, T | BadImage]]:
    """Yields each entry in order with the result of `work` on its bytes, or with its `BadImage`.

    A few threads do the work, and few results are in memory at any time.
    """

    def results_of(entries: Sequence[Entry]) -> list[T | BadImage]:
        results: list[T | BadImage] = []
        for entry in entries:
            try:
                results.append(work(read(entry.location)))
            except BadImage as bad:
                results.append(bad)
        return results

    in_flight = GROUP * 8 * WORKERS
    with ThreadPoolExecutor(WORKERS) as pool:
        for start in range(0, len(entries), in_flight):
            batch = entries[start : start + in_flight]
            groups = [batch[first : first + GROUP] for first in range(0, len(batch), GROUP)]
            yield from zip(batch, chain.from_iterable(pool.map(results_of, groups)), strict=True)
