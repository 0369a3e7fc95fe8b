"""Times `vitreous predict` on image files against decoding the same files with Pillow alone.

    python benchmarks/predict_speed.py                   # under four minutes; adds the record predict-speed
    python benchmarks/predict_speed.py --repeats 1 --no-record

Three folders are made: PNG files of 32×32 pixels, and JPEG photographs of 3 and of 12 megapixels. The networks are
those of five minutes on CIFAR-10 (32 pixels) and on photographs (64 pixels), with random weights. Each repeat runs, one
after the other and each in a process of its own:

- `predict`: the command on a folder, from the listing of the folder to the last answer, with CSV to nowhere;
- `decode`: as many threads as predict uses, each of which reads a file and decodes it to RGB with Pillow;
- `resize`: the same, and Pillow's exact resize of the central square, which the network needs whoever decodes;
- `first`: the whole command on one small file, from its start to its end, with the kernels compiled before.

The record holds medians over the repeats, the smallest and largest value, and the median of the ratio within a repeat.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDERS = {"small": (4000, (32, 32)), "photo3": (200, (2048, 1536)), "photo12": (60, (4000, 3000))}
DISTINCT = 8  # photographs that are drawn; the others are links to them
MODES = ("predict", "decode", "resize")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=4, metavar="N")
    parser.add_argument(
        "--share", type=float, default=1.0, metavar="X", help="of the files, for a short look"
    )
    parser.add_argument("--no-record", action="store_true", help="only print the figures")
    parser.add_argument("--replace", action="store_true", help="replace a record that another command made")
    parser.add_argument(
        "--run", nargs=3, help=argparse.SUPPRESS
    )  # mode, folder and bundle, in an own process
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if args.run:
        mode, folder, bundle = args.run
        print(json.dumps(measure(mode, Path(folder), Path(bundle))))
        return
    from record import state

    source_state = state()
    with tempfile.TemporaryDirectory() as place:
        figures = summarize(compare(Path(place), args.repeats, args.share))
    print(json.dumps(figures, indent=1))
    if not args.no_record:
        write_record(figures, source_state, args.replace)


def compare(place: Path, repeats: int, share: float) -> dict[str, list[float]]:
    """Images per second of each folder and mode, as "small predict", and the seconds of the "first" answer."""
    for name, (number, size) in FOLDERS.items():
        make_files(place / name, max(1, round(number * share)), size)
    bundles = {name: make_bundle(place / f"bundle-{name}", 32 if name == "small" else 64) for name in FOLDERS}
    results: dict[str, list[float]] = {"first": []}
    for repeat in range(repeats + 1):  # the first, which warms the caches, does not count
        for name in FOLDERS:
            for mode in MODES if repeat % 2 else MODES[::-1]:
                rate = own_process("--run", mode, str(place / name), str(bundles[name]))
                if repeat:
                    results.setdefault(f"{name} {mode}", []).append(rate)
        start = time.perf_counter()
        words = ("predict", str(bundles["small"]), str(place / "small" / "0.png"))
        subprocess.run([sys.executable, "-m", "vitreous", *words], check=True, capture_output=True)
        if repeat:
            results["first"].append(time.perf_counter() - start)
    return results


def own_process(*words: str) -> float:
    done = subprocess.run(
        [sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return float(done.stdout)


def make_files(root: Path, number: int, size: tuple[int, int]) -> None:
    """Smooth random images with fine noise, so that files have the sizes of real ones."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    small = max(size) <= 64
    for i in range(number):
        file = root / f"{i}.{'png' if small else 'jpg'}"
        if not small and i >= DISTINCT:
            os.link(root / f"{i % DISTINCT}.jpg", file)
            continue
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
        pixels = pixels + rng.integers(-8, 9, pixels.shape, dtype=np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=88)


def make_bundle(path: Path, side: int) -> Path:
    import torch

    from vitreous.bundle import Bundle, save_bundle
    from vitreous.model.variants import Architecture
    from vitreous.model.vit import VisionTransformer
    from vitreous.preprocess import Preprocess

    torch.manual_seed(0)
    architecture = Architecture(
        side // 8, 128, 4, 2, 256, stem="conv", stem_dims=(40, 128), pool="attention", qk_norm=True
    )
    model = VisionTransformer(architecture, side, 10)
    model.init_from_data(torch.randn(100, 3, side, side))
    classes = tuple(f"class {i}" for i in range(10))
    save_bundle(Bundle(model, classes, (0.5,) * 3, (0.25,) * 3, Preprocess(side)), path)
    return path


def measure(mode: str, folder: Path, bundle: Path) -> float:
    """Images per second."""
    files = sorted(folder.iterdir())
    if mode == "predict":
        from vitreous.predict import predict

        start = time.perf_counter()
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            assert predict(bundle, [str(folder)], form="csv") == 0
    else:
        from vitreous.data.folder import WORKERS

        start = time.perf_counter()
        with ThreadPoolExecutor(WORKERS) as pool:
            assert all(pool.map(decode if mode == "decode" else resize, files))
    return len(files) / (time.perf_counter() - start)


def decode(file: Path) -> int:
    image = Image.open(BytesIO(file.read_bytes())).convert("RGB")
    return image.width


def resize(file: Path) -> int:
    image = Image.open(BytesIO(file.read_bytes())).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    network_side = 32 if side == 32 else 64
    square = image if image.width == image.height else image.crop((left, top, left + side, top + side))
    return square.resize((network_side, network_side), Image.Resampling.BICUBIC).width


def summarize(results: dict[str, list[float]]) -> dict[str, Any]:
    """Median, smallest and largest value of each measurement, and predict's share of the rate of decoding."""
    figures: dict[str, Any] = {}
    for name, values in results.items():
        key = "first_answer_seconds" if name == "first" else f"{name.replace(' ', '_')}_per_second"
        figures[key] = spread(values)
    for name in FOLDERS:
        for base in MODES[1:]:
            pairs = zip(results[f"{name} predict"], results[f"{name} {base}"], strict=True)
            figures[f"{name}_over_{base}"] = spread([ours / theirs for ours, theirs in pairs])
    return figures


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest value, to four digits."""
    named = {"median": statistics.median(values), "smallest": min(values), "largest": max(values)}
    return {name: float(f"{value:.4g}") for name, value in named.items()}


def write_record(figures: dict[str, Any], source_state: dict[str, Any], replace: bool) -> None:
    import PIL
    import torch
    from record import add, this_command

    from vitreous.machine import instruction_sets, processor

    add(
        "predict-speed",
        study="speed",
        arm="predict",
        command=this_command("predict_speed.py"),
        path="native, float32",
        machine={"name": processor(), "threads": os.cpu_count(), "instruction_sets": instruction_sets()},
        versions={"torch": torch.__version__, "pillow": PIL.__version__},
        figures=figures,
        source_state=source_state,
        replace=replace,
    )


if __name__ == "__main__":
    main()
