"""Lists the files of a folder or zip, and reads them."""

from __future__ import annotations

import os
import stat
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple, TypeVar

from vitreous.data.decode import MAX_BYTES, BadImage
from vitreous.data.layout import MAX_DEPTH, Layout, ReadFile, read_layout
from vitreous.data.layout.names import litter_of, text_of
from vitreous.errors import VitreousError
from vitreous.files import LIMITS, human_size, open_zip, path_of, read_zip_member, zip_members
from vitreous.wording import count

WORKERS = min(4, os.cpu_count() or 1)
MAX_LINKS = 100_000  # links to folders that are followed
PROBE = 2  # files that are read before it is decided whether threads help
GROUP = 16  # images that a thread decodes at a time, or fewer if they are large
GROUP_BYTES = 256 * 1024  # of the files of such a group, about
AHEAD = 4 * WORKERS * GROUP  # images that are decoded before the first of them is needed
IN_FLIGHT = 64 * 2**20  # bytes of decoded images that wait for their turn, at most
SMALL = 3000  # bytes of a file, on average: of 32 by 32 pixels as PNG, or 64 by 64 as JPEG
T = TypeVar("T")
S = TypeVar("S")
E = TypeVar("E")  # what stands for a file


@dataclass(frozen=True)
class Tree:
    """The files of a folder or zip, and how they are understood.

    Attributes:
        path: the folder or zip.
        layout: the images with their splits and classes.
        read: returns the bytes of a file by its location, at most the first `limit` if that is given, or raises
            `BadImage`; safe to call from several threads.
    """

    path: Path
    layout: Layout
    read: ReadFile


@contextmanager
def open_tree(path: Path, splits: str = "auto", listing: Listing | None = None) -> Iterator[Tree]:
    """Lists a folder or zip of images and understands it, see `layout`. It can be read inside the `with` block.

    Args:
        splits: see `ReadOptions`.
        listing: what `list_folder` has found in a folder; it is listed now if this is left out.

    Raises:
        VitreousError: there is nothing at `path`, it is neither a folder nor a zip, or it cannot be understood.
    """
    path = existing(path)
    if path.is_dir():

        def read(location: str, limit: int | None = None) -> bytes:
            return read_file(path / location, limit)

        listing = listing or list_folder(path)
        names = [*listing.files, *listing.litter]
        layout = read_layout(path, names, listing.folders, read, splits, listing.unusable)
        yield Tree(path, replace(layout, understood=(*listing.notes, *layout.understood)), read)
        return
    with open_zip(path) as archive:
        members, folders = list_zip(archive)

        def read_inside(location: str, limit: int | None = None) -> bytes:
            return read_member(archive, members[location], limit)

        yield Tree(path, read_layout(path, members, folders, read_inside, splits), read_inside)


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


class Listing(NamedTuple):
    """What is below a folder.

    Attributes:
        files: the status of each file by its path, and of each entry in `unusable`. Of a link, it is its target's.
        folders: the paths of the folders.
        unusable: files that must not be opened, with reason and detail as in `Problem`.
        litter: hidden files and folders and the like; what such folders hold is not listed.
        notes: sentences about links that were not followed.
    """

    files: dict[str, os.stat_result]
    folders: set[str]
    unusable: dict[str, tuple[str, str]]
    litter: list[str]
    notes: list[str]


def list_folder(root: Path) -> Listing:
    """Lists what is below `root`. Links to files and folders are followed, except back to a folder around them.

    Raises:
        VitreousError: `root` cannot be read, or there are too many files or folders in each other.
    """
    listing = Listing({}, set(), {}, [], [])
    loops: list[str] = []
    links = 0
    # A folder's prefix for the paths in it, and the identities of the folders around it.
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while pending:
        parent, around = pending.pop()
        try:
            own = (root / parent).stat()
            items = list(os.scandir(root / parent))
        except OSError as error:
            _record_unreadable(listing, root, parent, error)
            continue
        identity = (own.st_dev, own.st_ino)
        if identity in around:
            loops.append(parent.rstrip("/"))
            continue
        if parent:
            listing.folders.add(parent.rstrip("/"))
        if len(around) > MAX_DEPTH or links > MAX_LINKS or len(listing.files) + len(pending) > LIMITS.members:
            raise VitreousError(
                f"{root} has too many files or links, or too many folders in each other (at {parent}); "
                "give a folder further inside, or remove links."
            )
        for item in items:
            name = parent + item.name
            folder, status = _is_folder(item)
            if litter_of(name, folder):
                listing.litter.append(name)
            elif folder:
                links += item.is_symlink()
                pending.append((name + "/", (*around, identity)))
            else:
                try:
                    listing.files[name] = status or item.stat(follow_symlinks=False)
                except PermissionError as error:  # its names may be listed, and what they name not be reached
                    _record_unreadable(listing, root, parent, error)
                    break
                except OSError as error:
                    listing.unusable[name] = ("unreadable", _reason(error))
                    listing.files[name] = own
                    continue
                if status is None or not stat.S_ISREG(status.st_mode):
                    listing.unusable[name] = _why_unusable(item, status)
    if loops:
        first = text_of(min(loops))
        listing.notes.append(
            f"1 link leads back to a folder that holds it and was not followed: {first}."
            if len(loops) == 1
            else f"{count(len(loops), 'link')} lead back to folders that hold them and were not followed, such as "
            f"{first}."
        )
    return listing


