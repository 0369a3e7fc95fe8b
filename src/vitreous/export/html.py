"""The target `html`: one file that predicts in a browser, without an installation and without a network.

The page's sources are in `page/`. `write` puts them, the weights, and pictures with known answers into one file.
`answer` opens that file in a real browser, which classifies picture files by the functions that a person's pictures go
through.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jinja2
import numpy as np
import PIL
from markupsafe import Markup
from PIL import Image, ImageDraw

import vitreous
from vitreous.bundle import Bundle
from vitreous.coverage import Coverage
from vitreous.data.decode import read_image
from vitreous.depth import origin_of
from vitreous.errors import VitreousError
from vitreous.export import Answers, Material, Picture, Target
from vitreous.files import atomic_write
from vitreous.preprocess import Preprocess
from vitreous.statistics import accuracy_text
from vitreous.wording import count, percent

PAGE = "index.html"
NETWORK_BOUND = 5e-3  # of a probability; the 16 bits of the weights take a small part of it
LEVELS = 2**15 - 1  # of a weight of 16 bits, on either side of zero
SMALL = (
    1024  # values of a tensor that stays float32, as the whitening, in whose products large numbers cancel
)
READING_BOUND = 1.0  # see `reading_bound`; for most kinds Chromium and Firefox give equal pixels
READING_BOUNDS = {"colour profile": 4.0, "AVIF": 8.0} | dict.fromkeys(
    ("TIFF", "PPM", "CMYK", "16 bits", "damaged"),
    math.inf,  # browsers refuse some or all of these
)
CHECKS, SAMPLE_CHECKS = 20, 10  # pictures with known answers, and how many of them are samples
CHECK_SIDE = 64  # pixels of a sample that is checked
SAMPLE_SIDE = 320  # pixels of a sample that is shown
GROUNDS = {
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "black": (0, 0, 0),
}  # Pillow's colours of these names
NETWORK_SCRIPTS, PAGE_SCRIPTS = (
    ("product.js", "network.js", "worker.js"),
    ("pixels.js", "reading.js", "page.js"),
)

# The programs of browsers, the first choice first, and whether they are Firefox.
BROWSERS = (
    *(
        (name, False)
        for name in (
            *(
                "chromium",
                "chromium-browser",
                "google-chrome",
                "google-chrome-stable",
                "chrome",
                "microsoft-edge",
            ),
            *("msedge", "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"),
            "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
            r"C:\Program Files\Google\Chrome\Application\chrome.exe",
            r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
        )
    ),
    *(
        (name, True)
        for name in (
            *("firefox", "firefox-esr", "/Applications/Firefox.app/Contents/MacOS/firefox"),
            r"C:\Program Files\Mozilla Firefox\firefox.exe",
        )
    ),
)
INSTALL = {"linux": "sudo apt install chromium", "darwin": "brew install --cask chromium"}
INSTALL_WINDOWS = "winget install Mozilla.Firefox"
PATIENCE = 120.0  # seconds without an answer
CHUNK_FILES, CHUNK_BYTES = 100, 2**24  # that the browser is given at once
AGENTS = {"Firefox": "Firefox", "Edg": "Edge", "Chrome": "Chromium"}


# ---- the page


def write(material: Material, folder: Path) -> None:
    """Writes the page.

    Raises:
        VitreousError: a weight is not a number.
    """
    bundle = material.bundle
    tensors, weights = weights_of(bundle)
    threshold = default_threshold(bundle.coverage) if bundle.coverage else None
    data = {
        "model": model_of(bundle, tensors),
        "settings": settings_of(bundle.preprocess),
        "coverage": dataclasses.asdict(bundle.coverage) if bundle.coverage else None,
        "threshold": threshold,
        "samples": [
            {"image": _sample(bundle, picture), "label": label}
            for picture, label in zip(material.samples, material.labels, strict=True)
        ],
        "checks": _checks(bundle, material.samples),
        "bound": NETWORK_BOUND,
    }
    scripts = {"network_script": _script(NETWORK_SCRIPTS), "page_script": _script(PAGE_SCRIPTS)}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_source("page.html.jinja")).render(
        title=bundle.data.get("name") or "image classifier",
        classes=bundle.classes,
        samples=bool(material.samples),
        threshold=threshold,
        no_threshold=(
            "Nobody knows what a threshold would accept: the run trained on its validation images too, or it is of an "
            "earlier version."
        ),
        about=_about(bundle),
        reading=_reading(bundle.preprocess),
        version=vitreous.__version__,
        policy=_policy(scripts.values()),
        style=Markup(_source("style.css")),
        # JSON without "<" cannot end its element.
        data=Markup(json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")),
        weights=base64.b64encode(weights).decode(),
        **{name: Markup(script) for name, script in scripts.items()},
    )
    # Names may hold bytes that are not text.
    atomic_write(folder / PAGE, page.encode("utf-8", errors="replace"))


def weights_of(bundle: Bundle) -> tuple[list[dict[str, Any]], bytes]:
    """The network's weights as the page reads them.

    A matrix is kept as whole numbers of 16 bits, with a scale for each row: half of single precision's size, and five
    to ten times as exact as floats of 16 bits, since the weights of a row differ little in size. Small tensors stay
    float32.

    Returns:
        For each tensor its name, shape, whether it has scales, and where it begins; and the bytes of all: the scales,
        float32 [rows], where there are any, then the values.

    Raises:
        VitreousError: a weight is not a finite number.
    """
    tensors, content = [], bytearray()
    for name, tensor in bundle.model.state_dict().items():
        values = tensor.detach().cpu().numpy()
        if not np.isfinite(values).all():
            raise VitreousError(
                f"The network's {name} holds values that are not numbers, as after a diverged training; train again."
            )
        scaled = values.ndim > 1 and values.size > SMALL
        tensors.append({"name": name, "shape": list(values.shape), "scaled": scaled, "at": len(content)})
        if scaled:
            rows = (
                values.reshape(-1, values.shape[-1])
                if name == "pos_embed"
                else values.reshape(len(values), -1)
            )
            scales = (np.abs(rows).max(axis=1) / LEVELS).astype("<f4")
            content += scales.tobytes()
            values = np.rint(rows / np.maximum(scales, np.finfo("f4").tiny)[:, None]).clip(-LEVELS, LEVELS)
        content += values.astype("<i2" if scaled else "<f4").tobytes()
        content += bytes(-len(content) % 4)
    return tensors, bytes(content)


def model_of(bundle: Bundle, tensors: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page's network needs to know beside its weights."""
    return {
        "architecture": dataclasses.asdict(bundle.model.architecture),
        "imageSize": bundle.model.image_size,
        "classes": list(bundle.classes),
        "mean": bundle.mean,
        "std": bundle.std,
        "temperature": bundle.temperature,
        "tensors": tensors,
    }


