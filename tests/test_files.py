from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from vitreous.errors import VitreousError
from vitreous.files import (
    Limits,
    atomic_write,
    check_free_space,
    human_size,
    open_zip,
    path_of,
    read_tar,
    read_zip_member,
    sha256,
    zip_members,
)


def make_tar(path: Path, members: Sequence[tarfile.TarInfo | tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def make_zip(path: Path, members: Sequence[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, "give a str or a pathlib.Path"),
        (None, "give a str or a pathlib.Path"),
        (["a"], "give a str or a pathlib.Path"),
        ("", "it is empty"),
        ("a\0b", "it holds a null character"),
        ("x" * 5000, "File name too long"),
    ],
)
def test_what_is_no_path_is_refused_in_a_sentence(value: Any, reason: str) -> None:
    with pytest.raises(VitreousError, match=reason) as failure:
        path_of(value)
    assert str(failure.value).startswith(f"{value!r} cannot be used as a path")


def test_a_path_may_be_anywhere_and_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of("~/x") == tmp_path / "x" == path_of(tmp_path / "x")


def test_atomic_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    atomic_write(path, "ä")
    assert path.read_bytes() == "ä".encode()

    def write_new(file: BinaryIO) -> None:
        file.write(b"new")

    atomic_write(path, write_new)
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_atomic_write_obeys_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    atomic_write(tmp_path / "atomic", "x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_atomic_write_keeps_the_old_content_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full_disk(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(VitreousError, match=r"full; free some space") as failure:
        atomic_write(path, full_disk)
    assert str(path) in str(failure.value)

    def own_bug(file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        atomic_write(path, own_bug)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, RuntimeError("of torch's writer"), MemoryError]
)
@pytest.mark.parametrize("at", ["write", "fsync", "replace"])
def test_atomic_write_leaves_nothing_behind_when_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, at: str
) -> None:
    (tmp_path / "file").write_text("old")

    def stop(*_: object) -> None:
        raise error

    if at != "write":
        monkeypatch.setattr(*((os, "fsync", stop) if at == "fsync" else (Path, "replace", stop)))
    with pytest.raises(error if isinstance(error, type) else type(error)):
        atomic_write(tmp_path / "file", stop if at == "write" else b"new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_atomic_write_names_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VitreousError, match="file"):
        atomic_write(tmp_path / "file" / "below", "x")


def test_free_space_is_said_with_size_and_place(tmp_path: Path) -> None:
    check_free_space(tmp_path / "not" / "yet" / "there", 1, "Packing")
    with pytest.raises(
        VitreousError, match=r"^Packing needs 1,000,000,000 GB at .*absent, where .* are free;"
    ):
        check_free_space(tmp_path / "absent", 10**18, "Packing")


def test_sha256_and_human_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    sizes = {1: "1 bytes", 999: "999 bytes", 1500: "1.5 kB", 184_000_000: "184 MB", 2_340_000_000: "2.3 GB"}
    assert {size: human_size(size) for size in sizes} == sizes


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/etc/out", "C:\\out", "..\\out"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(VitreousError, match="leads out of the archive"):
        list(read_tar(make_tar(tmp_path / "a.tar.gz", [(name, b"x")])))
    with (
        open_zip(make_zip(tmp_path / "a.zip", [(name, b"x")])) as archive,
        pytest.raises(VitreousError, match="leads out of the archive"),
    ):
        zip_members(archive)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "a.zip"]


def test_links_folders_and_devices_are_left_out(tmp_path: Path) -> None:
    link, hard, device = tarfile.TarInfo("link"), tarfile.TarInfo("hard"), tarfile.TarInfo("device")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "file"
    device.type = tarfile.CHRTYPE
    path = make_tar(tmp_path / "a.tar.gz", [("file", b"content"), link, hard, device])
    assert list(read_tar(path)) == [("file", b"content")]

    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = make_zip(tmp_path / "a.zip", [("file", b"content"), (info, b"/etc/passwd"), ("folder/", b"")])
    with open_zip(path) as archive:
        assert [member.filename for member in zip_members(archive)] == ["file"]


def test_limits_of_count_and_size(tmp_path: Path) -> None:
    members = [("a", b"x" * 60), ("b", b"x" * 60)]
    tar, zipped = make_tar(tmp_path / "a.tar.gz", members), make_zip(tmp_path / "a.zip", members)
    for limits, text in [
        (Limits(members=1), "more than 1 files"),
        (Limits(total_bytes=100), "unpacks to more than 100 bytes"),
        (Limits(member_bytes=50), "over the limit of 50 bytes"),
    ]:
        with pytest.raises(VitreousError, match=text):
            list(read_tar(tar, limits=limits))
        with open_zip(zipped) as archive, pytest.raises(VitreousError, match=text):
            zip_members(archive, limits)
    assert len(list(read_tar(tar, limits=Limits(2, 60, 120)))) == 2
    with open_zip(zipped) as archive:
        assert len(zip_members(archive, Limits(2, 60, 120))) == 2


def test_a_zip_member_that_understates_its_size_is_not_unpacked_whole(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", [("bomb", bytes(1_000_000))])
    raw = path.read_bytes()
    path.write_bytes(raw.replace((1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with open_zip(path) as archive:
        (info,) = zip_members(archive, Limits(member_bytes=100))
        try:
            content = read_zip_member(archive, info, Limits(member_bytes=100))
        except VitreousError:
            content = b""
    assert len(content) <= 100


@pytest.mark.parametrize(
    ("kind", "harm"),
    [(kind, harm) for kind in ("tar", "zip") for harm in ("cut", "empty", "absent")]
    + [("zip", "changed")],  # a tar has no checksums of its files
)
def test_damaged_archives_are_a_sentence(tmp_path: Path, kind: str, harm: str) -> None:
    content = os.urandom(20_000)
    path = (make_tar if kind == "tar" else make_zip)(tmp_path / f"a.{kind}", [("file", content)])
    raw = path.read_bytes()
    if harm == "absent":
        path.unlink()
    else:
        changed = raw[:10_000] + bytes(byte ^ 0xFF for byte in raw[10_000:10_100]) + raw[10_100:]
        path.write_bytes({"cut": raw[:10_000], "changed": changed, "empty": b""}[harm])
    with pytest.raises(VitreousError, match=str(path)):
        if kind == "tar":
            list(read_tar(path))
        else:
            with open_zip(path) as archive:
                [read_zip_member(archive, info) for info in zip_members(archive)]


@pytest.mark.parametrize(
    ("at", "byte"),
    [
        (b"PK\x01\x02\x14\x03", 6),  # in the directory, the version that unpacking needs
        (b"PK\x03\x04", 31),  # beside the file, its name, which is marked as UTF-8
    ],
)
def test_a_zip_whose_headers_are_damaged_is_a_sentence(tmp_path: Path, at: bytes, byte: int) -> None:
    path = make_zip(tmp_path / "a.zip", [("übung", b"content")])
    raw = bytearray(path.read_bytes())
    raw[raw.index(at) + byte] = 0xFF
    path.write_bytes(bytes(raw))
    with pytest.raises(VitreousError, match=f"{path} is damaged"), open_zip(path) as archive:
        [read_zip_member(archive, info) for info in zip_members(archive)]
