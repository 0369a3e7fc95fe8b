"""The cache: packed data sets and compiled kernels, and how to remove them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from vitreous.data.packed import PARTIAL, read_header, remove_store, store_path
from vitreous.errors import VitreousError
from vitreous.files import default_data_dir, human_size, is_kernel, kernels_dir, path_of, write_failure

KERNELS = "kernels"  # names the compiled kernels in place of a data set


def data_folder(data_dir: Path | str | None) -> Path:
    """The folder of packed data sets: `data_dir`, or `default_data_dir()` if it is None."""
    if data_dir is None or isinstance(data_dir, str | os.PathLike):
        return path_of(data_dir or default_data_dir())
    hint = ""
    if isinstance(data_dir, tuple):
        hint = (
            "; give a test split together with its images, as ((images, labels), (test_images, test_labels))"
        )
    raise VitreousError(f"The data folder is given as {type(data_dir).__name__}; give its path{hint}.")


def clear(
    target: str | Path | None = None,
    everything: bool = False,
    data_dir: Path | str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Removes packed data sets or compiled kernels, but never a source of data or a file from elsewhere.

    Links in the two folders are neither followed nor removed.

    Args:
        target: a name, the path of a packed data set, or the folder or zip that it was packed from; or
            "kernels" (write "./kernels" for a folder with that name).
        everything: remove all packed data sets, remains of interrupted imports, and the kernels.
        data_dir: the folder of packed data sets; `default_data_dir()` by default. Kernels are only ever in
            `kernels_dir()`, so they stay if `data_dir` is given.
        say: receives a sentence for each thing removed.

    Raises:
        VitreousError: neither or both of `target` and `everything` are given, nothing is packed under `target`,
            it cannot be removed, or kernels are to be removed and `data_dir` is given.
    """
    folder = data_folder(data_dir)
    datasets, kernels = store_path(folder, ""), None if data_dir else kernels_dir()
    packed = _entries(datasets)
    if target is not None and everything:
        raise VitreousError(f"{target} and --all exclude each other; give one of them.")
    if target is None and not everything:
        names = [path.name for path in packed if read_header(path)] + [KERNELS] * bool(_kernels(kernels))
        contents = ", ".join(names) or "nothing that vitreous stored"
        raise VitreousError(f"Name what to remove, or give --all; {folder} contains {contents}.")
    if str(target) == KERNELS and kernels is None:
        raise VitreousError(
            "Compiled kernels are never in a --data-dir; leave it out to remove those in the cache "
            "($VITREOUS_DATA, or ~/.cache/vitreous)."
        )
    chosen = packed if everything else []
    if target is not None and str(target) != KERNELS:
        location = path_of(target).resolve()
        chosen = [path for path in packed if path.name == str(target) or path.resolve() == location]
        chosen += [path for path in packed if _origin(path) == str(location) and path not in chosen]
        if not chosen:
            raise VitreousError(
                f"Nothing is packed for {target} in {datasets}; `vitreous data clear` lists what is there."
            )
    removed = 0
    for path in chosen:
        try:
            if path.name.startswith(".") and path.name.endswith(PARTIAL):
                shutil.rmtree(path)
                say(f"Removed the remains of an interrupted import: {path}.")
            elif freed := remove_store(path):
                say(f"Removed {path} ({human_size(freed)}).")
            else:
                continue
        except OSError as error:
            raise write_failure(path, error) from error
        removed += 1
    if kernels is not None and (everything or str(target) == KERNELS):
        removed += _remove_kernels(kernels, say)
    if not removed:
        say(f"Nothing to remove in {folder}.")


def _entries(folder: Path) -> list[Path]:
    """The content of a folder, sorted, without links; empty if there is no folder."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if not path.is_symlink()]


def _kernels(folder: Path | None) -> list[Path]:
    """The compiled kernels in a folder; none if the folder is a link, which vitreous never creates."""
    if folder is None or folder.is_symlink():
        return []
    return [path for path in _entries(folder) if is_kernel(path)]


def _remove_kernels(folder: Path, say: Callable[[str], None]) -> int:
    """Removes compiled kernels and returns how many. They are compiled again when they are next needed."""
    freed = 0
    try:
        kernels = _kernels(folder)
        for path in kernels:
            if path.is_dir():  # left by an interrupted compilation
                shutil.rmtree(path)
            else:
                freed += path.lstat().st_size
                path.unlink()
        if kernels:
            if not any(folder.iterdir()):
                folder.rmdir()
            say(f"Removed the compiled kernels in {folder} ({human_size(freed)}).")
    except OSError as error:
        raise write_failure(folder, error) from error
    return len(kernels)


def _origin(path: Path) -> str | None:
    """The resolved folder or zip that the data set at `path` was packed from, as its importer recorded it."""
    header = read_header(path)
    return header["extra"].get("path") if header else None