def settings_of(preprocess: Preprocess) -> dict[str, Any]:
    """How the page reads pictures: the bundle's settings, and the order of Pillow's passes (`resize` in pixels.js)."""
    return {
        "size": preprocess.size,
        "fit": preprocess.fit,
        "ground": GROUNDS[preprocess.ground],
        "profiles": preprocess.profiles,
        "valueRange": preprocess.value_range,
        "heightFirst": int(PIL.__version__.split(".")[0]) >= 13,
    }


def default_threshold(coverage: Coverage) -> int:
    """The lowest threshold, in thousandths, that turns away at least half of the mistakes on validation.

    It accepts at least half of the images, since a page that is never sure is of no use.
    """
    mistakes = [a - c for a, c in zip(coverage.accepted, coverage.correct, strict=True)]
    if not mistakes[0]:
        return 500
    lowest = next(
        (place for place, left in enumerate(mistakes) if 2 * left <= mistakes[0]), len(mistakes) - 1
    )
    useful = max(place for place, accepted in enumerate(coverage.accepted) if 2 * accepted >= coverage.images)
    return min(lowest, useful)


def _checks(bundle: Bundle, samples: Sequence[Picture]) -> list[dict[str, Any]]:
    """PNG files and the bundle's probabilities for them: small squares of samples, and drawn pictures of any shape."""
    files = []
    small = dataclasses.replace(bundle.preprocess, size=min(bundle.preprocess.size, CHECK_SIDE))
    for picture in samples[:SAMPLE_CHECKS]:
        files.append(_png(Image.fromarray(small.batch([picture.content], read_image)[0])))
    generator = np.random.default_rng(0)
    while len(files) < CHECKS:
        files.append(_png(_drawing(generator, min(3 * bundle.preprocess.size, 200))))
    return [
        {"image": base64.b64encode(file).decode(), "probabilities": [round(float(p), 6) for p in row]}
        for file, row in zip(files, bundle.predict_proba(files), strict=True)
    ]


