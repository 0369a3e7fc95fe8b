"""Paths, atomic writes, and archives from strangers that are read with care."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from vitreous.errors import VitreousError

KERNEL_NAME = re.compile(
    r"[0-9a-f]{32}-[0-9a-f]{32}\.so|[0-9a-f]{20}\.so"
)  # earlier versions wrote the shorter one
COMPILING_NAME = re.compile(r"tmp[a-z0-9_]{8}")  # the folders of `tempfile`, which kernels are compiled in


def path_of(text: str | os.PathLike[str]) -> Path:
    """The path that a person gave, with "~" expanded. It need not exist.

    Raises:
        VitreousError: it is not a path, or one that the system refuses.
    """
    if not isinstance(text, str | os.PathLike):
        raise VitreousError(f"{text!r} cannot be used as a path; give a str or a pathlib.Path.")
    try:
        path = Path(text).expanduser()
        if text == "" or "\0" in str(path):
            raise ValueError("it is empty" if text == "" else "it holds a null character")
        path.exists()
    except (TypeError, ValueError, RuntimeError, OSError) as error:  # bytes, no such user, a name too long
        reason = getattr(error, "strerror", None) or error
        raise VitreousError(f"{text!r} cannot be used as a path ({reason}); check it.") from None
    return path


def default_data_dir() -> Path:
    """The folder of packed data sets and compiled kernels: `$VITREOUS_DATA`, or `~/.cache/vitreous`.

    Raises:
        RuntimeError: the user has no home folder.
    """
    return Path(os.environ.get("VITREOUS_DATA") or "~/.cache/vitreous").expanduser()


def kernels_dir() -> Path:
    """The folder of compiled kernels, in `default_data_dir()`; raises its RuntimeError."""
    return default_data_dir() / "kernels"


def is_kernel(path: Path) -> bool:
    """Whether `path`, in `kernels_dir()`, is a compiled library, or a folder that a killed compilation left.

    Only these may be removed, since a person may keep other files there. Links are not followed.
    """
    if path.is_symlink():
        return False
    if path.is_file():
        return KERNEL_NAME.fullmatch(path.name) is not None
    return COMPILING_NAME.fullmatch(path.name) is not None and all(
        inner.name == "kernels.so" and inner.is_file() for inner in path.iterdir()
    )


def human_size(size: int) -> str:
    """`size` bytes in decimal units: "184 MB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            amount = size / scale
            return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:,.0f} {unit}"
    return f"{size} bytes"


def write_failure(path: Path, error: OSError) -> VitreousError:
    """The error to raise for an `OSError` while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return VitreousError(
            f"The disk that holds {path} is full; free some space there, or choose another place."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return VitreousError(f"You may not write {path}; choose a place that you can write to.")
    return VitreousError(
        f"{path} could not be written ({error.strerror or error}); fix that or choose another place."
    )


def check_free_space(path: Path, needed: int, what: str) -> None:
    """Raises `VitreousError` if `needed` bytes for `what` do not fit on the disk of `path`."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise VitreousError(
            f"{what} needs {human_size(needed)} at {path}, where {human_size(free)} are free; "
            "free some space there, or choose another place."
        )


def atomic_write(path: Path, write: Callable[[BinaryIO], None] | bytes | str) -> None:
    """Writes a file so that `path` holds either all of the new content or what it held before.

    Args:
        path: the file. Its folder is created if needed.
        write: the content (a `str` is stored as UTF-8), or a function that writes it to an open file.

    Raises:
        VitreousError: the disk is full, or the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                if callable(write):
                    write(file)
                else:
                    file.write(write.encode() if isinstance(write, str) else write)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise write_failure(path, error) from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Limits:
    """The largest archive that is accepted, since a small file can unpack to more than a disk."""

    members: int = 4_000_000
    member_bytes: int = 1 << 28  # 256 MiB
    total_bytes: int = 1 << 40  # 1 TiB


LIMITS = Limits()
# For files that a run wrote: the float32 logits of a million images of a thousand classes are 4 GB.
OWN_LIMITS = Limits(members=100, member_bytes=1 << 33, total_bytes=1 << 34)


def _check_member(path: Path, name: str, size: int, limits: Limits) -> None:
    """Refuses a member that leads out of the archive or is too large."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or (parts.parts and parts.parts[0].endswith(":")):
        raise VitreousError(
            f"{path} holds {name!r}, a name that leads out of the archive; do not trust it, and get another."
        )
    if size > limits.member_bytes:
        raise VitreousError(
            f"{path} holds {name!r} of {human_size(size)}, over the limit of "
            f"{human_size(limits.member_bytes)} for one file; remove it from the archive."
        )


