"""Drives real browsers without a driver library: Chromium over a pipe (CDP), Firefox over a socket (Marionette)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vitreous.export import html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FIREFOX = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)
SECONDS = 60.0

chromium_is_here = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
firefox_is_here = pytest.mark.skipif(FIREFOX is None, reason="no Firefox here")


class Chromium:
    """One tab. `requests` are the addresses that it asked for, `complaints` what its console said."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read, self.last, self.rest = write, read, 0, b""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.session = ""
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(each["targetId"] for each in targets if each["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.last += 1
        message = {"id": self.last, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.last:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            piece = os.read(self.read, 2**20)
            assert piece, "Chromium has ended"
            self.rest += piece
        line, _, self.rest = self.rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        about = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif message.get("method") == "Log.entryAdded":
            self.complaints.append(about["entry"]["text"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(about["exceptionDetails"]))
        return message

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """The value of an expression, or what it promises."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        end = time.monotonic() + SECONDS
        while not self.run(expression):
            assert time.monotonic() < end, f"{expression} did not come true"
            time.sleep(0.05)

    def choose(self, selector: str, files: Sequence[Path]) -> None:
        """Chooses files in an input, as a person does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def press(self, key: str) -> None:
        code = {"Tab": 9, "Enter": 13, " ": 32}[key]
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)

    def screenshot(self, path: Path, width: int, height: int, dark: bool = False) -> None:
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        time.sleep(0.3)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


class Firefox:
    """One tab of Firefox."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.last = connection, 0
        self.file = connection.makefile("rb")
        self._read()  # a greeting
        self.call("WebDriver:NewSession", {"acceptInsecureCerts": False})

    def _read(self) -> Any:
        length = b""
        while not length.endswith(b":"):
            length += self.file.read(1)
        return json.loads(self.file.read(int(length[:-1])))

    def call(self, command: str, parameters: dict[str, Any]) -> Any:
        self.last += 1
        message = json.dumps([0, self.last, command, parameters]).encode()
        self.connection.sendall(b"%d:" % len(message) + message)
        _, _, error, result = self._read()
        assert error is None, error
        return result

    def open(self, url: str) -> None:
        self.call("WebDriver:Navigate", {"url": url})

    def run(self, expression: str) -> Any:
        """The value of an expression, or what it promises."""
        script = f"return Promise.resolve({expression})"
        return self.call("WebDriver:ExecuteScript", {"script": script, "args": [], "sandbox": None})["value"]

    def wait_for(self, expression: str) -> None:
        end = time.monotonic() + SECONDS
        while not self.run(expression):
            assert time.monotonic() < end, f"{expression} did not come true"
            time.sleep(0.05)

    def choose(self, selector: str, files: Sequence[Path]) -> None:
        found = self.call("WebDriver:FindElement", {"using": "css selector", "value": selector})["value"]
        (name,) = found.values()
        text = "\n".join(map(str, files))
        self.call("WebDriver:ElementSendKeys", {"id": name, "text": text})


@contextmanager
def chromium(*words: str) -> Iterator[Chromium]:
    """A headless Chromium."""
    to_child, write = os.pipe()
    read, from_child = os.pipe()

    def connect() -> None:
        # Chromium reads from 3 and writes to 4.
        spare = [os.dup(to_child), os.dup(from_child)]
        os.dup2(spare[0], 3)
        os.dup2(spare[1], 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [str(CHROMIUM), *html._chromium(Path(profile)), "--remote-debugging-pipe", *words, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=connect,
            pass_fds=(3, 4),
            start_new_session=True,
        )
        os.close(to_child)
        os.close(from_child)
        try:
            yield Chromium(write, read)
        finally:
            html._end(process)
            os.close(write)
            os.close(read)


@contextmanager
def firefox() -> Iterator[Firefox]:
    """A headless Firefox."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = html._firefox(Path(profile))
        with (Path(profile) / "user.js").open("a") as file:
            file.write(f'\nuser_pref("marionette.port", {port});\n')
        process = subprocess.Popen(
            [str(FIREFOX), *words, "--marionette", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + SECONDS
            while True:
                try:
                    connection = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
                    break
                except OSError:
                    assert time.monotonic() < end, "Firefox does not listen"
                    time.sleep(0.1)
            with connection:
                yield Firefox(connection)
        finally:
            html._end(process)