def _drawing(generator: np.random.Generator, longest: int) -> Image.Image:
    """Coloured ellipses and rectangles on a ground; some sides are shorter than the network's input, some longer."""
    width, height = (int(side) for side in generator.integers(7, max(longest, 8), 2))
    colours = [tuple(int(v) for v in generator.integers(0, 256, 3)) for _ in range(7)]
    image = Image.new("RGB", (width, height), colours[0])
    draw = ImageDraw.Draw(image)
    for number, colour in enumerate(colours[1:]):
        (left, right), (top, bottom) = (sorted(generator.uniform(0, side, 2)) for side in (width, height))
        shape = draw.ellipse if number % 2 else draw.rectangle
        shape((left, top, right, bottom), fill=colour)
    return image


def _sample(bundle: Bundle, picture: Picture) -> str:
    """A sample to be shown, as a data: URI, without whatever else its file says, such as where it was taken."""
    image = read_image(picture.content)
    rgb, colours = bundle.preprocess.rgb(image, origin_of(image))
    rgb.thumbnail((SAMPLE_SIDE, SAMPLE_SIDE), Image.Resampling.BICUBIC)
    rgb = Image.fromarray(np.asarray(colours(rgb) if colours else rgb))  # without the file's metadata
    if max(rgb.size) <= CHECK_SIDE:
        return "data:image/png;base64," + base64.b64encode(_png(rgb)).decode()
    file = io.BytesIO()
    rgb.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _about(bundle: Bundle) -> dict[str, Any]:
    """What the model is, how good, and where it fails."""
    weights = sum(parameter.numel() for parameter in bundle.model.parameters())
    data = bundle.data.get("name")
    trained = (
        f"trained from scratch on {count(bundle.images['train'], 'image')}"
        if bundle.images.get("train")
        else "trained"
    )
    what = f"A Vision Transformer with {weights / 1e6:.2f} million weights, {trained}{f' of {data}' if data else ''}."
    if len(bundle.classes) > 1:
        what += " It answers with one of its classes, whatever it is shown."
    return {"what": what, "good": _how_good(bundle), "confused": bundle.confused[:3]}


def _how_good(bundle: Bundle) -> str:
    for split, title in (("test", "test"), ("val", "validation")):
        accuracy, images = bundle.figures.get(f"{split}_acc"), bundle.images.get(split)
        if accuracy is None:
            continue
        shown = accuracy_text(round(accuracy * images), images) if images else percent(accuracy)
        of = f"{count(images, f'{title} image')}" if images else f"its {title} images"
        sentence = f"Its accuracy on {of} is {shown}."
        if split == "val":
            sentence += " Choices were made on these images, so expect a little less."
        if bundle.majority:
            sentence += (
                f" Always answering the most frequent class gives about {100 * bundle.majority[1]:.0f} %."
            )
        return sentence
    return "Its accuracy was not recorded."


