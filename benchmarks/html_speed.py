"""Size and speed of the page that `vitreous export --to html` writes, in headless Chromium and Firefox.

    python benchmarks/html_speed.py

Takes about a minute. The networks are those that the default recipe trains in five minutes on CIFAR-10 (32 pixels) and
on photos (64 pixels), with random weights, since speed does not depend on them. For each network and browser it
measures the seconds from the opening of the file to the passed check, and medians of a prediction from pixels, with and
without SIMD, of a photo of 12 megapixels from its file to its answer, and of a heat map. Leave the machine alone
meanwhile.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import record
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import vitreous
from browsers import CHROMIUM, FIREFOX, chromium, firefox
from vitreous.bundle import Bundle
from vitreous.export import Material, html
from vitreous.machine import instruction_sets
from vitreous.model.vit import create_model
from vitreous.preprocess import Preprocess

WIDTHS: dict[str, Any] = {"embed_dim": 128, "num_heads": 2, "mlp_dim": 256, "stem_dims": (38, 128)}
NETWORKS = {"32 pixels": (32, 4, 1), "64 pixels": (64, 8, 2)}
# The milliseconds of each repeat of WORK.
TIMED = """(async () => {
  const network = await vitreous.starting, size = vitreous.data.settings.size, times = [];
  const pixels = new Uint8Array(size * size * 3).map((_, i) => (i * 7919) % 256);
  const photo = new Blob([fromBase64(PHOTO)]);
  const plain = makeNetwork(vitreous.data.model, fromBase64(document.getElementById("weights").textContent), false);
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    const start = performance.now();
    await WORK;
    times.push(performance.now() - start);
  }
  return times;
})()"""
PREDICT = "network.ask({ task: 'predict', pixels })"
PREDICT_WITHOUT_SIMD = "plain.probabilities(pixels)"
READ = "vitreous.classify(photo)"
HEAT = "network.ask({ task: 'heat', pixels, chosen: 0, size })"


def make_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)


def main() -> None:
    make_parser().parse_args()
    state = record.state()
    figures: dict[str, Any] = {}
    photo = photo_of(4000, 3000)
    versions = {"vitreous": vitreous.__version__, "pillow": PIL.__version__}
    for name, (size, patch, stride) in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = figures[name] = export(Path(folder), size, patch, stride)
            url = (Path(folder) / html.PAGE).as_uri()
            for program, opened in (("Chromium", chromium), ("Firefox", firefox)):
                if (CHROMIUM if program == "Chromium" else FIREFOX) is None:
                    continue
                with opened() as browser:
                    found[program] = measure(browser, url, photo)
                    agent = browser.run("navigator.userAgent")
                versions[program] = html._name_of(agent)
            print(name, json.dumps(found, indent=1), flush=True)
    record.add(
        "html-speed",
        study="export",
        arm="html",
        command=record.this_command("html_speed.py"),
        data="random weights",
        path="headless browsers",
        machine={"name": platform.machine(), "instruction_sets": instruction_sets()},
        versions=versions,
        figures=figures,
        source_state=state,
        replace=True,
    )


def export(folder: Path, size: int, patch: int, stride: int) -> dict[str, Any]:
    torch.manual_seed(0)
    changes = {"patch_size": patch, "stem_stride": stride, **WIDTHS}
    model = create_model("compact", image_size=size, num_classes=10, **changes).eval()
    bundle = Bundle(model, tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3, Preprocess(size))
    html.write(Material(bundle, None), folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "bytes": (folder / html.PAGE).stat().st_size}


def measure(browser: Any, url: str, photo: str) -> dict[str, Any]:
    start = time.perf_counter()
    browser.open(url)
    browser.wait_for("document.getElementById('check').className !== 'check'")
    opening = time.perf_counter() - start
    assert "20 of 20" in browser.run("document.getElementById('check').textContent")

    def timed(work: str, repeats: int) -> float:
        script = (
            TIMED.replace("PHOTO", json.dumps(photo)).replace("WORK", work).replace("REPEATS", str(repeats))
        )
        return round(statistics.median(browser.run(script)), 1)

    return {
        "open_and_check_seconds": round(opening, 2),
        "prediction_ms": timed(PREDICT, 50),
        "prediction_without_simd_ms": timed(PREDICT_WITHOUT_SIMD, 20),
        "photo_ms": timed(READ, 3),
        "heat_map_ms": timed(HEAT, 3),
    }


def photo_of(width: int, height: int) -> str:
    """A smooth random JPEG, in base64."""
    coarse = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    main()