def _check_total(path: Path, members: int, total: int, limits: Limits) -> None:
    if members > limits.members:
        raise VitreousError(
            f"{path} holds more than {limits.members:,} files; split it, or unpack it yourself."
        )
    if total > limits.total_bytes:
        raise VitreousError(
            f"{path} unpacks to more than {human_size(limits.total_bytes)}; split it, or unpack it yourself."
        )


def damaged(path: Path, reason: object) -> VitreousError:
    """The error to raise for an archive that is truncated or inconsistent."""
    return VitreousError(f"{path} is damaged ({reason}); get it again.")


def open_zip(path: Path) -> zipfile.ZipFile:
    """Opens a zip for reading, as a context manager.

    Raises:
        VitreousError: it does not exist or is damaged.
    """
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise VitreousError(f"There is no file {path}; check the path.") from None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise damaged(path, error) from error


def zip_members(archive: zipfile.ZipFile, limits: Limits = LIMITS) -> list[zipfile.ZipInfo]:
    """The regular files of an open zip, in its order, without folders and links.

    Raises:
        VitreousError: a name is absolute or leads upwards, or the archive breaks `limits`.
    """
    path = Path(archive.filename or "the archive")
    infos = archive.infolist()
    _check_total(path, len(infos), sum(info.file_size for info in infos), limits)
    regular = []
    for info in infos:
        _check_member(path, info.filename, info.file_size, limits)
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if the archive has no Unix modes
        if not info.is_dir() and kind in (0, stat.S_IFREG):
            regular.append(info)
    return regular


def read_zip_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, limits: Limits = LIMITS, limit: int | None = None
) -> bytes:
    """The content of one member, or its first `limit` bytes.

    At most `limits.member_bytes` are read, whatever size its header claims.

    An open `ZipFile` may be shared between threads.

    Raises:
        VitreousError: it is damaged, encrypted, compressed in an unknown way, or over the limit.
    """
    path = Path(archive.filename or "the archive")
    try:
        with archive.open(info) as file:
            content = file.read(limits.member_bytes + 1 if limit is None else limit)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise damaged(path, f"{info.filename}: {error}") from error
    _check_member(path, info.filename, len(content), limits)
    return content


def read_tar(
    path: Path, accepts: Callable[[str], bool] = lambda name: True, limits: Limits = LIMITS
) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of the regular files in a tar whose name `accepts`, in its order.

    The compression is detected, and links are left out. Nothing is written to disk, and only one member is in memory
    at a time.

    Raises:
        VitreousError: a name is absolute or leads upwards, or the archive breaks `limits` or is damaged.
    """
    members = total = 0
    try:
        with tarfile.open(path, "r|*") as archive:  # as a stream, each byte is unpacked once
            for info in archive:
                members += 1
                total += info.size
                _check_member(path, info.name, info.size, limits)
                _check_total(path, members, total, limits)
                if not (info.isreg() and accepts(info.name)):
                    continue
                file = archive.extractfile(info)
                content = file.read() if file else b""
                if len(content) != info.size:
                    raise damaged(path, f"{info.name} is truncated")
                yield info.name, content
    except FileNotFoundError:
        raise VitreousError(f"There is no file {path}; check the path.") from None
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise damaged(path, error) from error