def _reading(preprocess: Preprocess) -> str:
    shape = {
        "crop": "crops a picture to its central square",
        "pad": "adds bars to a picture until it is square",
        "stretch": "stretches a picture to a square",
    }[preprocess.fit]
    text = (
        f"The page {shape}, and makes it {preprocess.size} × {preprocess.size} pixels by the same arithmetic as in "
        "training. The browser decodes the files. Those that it does not know, such as TIFF, are refused."
    )
    if preprocess.value_range is not None:
        text += (
            " The model reads pictures of 16 bits a channel on a scale of its own, which a browser cannot do, so those "
            "are refused too."
        )
    return text


def _source(name: str) -> str:
    return resources.files("vitreous").joinpath("export", "page", name).read_text(encoding="utf-8")


def _script(names: Sequence[str]) -> str:
    script = "".join(map(_source, names))
    assert "</" not in script and "<!--" not in script  # would end the element
    return script


def _policy(scripts: Any) -> str:
    """Only the page's own scripts run, and nothing is fetched."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes} 'wasm-unsafe-eval'; worker-src blob:; img-src data: blob:; "
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )


# ---- its answers in a real browser

# A page around the exported one, which stays as it is: the exported page may not fetch, so this one does.
DRIVER = """<!doctype html>
<meta charset="utf-8"><title>proof</title>
<iframe src="page" width="800" height="600"></iframe>
<script>
"use strict";
const send = (path, body) => fetch(path, { method: "POST", body });

async function drive() {
  await new Promise((resolve) => (document.querySelector("iframe").onload = resolve));
  const page = document.querySelector("iframe").contentWindow.vitreous;
  const { passed, text, simd, place, milliseconds } = await page.check;
  await send("check", JSON.stringify({ passed, text, simd, place, milliseconds, agent: navigator.userAgent }));
  const classes = page.data.model.classes.length, inputs = 3 * page.data.settings.size ** 2;
  for (let first = 0, count; ; first += count) {
    const chunk = await (await fetch(`pictures?first=${first}`)).arrayBuffer();
    count = new DataView(chunk).getUint32(0, true);
    if (!count) break;
    const lengths = new Uint32Array(chunk, 4, count), files = [];
    for (let i = 0, at = 4 + 4 * count; i < count; at += lengths[i++]) {
      files.push(new Blob([new Uint8Array(chunk, at, lengths[i])]));
    }
    const answers = new ArrayBuffer(count * (4 * classes + inputs));
    const probabilities = new Float32Array(answers, 0, count * classes).fill(NaN);
    const pixels = new Uint8Array(answers, 4 * count * classes);
    let next = 0;
    const lane = async () => { // several, so that one picture is decoded while another is classified
      while (next < count) {
        const i = next++;
        try {
          const answer = await page.classify(files[i]);
          answer.bitmap.close();
          probabilities.set(answer.probabilities, i * classes);
          pixels.set(answer.pixels, i * inputs);
        } catch (error) {
          if (error.constructor.name !== "Unusable") throw error;
        }
      }
    };
    await Promise.all([lane(), lane(), lane()]);
    await send(`answers?first=${first}&count=${count}`, answers);
  }
  await send("done", "");
}