def _record_unreadable(listing: Listing, root: Path, folder: str, error: OSError) -> None:
    """Notes that a folder could not be listed, or that nothing in it can be reached.

    Raises:
        VitreousError: it is `root`.
    """
    reason = _reason(error)
    if not folder:
        raise VitreousError(f"{root} cannot be read ({reason}); correct its permissions.") from error
    name = folder.rstrip("/")
    listing.folders.discard(name)
    listing.unusable[name] = ("unreadable", f"a folder: {reason}; correct its permissions")
    try:
        listing.files[name] = (root / name).lstat()
    except OSError:  # it has vanished
        listing.unusable[name] = ("unreadable", f"a folder: {reason}")
        listing.files[name] = root.stat()


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _is_folder(item: os.DirEntry[str]) -> tuple[bool, os.stat_result | None]:
    """Whether an entry is a folder or a link to one, and its status; None if it leads nowhere."""
    try:
        status = item.stat()
    except OSError:
        return False, None
    return stat.S_ISDIR(status.st_mode), status


def _why_unusable(item: os.DirEntry[str], status: os.stat_result | None) -> tuple[str, str]:
    """The reason and detail why an entry of a folder is not opened."""
    if status is not None:
        return "not an image", "a pipe, socket or device, not a regular file"
    try:
        target = text_of(str(Path(item.path).readlink()))
    except OSError:
        return "not an image", "it cannot be reached"
    return "dangling link", f"it leads to {target}, which cannot be reached"


def read_file(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a file, or the first `limit`; raises `BadImage`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
            raise BadImage("not an image", "not a regular file")
        if limit is not None:
            with path.open("rb") as file:
                return file.read(limit)
        if status.st_size > MAX_BYTES:
            raise BadImage("too large", human_size(status.st_size))
        return path.read_bytes()
    except OSError as error:
        raise BadImage("unreadable", _reason(error)) from None


def list_zip(archive: zipfile.ZipFile) -> tuple[dict[str, zipfile.ZipInfo], set[str]]:
    """Lists the files in a zip, by name, and the names of the folders; raises `VitreousError` for a harmful one."""
    # A member over the size limit is a bad file rather than a reason to refuse the archive. It is never unpacked.
    members = zip_members(archive, replace(LIMITS, member_bytes=LIMITS.total_bytes))
    files = {_member_name(info): info for info in members}
    folders = {_member_name(info) for info in archive.infolist() if info.is_dir()} - {""}
    return files, folders


def _member_name(info: zipfile.ZipInfo) -> str:
    name = info.filename
    if not info.flag_bits & 0x800 and not name.isascii():
        # Python decoded it as code page 437 because it is not marked as UTF-8, but some systems omit the mark.
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int | None = None) -> bytes:
    """The bytes of a file in a zip, or the first `limit`; raises `BadImage`."""
    if limit is None and info.file_size > MAX_BYTES:
        raise BadImage("too large", human_size(info.file_size))
    if info.flag_bits & 1:
        raise BadImage("unreadable", "encrypted")
    try:
        return read_zip_member(archive, info, limit=limit)
    except VitreousError:
        raise BadImage("unreadable", "damaged in the zip") from None


def read_all(
    entries: Sequence[E], read: Callable[[E], bytes], work: Callable[[bytes], T], result_bytes: int = 0
) -> Iterator[tuple[E, T | BadImage]]:
    """Yields each entry in order with the result of `work` on its bytes, or with its `BadImage`.

    A few threads do the work. Files of a few kilobytes are read by this thread alone: decoding them is mostly Python,
    and threads would only wait for each other.

    Args:
        result_bytes: memory that a result takes. Results of up to `IN_FLIGHT` bytes wait at any time.
    """

    def results_of(entries: Sequence[E]) -> tuple[list[T | BadImage], int]:
        """The results, and how many bytes were read."""
        results: list[T | BadImage] = []
        size = 0
        for entry in entries:
            try:
                data = read(entry)
                size += len(data)
                results.append(work(data))
            except BadImage as bad:
                results.append(bad)
        return results, size

    most = min(AHEAD, IN_FLIGHT // max(1, result_bytes))  # results that wait at any time
    start, length, at_once, use_threads = 0, PROBE, 1, False
    with ThreadPoolExecutor(WORKERS) as pool:
        while start < len(entries):
            batch = entries[start : start + length]
            groups = [batch[first : first + at_once] for first in range(0, len(batch), at_once)]
            ahead = max(WORKERS, most // at_once)
            outcomes = _map_ahead(pool, results_of, groups, ahead) if use_threads else map(results_of, groups)
            total = 0
            for group, (results, size) in zip(groups, outcomes, strict=True):
                total += size
                yield from zip(group, results, strict=True)
            start += length
            length, use_threads = GROUP * 8 * WORKERS, total > SMALL * len(batch)
            # Large files one by one, so that all threads end at the same time.
            fits = min(GROUP, GROUP_BYTES * len(batch) // max(1, total), most // WORKERS)
            at_once = max(1, fits)


def _map_ahead(
    pool: ThreadPoolExecutor, work: Callable[[S], T], items: Sequence[S], ahead: int
) -> Iterator[T]:
    """`pool.map`, but with at most `ahead` items submitted whose result has not been taken."""
    pending: deque[Future[T]] = deque()
    try:
        for item in items:
            if len(pending) == ahead:
                yield pending.popleft().result()
            pending.append(pool.submit(work, item))
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
