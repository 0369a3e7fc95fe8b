"""Finds the image files that a person names: files, folders, zips and patterns, without any need for classes."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from vitreous.data.decode import BadImage
from vitreous.data.folder import list_folder, list_zip, read_file, read_member
from vitreous.data.layout import PassedOver, ReadFile, sort_files
from vitreous.data.layout.names import LITTER, natural_key, text_of
from vitreous.errors import VitreousError
from vitreous.files import open_zip, path_of
from vitreous.wording import series


class ImageFile(NamedTuple):
    """An image file.

    Attributes:
        path: how a person would name it; in a zip, the path of the zip followed by that in the zip.
        folders: the folders around it that may tell its class, "/" between them, the innermost last.
        read: returns its bytes, or raises `BadImage`; safe to call from several threads.
    """

    path: str
    folders: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Found:
    """What was found at some paths.

    Attributes:
        images: in the order of the paths; those of a folder or zip in natural order ("2" before "10").
        failed: path and reason of what is no image that can be used, known without decoding any.
        places: the folders and zips that were searched.
        notes: sentences about what was passed over.
    """

    images: list[ImageFile] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    places: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@contextmanager
def find_images(words: Iterable[str]) -> Iterator[Found]:
    """Finds the images at paths. They can be read inside the `with` block.

    A folder or zip is searched to any depth, like the import of a data set: hidden files and what systems leave behind
    are passed over, and so are files that are no images by their names. A file that is named itself always counts.

    Args:
        words: files, folders, zips, and patterns such as "photos/*.jpg" or "photos/**/*.png".
    """
    found = Found()
    with ExitStack() as stack:
        for word in words:
            try:
                _find(word, found, stack)
            except BadImage as bad:
                found.failed.append((word, bad.text))
            except VitreousError as error:
                found.failed.append((word, str(error).rstrip(".")))
        yield found


def _find(word: str, found: Found, stack: ExitStack) -> None:
    path = path_of(word)
    if path.is_dir():
        _find_in_folder(path, found)
    elif path.suffix.lower() == ".zip" and path.exists():
        _find_in_zip(path, found, stack)
    elif os.path.lexists(path) or not glob.has_magic(word):
        found.images.append(_single(path))
    else:
        matches = sorted(glob.glob(str(path), recursive=True), key=natural_key)  # noqa: PTH207 (of any path, absolute too)
        if not matches:
            raise BadImage("no file matches this pattern")
        files = []
        for match in matches:
            if "**" in word or not Path(match).is_dir():
                files.append(match)
            else:
                _find_in_folder(Path(match), found)
        files = [file for file in files if not Path(file).is_dir()]
        for name in _images_among(
            files, lambda name, limit=None: read_file(Path(name), limit), {}, "", found
        ):
            found.images.append(_single(Path(name)))


def _single(path: Path) -> ImageFile:
    return ImageFile(str(path), path.absolute().parent.name, partial(read_file, path))


def _find_in_folder(root: Path, found: Found) -> None:
    listing = list_folder(root)
    found.places.append(root)
    found.notes.extend(listing.notes)
    own_name = root.resolve().name

    def read(name: str, limit: int | None = None, /) -> bytes:
        return read_file(root / name, limit)

    names = _images_among([*listing.files, *listing.litter], read, listing.unusable, str(root), found)
    for name in names:
        # Its own name counts for images directly in it alone, since data may be called like one of their classes.
        folders = name.rpartition("/")[0] or own_name
        found.images.append(ImageFile(str(root / name), folders, partial(read, name)))


def _find_in_zip(path: Path, found: Found, stack: ExitStack) -> None:
    archive = stack.enter_context(open_zip(path))
    members, _ = list_zip(archive)
    found.places.append(path)

    def read(name: str, limit: int | None = None, /) -> bytes:
        return read_member(archive, members[name], limit)

    for name in _images_among(members, read, {}, str(path), found):
        folders = name.rpartition("/")[0] or path.stem
        found.images.append(ImageFile(str(path / name), folders, partial(read, name)))


def _images_among(
    names: Collection[str],
    read: ReadFile,
    unusable: Mapping[str, tuple[str, str]],
    root: str,
    found: Found,
) -> list[str]:
    """The usable images among `names`, in natural order; what cannot be used is added to `found`."""
    files = sort_files(names, read, unusable)
    problems = {problem.name: (problem.reason, problem.detail) for problem in files.problems}
    problems |= {name: problem for name, problem in files.images.items() if problem}
    for name, problem in sorted(problems.items()):
        found.failed.append((str(Path(root, name)), BadImage(*problem).text))
    passed_over = [
        PassedOver(kind, tuple(names)).text
        for kind, names in sorted(files.by_kind.items())
        if names and kind != LITTER
    ]
    usable = sorted((name for name, problem in files.images.items() if not problem), key=natural_key)
    if not usable and not problems and root:
        holds = f"; it holds {series(passed_over)}" if passed_over else ""
        raise BadImage(f"contains no images{holds}")
    if passed_over:
        found.notes.append(
            f"{text_of(root) or 'The pattern'} holds {series(passed_over)} that were passed over."
        )
    return usable