drive().catch((error) => send("problem", String(error.stack || error)));
</script>
"""


class _Exchange:
    """What the browser is given and what it has answered. Its thread and the server's share it."""

    def __init__(self, page: bytes, bundle_shape: tuple[int, int], pictures: Sequence[Picture]) -> None:
        classes, size = bundle_shape
        self.page, self.pictures = page, pictures
        self.secret = secrets.token_urlsafe(16)  # so that no other program of this computer can answer
        self.probabilities = np.full((len(pictures), classes), np.nan, np.float32)
        self.pixels = np.zeros((len(pictures), size, size, 3), np.uint8)
        self.check: dict[str, Any] = {}
        self.problem = ""
        self.done = threading.Event()
        self.heard = time.monotonic()

    def give(self, path: str, query: dict[str, list[str]]) -> tuple[str, bytes] | None:
        """What a GET is answered: media type and content."""
        if path == "":
            return "text/html", DRIVER.encode()
        if path == "page":
            return "text/html", self.page
        if path == "pictures":
            return "application/octet-stream", self._chunk(int(query["first"][0]))
        return None

    def _chunk(self, first: int) -> bytes:
        """Pictures from `first`: their number, the length of each in bytes, and the bytes of all."""
        chunk: list[bytes] = []
        for picture in self.pictures[first : first + CHUNK_FILES]:
            if chunk and sum(map(len, chunk)) + len(picture.content) > CHUNK_BYTES:
                break
            chunk.append(picture.content)
        return struct.pack(f"<I{len(chunk)}I", len(chunk), *map(len, chunk)) + b"".join(chunk)

    def take(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        """Keeps what the browser has sent."""
        if path == "check":
            self.check = json.loads(body)
        elif path == "answers":
            first, number = int(query["first"][0]), int(query["count"][0])
            rows = slice(first, first + number)
            classes = self.probabilities.shape[1]
            split = 4 * number * classes
            self.probabilities[rows] = np.frombuffer(body[:split], "<f4").reshape(number, classes)
            self.pixels[rows] = np.frombuffer(body[split:], np.uint8).reshape(self.pixels[rows].shape)
        elif path == "problem":
            self.problem = body.decode(errors="replace")[:500]
            self.done.set()
        elif path == "done":
            self.done.set()


def _handler(exchange: _Exchange) -> type[BaseHTTPRequestHandler]:
    largest = 4096 + CHUNK_FILES * (exchange.probabilities[:1].nbytes + exchange.pixels[:1].nbytes)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _path(self) -> tuple[str, dict[str, list[str]]] | None:
            parts = urlsplit(self.path)
            if not parts.path.startswith(f"/{exchange.secret}/"):
                return None
            exchange.heard = time.monotonic()
            return parts.path.removeprefix(f"/{exchange.secret}/"), parse_qs(parts.query)

        def _reply(self, status: int, kind: str = "text/plain", content: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            asked = self._path()
            found = exchange.give(*asked) if asked else None
            self._reply(200, *found) if found else self._reply(404)

        def do_POST(self) -> None:
            asked, length = self._path(), int(self.headers.get("Content-Length") or 0)
            if asked is None or length > largest:
                self.close_connection = True
                self._reply(404)
                return
            exchange.take(*asked, self.rfile.read(length))
            self._reply(200)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: the browser ends when it has answered, whatever connections it still has."""


def answer(folder: Path, pictures: Sequence[Picture], browser: tuple[str, bool] | None = None) -> Answers:
    """Opens the exported page in a headless browser and has it classify the files.

    Args:
        browser: a program and whether it is Firefox; by default the first one that is installed.

    Raises:
        VitreousError: there is no browser, it does not answer, or the page's own check fails in it.
    """
    browser = browser or find_browser()
    if browser is None:
        raise VitreousError(f"There is no browser; install one with: {missing()}")
    page = (folder / PAGE).read_bytes()
    exchange = _Exchange(page, _shape_of(page), pictures)
    server = _Server(("127.0.0.1", 0), _handler(exchange))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/{exchange.secret}/"
        with opened(url, browser) as (process, log):
            while not exchange.done.wait(0.1):
                ended = process.poll() is not None
                if ended or time.monotonic() - exchange.heard > PATIENCE:
                    end = (
                        f"ended with status {process.returncode}"
                        if ended
                        else f"gave no answer for {PATIENCE:.0f} s"
                    )
                    last = " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-300:]
                    raise VitreousError(f"The browser {browser[0]} {end} ({last}); try another browser.")
    finally:
        server.shutdown()
        server.server_close()
    if exchange.problem:
        raise VitreousError(f"The page failed in {browser[0]} ({exchange.problem}); report this.")
    if not exchange.check.get("passed"):
        raise VitreousError(f"The page's own check failed in {browser[0]}: {exchange.check.get('text')}")
    return Answers(exchange.probabilities, exchange.pixels, f"headless {_name_of(exchange.check['agent'])}")


def _shape_of(page: bytes) -> tuple[int, int]:
    """The number of classes and the input's side of an exported page."""
    found = re.search(rb'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data = json.loads(found.group(1))
    return len(data["model"]["classes"]), data["settings"]["size"]


def _name_of(agent: str) -> str:
    """A browser by what it calls itself: "Chromium 150"."""
    for token, name in AGENTS.items():
        if found := re.search(rf"{token}/(\d+)", agent):
            return f"{name} {found.group(1)}"
    return "browser"


def find_browser() -> tuple[str, bool] | None:
    """The first installed browser: its program, and whether it is Firefox."""
    for name, firefox in BROWSERS:
        if found := shutil.which(name):
            return found, firefox
    return None


def missing() -> str:
    if find_browser():
        return ""
    return INSTALL.get(sys.platform, INSTALL_WINDOWS)


@contextmanager
def opened(url: str, browser: tuple[str, bool]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A headless browser that shows `url`, and the file that it logs to. It ends with the block, and leaves nothing."""
    program, firefox = browser
    with tempfile.TemporaryDirectory(prefix="vitreous-browser-", ignore_cleanup_errors=True) as place:
        profile, log = Path(place) / "profile", Path(place) / "log"
        profile.mkdir()
        # Of its own group, so that Ctrl-C reaches this process first and all of the browser ends with it.
        with log.open("wb") as file:
            process = subprocess.Popen(
                [program, *(_firefox if firefox else _chromium)(profile), url],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            yield process, log
        finally:
            _end(process)


def _chromium(profile: Path) -> list[str]:
    words = [
        *("--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-default-browser-check"),
        *(
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-extensions",
        ),
        *("--disable-dev-shm-usage", f"--user-data-dir={profile}"),
    ]
    # As root, Chromium has no sandbox. It only ever sees the page, which has no network.
    return [*words, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else words


def _firefox(profile: Path) -> list[str]:
    off = (
        *(
            "app.update.enabled",
            "browser.shell.checkDefaultBrowser",
            "datareporting.policy.dataSubmissionEnabled",
        ),
        *("toolkit.telemetry.enabled", "network.captive-portal-service.enabled", "extensions.update.enabled"),
        *(
            "network.connectivity-service.enabled",
            "browser.aboutwelcome.enabled",
            "browser.safebrowsing.update.enabled",
        ),
    )
    lines = [f'user_pref("{name}", false);' for name in off]
    (profile / "user.js").write_text("\n".join([*lines, 'user_pref("network.http.http3.enable", false);']))
    return ["--headless", "--no-remote", "--profile", str(profile)]


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        try:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, number)
            else:
                process.terminate()
        except ProcessLookupError:
            pass
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            continue
        if not hasattr(os, "killpg"):
            return


def reading_bound(bundle: Bundle, kind: str) -> float:
    """How far the pixels of a kind of file may differ from the bundle's, as mean of an image in levels of 0 to 255.

    Browsers blend transparent pixels with fewer digits and convert colours before resizing, not after it.
    """
    if kind.endswith(", unusual files"):
        return math.inf
    return READING_BOUNDS.get(kind, READING_BOUND)


TARGET = Target(
    write=write,
    answer=answer,
    missing=missing,
    network_bound=NETWORK_BOUND,
    reading_bound=reading_bound,
    summary=f"`{PAGE}`, one file that predicts in a browser, offline",
)
